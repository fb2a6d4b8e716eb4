"""What all routes have in common: contract 03 §2 and §2.1."""

from __future__ import annotations

import re
import uuid
from typing import Any

import msgspec
import pytest

from tests.component.http.logs import LogLines
from tests.component.http.raw import connect, request_text
from tests.component.http.world import JSON, World, configure_body, open_world
from trio_compute.lifecycle.status import Status

MEBIBYTE = 1024 * 1024


class TestPathsAndMethods:
    @pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS"])
    @pytest.mark.parametrize(
        "path", ["//", "/nowhere", "/status/", "/configure/", "/terminate/", "//status", "/STATUS", "/index.html"]
    )
    async def test_an_unknown_path_is_404_without_a_body(self, method: str, path: str) -> None:
        """§2: 404, empty body, no auth needed; a trailing slash makes a path unknown."""
        async with open_world() as world, world.client(None) as client:
            # Spelled out: a client takes what follows two slashes for a host.
            response = await client.request(method, f"http://127.0.0.1:{world.port}{path}")
            assert (response.status_code, response.content) == (404, b"")
            assert "location" not in response.headers

    @pytest.mark.parametrize(
        ("method", "path", "allowed"),
        [
            ("POST", "/status", {"GET", "HEAD"}),
            ("DELETE", "/metrics.json", {"GET", "HEAD"}),
            ("OPTIONS", "/status", {"GET", "HEAD"}),
            ("GET", "/configure", {"POST"}),
            ("HEAD", "/configure", {"POST"}),
            ("OPTIONS", "/configure", {"POST"}),
            ("PUT", "/terminate", {"POST"}),
        ],
    )
    async def test_a_wrong_method_is_405_and_says_what_is_allowed(
        self, method: str, path: str, allowed: set[str]
    ) -> None:
        """§2: 405, empty body, header `allow`, no auth needed."""
        async with open_world() as world, world.client(None) as client:
            response = await client.request(method, path)
            assert (response.status_code, response.content) == (405, b"")
            assert set(response.headers["allow"].split(",")) == allowed

    @pytest.mark.parametrize("path", ["/status", "/metrics.json"])
    async def test_head_is_get_without_the_body(self, path: str) -> None:
        """§2: HEAD works wherever GET does."""
        async with open_world() as world, world.client() as client:
            got, head = await client.get(path), await client.head(path)
            assert (head.status_code, head.content) == (200, b"")
            for name in ("content-type", "content-length"):
                assert head.headers[name] == got.headers[name]

    async def test_head_needs_a_token_where_get_does(self) -> None:
        async with open_world() as world, world.client(None) as client:
            assert (await client.head("/status")).status_code == 400

    async def test_a_path_in_absolute_form_is_understood(self) -> None:
        """RFC 9112 §3.2.2, which the original's server follows too."""
        async with open_world() as world, connect(world.port) as raw:
            await raw.send(request_text("GET", f"http://localhost:{world.port}/status"))
            assert (await raw.answer()).status == 200

    async def test_foreign_query_keys_are_ignored(self) -> None:
        """§2.1, A-12."""
        async with open_world() as world, world.client() as client:
            assert (await client.get("/status?verbose=1&x")).status_code == 200

    async def test_successful_bodies_are_compact_json(self) -> None:
        """§2: `content-type: application/json`, compact."""
        async with open_world() as world, world.client() as client:
            for path in ("/status", "/metrics.json"):
                response = await client.get(path)
                assert response.headers["content-type"] == "application/json"
                assert response.content == msgspec.json.encode(response.json())


