"""Key and certificate of Postgres, and their renewal (contract 04 §7, 02 §9)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.fakes.certificates import KINDS, Files, certificate_text, key_text, make_key
from tests.unit.builders import wire_spec
from trio_compute.deadlines import Deadlines
from trio_compute.errors import HostError, cause_chain
from trio_compute.host.run_as import RunAs
from trio_compute.plan.tls import tls_in_use
from trio_compute.postgres import certificate
from trio_compute.postgres.certificate import install_key_pair, read_key_pair
from trio_compute.services.certificate import watch_certificate

ME = RunAs()
BRIEF = Deadlines(certificate=0.2, certificate_renewal=0.2)
PATIENT = Deadlines(certificate=30, certificate_renewal=30)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


@pytest.fixture
def pgdata(tmp_path: Path) -> Path:
    directory = tmp_path / "pgdata"
    directory.mkdir()
    return directory


async def install(files: Files, pgdata: Path, deadlines: Deadlines = BRIEF) -> None:
    await install_key_pair(files.tls, pgdata, ME, deadlines, retry_seconds=0.01)


@pytest.mark.parametrize("form", ["PKCS8", "traditional"])
@pytest.mark.parametrize("kind", KINDS)
async def test_a_pair_of_any_kind_is_installed_for_its_owner_only(
    files: Files, pgdata: Path, kind: str, form: str
) -> None:
    """F-03, F-23."""
    files.write(kind, "PKCS8" if kind == "Ed25519" else form)
    await install(files, pgdata)
    for name, source in (("server.key", files.key_path), ("server.crt", files.cert_path)):
        assert (pgdata / name).read_bytes() == source.read_bytes()
        assert (pgdata / name).stat().st_mode & 0o777 == 0o600


def test_the_first_certificate_of_the_chain_counts(files: Files) -> None:
    key = files.write("P-256")
    chain = b"a leaf\n" + certificate_text(key) + certificate_text(make_key("RSA"))
    files.cert_path.write_bytes(chain)
    assert read_key_pair(files.tls).certificate == chain
    files.cert_path.write_bytes(certificate_text(make_key("RSA")) + certificate_text(key))
    with pytest.raises(HostError, match="does not belong to the first certificate"):
        read_key_pair(files.tls)


def test_what_openssl_writes_before_a_key_is_no_hindrance(files: Files) -> None:
    """F-03: `openssl ecparam -genkey` puts the parameters of the curve first."""
    key = files.write("P-256", "traditional")
    parameters = b"-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n"
    files.key_path.write_bytes(parameters + key_text(key, "traditional"))
    assert read_key_pair(files.tls).key.startswith(parameters)


def encrypted(files: Files) -> None:
    files.key_path.write_bytes(key_text(make_key("P-256"), password=b"secret"))


BROKEN: list[tuple[Callable[[Files], object], str]] = [
    (lambda files: files.key_path.unlink(), r"cannot read .*tls\.key: No such file"),
    (lambda files: files.cert_path.unlink(), r"cannot read .*tls\.crt: No such file"),
    (lambda files: files.key_path.write_bytes(b""), "no private key in PEM form"),
    (lambda files: files.cert_path.write_bytes(b"junk"), "no certificate in PEM form"),
    (
        lambda files: files.key_path.write_bytes(b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"),
        "damaged or of an unknown type",
    ),
    (encrypted, "is encrypted"),
    (lambda files: files.key_path.write_bytes(key_text(make_key("P-256"))), "does not belong"),
    (lambda files: files.key_path.write_bytes(key_text(make_key("Ed25519"))), "does not belong"),
    (lambda files: files.key_path.write_bytes(b"x" * (1024 * 1024 + 1)), "larger than 1 MiB"),
    (lambda files: (files.key_path.unlink(), files.key_path.mkdir()), "Is a directory"),
]


@pytest.mark.parametrize(("spoil", "text"), BROKEN, ids=[text for _, text in BROKEN])
async def test_a_pair_that_cannot_be_used_fails_after_the_bound(
    files: Files, pgdata: Path, spoil: Callable[[Files], object], text: str
) -> None:
    """F-02, F-03, D-52: with the reason, and with nothing written."""
    files.write("P-256")
    spoil(files)
    with pytest.raises(HostError, match=r"no usable key and certificate within 0\.2 s") as caught:
        with trio.fail_after(10):
            await install(files, pgdata)
    with pytest.raises(HostError, match=text):
        raise HostError(cause_chain(caught.value))
    assert list(pgdata.iterdir()) == []


async def test_a_pair_that_comes_late_is_waited_for(
    files: Files, pgdata: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F-02: only one of the two files may have been renewed yet."""
    files.write("P-256")
    new = make_key("RSA")
    files.key_path.write_bytes(key_text(new))
    looked = trio.Event()
    token = trio.lowlevel.current_trio_token()
    read = certificate.read_key_pair

    def read_and_tell(tls: Any) -> Any:
        try:
            return read(tls)
        finally:
            token.run_sync_soon(looked.set)

    monkeypatch.setattr(certificate, "read_key_pair", read_and_tell)
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(install, files, pgdata, PATIENT)
            await looked.wait()
            assert list(pgdata.iterdir()) == []
            files.cert_path.write_bytes(certificate_text(new))
    assert (pgdata / "server.crt").read_bytes() == files.cert_path.read_bytes()


