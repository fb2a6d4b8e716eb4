"""POST /configure: contract 03 §5.1, 02 §7."""

from __future__ import annotations

from typing import Any

import httpx
import msgspec
import pytest
import trio
import trio.testing

from tests.component.http.logs import LogLines
from tests.component.http.raw import connect, request_text
from tests.component.http.world import JSON, World, configure_body, open_world
from tests.fakes import specs
from trio_compute.lifecycle import events as ev
from trio_compute.lifecycle.ending import Ending
from trio_compute.lifecycle.status import Status
from trio_compute.services.apply_queue import Job, Rejected, Succeeded

UNAVAILABLE = (503, "compute is terminating")
RENAME = {"action": "rename_db", "name": "x"}
REFUSING = [
    Status.CONFIGURATION_PENDING,
    Status.INIT,
    Status.CONFIGURATION,
    Status.REFRESH_CONFIGURATION_PENDING,
    Status.REFRESH_CONFIGURATION,
    Status.TERMINATION_PENDING_FAST,
    Status.TERMINATION_PENDING_IMMEDIATE,
    Status.TERMINATED,
]


def error_of(response: httpx.Response) -> tuple[int, str]:
    assert response.headers["content-type"] == "application/json"
    assert list(response.json()) == ["error"]
    return response.status_code, response.json()["error"]


async def configure(world: World, headers: dict[str, str] | None = None, **changes: Any) -> httpx.Response:
    async with world.client() as client:
        sent = {**JSON, **(headers or {})}
        return await client.post("/configure", content=configure_body(**changes), headers=sent)


HASH = "0123456789abcdef0123456789abcdef"


class Call:
    """Hold a request under way, and what became of it."""

    def __init__(self) -> None:
        self.response: httpx.Response | None = None
        self._done = trio.Event()

    async def make(self, world: World, changes: dict[str, Any]) -> None:
        self.response = await configure(world, **changes)
        self._done.set()

    async def result(self) -> httpx.Response:
        with trio.fail_after(10):
            await self._done.wait()
        assert self.response is not None
        return self.response


def call(nursery: trio.Nursery, world: World, **changes: Any) -> Call:
    """Begin a request."""
    made = Call()
    nursery.start_soon(made.make, world, changes)
    return made


def applied(world: World, job: Job) -> None:
    world.compute.apply(ev.Applied(spec=job.spec))
    job.settle(Succeeded())


def refused(world: World, job: Job, text: str) -> None:
    world.compute.apply(ev.ApplyFailed(error=text))
    job.settle(Rejected(text))


class TestApplied:
    async def test_a_running_compute_answers_when_the_spec_is_in_force(self) -> None:
        """§5.1: blocking until running; 200 and the Status response of that moment."""
        async with open_world() as world, trio.open_nursery() as nursery:
            pending = call(nursery, world)
            job = await world.take_job()
            assert pending.response is None
            applied(world, job)
            response = await pending.result()
            assert response.status_code == 200
            async with world.client() as client:
                assert response.content == (await client.get("/status")).content
            assert response.json()["status"] == "running"

    async def test_an_empty_compute_starts_with_it(self) -> None:
        """§5.1, 02 T3, T4, T5."""
        async with open_world(Status.EMPTY) as world, trio.open_nursery() as nursery:
            pending = call(nursery, world)
            job = await world.queue.next()
            assert job is not None
            assert world.status is Status.CONFIGURATION_PENDING
            world.compute.apply(ev.StartBegan(spec=job.spec, at=world.compute.state.start_time))
            world.compute.apply(ev.Started())
            job.settle(Succeeded())
            body = (await pending.result()).json()
            assert (body["status"], body["tenant"]) == ("running", specs.TENANT)

    async def test_a_failed_compute_whose_postgres_runs_is_healed_by_it(self) -> None:
        """D-22; the error is gone with the next running, D-21."""
        async with open_world(Status.FAILED) as world, trio.open_nursery() as nursery:
            world.compute.postgres_running = True
            pending = call(nursery, world)
            applied(world, await world.take_job())
            body = (await pending.result()).json()
            assert (body["status"], body["error"]) == ("running", None)

    @pytest.mark.parametrize("second_member", [{}, {"compute_ctl_config": None}, {"compute_ctl_config": {"x": 1}}])
    async def test_the_second_member_is_ignored_and_may_be_missing(self, second_member: dict[str, Any]) -> None:
        """§5.1: ignored; missing SHOULD be tolerated."""
        async with open_world() as world, trio.open_nursery() as nursery:

            async def answer_the_job() -> None:
                applied(world, await world.take_job())

            nursery.start_soon(answer_the_job)
            async with world.client() as client:
                body = msgspec.json.encode({"spec": specs.spec_dict(operation_uuid="new"), **second_member})
                assert (await client.post("/configure", content=body, headers=JSON)).status_code == 200

    async def test_the_spec_arrives_as_it_was_sent(self) -> None:
        async with open_world() as world, trio.open_nursery() as nursery:
            pending = call(nursery, world, suspend_timeout_seconds=77)
            job = await world.take_job()
            assert job.spec.spec.suspend_timeout_seconds == 77
            applied(world, job)
            await pending.result()