class TestRequestId:
    PROBES = (
        ("GET", "/status", True, 200),
        ("HEAD", "/status", True, 200),
        ("GET", "/status", False, 400),
        ("GET", "/nowhere", False, 404),
        ("DELETE", "/status", False, 405),
        ("POST", "/configure", True, 415),
        ("POST", "/terminate?mode=x", True, 400),
    )

    @pytest.mark.parametrize(("method", "path", "token", "status"), PROBES)
    async def test_every_answer_echoes_the_request_id(self, method: str, path: str, token: bool, status: int) -> None:
        """§2: on every response incl. 4xx."""
        async with open_world() as world, world.client(**({} if token else {"token": None})) as client:
            response = await client.request(method, path, headers={"x-request-id": "abc-123"})
            assert response.status_code == status
            assert response.headers.get_list("x-request-id") == ["abc-123"]

    async def test_an_absent_id_is_replaced_by_a_random_uuid(self) -> None:
        """§2: else new UUIDv4."""
        async with open_world() as world, world.client() as client:
            ids = [(await client.get("/status")).headers["x-request-id"] for _ in range(2)]
            assert [uuid.UUID(text).version for text in ids] == [4, 4]
            assert ids[0] != ids[1]

    @pytest.mark.parametrize(
        ("sent", "kept"),
        [(b"x" * 128, True), (b"x" * 129, False), (b"", False), ("ü".encode(), False), ("ü".encode("latin-1"), False)],
    )
    async def test_an_unusable_id_is_replaced(self, sent: bytes, kept: bool) -> None:
        """§2, A-04: non-ASCII or more than 128 characters; the original dropped the connection."""
        async with open_world() as world, world.client() as client:
            response = await client.get("/status", headers={b"x-request-id": sent})
            assert response.status_code == 200
            if kept:
                assert response.headers["x-request-id"].encode() == sent
            else:
                assert uuid.UUID(response.headers["x-request-id"]).version == 4


class TestLog:
    async def test_a_request_is_one_info_line(self, log_lines: LogLines) -> None:
        """§2: id, method, URI, status, latency; the substring that test suites look for."""
        async with open_world() as world, world.client() as client:
            await client.post("/configure?x=1", headers={"x-request-id": "abc-123"})
            await client.get("/status")
        (line,) = log_lines.with_text("request{method=POST uri=/configure")
        assert re.search(r" INFO .*uri=/configure\?x=1 .*abc-123.* code=415 latency_ms=[\d.]+", line)
        assert len(log_lines.with_text("request{method=GET uri=/status")) == 1

    async def test_every_error_is_logged_with_its_text(self, log_lines: LogLines) -> None:
        """§2: every error is also logged."""
        async with open_world() as world, world.client() as client:
            await client.post("/configure", headers={"x-request-id": "first"})
            await client.get("/status", headers={"authorization": "none", "x-request-id": "second"})
        (line,) = log_lines.with_text("expected request with `content-type: application/json`")
        assert "first" in line
        (line,) = log_lines.with_text("invalid authorization token")
        assert "second" in line


async def post(world: World, body: Any, content_type: str | None = "application/json") -> tuple[int, str]:
    async with world.client() as client:
        headers = {} if content_type is None else {"content-type": content_type}
        response = await client.post("/configure", content=body, headers=headers)
        assert response.headers["content-type"] == "application/json"
        return response.status_code, response.json()["error"]