async def test_waiting_for_a_pair_can_be_cancelled(files: Files, pgdata: Path) -> None:
    """D-52."""
    with trio.fail_after(10), trio.move_on_after(0.05) as scope:
        await install(files, pgdata, PATIENT)
    assert scope.cancelled_caught


async def test_a_pair_from_before_stays_if_the_new_one_does_not_fit(files: Files, pgdata: Path) -> None:
    """02 §9: a reconfiguration does not fail because a certificate is just being renewed."""
    files.write("P-256")
    await install(files, pgdata)
    old = {path.name: path.read_bytes() for path in pgdata.iterdir()}
    files.key_path.write_bytes(key_text(make_key("P-256")))
    with trio.fail_after(10):
        await install(files, pgdata, Deadlines(certificate=30, certificate_renewal=0.1))
    assert {path.name: path.read_bytes() for path in pgdata.iterdir()} == old


def test_the_files_are_used_only_with_the_feature(files: Files) -> None:
    """F-28."""
    assert tls_in_use(wire_spec(), files.tls) is None
    assert tls_in_use(wire_spec(features=["tls_experimental"]), files.tls) is files.tls
    assert tls_in_use(wire_spec(features=["tls_experimental"]), None) is None


class Watch:
    """A watcher over files, which installs what it is told of; a test waits until it has looked some times."""

    def __init__(self, files: Files, pgdata: Path) -> None:
        self.files, self.pgdata = files, pgdata
        self.in_use = True
        self.renewals = 0
        self._looks = 0
        self._looked = trio.Event()

    def _tls(self) -> Any:
        self._looks += 1
        self._looked.set()
        self._looked = trio.Event()
        return self.files.tls if self.in_use else None

    async def _renew(self) -> None:
        self.renewals += 1
        await install(self.files, self.pgdata)

    async def serve(self) -> None:
        await watch_certificate(self._tls, self.pgdata / "server.crt", self._renew, poll_seconds=0.001)

    async def look(self) -> int:
        """Return the renewals after one whole look that began after this call."""
        wanted = self._looks + 2
        with trio.fail_after(10):
            while self._looks < wanted:
                await self._looked.wait()
        return self.renewals


async def test_a_renewed_pair_is_told_once(files: Files, pgdata: Path, nursery: trio.Nursery) -> None:
    """F-28: nothing happens without a change, not even at first."""
    files.write("P-256")
    await install(files, pgdata)
    watch = Watch(files, pgdata)
    nursery.start_soon(watch.serve)
    assert await watch.look() == 0
    files.write("Ed25519")
    while await watch.look() == 0:
        pass
    assert await watch.look() == 1
    assert (pgdata / "server.crt").read_bytes() == files.cert_path.read_bytes()
    nursery.cancel_scope.cancel()


async def test_half_a_renewal_waits_for_the_other_half(files: Files, pgdata: Path, nursery: trio.Nursery) -> None:
    """02 §9: tried again at each look, and a file that is missing for a while is no end."""
    files.write("P-256")
    await install(files, pgdata)
    watch = Watch(files, pgdata)
    nursery.start_soon(watch.serve)
    new = make_key("P-256")
    files.cert_path.write_bytes(certificate_text(new))
    assert await watch.look() == 0
    files.key_path.unlink()
    assert await watch.look() == 0
    files.key_path.write_bytes(key_text(new))
    while await watch.look() == 0:
        pass
    assert await watch.look() == 1
    nursery.cancel_scope.cancel()


async def test_what_was_not_installed_is_told_again(files: Files, pgdata: Path, nursery: trio.Nursery) -> None:
    files.write("P-256")
    await install(files, pgdata)
    files.write("P-256")
    told = trio.Event()
    times = 0

    async def ignore() -> None:
        nonlocal times
        times += 1
        if times == 3:
            told.set()

    tls, installed = files.tls, pgdata / "server.crt"
    nursery.start_soon(lambda: watch_certificate(lambda: tls, installed, ignore, poll_seconds=0.001))
    with trio.fail_after(10):
        await told.wait()
    nursery.cancel_scope.cancel()


async def test_nothing_is_told_while_no_tls_is_served(files: Files, pgdata: Path, nursery: trio.Nursery) -> None:
    """F-28: without the feature, or before the first installation."""
    files.write("P-256")
    watch = Watch(files, pgdata)
    nursery.start_soon(watch.serve)
    assert await watch.look() == 0
    watch.in_use = False
    await watch.look()  # one that had begun before may still be reading
    (pgdata / "server.crt").write_text("another")
    assert await watch.look() == 0
    nursery.cancel_scope.cancel()
