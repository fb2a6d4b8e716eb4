"""`trio-compute status`, `configure` and `terminate` against real servers: what people read, what programs read."""

from __future__ import annotations

import io
import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from tests.component.http.logs import LogLines
from tests.component.http.tokens import bearer
from tests.component.http.world import FLUSH_LSN, World, configure_body, open_world, stands
from trio_compute.cli import run_subcommand
from trio_compute.client import Event
from trio_compute.commands.status import event_text, status_text
from trio_compute.commands.terminal import Paint
from trio_compute.lifecycle import events as ev
from trio_compute.lifecycle.status import Status
from trio_compute.model.responses import StatusResponse
from trio_compute.plan.catalog.failures import Failure
from trio_compute.services.apply_queue import Rejected, Succeeded

TOKEN = bearer()["authorization"].removeprefix("Bearer ")

Said = tuple[int, str, str]


@pytest.fixture(autouse=True)
def _token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIO_COMPUTE_TOKEN", TOKEN)


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Return what runs a command and returns its exit code and what it printed."""

    async def run(world: World | None, *argv: str) -> Said:
        url = [] if world is None else ["--url", f"http://127.0.0.1:{world.port}"]
        code = await trio.to_thread.run_sync(run_subcommand, [*argv, *url])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


class TestStatus:
    async def test_it_is_told_to_people(self, say: Callable[..., Any]) -> None:
        async with open_world() as world:
            code, out, err = await say(world, "status")
        assert (code, err) == (0, "")
        lines = out.splitlines()
        assert lines[0] == "running"
        assert "  started           2026-03-04 05:06:07 UTC" in lines
        assert [line.split("  ")[-2:] for line in lines[-2:]] == [
            ["empty → init", "SpecKnown"],
            ["init → running", "Started"],
        ]
        assert "error" not in out

    async def test_an_error_is_told(self, say: Callable[..., Any]) -> None:
        async with open_world(Status.FAILED) as world:
            code, out, _ = await say(world, "status")
        assert code == 0
        assert out.startswith("failed\n")
        assert "  error             could not start\n" in out

    async def test_it_is_told_to_programs(self, say: Callable[..., Any]) -> None:
        async with open_world() as world:
            code, out, _ = await say(world, "status", "--json")
        assert code == 0
        assert (json.loads(out)["status"], json.loads(out)["revision"]) == ("running", 2)

    @pytest.mark.parametrize("as_json", [True, False])
    async def test_it_is_followed_until_the_compute_ends(
        self, say: Callable[..., Any], as_json: bool, log_lines: LogLines
    ) -> None:
        async with open_world(Status.INIT) as world, trio.open_nursery() as nursery:
            said: list[Said] = []

            async def watch() -> None:
                said.append(await say(world, "status", "--watch", *(["--json"] if as_json else [])))

            nursery.start_soon(watch)
            await stands(lambda: bool(log_lines.with_text("uri=/status")))
            with world.compute.spans.measure("start_postgres"):
                world.compute.apply(ev.Started())
            world.compute.feed.publish("prewarm", {"prewarmed": 3, "total": 9})
            world.servers.drain()
        ((code, out, err),) = said
        assert (code, err) == (0, "")
        if as_json:
            first, *others = map(json.loads, out.splitlines())
            assert first["status"] in {"init", "running"}
            assert [told["event"] for told in others] == ["phase", "transition", "phase", "prewarm"]
        else:
            assert "init → running  Started\n" in out
            assert "  start_postgres …\n" in out
            assert "  start_postgres took " in out
            assert "  prewarm: prewarmed 3, total 9\n" in out

    @pytest.mark.parametrize("arguments", [["--watch"], ["--watch", "--json"]])
    async def test_an_interrupt_ends_it_quietly(self, arguments: list[str]) -> None:
        """Ctrl-C: 130, no traceback."""
        async with open_world() as world:
            command = [
                sys.executable,
                "-m",
                "trio_compute",
                "status",
                "--url",
                f"http://127.0.0.1:{world.port}",
                *arguments,
            ]
            process = await trio.lowlevel.open_process(
                command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, process_group=0
            )
            assert process.stdout is not None
            assert process.stderr is not None
            with trio.fail_after(30):
                assert b"running" in await process.stdout.receive_some()
                await stands(lambda: bool(world.compute.feed._newest._waiters))
                process.send_signal(signal.SIGINT)
                assert await process.wait() == 130
                assert await process.stderr.receive_some() == b""
            await process.stdout.aclose()
            await process.stderr.aclose()


class TestTerminate:
    @pytest.mark.parametrize(
        ("arguments", "pending"),
        [([], Status.TERMINATION_PENDING_FAST), (["--mode", "immediate"], Status.TERMINATION_PENDING_IMMEDIATE)],
    )
    async def test_it_ends_a_compute(self, say: Callable[..., Any], arguments: list[str], pending: Status) -> None:
        async with open_world() as world, trio.open_nursery() as nursery:

            async def finish() -> None:
                await world.compute.reach(pending)
                world.finish_termination(ev.Terminated(flush_lsn=FLUSH_LSN))

            nursery.start_soon(finish)
            assert await say(world, "terminate", *arguments) == (
                0,
                f"terminated; what was committed is safe up to LSN {FLUSH_LSN}\n",
                "",
            )
            code, out, _ = await say(world, "terminate", "--json")
            assert (code, json.loads(out)) == (0, {"lsn": str(FLUSH_LSN)})

    async def test_who_works_is_not_disturbed(self, say: Callable[..., Any]) -> None:
        async with open_world() as world:
            world.host.watch.seen = {"busy_sessions": 3}
            code, out, err = await say(world, "terminate", "--if-idle")
            assert (code, out) == (1, "")
            assert err == "trio-compute terminate: compute is not idle: 3 active sessions (HTTP 409)\n"
            code, out, err = await say(world, "terminate", "--if-idle", "--json")
            assert (code, err) == (1, "")
            assert json.loads(out) == {"error": "compute is not idle: 3 active sessions", "http_status": 409}
            assert world.status is Status.RUNNING


class TestConfigure:
    async def apply(self, world: World, *, outcome: Any = None) -> None:
        job = await world.take_job()
        if outcome is None:
            world.compute.apply(ev.Applied(spec=job.spec, restart_required=("storage_auth_token",)))
            job.settle(Succeeded())
        else:
            world.compute.apply(ev.ApplyFailed(error="no"))
            job.settle(outcome)

    @pytest.mark.parametrize("is_bare", [False, True])
    async def test_it_applies_a_file(self, say: Callable[..., Any], tmp_path: Path, is_bare: bool) -> None:
        file = tmp_path / "config.json"
        whole = msgspec.json.decode(configure_body())
        file.write_bytes(msgspec.json.encode(whole["spec"] if is_bare else whole))
        async with open_world() as world, trio.open_nursery() as nursery:
            nursery.start_soon(self.apply, world)
            code, out, err = await say(world, "configure", str(file))
        assert (code, err) == (0, "")
        assert out == "running: the configuration is in force\nwaits for a restart: storage_auth_token\n"

    async def test_it_names_the_objects_at_fault(self, say: Callable[..., Any], tmp_path: Path) -> None:
        failure = Failure(phase="p", database="d", object="role x", operation="create", sqlstate="42501", message="no")
        file = tmp_path / "config.json"
        file.write_bytes(configure_body())
        async with open_world() as world, trio.open_nursery() as nursery:

            async def reject() -> None:
                await self.apply(world, outcome=Rejected("not possible", (failure,)))

            nursery.start_soon(reject)
            code, out, err = await say(world, "configure", str(file))
        assert (code, out) == (1, "")
        assert err.splitlines() == [
            "trio-compute configure: compute configuration failed: not possible (HTTP 500)",
            "  create role x, database d: no (SQLSTATE 42501)",
        ]

    async def test_a_dry_run_changes_nothing(self, say: Callable[..., Any], tmp_path: Path) -> None:
        file = tmp_path / "config.json"
        file.write_bytes(configure_body())
        async with open_world() as world:
            assert await say(world, "configure", str(file), "--dry-run") == (0, "nothing to do\n", "")
            code, out, _ = await say(world, "configure", str(file), "--dry-run", "--json")
            assert (code, json.loads(out)["phases"]) == (0, [])
            assert world.status is Status.RUNNING

    async def test_a_field_that_is_wrong_is_named(self, say: Callable[..., Any], tmp_path: Path) -> None:
        file = tmp_path / "config.json"
        file.write_bytes(configure_body(tenant_id="short"))
        async with open_world() as world:
            code, _, err = await say(world, "configure", str(file))
        assert code == 1
        assert "$.spec.tenant_id" in err

    @pytest.mark.parametrize("content", [None, b"", b"[]", b"{", b"{}", b'{"spec": null}', b"\xff"])
    async def test_a_file_that_is_none_is_named(
        self, say: Callable[..., Any], tmp_path: Path, content: bytes | None
    ) -> None:
        file = tmp_path / "config.json"
        if content is not None:
            file.write_bytes(content)
        code, out, err = await say(None, "configure", str(file))
        assert (code, out) == (2, "")
        assert err.startswith("trio-compute configure: FILE: ")
        assert str(file) in err


class TestTokensAndErrors:
    async def test_a_token_from_a_file_is_stronger(
        self, say: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("TRIO_COMPUTE_TOKEN", "nonsense")
        (tmp_path / "token").write_text(f"{TOKEN}\n")
        async with open_world() as world:
            assert (await say(world, "status"))[0] == 1
            assert (await say(world, "status", "--token-file", str(tmp_path / "token")))[0] == 0

    async def test_a_missing_token_is_explained(self, say: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("TRIO_COMPUTE_TOKEN")
        async with open_world() as world:
            code, _, err = await say(world, "status")
        assert code == 1
        assert err.splitlines()[0] == "trio-compute status: invalid authorization token (HTTP 400)"
        assert "--token-file" in err

    async def test_a_refusal_is_exit_1(self, say: Callable[..., Any]) -> None:
        async with open_world(keys=[]) as world:
            code, _, err = await say(world, "status")
        assert (code, err) == (1, "trio-compute status: failed to verify authorization token (HTTP 401)\n")

    @pytest.mark.parametrize("command", [["status"], ["status", "--watch"], ["terminate"]])
    async def test_nobody_there_is_exit_3(self, say: Callable[..., Any], command: list[str]) -> None:
        async with open_world() as world:
            pass
        code, out, err = await say(world, *command)
        assert (code, out) == (3, "")
        assert f"http://127.0.0.1:{world.port}/" in err
        assert "refused" in err

    @pytest.mark.parametrize(
        ("arguments", "flag"),
        [(["--url", "localhost"], "--url"), (["--token-file", "/nonexistent"], "--token-file"),
         (["--token-file", "/dev/null"], "--token-file"), (["--token", "x"], "--token"), (["--js"], "--js")],
    )  # fmt: skip
    async def test_a_wrong_flag_is_named_and_exit_2(
        self, say: Callable[..., Any], arguments: list[str], flag: str
    ) -> None:
        code, out, err = await say(None, "status", *arguments)
        assert (code, out) == (2, "")
        assert flag in err

    async def test_a_token_that_is_none_is_not_repeated(
        self, say: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("TRIO_COMPUTE_TOKEN", "se cret")
        code, _, err = await say(None, "status")
        assert code == 2
        assert "TRIO_COMPUTE_TOKEN: " in err
        assert "cret" not in err

    @pytest.mark.parametrize("command", ["status", "configure", "terminate"])
    async def test_help_tells_the_exit_codes_and_never_asks_for_a_token(
        self, say: Callable[..., Any], command: str
    ) -> None:
        code, out, _ = await say(None, command, "--help")
        assert code == 0
        assert "3 no compute answers there" in " ".join(out.split())
        assert "--token " not in out


class TestColours:
    RUNNING = StatusResponse(
        start_time="x",
        tenant=None,
        timeline=None,
        status="running",
        last_active=None,
        error="\x1b[2J",
        revision=1,
        history=[],
    )

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    @pytest.mark.parametrize(
        ("stream", "environ", "is_on"),
        [(Terminal(), {}, True), (Terminal(), {"NO_COLOR": ""}, True), (Terminal(), {"NO_COLOR": "1"}, False),
         (Terminal(), {"TERM": "dumb"}, False), (io.StringIO(), {}, False)],
    )  # fmt: skip
    def test_they_are_for_terminals(self, stream: Any, environ: dict[str, str], is_on: bool) -> None:
        text = status_text(self.RUNNING, Paint(stream, environ))
        assert text.startswith("\x1b[32;1mrunning\x1b[0m" if is_on else "running\n")

    def test_what_a_compute_says_cannot_upset_a_terminal(self) -> None:
        paint = Paint(self.Terminal(), {})
        assert "\x1b[2J" not in status_text(self.RUNNING, paint)
        event = Event(1, "\x1b[2J", {"at": "\x1b[2J", "\x1b[2J": "\x1b[2J"})
        assert "\x1b[2J" not in event_text(event, paint)

    async def test_a_real_terminal_gets_them(self) -> None:
        async with open_world() as world:
            controller, terminal = pty.openpty()
            environ = {name: value for name, value in os.environ.items() if name not in {"NO_COLOR", "TERM"}}
            command = [sys.executable, "-m", "trio_compute", "status", "--url", f"http://127.0.0.1:{world.port}"]
            done = await trio.run_process(command, stdout=terminal, env=environ)
            os.close(terminal)
            said = os.read(controller, 65536)
            os.close(controller)
        assert done.returncode == 0
        assert b"\x1b[32;1mrunning\x1b[0m" in said
