"""What command line, configuration and machine can get wrong: text, exit code, nothing left (01 §3)."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.fakes.specs import spec_dict
from tests.integration.compute import Rig

pytestmark = pytest.mark.postgres


def run_to_end(arguments: Sequence[str], **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "trio_compute", "run", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, **options)


def arguments(tmp_path: Path, config: str | bytes | None, *extra: str) -> list[str]:
    path = tmp_path / "config.json"
    if config is not None:
        path.write_bytes(config if isinstance(config, bytes) else config.encode())
    runs_as = ["--run-as", "nobody"] if os.geteuid() == 0 else []
    return [
        *("--pgdata", str(tmp_path / "pgdata"), "--connstr", "postgresql://cloud_admin@127.0.0.1:1/postgres"),
        *("--compute-id", "test", "--config", str(path), "--external-http-port", "0", "--internal-http-port", "0"),
        *("--pgbin", "/bin/true", *runs_as),
        *extra,
    ]


UNSHARE = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")
WRAPPED = {"compute_ctl_config": {"jwks": {"keys": []}}}


@pytest.mark.parametrize(
    ("config", "text"),
    [
        (None, "cannot read"),
        ("", "Input data was truncated"),
        ('{"spec": {', "Input data was truncated"),
        ("not json", "JSON is malformed"),
        (b"\xff\xfe", "JSON is malformed"),
        ("[]", "$: Expected `object`, got `array`"),
        ("{}", "Object missing required field `compute_ctl_config`"),
        (json.dumps({**WRAPPED, "spec": {"format_version": 1}}), "$.spec: Object missing required field `cluster`"),
        (json.dumps({**WRAPPED, "spec": spec_dict(swap_size_bytes=1.5)}), "$.spec.swap_size_bytes: Expected `int"),
        (json.dumps({**WRAPPED, "spec": spec_dict(tenant_id="zz")}), "$.spec.tenant_id: Expected `str` matching"),
        (json.dumps({**WRAPPED, "spec": spec_dict(safekeeper_connstrings=[])}), "safekeeper connstrings should be"),
        (json.dumps({**WRAPPED, "spec": spec_dict(safekeeper_connstrings=["a"])}), "is not host:port"),
    ],
)
def test_an_unusable_configuration_exits_with_one_and_says_where(tmp_path: Path, config: Any, text: str) -> None:
    result = run_to_end(arguments(tmp_path, config))
    assert result.returncode == 1
    assert text in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("extra", "text"),
    [
        (["--pgbin", "/nonexistent/postgres"], "--pgbin /nonexistent/postgres: no such file"),
        (["--pgbin", "/etc/passwd"], "--pgbin /etc/passwd: not executable"),
        (["--pgbin", "no-such-postgres"], "--pgbin no-such-postgres: not found in PATH"),
        (["--connstr", "localhost"], "cannot build postgres config from connstr"),
        (["--connstr", "host=localhost hots=x"], "unknown parameter: hots (did you mean host?)"),
        (["--connstr", "postgresql://u@h/d?bogus=1"], "cannot build postgres config from connstr"),
    ],
)
def test_unusable_values_exit_with_one_and_name_the_flag(tmp_path: Path, extra: list[str], text: str) -> None:
    """B-02, F-25: a bare name is looked up in PATH; nothing panics."""
    result = run_to_end(arguments(tmp_path, json.dumps(WRAPPED), *extra))
    assert result.returncode == 1
    assert text in result.stderr


@pytest.mark.parametrize("flag", ["--external-http-port", "--internal-http-port"])
def test_a_taken_port_exits_with_one(tmp_path: Path, flag: str) -> None:
    """D-10, A-06: the compute does not run on without its API."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1" if "internal" in flag else "0.0.0.0", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        result = run_to_end(arguments(tmp_path, json.dumps(WRAPPED), flag, port))
    assert result.returncode == 1
    assert f"port {port}" in result.stderr
    assert "Address already in use" in result.stderr


