"""From the text after the question mark to a validated struct (contract 03 §2.1, A-12)."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qsl

import msgspec
from msgspec import Struct

from trio_compute.http.problems import Problem
from trio_compute.model.decode import located


def parse_query(text: bytes, kind: type[Struct] | None) -> Any:
    """Return the parameters as an instance of `kind`, ignoring unknown ones; raise Problem 400 naming the bad one."""
    if kind is None:
        return None
    try:
        given = dict(parse_qsl(text.decode("latin-1"), keep_blank_values=True, errors="strict"))
        query = msgspec.convert(given, kind, strict=False)
    except msgspec.ValidationError as error:
        problem = located(error)
        rule = problem.args[0].replace("Object missing required field", "missing field")
        name = problem.path.removeprefix("$").lstrip(".")
        where = f"`{name}`: " if name else ""
        raise Problem(400, f"failed to deserialize query string: {where}{rule}") from None
    except ValueError:
        raise Problem(400, "failed to deserialize query string: it is not percent-encoded UTF-8") from None
    for name in given:
        # The library reads the text `null` as "not given"; who writes it means something else, or nothing.
        if getattr(query, name, given) is None:
            raise Problem(400, f"failed to deserialize query string: `{name}`: there is no null in a query string")
    return query