class TestRefused:
    @pytest.mark.parametrize(
        ("changes", "text"),
        [
            ({"pageserver_connstring": ...}, "pageserver connection information should be provided"),
            ({"pageserver_connstring": ""}, "empty connection string"),
            ({"pageserver_connstring": "a,b"}, "2 shards but no stripe_size"),
            ({"safekeeper_connstrings": []}, "safekeeper connstrings should be provided"),
            ({"safekeeper_connstrings": ["a:1", "a:1"]}, "duplicate entry in safekeeper_connstrings: a:1!"),
            ({"tenant_id": ...}, "tenant id should be provided"),
            ({"timeline_id": ...}, "timeline id should be provided"),
            (
                {"delta_operations": [{"action": "rename_db", "name": "x"}]},
                "delta operation rename_db requires new_name",
            ),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    async def test_a_spec_that_cannot_be_derived_is_400(self, changes: dict[str, Any], text: str) -> None:
        """§5.1: 400 and the outermost message of contract 01 §9."""
        async with open_world() as world:
            assert error_of(await configure(world, **changes)) == (400, text)
            assert world.status is Status.RUNNING

    @pytest.mark.parametrize("status", [Status.EMPTY, Status.RUNNING])
    @pytest.mark.parametrize(
        ("changes", "text"),
        [
            (
                {"delta_operations": [{"action": "delete_role", "name": "neon_superuser"}]},
                "delta operation delete_role may not touch the privileged role 'neon_superuser'",
            ),
            (
                {"delta_operations": [{"action": "rename_role", "name": "a", "new_name": "neon_superuser"}]},
                "delta operation rename_role may not touch the privileged role 'neon_superuser'",
            ),
            (
                {"cluster": {"roles": [{"name": "public"}], "databases": []}},
                (
                    "$.cluster.roles[0].name: role name 'public' is reserved by Postgres (hint: choose a name that is"
                    " neither public nor none and does not begin with pg_)"
                ),
            ),
            (
                {"cluster": {"roles": [], "databases": [], "postgresql_conf": "a = 'x\0'"}},
                "postgresql.conf would hold a NUL character",
            ),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    async def test_what_can_be_known_is_refused_before_the_status_changes(
        self, status: Status, changes: dict[str, Any], text: str
    ) -> None:
        """C-16: `delete_role` of the privileged role was 500 and `failed`; T-16: so were `public` and `none`."""
        async with open_world(status) as world:
            assert error_of(await configure(world, **changes)) == (400, text)
            assert world.status is status
            assert world.host.calls == []

    async def test_what_only_a_start_needs_is_asked_of_an_empty_compute_alone(self) -> None:
        """C-16, 04 F-19: audit logs that go nowhere."""
        async with open_world(Status.EMPTY) as world:
            code, text = error_of(await configure(world, audit_log_level="Hipaa"))
            assert code == 400
            assert "AUDIT_LOGGING_ENDPOINT" in text
            assert world.status is Status.EMPTY

    @pytest.mark.parametrize("status", REFUSING)
    async def test_another_status_is_412_with_its_kebab_name(self, status: Status) -> None:
        """§5.1, §4: the storage controller looks for `refresh-configuration-pending` in this very text."""
        async with open_world(status) as world:
            kebab = status.value.replace("_", "-")
            assert error_of(await configure(world)) == (412, f"invalid compute status: {kebab}")
            assert world.status is status

    async def test_a_failed_compute_without_postgres_is_412(self) -> None:
        """D-22: allowed from failed when Postgres runs; after a failed start it does not."""
        async with open_world(Status.FAILED) as world:
            world.compute.end(Ending.START_FAILED)
            assert error_of(await configure(world)) == (412, "invalid compute status: failed")

    async def test_a_compute_whose_postgres_has_exited_is_503(self) -> None:
        """§5.1: the status is still running, yet nobody will apply anything any more (02 §10.3)."""
        async with open_world() as world:
            world.compute.end(Ending.POSTGRES_EXITED)
            assert error_of(await configure(world)) == UNAVAILABLE
            assert world.status is Status.RUNNING

    @pytest.mark.parametrize(
        ("changes", "field"),
        [
            ({"tenant_id": "0" * 32}, "tenant_id"),
            ({"timeline_id": "0" * 32}, "timeline_id"),
            ({"mode": "Replica"}, "mode"),
            ({"mode": {"Static": "0/1"}}, "mode"),
        ],
    )
    async def test_a_compute_keeps_its_identity(self, changes: dict[str, Any], field: str) -> None:
        """D-47."""
        async with open_world() as world:
            assert error_of(await configure(world, **changes)) == (400, f"cannot change {field} of a running compute")
            assert world.status is Status.RUNNING

    async def test_ids_in_upper_case_are_the_same_ids(self) -> None:
        """D-47 must not see a change where there is none."""
        async with open_world() as world, trio.open_nursery() as nursery:
            pending = call(nursery, world, tenant_id=specs.TENANT.upper())
            applied(world, await world.take_job())
            assert (await pending.result()).status_code == 200


class TestFailed:
    async def test_the_real_reason_is_told_unquoted(self) -> None:
        """§5.1, A-09: `compute configuration failed: <text>`."""
        async with open_world() as world, trio.open_nursery() as nursery:
            pending = call(nursery, world)
            refused(world, await world.take_job(), 'role "x": permission denied')
            assert error_of(await pending.result()) == (
                500,
                'compute configuration failed: role "x": permission denied',
            )

    async def test_secrets_do_not_come_back(self, log_lines: LogLines) -> None:
        """A-07: secrets neither in 500 texts nor in the log."""
        async with open_world() as world, trio.open_nursery() as nursery:
            roles = [{"name": "r", "encrypted_password": HASH}]
            cluster = {"roles": roles, "databases": []}
            pending = call(nursery, world, storage_auth_token="very-secret", cluster=cluster)
            refused(world, await world.take_job(), f"cannot use very-secret, nor {HASH}")
            status, text = error_of(await pending.result())
        assert status == 500
        for secret in ("very-secret", HASH):
            assert secret not in text
            assert not log_lines.with_text(secret)

    async def test_a_failed_first_start_is_told_too(self) -> None:
        """02 §6: the `/configure` waiter gets 500."""
        async with open_world(Status.EMPTY) as world, trio.open_nursery() as nursery:
            pending = call(nursery, world)
            job = await world.queue.next()
            assert job is not None
            world.compute.apply(ev.StartBegan(spec=job.spec, at=world.compute.state.start_time))
            world.compute.apply(ev.StartFailed(error="no basebackup"))
            job.settle(Rejected("no basebackup"))
            assert error_of(await pending.result()) == (500, "compute configuration failed: no basebackup")


class TestMeanwhile:
    @pytest.mark.parametrize("taken", [True, False])
    async def test_a_termination_ends_the_wait_with_503(self, taken: bool) -> None:
        """§5.1, D-11: compute terminates meanwhile."""
        async with open_world() as world, trio.open_nursery() as nursery:
            pending = call(nursery, world)
            await world.compute.reach(Status.CONFIGURATION_PENDING)
            if taken:
                await world.take_job()
            world.compute.request_stop()
            world.queue.close()
            assert error_of(await pending.result()) == UNAVAILABLE

    async def test_another_request_meanwhile_is_412(self) -> None:
        """02 §7: while the first is pending or being applied."""
        async with open_world() as world, trio.open_nursery() as nursery:
            pending = call(nursery, world)
            await world.compute.reach(Status.CONFIGURATION_PENDING)
            refusal = "invalid compute status: configuration"
            assert error_of(await configure(world, operation_uuid="2")) == (412, f"{refusal}-pending")
            job = await world.take_job()
            assert error_of(await configure(world, operation_uuid="2")) == (412, refusal)
            applied(world, job)
            assert (await pending.result()).status_code == 200

    async def test_of_two_at_once_one_is_taken(self) -> None:
        """02 §7."""
        async with open_world() as world, trio.open_nursery() as nursery:
            pending = [call(nursery, world, operation_uuid=str(number)) for number in range(2)]
            job = await world.take_job()
            with trio.fail_after(10):
                while all(one.response is None for one in pending):
                    await trio.testing.wait_all_tasks_blocked(0.01)
            applied(world, job)
            assert sorted([(await one.result()).status_code for one in pending]) == [200, 412]

    async def test_an_equal_request_joins_the_one_under_way(self) -> None:
        """Idempotent by content: one application, the same answer for both, before and while it is applied."""
        async with open_world() as world, trio.open_nursery() as nursery:
            first = call(nursery, world)
            await world.compute.reach(Status.CONFIGURATION_PENDING)
            second = call(nursery, world)
            job = await world.take_job()
            third = call(nursery, world)
            await trio.testing.wait_all_tasks_blocked(0.05)
            applied(world, job)
            assert [(await one.result()).status_code for one in (first, second, third)] == [200] * 3

    async def test_a_repetition_of_what_is_in_force_changes_nothing(self) -> None:
        """Idempotent by content: answered at once, without a job."""
        async with open_world() as world, trio.open_nursery() as nursery:
            first = call(nursery, world)
            applied(world, await world.take_job())
            assert (await first.result()).status_code == 200
            history = list(world.compute.history)
            assert (await configure(world)).status_code == 200
            assert list(world.compute.history) == history

    async def test_an_idempotency_key_finds_the_first_result_even_a_failure(self) -> None:
        """The key wins over the content; with another spec it is refused."""
        async with open_world() as world, trio.open_nursery() as nursery, world.client() as client:
            first = call(nursery, world, headers={"idempotency-key": "k1"})
            refused(world, await world.take_job(), "no space")
            expected = (500, "compute configuration failed: no space")
            assert error_of(await first.result()) == expected
            headers = {**JSON, "idempotency-key": "k1"}
            assert error_of(await client.post("/configure", content=configure_body(), headers=headers)) == expected
            other = configure_body(operation_uuid="other")
            assert (await client.post("/configure", content=other, headers=headers)).status_code == 422

    async def test_each_request_gets_its_own_result(self) -> None:
        """D-12: a failure that is followed at once by a success is still told to whom it belongs."""
        async with open_world() as world, trio.open_nursery() as nursery:
            first = call(nursery, world)
            job = await world.take_job()
            refused(world, job, "first")
            # Before anybody runs, a change of another kind is applied with success.
            world.compute.apply(ev.ApplyQueued())
            world.compute.apply(ev.ApplyBegan())
            world.compute.apply(ev.Applied(spec=job.spec))
            assert error_of(await first.result()) == (500, "compute configuration failed: first")
            second = call(nursery, world, operation_uuid="second")
            job = await world.take_job()
            applied(world, job)
            world.compute.apply(ev.Crashed(error="later"))
            assert (await second.result()).status_code == 200

    @pytest.mark.parametrize("how", ["close", "half-close", "reset"])
    async def test_a_client_that_leaves_does_not_stop_the_work(self, how: str) -> None:
        """§2: work never runs in the request's cancel scope."""
        async with open_world() as world:
            body = configure_body()
            async with connect(world.port) as client:
                length = {**JSON, "content-length": str(len(body))}
                await client.send(request_text("POST", "/configure", headers=length), body)
                job = await world.take_job()
                if how == "half-close":
                    await client.stream.send_eof()
                    await client.ends()
                elif how == "reset":
                    client.reset()
            async with world.client() as other:
                assert (await other.get("/status")).json()["status"] == "configuration"
                applied(world, job)
                assert (await other.get("/status")).json()["status"] == "running"