@pytest.mark.parametrize(
    ("extra", "text"),
    [
        (["--bogus"], "unrecognized arguments: --bogus"),
        (["--external-http-port", "x"], "--external-http-port"),
        (["--http-port", "65535"], "conflict|cannot be used"),
        (["--privileged-role-name", "A-b"], "can only contain lowercase letters and underscores"),
    ],
)
def test_usage_errors_exit_with_two(tmp_path: Path, extra: list[str], text: str) -> None:
    result = run_to_end(arguments(tmp_path, json.dumps(WRAPPED), *extra))
    assert result.returncode == 2
    assert any(alternative in result.stderr for alternative in text.split("|"))


async def fails(rig: Rig, config: Any = None, **options: Any) -> tuple[str, int]:
    """Run a compute whose start fails; return the error it shows and the code it exits with when told to hurry."""
    async with rig.compute(config, **options) as child:
        with trio.fail_after(20):
            state = await child.reach("failed", give_up=())
        error = state["error"]
        assert state["tenant"] == rig.world.identity.tenant_id
        await child.terminate("immediate")
        with trio.fail_after(5):
            code = await child.process.wait()
    return error, code


async def test_pgdata_without_a_parent_fails_with_its_name(rig: Rig) -> None:
    missing = rig.world.directory / "missing" / "pgdata"
    error, code = await fails(rig, flags={"--pgdata": str(missing)})
    assert (error, code) == (f"cannot recreate {missing}: No such file or directory ({missing})", 1)


async def test_pgdata_under_a_read_only_parent_fails_with_its_name(rig: Rig) -> None:
    error, code = await fails(rig, flags={"--pgdata": "/proc/self/pgdata"})
    assert error.startswith("cannot recreate /proc/self/pgdata: ")
    assert code == 1


async def test_postgres_that_exits_at_once_is_reported(rig: Rig) -> None:
    config = rig.config()
    config["spec"]["cluster"]["postgresql_conf"] += "no_such_setting = 1\n"
    error, code = await fails(rig, config)
    assert (error, code) == ("Postgres exited unexpectedly with code 1", 1)
    assert "PG:" in rig.log()
    assert 'unrecognized configuration parameter "no_such_setting"' in rig.log()


def scripted_postgres(rig: Rig, body: str) -> str:
    """Put a shell script in the place of the server; --sync-safekeepers still goes to the wrapper."""
    path = rig.world.directory / "bin" / "scripted"
    path.write_text(f'#!/bin/sh\n[ "$1" != --sync-safekeepers ] || exec {rig.world.pgbin} "$@"\n{body}\n')
    path.chmod(path.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)
    return str(path)


async def test_postgres_that_never_becomes_ready_is_stopped_and_reaped(rig: Rig) -> None:
    """D-14, F-14, F-21."""
    pgbin = scripted_postgres(rig, "exec sleep 1000")
    error, code = await fails(rig, flags={"--pgbin": pgbin, "--postgres-ready-timeout": "0.5"})
    assert (error, code) == ("timed out while waiting for Postgres to start", 1)


READY = 'printf "%s\\nx\\nx\\nx\\nx\\nx\\nx\\nready\\n" $$ > "$2/postmaster.pid"'


async def test_postgres_that_ignores_sigint_is_forced(rig: Rig) -> None:
    body = f"trap '' INT QUIT\n{READY}\nwhile :; do sleep 0.1; done"
    flags = {"--pgbin": scripted_postgres(rig, body), "--fast-stop-timeout": "0.3", "--quit-stop-timeout": "0.3"}
    async with rig.compute(flags=flags) as child:
        await child.reach("running")
        with trio.fail_after(10):
            await child.terminate("immediate")
            assert await child.process.wait() == 1
    stages = [name for name in ("SIGINT", "SIGQUIT", "SIGKILL") if f"stopping Postgres signal={name}" in rig.log()]
    assert stages == ["SIGINT", "SIGQUIT", "SIGKILL"]


