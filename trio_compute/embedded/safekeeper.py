"""Three embedded safekeepers: they remember how far each timeline's WAL is safe, and answer TIMELINE_STATUS."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec

from trio_compute.embedded.branches import exclusive
from trio_compute.embedded.timelines import Timeline
from trio_compute.embedded.tokens import Service
from trio_compute.embedded.wire import Session, WireError
from trio_compute.errors import ComputeError
from trio_compute.host.files import write_atomically
from trio_compute.host.run_as import RunAs
from trio_compute.model.ids import INVALID_LSN, Lsn

STATUS_COMMAND = "TIMELINE_STATUS"
SYNC_COMMAND = "STAND_IN_SYNC"
SET_DATE_STYLE = "set datestyle to "


class Safekeeper:
    """Keep one LSN per timeline in a file, which the computes of other branches may change at the same time."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def lsn(self, timeline: str) -> Lsn | None:
        """Return how far a timeline is safe here, or None if it is unknown."""
        text = self._read().get(timeline)
        return None if text is None else Lsn.parse(text)

    def advance(self, timeline: str, lsn: Lsn) -> None:
        """Take note that a timeline is safe up to an LSN."""
        with exclusive(self._path.with_name("lock")):
            lsns = self._read()
            if lsn > Lsn.parse(lsns.get(timeline, "0/0")):
                lsns[timeline] = str(lsn)
                write_atomically(self._path, msgspec.json.encode(lsns).decode(), RunAs())

    def _read(self) -> dict[str, str]:
        return msgspec.json.decode(self._path.read_bytes(), type=dict[str, str]) if self._path.exists() else {}


class SafekeeperGroup:
    """Answer for the members of a group; a sync through any of them brings all to the same LSN.

    TIMELINE_STATUS is Neon's own command. STAND_IN_SYNC is not: it is what the wrapper around vanilla Postgres calls in
    place of the walproposer's protocol, which only Neon's own Postgres speaks. At the end of a compute it brings the
    LSN that Postgres stopped at; at a start it brings none, and what a crash left is recovered before the answer.
    """

    def __init__(self, directory: Path, timelines: Mapping[tuple[str, str], Timeline], members: int = 3) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._timelines = timelines
        self.members = [Safekeeper(directory / f"safekeeper-{number}.json") for number in range(1, members + 1)]

    async def handle(self, member: Safekeeper, session: Session, query: str) -> None:
        """Answer one query that was sent to a member."""
        if query.lower().startswith(SET_DATE_STYLE):
            await session.complete("SELECT 1")
            return
        if not query.startswith((STATUS_COMMAND, SYNC_COMMAND)):
            raise WireError(f"unsupported command {query}")
        tenant, timeline_id = _addressee(session)
        session.require(tenant, Service.SAFEKEEPER)
        key, timeline = f"{tenant}/{timeline_id}", self._timelines.get((tenant, timeline_id))
        if query.startswith(STATUS_COMMAND):
            rows = self._status_rows(member, key, timeline)
            await session.send_rows(["flush_lsn", "commit_lsn"], rows, STATUS_COMMAND)
            return
        _, *arguments = query.split()
        if not arguments and timeline is not None:
            await self._recover(key, timeline)
        await session.send_rows(["lsn"], [[str(self.sync(key, arguments))]], SYNC_COMMAND)

    @staticmethod
    def _status_rows(member: Safekeeper, key: str, timeline: Timeline | None) -> list[list[str | None]]:
        streamed = None if timeline is None else timeline.positions()
        if streamed is not None:
            return [[str(streamed[0]), str(streamed[1])]]
        lsn = member.lsn(key)
        return [] if lsn is None else [[str(lsn), str(lsn)]]

    async def _recover(self, key: str, timeline: Timeline) -> None:
        """Make a snapshot of what was streamed; who still streams it is cut off, since another primary begins."""
        if timeline.positions() is None:
            return
        try:
            lsn = await timeline.settle()
        except ComputeError as error:
            raise WireError(str(error)) from None
        if lsn is not None:
            self.sync(key, [str(lsn)])

    def sync(self, key: str, arguments: list[str]) -> Lsn:
        """Bring all members to the highest LSN that one of them or the caller knows, and return it."""
        try:
            given = Lsn.parse(arguments[0]) if arguments else INVALID_LSN
        except ValueError as error:
            raise WireError(str(error)) from None
        highest = max([given, *(member.lsn(key) or INVALID_LSN for member in self.members)])
        if highest != INVALID_LSN:
            for member in self.members:
                member.advance(key, highest)
        return highest


def _addressee(session: Session) -> tuple[str, str]:
    """Return the tenant and the timeline that the options of a session name; raise WireError if they do not."""
    tenant, timeline_id = session.option("tenant_id"), session.option("timeline_id")
    if tenant is None:
        raise WireError("tenantid is required")
    if timeline_id is None:
        raise WireError("timelineid is required")
    return tenant.lower(), timeline_id.lower()