class TestBodies:
    @pytest.mark.parametrize(
        "content_type",
        [
            None,
            "",
            "text/plain",
            "text/json",
            "application/jsonx",
            "application/x-www-form-urlencoded",
            "json",
            "+json",
        ],
    )
    async def test_another_content_type_is_415(self, content_type: str | None) -> None:
        """§2.1: JSON route without `application/json` or `application/*+json`."""
        async with open_world() as world:
            verdict = await post(world, configure_body(), content_type)
            assert verdict == (415, "expected request with `content-type: application/json`")

    @pytest.mark.parametrize(
        "content_type",
        ["application/json", "application/json; charset=utf-8", "APPLICATION/JSON", "application/vnd.neon.v1+json"],
    )
    async def test_any_json_content_type_will_do(self, content_type: str) -> None:
        """§2.1; an empty object is of the wrong shape, so the type was accepted."""
        async with open_world() as world:
            assert (await post(world, b"{}", content_type))[0] == 422

    @pytest.mark.parametrize(
        "body",
        [
            b"",
            b"{",
            configure_body()[:-1],
            b"nonsense",
            configure_body() + b"x",
            b"'",
            configure_body(operation_uuid="?").replace(b"?", b"\xff"),
            b"\x00",
            b'{"compute_ctl_config": ' + b"[" * 100_000,
        ],
        ids=lambda body: repr(body[:20]),
    )
    async def test_what_is_no_json_is_400(self, body: bytes) -> None:
        """§2.1: malformed or truncated JSON."""
        async with open_world() as world:
            status, text = await post(world, body)
            assert status == 400
            assert text.startswith("failed to parse the request body as json: ")

    @pytest.mark.parametrize(
        ("body", "path"),
        [
            (b"[]", "$"),
            (b"null", "$"),
            (b"{}", "$"),
            (b'{"spec": null}', "$.spec"),
            (configure_body(cluster=...), "$.spec"),
            (configure_body(tenant_id="short"), "$.spec.tenant_id"),
            (configure_body(mode="Secondary"), "$.spec.mode"),
            (configure_body(mode={"Static": "no lsn"}), "$.spec.mode"),
            (configure_body(suspend_timeout_seconds=1.5), "$.spec.suspend_timeout_seconds"),
            (configure_body(features=None), "$.spec.features"),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    async def test_json_of_another_shape_is_422(self, body: bytes, path: str) -> None:
        """§2.1: wrong shape, missing field, bad id, LSN or enum; the path of the fault is told."""
        async with open_world() as world:
            status, text = await post(world, body)
            assert status == 422
            assert text.startswith(f"failed to deserialize the json body into the target type: {path}")

    async def test_a_field_name_keeps_its_case(self) -> None:
        """A-25: identifiers as sent, only the prefix in lower case."""
        async with open_world() as world:
            _, text = await post(world, configure_body(mode={"Static": 5}))
            assert "Static" in text

    async def test_foreign_keys_of_a_body_are_ignored(self) -> None:
        """Contract 01 §4: unknown keys are ignored at every level; the verdict here is that of the status."""
        async with open_world(Status.INIT) as world:
            body = msgspec.json.decode(configure_body(timestamp=1, cluster={"roles": [], "databases": [], "x": 1}))
            assert (await post(world, msgspec.json.encode({**body, "y": {}})))[0] == 412


class TestBodyLimit:
    TOO_LARGE = (413, "failed to buffer the request body: length limit exceeded")

    @pytest.mark.parametrize("mebibytes", [3, 17, 32])
    async def test_configure_takes_32_mebibytes(self, mebibytes: int) -> None:
        """§2, A-13: 32 MiB for `/configure`, where the original had 2."""
        async with open_world(Status.INIT) as world:
            body = configure_body().ljust(mebibytes * MEBIBYTE)
            assert (await post(world, body))[0] == 412

    @pytest.mark.parametrize("announced", [True, False])
    async def test_one_byte_more_is_413(self, announced: bool) -> None:
        """§2.1: too large; the limit holds for what arrives, not only for what is announced."""
        body = configure_body().ljust(32 * MEBIBYTE + 1)
        framing = {"content-length": str(len(body))} if announced else {"transfer-encoding": "chunked"}
        async with open_world(Status.INIT) as world, connect(world.port) as raw:
            await raw.send(request_text("POST", "/configure", headers={**JSON, **framing}))
            await raw.send_what_it_takes(body if announced else b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body))
            answer = await raw.answer(to="POST")
            assert (answer.status, msgspec.json.decode(answer.body)["error"]) == self.TOO_LARGE

    async def test_an_announced_length_beyond_the_limit_is_refused_before_it_arrives(self) -> None:
        async with open_world() as world, connect(world.port) as raw:
            headers = {**JSON, "content-length": str(100 * 1024 * MEBIBYTE)}
            await raw.send(request_text("POST", "/configure", headers=headers))
            assert (await raw.answer(to="POST")).status == 413