async def test_a_second_signal_forces_the_end_within_two_seconds(rig: Rig) -> None:
    body = f"trap '' INT QUIT\n{READY}\nwhile :; do sleep 0.1; done"
    async with rig.compute(flags={"--pgbin": scripted_postgres(rig, body)}) as child:
        await child.reach("running")
        child.process.send_signal(signal.SIGTERM)
        await child.reach("termination_pending_immediate", give_up=())
        child.process.send_signal(signal.SIGTERM)
        with trio.fail_after(4):
            assert await child.process.wait() == 1


async def test_a_file_that_cannot_be_written_during_unpack_is_named_and_retried_in_a_clean_directory(rig: Rig) -> None:
    """A full disk, played by a limit on file size that the 16 MiB WAL segment does not fit into."""
    limited = rig.world.directory / "bin" / "limited"
    limited.write_text(f'#!/bin/sh\nulimit -f 8192\nexec {sys.executable} "$@"\n')
    limited.chmod(0o755)
    rig.world.write_config(rig.config())
    flags = rig.arguments({"--testing": None})
    process = await trio.lowlevel.open_process(
        [str(limited), "-m", "trio_compute", "run", *flags, "--testing"],
        env={**os.environ, "NEON_COMPUTE_TESTING_BASEBACKUP_RETRIES": "1"},
        stderr=subprocess.PIPE,
    )
    log = b""
    assert process.stderr is not None
    with trio.fail_after(30):
        async for chunk in process.stderr:
            log += chunk
            if b"start failed" in log and process.returncode is None:
                process.terminate()
        assert await process.wait() == 1
    text = log.decode()
    assert "File too large" in text
    assert "failed to get basebackup@" in text
    assert text.count("basebackup failed") == 1
    await process.stderr.aclose()


async def test_a_log_that_nobody_reads_stalls_neither_postgres_nor_termination(rig: Rig, sql: Any) -> None:
    """F-16: the pipe of our stderr is never read while Postgres logs megabytes."""
    rig.world.write_config(rig.config())
    process = await trio.lowlevel.open_process(
        [sys.executable, "-m", "trio_compute", "run", *rig.arguments({})], stderr=subprocess.PIPE
    )
    from trio_compute.embedded.compute_child import ComputeChild

    child = ComputeChild(process, rig.ports, rig.world.api_token(), rig.log_path)
    try:
        with trio.fail_after(30):
            await child.reach("running")
            noisy = "DO $$ BEGIN FOR i IN 1..3000 LOOP RAISE LOG '%', repeat('x', 4000); END LOOP; END $$"
            await trio.to_thread.run_sync(sql, rig.connstr, noisy)
            assert (await child.terminate("immediate"))["lsn"] is not None
            assert await process.wait() == 0
    finally:
        await child.aclose()
        process.kill()
        assert process.stderr is not None
        await process.stderr.aclose()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a pid namespace")
async def test_as_pid_1_it_reaps_orphans_and_keeps_the_statuses_of_its_children(rig: Rig, sql: Any) -> None:
    rig.world.write_config(rig.config())
    with rig.log_path.open("wb") as log:
        process = await trio.lowlevel.open_process(
            [*UNSHARE, sys.executable, "-m", "trio_compute", "run", *rig.arguments({})],
            stderr=log.fileno(),
            env={**os.environ, "TRIO_COMPUTE_LOG": "debug"},
        )
    from trio_compute.embedded.compute_child import ComputeChild

    child = ComputeChild(process, rig.ports, rig.world.api_token(), rig.log_path)
    try:
        with trio.fail_after(30):
            await child.reach("running")
            orphan = "COPY (SELECT 1) TO PROGRAM 'cat >/dev/null; (sleep 0.1 &) '"
            await trio.to_thread.run_sync(sql, rig.connstr, orphan)
            while "reaped an orphan" not in rig.log():
                await trio.sleep(0.05)  # what another process does has no event here
            assert (await child.terminate("immediate"))["lsn"] is not None
            assert await process.wait() == 0
    finally:
        await child.aclose()
        process.kill()
        await process.wait()
