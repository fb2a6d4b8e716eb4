"""Fetch the archive of an extension from the gateway and install it (contract 06 §10.5, R-18, R-19)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from trio_compute.deadlines import Deadlines
from trio_compute.errors import ComputeError, RemoteError
from trio_compute.plan.remote_extensions import Archive
from trio_compute.plan.schedules import EXTENSION_PAUSES_SECONDS
from trio_compute.postgres.extension_archive import ArchiveUnpacker, Limits
from trio_compute.postgres.extension_staging import Places, open_staging
from trio_compute.storage.texts import brief
from trio_compute.telemetry.logging import get_logger
from trio_compute.telemetry.metrics import REMOTE_EXTENSION_REQUESTS, metrics

if TYPE_CHECKING:
    import httpx

CHUNK_BYTES = 16 * 1024
WORTH_ASKING_AGAIN = frozenset({502, 503, 504})

log = get_logger("extensions")


class _Transient(RemoteError):
    """Report a failure that may pass."""


async def fetch_extension(
    base_url: str, archive: Archive, places: Places, *, deadlines: Deadlines, limits: Limits | None = None
) -> int:
    """Download one archive and install what it holds; return its size in bytes.

    Connection errors and statuses 502, 503 and 504 are tried again; whatever fails, nothing is installed. Raises
    RemoteError, StorageError for an archive that is refused, HostError for what this machine refuses.
    """
    try:
        with trio.fail_after(deadlines.extension_total):
            return await _fetch_with_retries(base_url + archive.path, archive, places, deadlines, limits)
    except trio.TooSlowError:
        raise RemoteError(f"{archive.filename}: not downloaded within {deadlines.extension_total:g} s") from None


async def _fetch_with_retries(
    url: str, archive: Archive, places: Places, deadlines: Deadlines, limits: Limits | None
) -> int:
    for pause in (*EXTENSION_PAUSES_SECONDS, None):
        try:
            return await _fetch_once(url, archive, places, deadlines, limits)
        except _Transient as error:
            if pause is None:
                raise
            log.warning("extension not downloaded", file=archive.filename, error=error, retry_in_seconds=pause)
        await trio.sleep(pause)
    raise AssertionError("the last attempt returns or raises")


async def _fetch_once(url: str, archive: Archive, places: Places, deadlines: Deadlines, limits: Limits | None) -> int:
    async with open_staging(places) as staging:
        with ArchiveUnpacker(staging, archive.filename, sha256=archive.sha256, limits=limits) as unpacker:
            await _download(url, archive.filename, unpacker, deadlines)
            await trio.to_thread.run_sync(unpacker.finish)
        files = await trio.to_thread.run_sync(staging.install)
    log.debug("extension installed", file=archive.filename, files=files)
    return unpacker.bytes_in


async def _download(url: str, filename: str, unpacker: ArchiveUnpacker, deadlines: Deadlines) -> None:
    import httpx

    timeout = httpx.Timeout(deadlines.extension_idle, connect=deadlines.extension_connect)
    # The decoding is ours: what a server would make smaller once more is of no use.
    headers = {"accept-encoding": "identity"}
    is_counted = False
    try:
        async with (
            httpx.AsyncClient(timeout=timeout, trust_env=False, follow_redirects=True, headers=headers) as client,
            client.stream("GET", url) as response,
        ):
            is_counted = True
            _count(response, filename)
            _require_success(response)
            await _unpack(response, unpacker)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        if not is_counted:
            metrics.increment(REMOTE_EXTENSION_REQUESTS, http_status="unknown", filename=filename)
        raise _Transient(f"{filename}: {brief(error) or type(error).__name__}") from None


def _count(response: httpx.Response, filename: str) -> None:
    metrics.increment(REMOTE_EXTENSION_REQUESTS, http_status=_status_text(response), filename=filename)


def _status_text(response: httpx.Response) -> str:
    import httpx

    return f"{response.status_code} {httpx.codes.get_reason_phrase(response.status_code)}".rstrip()


def _require_success(response: httpx.Response) -> None:
    if response.status_code == 200:
        return
    text = f"unexpected remote extensions server response status code: {_status_text(response)}"
    if response.status_code == 503:
        text = "remote extensions server is temporarily unavailable"
    raise (_Transient if response.status_code in WORTH_ASKING_AGAIN else RemoteError)(text)


async def _unpack(response: httpx.Response, unpacker: ArchiveUnpacker) -> None:
    """Unpack the body while it arrives.

    httpx's generators must not be left behind half used: only an error or a cancellation that comes while the next
    chunk is awaited unwinds them, so none may come while one is unpacked.
    """
    failures: list[Exception] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_abort_when_cancelled, unpacker)
        try:
            async for chunk in response.aiter_raw(CHUNK_BYTES):
                if not failures:
                    with trio.CancelScope(shield=True):
                        await trio.to_thread.run_sync(_attempt, unpacker, chunk, failures)
                if failures:
                    nursery.cancel_scope.cancel()
        except Exception as error:  # noqa: BLE001  (raised again below, outside of the nursery, which would wrap it)
            failures.append(error)
        nursery.cancel_scope.cancel()
    await trio.lowlevel.checkpoint_if_cancelled()
    if failures:
        raise failures[0]


def _attempt(unpacker: ArchiveUnpacker, chunk: bytes, failures: list[Exception]) -> None:
    try:
        unpacker.feed(chunk)
    except ComputeError as error:
        failures.append(error)


async def _abort_when_cancelled(unpacker: ArchiveUnpacker) -> None:
    try:
        await trio.sleep_forever()
    finally:
        unpacker.abort()
