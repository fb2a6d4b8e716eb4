"""Extensions that come from the gateway: prepared at the start, fetched on demand, each once (contract 06 §10, §11)."""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING, Any

import trio
from msgspec import Struct

from trio_compute.errors import ComputeError, HostError, RemoteError, cause_chain
from trio_compute.lifecycle.compute import Compute
from trio_compute.model.parsed import ParsedSpec
from trio_compute.model.spec import RemoteExtSpec
from trio_compute.plan.remote_extensions import Archive, Platform, Preload, control_files, preload, resolve
from trio_compute.ports import Host
from trio_compute.services.errands import Ended, Errands
from trio_compute.telemetry.logging import get_logger
from trio_compute.telemetry.redaction import redact

if TYPE_CHECKING:
    from trio_compute.postgres.extension_staging import Places
    from trio_compute.postgres.installation import Installation

log = get_logger("extensions")


class Fetched(Struct, frozen=True):
    """Say how large an archive is and whether it was there before it was asked for."""

    size_bytes: int
    was_there: bool


class _Flight:
    """Be the one download of an archive, which all who want it wait for."""

    def __init__(self) -> None:
        self.landed = trio.Event()
        self.size_bytes: int | None = None
        self.error: ComputeError | None = None


class RemoteExtensions:
    """Download archives, each at most once in the life of a compute; a download that failed may be repeated."""

    def __init__(self, compute: Compute, host: Host, errands: Errands) -> None:
        self._compute = compute
        self._host = host
        self._errands = errands
        self._flights: dict[str, _Flight] = {}
        self._installation: Installation | None = None
        self._inspecting = trio.Lock()

    async def prepare(self, parsed: ParsedSpec) -> None:
        """Put control files and the archives of preloaded libraries in place before Postgres starts.

        A download that fails is only logged; raises SpecError or HostError for a control file that cannot be written.
        """
        remote = parsed.spec.remote_extensions
        if remote is None:
            return
        try:
            installation = await self._inspect()
        except HostError as error:
            log.error("remote extensions are disabled", error=cause_chain(error))
            return
        await self._host.sweep_extensions(installation.places)
        for name in await self._host.write_control_files(control_files(remote), installation.places):
            log.warning("control file exists already, the local one is kept", file=name)
        if self._compute.settings.remote_ext_base_url is not None and installation.major is not None:
            await self._preload(preload(parsed, remote, self._platform(installation)), installation.places)

    async def obtain(self, remote: RemoteExtSpec, name: str, *, is_library: bool) -> Fetched:
        """Have an extension installed, or the one that brings a library.

        Raises UnknownExtension if the spec does not allow it, RemoteError if it cannot be downloaded, HostError if this
        installation cannot take any, and Ended.
        """
        installation = await self._inspect()
        archive = resolve(remote, name, self._platform(installation), is_library=is_library)
        return await self._fetch(archive, installation.places)

    async def _inspect(self) -> Installation:
        async with self._inspecting:
            if self._installation is None:
                self._installation = await self._host.inspect_installation()
                if self._installation.major is None:
                    log.warning("no remote extensions for this Postgres", version=self._installation.version)
            return self._installation

    def _platform(self, installation: Installation) -> Platform:
        if installation.major is None:
            raise HostError(f"there are no remote extensions for {installation.version}")
        return Platform(self._compute.settings.build_tag, os.uname().machine, installation.major)

    async def _preload(self, wanted: Preload, places: Places) -> None:
        for warning in wanted.warnings:
            log.warning("preloaded library", about=warning)
        sizes: list[int] = []
        with self._compute.spans.measure("load_ext") as span:
            async with trio.open_nursery() as nursery:
                for archive in wanted.archives:
                    nursery.start_soon(self._preload_one, archive, places, sizes)
            span.attributes = {"downloaded": len(sizes), "largest": max(sizes, default=0), "total": sum(sizes)}

    async def _preload_one(self, archive: Archive, places: Places, sizes: list[int]) -> None:
        try:
            fetched = await self._fetch(archive, places)
        except ComputeError as error:
            log.error("preloaded library not downloaded", file=archive.filename, error=redact(cause_chain(error)))
            return
        if not fetched.was_there:
            sizes.append(fetched.size_bytes)

    async def _fetch(self, archive: Archive, places: Places) -> Fetched:
        """Join the download of an archive, or begin it (R-16, R-17)."""
        flight = self._flights.get(archive.path)
        if flight is not None and flight.size_bytes is not None:
            return Fetched(flight.size_bytes, was_there=True)
        if flight is None:
            flight = self._begin(archive, places)
        await flight.landed.wait()
        if flight.size_bytes is not None:
            return Fetched(flight.size_bytes, was_there=False)
        if isinstance(flight.error, Ended):
            raise Ended
        raise RemoteError(f"failed to download extension {archive.filename}") from flight.error

    def _begin(self, archive: Archive, places: Places) -> _Flight:
        flight = _Flight()
        # A child of the compute's life: it goes on though who asked for it is gone.
        self._errands.begin(partial(self._fly, archive, places, flight))
        self._flights[archive.path] = flight
        return flight

    def _tell(self, archive: Archive, **what: Any) -> None:
        note = log.warning if "error" in what else log.info
        note("extension", file=archive.filename, **what)
        self._compute.feed.publish("extension", {"file": archive.filename, **what})

    async def _fly(self, archive: Archive, places: Places, flight: _Flight) -> None:
        flight.error = Ended()
        try:
            flight.size_bytes = await self._host.fetch_extension(archive, places)
            self._tell(archive, bytes=flight.size_bytes)
        except ComputeError as error:
            flight.error = error
            self._tell(archive, error=redact(cause_chain(error)))
        except Exception as error:  # noqa: BLE001  (a defect in one download is no reason to end a compute)
            flight.error = RemoteError("internal error")
            log.error("a download is broken", file=archive.filename, error=redact(cause_chain(error)))
        finally:
            if flight.size_bytes is None:
                del self._flights[archive.path]
            flight.landed.set()
