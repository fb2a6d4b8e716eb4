"""Anonymous blocks: SQL that is made on the server runs there and is never decoded (contract 11 T-06)."""

from __future__ import annotations

from trio_compute.plan.catalog.quoting import dollar_quoted

NOTABLE = "01TC0"  # the SQLSTATE of a warning that people should read


def block(body: str, *declarations: str) -> str:
    """Return a block of plpgsql; everything in it has to be qualified, as in every statement of ours."""
    declared = "".join(f"    {line};\n" for line in declarations)
    declared = f"DECLARE\n{declared}" if declared else ""
    text = f"\n#variable_conflict use_column\n{declared}BEGIN\n{body}\nEND\n"
    return f"DO LANGUAGE plpgsql {dollar_quoted(text)[0]}"


def briefly(body: str) -> str:
    """Return a block that gives up when it has to wait for a lock: for work that can be left for another time."""
    return block(f"    PERFORM pg_catalog.set_config('lock_timeout', '1s', true);\n{body}")


def run_all(query: str, *, before: str = "") -> str:
    """Return a block that runs what a query yields, in its order and in one transaction."""
    return block(f"    {before}{each_of(query)}", "command pg_catalog.text")


def each_of(query: str) -> str:
    """Return the loop of such a block, which wants a variable `command`."""
    return f"FOREACH command IN ARRAY ARRAY({query}) LOOP\n        EXECUTE command;\n    END LOOP;"


def warning(message: str, *values: str) -> str:
    """Return the statement that warns, with `%` in the message for each value, an expression."""
    arguments = "".join(f", {value}" for value in values)
    return f"RAISE WARNING USING ERRCODE = '{NOTABLE}', MESSAGE = pg_catalog.format('{message}'{arguments});"
