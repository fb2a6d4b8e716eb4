"""What the benches print, without running one."""

from __future__ import annotations

import io
import os
import socket
import threading
import time
from pathlib import Path

import msgspec
import pytest

from bench.__main__ import BENCHES, main
from bench.probe import cpu_seconds, fetch, filesystem, memory_megabytes, wait_for_first_200
from bench.report import Report, Samples, Stretch, machine, now, result, show, stretches, table, verdict
from bench.startup import first_answer_limit_ms
from bench.terminate import stop_in_log


def a_report() -> Report:
    samples = Samples()
    for value in (30.0, 10.0, 20.0):
        samples.add("start", value)
        samples.add("memory", value * 2)
        samples.add_reference("floor", value / 2)
    rows = [
        Stretch(name="whole", start_ms=0, duration_ms=9),
        Stretch(name="part", parent="whole", start_ms=1, duration_ms=5),
    ]
    return Report(
        bench="example",
        date=now(),
        machine=machine(),
        results=[samples.result("start", "ms", against="floor", what="the floor"), samples.result("memory", "MB")],
        aims=[verdict("start", 20.0, 25.0, "ms"), verdict("memory", 40.0, 39.0, "MB")],
        breakdown={"start": stretches([rows])},
        notes=["measured nowhere"],
        samples=samples.dump(),
    )


def test_a_result_holds_medians_and_their_ratio() -> None:
    found = result("start", [3.0, 1.0, 2.0], "ms", reference=[4.0, 4.0, 8.0], reference_name="floor")
    assert (found.ours, found.reference, found.ratio, found.runs) == (2.0, 4.0, 0.5, 3)


def test_a_result_without_reference_has_no_ratio_either() -> None:
    found = result("memory", [3.0], "MB", reference_name="nothing")
    assert (found.reference, found.reference_name, found.ratio) == (None, None, None)


def test_a_reference_of_zero_gives_no_ratio() -> None:
    assert result("waiting", [3.0], "ms", reference=[0.0], reference_name="none").ratio is None


@pytest.mark.parametrize(("ours", "reference"), [([], None), ([1.0], [])])
def test_no_samples_are_no_result(ours: list[float], reference: list[float] | None) -> None:
    with pytest.raises(ValueError, match="no samples"):
        result("start", ours, "ms", reference=reference)


def test_an_aim_is_met_at_its_limit_and_missed_above_it() -> None:
    assert verdict("start", 1.10, 1.10, "×").met
    assert not verdict("start", 1.101, 1.10, "×").met


def test_debians_python_has_the_stricter_aim() -> None:
    assert first_answer_limit_ms("/usr") == 200
    assert first_answer_limit_ms("/root/.pyenv/versions/3.11.7") == 250


def test_stretches_of_one_name_are_summed_in_a_run_and_their_median_taken_over_runs() -> None:
    runs = [
        [Stretch(name="b", start_ms=5, duration_ms=1), Stretch(name="a", start_ms=1, duration_ms=length)]
        for length in (1, 2, 9)
    ]
    runs[2].append(Stretch(name="a", start_ms=20, duration_ms=1))
    assert [(row.name, row.start_ms, row.duration_ms) for row in stretches(runs)] == [("a", 1, 2), ("b", 5, 1)]


def test_json_goes_to_stdout_alone_and_the_table_to_stderr() -> None:
    report, out, err = a_report(), io.StringIO(), io.StringIO()
    show(report, as_json=True, out=out, err=err)
    decoded = msgspec.json.decode(out.getvalue())
    assert list(decoded["results"][0]) == ["name", "ours", "reference", "reference_name", "ratio", "unit", "runs"]
    assert decoded["results"][0]["ratio"] == 2.0
    assert msgspec.json.decode(out.getvalue(), type=Report) == report
    assert err.getvalue() == table(report)


def test_without_json_the_table_goes_to_stdout() -> None:
    out, err = io.StringIO(), io.StringIO()
    show(a_report(), as_json=False, out=out, err=err)
    assert "the floor" in out.getvalue()
    assert err.getvalue() == ""


def test_the_table_indents_children_and_marks_missed_aims() -> None:
    text = table(a_report())
    assert "\n  part" in text
    assert any(line.startswith("MISSED") and "memory" in line for line in text.splitlines())


def test_a_stretch_that_is_its_own_parent_does_not_hang_the_table() -> None:
    report = msgspec.structs.replace(
        a_report(), breakdown={"loop": [Stretch(name="a", parent="a", start_ms=0, duration_ms=1)]}
    )
    assert "loop" in table(report)


def test_help_lists_every_bench(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in BENCHES)


@pytest.mark.parametrize("argv", [["nonesuch"], ["startup", "--runs", "0"], ["startup", "--runs", "x"]])
def test_nonsense_is_a_usage_error(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(argv)
    assert stopped.value.code == 2
    assert "usage" in capsys.readouterr().err


def test_the_stop_of_postgres_is_read_off_the_log() -> None:
    log = (
        "2026-11-22T21:15:11.700000Z INFO postmaster: stopping Postgres signal=SIGINT patience_seconds=60.0\n"
        "PG:2026-11-22 21:15:11.710 GMT [22801] LOG:  received fast shutdown request\n"
        "2026-11-22T21:15:11.721500Z INFO postmaster: Postgres ended code=0 forced=False\n"
    )
    found = stop_in_log(log)
    assert found is not None
    assert found[1] == pytest.approx(0.0215, abs=1e-5)
    assert stop_in_log(log.replace("Postgres ended", "Postgres dozed")) is None


def test_the_cpu_clock_of_a_process_runs_with_its_work() -> None:
    before, until = cpu_seconds(os.getpid()), time.process_time() + 0.02
    while time.process_time() < until:
        pass
    assert 0.02 <= cpu_seconds(os.getpid()) - before < 5


def test_memory_is_read_in_megabytes() -> None:
    found = memory_megabytes(os.getpid())
    assert 5 < found["rss"] <= found["peak"] * 1.1


def test_a_filesystem_has_a_type() -> None:
    assert filesystem(Path("/proc/self")) == "proc"


def test_the_client_asks_again_until_the_answer_is_200() -> None:
    requests: list[bytes] = []
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(4)

        def serve() -> None:
            for code in (b"503 x", b"200 OK", b"201 Created"):
                connection, _ = listener.accept()
                with connection:
                    requests.append(connection.recv(4096))
                    connection.sendall(b"HTTP/1.1 " + code + b"\r\nContent-Length: 2\r\n\r\n{")
                    connection.sendall(b"}")

        server = threading.Thread(target=serve)
        server.start()
        port = listener.getsockname()[1]
        first = wait_for_first_200(port, "token")
        answer = fetch(port, "POST", "/x", body=b"{}")
        server.join()
    assert first.connected <= first.answered
    assert (answer.status, answer.body) == (201, b"{}")
    assert b"authorization: Bearer token" in requests[0]
    assert b"content-length: 2" in requests[2]


def test_nobody_listening_is_a_timeout() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, not listening
        with pytest.raises(TimeoutError, match="no 200"):
            wait_for_first_200(taken.getsockname()[1], "token", timeout_seconds=0.05)
