"""GET / and GET /spans of the external server: our own additions (issue 5)."""

from __future__ import annotations

import re

import pytest

from tests.component.http.world import open_world
from tests.fakes import specs
from trio_compute.lifecycle.status import Status


class TestPage:
    @pytest.mark.parametrize("token", [None, "nonsense"])
    async def test_it_needs_no_token(self, token: str | None) -> None:
        async with open_world() as world, world.client(token) as client:
            response = await client.get("/")
            assert (response.status_code, response.headers["content-type"]) == (200, "text/html; charset=utf-8")
            assert response.text.startswith("<!doctype html>")

    async def test_head_is_get_without_the_body(self) -> None:
        async with open_world() as world, world.client(None) as client:
            got, head = await client.get("/"), await client.head("/")
            assert (head.status_code, head.content) == (200, b"")
            mine = {"x-request-id", "date"}
            assert {**head.headers, **dict.fromkeys(mine)} == {**got.headers, **dict.fromkeys(mine)}

    async def test_another_method_is_405(self) -> None:
        async with open_world() as world, world.client(None) as client:
            response = await client.post("/")
            assert (response.status_code, response.headers["allow"]) == (405, "GET,HEAD")

    async def test_its_headers_keep_it_to_itself(self) -> None:
        async with open_world() as world, world.client(None) as client:
            headers = (await client.get("/")).headers
        assert headers["cache-control"] == "no-store"
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"
        assert headers["referrer-policy"] == "no-referrer"
        policy = headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'sha256-")
        assert "connect-src 'self'" in policy
        assert "unsafe" not in policy
        assert "http" not in policy

    async def test_it_names_no_other_place(self) -> None:
        """No CDN; the name of a namespace is never fetched."""
        async with open_world() as world, world.client(None) as client:
            text = (await client.get("/")).text
        assert set(re.findall(r"https?://[^\s\"'<>]+", text)) == {"http://www.w3.org/2000/svg"}
        assert all(value.startswith("data:") for value in re.findall(r"""\b(?:src|href)=["']?([^"'\s>]+)""", text))
        assert "@import" not in text
        assert "url(" not in text

    async def test_it_is_the_same_whatever_the_compute_is_and_does(self) -> None:
        """It holds no data, so nobody needs a token for it."""
        pages = []
        for status in (Status.EMPTY, Status.RUNNING, Status.FAILED):
            async with open_world(status) as world, world.client(None) as client:
                pages.append((await client.get("/")).text)
        assert len(set(pages)) == 1
        assert specs.TENANT not in pages[0]

    async def test_the_internal_server_has_none(self) -> None:
        async with open_world() as world, world.client(None, internal=True) as client:
            assert (await client.get("/")).status_code == 404


class TestSpans:
    async def test_the_external_server_wants_a_token(self) -> None:
        async with open_world() as world, world.client(None) as client:
            assert (await client.get("/spans")).status_code == 400

    async def test_both_servers_tell_the_same(self) -> None:
        async with open_world() as world, world.client() as client, world.client(None, internal=True) as inside:
            with world.compute.spans.measure("get_basebackup"):
                world.compute.spans.add("basebackup.connect", start_seconds=world.compute.spans.now())
            outer, inner = (await client.get("/spans")).json(), (await inside.get("/spans")).json()
        assert outer == inner
        assert [(span["name"], span["parent"]) for span in outer] == [
            ("get_basebackup", None),
            ("basebackup.connect", "get_basebackup"),
        ]
