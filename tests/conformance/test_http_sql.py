"""The routes that speak SQL: contract 03 §5.5, §6, A-08, A-15, A-17; 06 R-06, R-09, R-10, R-14, R-15."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest
import trio

from tests.component.http.logs import LogLines
from tests.component.http.world import JSON, PATIENCE_SECONDS, World, open_world, stands
from trio_compute.errors import Conflicting, NotFound, PostgresError, SqlFailed, TimedOut
from trio_compute.lifecycle.status import Status
from trio_compute.model.responses import CatalogDatabase, CatalogResponse, CatalogRole
from trio_compute.telemetry.metrics import WRITES_REFUSED_BY_FULL_DISK, metrics

EXTENSION = {"extension": "pg_session_jwt", "database": "neondb", "version": "0.3.1"}
GRANT = {"database": "neondb", "schema": "auth", "privileges": ["USAGE"], "role": "authenticator"}
# Path, method, whether it is on the internal server, body, port of the host.
ROUTES = {
    "/check_writability": ("POST", False, None, "check_writability"),
    "/insights": ("GET", False, None, "collect_insights"),
    "/dbs_and_roles": ("GET", False, None, "list_catalog"),
    "/extensions": ("POST", True, EXTENSION, "install_extension"),
    "/grants": ("POST", True, GRANT, "grant_on_schema"),
}
POSTGRES_UP = (
    *(Status.RUNNING, Status.CONFIGURATION_PENDING, Status.CONFIGURATION),
    *(Status.REFRESH_CONFIGURATION_PENDING, Status.REFRESH_CONFIGURATION),
)


async def ask(world: World, path: str, body: Any = ..., **options: Any) -> httpx.Response:
    method, is_internal, usual, _ = ROUTES[path]
    sent = usual if body is ... else body
    async with world.client(internal=is_internal, **options) as client:
        return await client.request(method, path, **({} if sent is None else {"json": sent}))


def fail(world: World, path: str, error: Exception) -> None:
    world.host.failures[ROUTES[path][3]] = [error]


@pytest.mark.parametrize("path", ROUTES)
async def test_errors_of_postgres_are_500_and_end_in_its_text(path: str) -> None:
    async with open_world() as world:
        fail(world, path, SqlFailed("it is broken", "XX000"))
        response = await ask(world, path)
        assert response.status_code == 500
        assert response.json()["error"].endswith("it is broken")


@pytest.mark.parametrize("path", ROUTES)
async def test_what_takes_too_long_is_504(path: str) -> None:
    """A-15."""
    async with open_world() as world:
        fail(world, path, TimedOut())
        response = await ask(world, path)
        assert (response.status_code, response.json()) == (504, {"error": "timed out"})


@pytest.mark.parametrize("path", ROUTES)
async def test_the_work_goes_on_when_the_client_leaves(path: str) -> None:
    """§2: started work goes on."""
    async with open_world() as world:
        world.host.slow[ROUTES[path][3]] = 0.3
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, world, path)
            await stands(lambda: bool(world.host.calls))
            nursery.cancel_scope.cancel()
        async with world.client() as client:
            assert (await client.get("/status")).status_code == 200
        assert world.host.calls == [ROUTES[path][3]]


@pytest.mark.parametrize("path", ROUTES)
async def test_the_end_of_the_compute_is_not_held_up_and_answered_with_503(path: str) -> None:
    """The work is a child of the life of the compute: draining does not wait for it."""
    answers: list[httpx.Response] = []
    with trio.fail_after(PATIENCE_SECONDS):
        async with open_world() as world:
            world.host.slow[ROUTES[path][3]] = 3600
            async with trio.open_nursery() as nursery:

                async def wait() -> None:
                    answers.append(await ask(world, path))

                nursery.start_soon(wait)
                await stands(lambda: bool(world.host.calls))
                world.end_errands()
    assert [(answer.status_code, answer.json()) for answer in answers] == [(503, {"error": "compute is terminating"})]


@pytest.mark.parametrize("path", [path for path, route in ROUTES.items() if not route[1]])
async def test_the_external_routes_want_a_token(path: str) -> None:
    async with open_world() as world:
        assert (await ask(world, path, token=None)).status_code == 400
        assert world.host.calls == []


@pytest.mark.parametrize("path", [path for path, route in ROUTES.items() if route[1]])
async def test_the_internal_routes_are_not_on_the_external_server(path: str) -> None:
    async with open_world() as world, world.client() as client:
        assert (await client.post(path, json=ROUTES[path][2])).status_code == 404


@pytest.mark.parametrize("status", [status for status in Status if status not in POSTGRES_UP])
@pytest.mark.parametrize("path", ROUTES)
async def test_nobody_is_asked_while_postgres_cannot_be_up(path: str, status: Status) -> None:
    """§5.5, R-10: 412 instead of 500 or a hang."""
    async with open_world(status) as world:
        response = await ask(world, path)
        assert (response.status_code, response.json()) == (412, {"error": f"invalid compute status: {status.kebab}"})
        assert world.host.calls == []


@pytest.mark.parametrize("status", [*POSTGRES_UP, Status.FAILED])
@pytest.mark.parametrize("path", ROUTES)
async def test_whoever_needs_sql_alone_gets_it_whatever_became_of_the_last_apply(path: str, status: Status) -> None:
    """T-09: /grants, /extensions and /check_writability were 412 after a failed apply, which a tenant can cause."""
    async with open_world(status) as world:
        world.compute.postgres_running = True
        assert (await ask(world, path)).is_success
        assert world.host.calls == [ROUTES[path][3]]


async def test_a_good_write_check_answers_true() -> None:
    async with open_world() as world:
        response = await ask(world, "/check_writability")
        assert (response.status_code, response.content) == (200, b"true")
        assert response.headers["content-type"] == "application/json"


async def test_a_full_disk_is_answered_with_true_and_counted() -> None:
    """R-09."""
    async with open_world() as world:
        world.host.has_room = False
        before = metrics.value(WRITES_REFUSED_BY_FULL_DISK)
        response = await ask(world, "/check_writability")
        assert (response.status_code, response.content) == (200, b"true")
        assert metrics.value(WRITES_REFUSED_BY_FULL_DISK) == before + 1
        async with world.client() as client:
            assert f"{WRITES_REFUSED_BY_FULL_DISK} {before + 1}" in (await client.get("/metrics")).text


@pytest.mark.parametrize("rows", [[], [{"query": "SELECT $1", "calls": 3, "queryid": -(2**62)}]])
async def test_insights_are_one_json_object(rows: list[dict[str, Any]]) -> None:
    """R-06: encoded once, also when there are none."""
    async with open_world() as world:
        world.host.insights = rows
        assert (await ask(world, "/insights")).json() == {"pg_stat_statements": rows}


async def test_the_listing_has_the_shape_of_the_contract() -> None:
    """06 §5."""
    async with open_world() as world:
        world.host.listing = CatalogResponse(
            [CatalogRole("a", "md5x"), CatalogRole("b")], [CatalogDatabase("d", "a", restrict_conn=True, invalid=False)]
        )
        assert (await ask(world, "/dbs_and_roles")).json() == {
            "roles": [
                {"name": "a", "encrypted_password": "md5x", "options": None},
                {"name": "b", "encrypted_password": None, "options": None},
            ],
            "databases": [{"name": "d", "owner": "a", "options": None, "restrict_conn": True, "invalid": False}],
        }


async def test_password_hashes_are_never_logged(log_lines: LogLines) -> None:
    """A-08."""
    async with open_world() as world:
        world.host.listing = CatalogResponse([CatalogRole("a", "md5" + "e" * 32)], [])
        await ask(world, "/dbs_and_roles")
    assert log_lines.with_text("/dbs_and_roles")
    assert not log_lines.with_text("e" * 32)


async def test_an_installation_answers_201_with_what_was_asked_for() -> None:
    async with open_world() as world:
        response = await ask(world, "/extensions")
        assert (response.status_code, response.json()) == (201, {"extension": "pg_session_jwt", "version": "0.3.1"})
        assert world.host.asked == [("neondb", "pg_session_jwt", "0.3.1")]


async def test_a_grant_answers_201_with_what_was_asked_for() -> None:
    async with open_world() as world:
        response = await ask(world, "/grants", {**GRANT, "privileges": ["CREATE", "USAGE"]})
        assert (response.status_code, response.json()) == (201, {**GRANT, "privileges": ["CREATE", "USAGE"]})
        assert world.host.asked == [("neondb", "auth", "authenticator", ("CREATE", "USAGE"))]


@pytest.mark.parametrize(
    ("path", "prefix"),
    [
        ("/extensions", "failed to install extension: "),
        ("/grants", "failed to grant role privileges to the schema: "),
    ],
)
@pytest.mark.parametrize(
    ("make", "code"),
    [(NotFound, 404), (Conflicting, 409), (PostgresError, 500), (lambda text: SqlFailed(text, None), 500)],
)
async def test_what_cannot_be_done_is_told_by_code_and_text(
    path: str, prefix: str, make: Callable[[str], Exception], code: int
) -> None:
    """R-14, R-15."""
    async with open_world() as world:
        fail(world, path, make("no such thing"))
        response = await ask(world, path)
        assert (response.status_code, response.json()) == (code, {"error": prefix + "no such thing"})


@pytest.mark.parametrize("name", ["", "nul\0", "x" * 64, "é" * 32])
@pytest.mark.parametrize(
    ("path", "field"),
    [
        *(("/extensions", field) for field in EXTENSION),
        *(("/grants", field) for field in ("database", "schema", "role")),
    ],
)
async def test_names_that_postgres_would_cut_or_refuse_are_400(path: str, field: str, name: str) -> None:
    """A-17."""
    async with open_world() as world:
        response = await ask(world, path, {**ROUTES[path][2], field: name})  # type: ignore[dict-item]
        assert response.status_code == 400
        assert response.json()["error"].startswith(field)
        assert world.host.asked == []


async def test_names_of_sixty_three_bytes_pass() -> None:
    async with open_world() as world:
        names = {"database": "é" * 31 + "x", "schema": "x" * 63, "role": "\n\"'"}
        assert (await ask(world, "/grants", {**GRANT, **names})).status_code == 201
        assert world.host.asked == [(names["database"], names["schema"], names["role"], ("USAGE",))]


@pytest.mark.parametrize(
    "privilege",
    ["SELECT", "INSERT", "UPDATE", "DELETE", "TRUNCATE", "REFERENCES", "TRIGGER", "CONNECT", "TEMPORARY", "EXECUTE"],
)
async def test_privileges_that_mean_nothing_on_a_schema_are_400(privilege: str) -> None:
    """R-15."""
    async with open_world() as world:
        response = await ask(world, "/grants", {**GRANT, "privileges": ["USAGE", privilege]})
        assert response.status_code == 400
        assert privilege in response.json()["error"]
        assert world.host.asked == []


async def test_an_empty_list_of_privileges_is_400() -> None:
    """R-15."""
    async with open_world() as world:
        assert (await ask(world, "/grants", {**GRANT, "privileges": []})).status_code == 400


@pytest.mark.parametrize("privilege", ["usage", "ALL", "", 1, None])
async def test_an_unknown_privilege_is_422(privilege: Any) -> None:
    """03 §6."""
    async with open_world() as world:
        assert (await ask(world, "/grants", {**GRANT, "privileges": [privilege]})).status_code == 422


@pytest.mark.parametrize("path", ["/extensions", "/grants"])
async def test_a_body_that_is_none_is_refused(path: str) -> None:
    """03 §2.1."""
    async with open_world() as world, world.client(internal=True) as client:
        assert (await client.post(path, content=b"{", headers=JSON)).status_code == 400
        assert (await client.post(path, content=b"{}", headers=JSON)).status_code == 422
        assert (await client.post(path, content=b"{}")).status_code == 415
