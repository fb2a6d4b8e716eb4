"""Three embedded safekeepers: they remember how far each timeline's WAL is safe, and answer TIMELINE_STATUS."""

from __future__ import annotations

from pathlib import Path

import msgspec

from trio_compute.embedded.wire import Session, WireError
from trio_compute.host.files import write_atomically
from trio_compute.host.run_as import RunAs
from trio_compute.model.ids import INVALID_LSN, Lsn

SYNC_COMMAND = "STAND_IN_SYNC"


class Safekeeper:
    """Keep one LSN per timeline in a file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lsns: dict[str, str] = (
            msgspec.json.decode(path.read_bytes(), type=dict[str, str]) if path.exists() else {}
        )

    def lsn(self, timeline: str) -> Lsn | None:
        """Return how far a timeline is safe here, or None if it is unknown."""
        text = self._lsns.get(timeline)
        return None if text is None else Lsn.parse(text)

    def advance(self, timeline: str, lsn: Lsn) -> None:
        """Take note that a timeline is safe up to an LSN."""
        if lsn > (self.lsn(timeline) or INVALID_LSN):
            self._lsns[timeline] = str(lsn)
            write_atomically(self._path, msgspec.json.encode(self._lsns).decode(), RunAs())


class SafekeeperGroup:
    """Answer for the members of a group; a sync through any of them brings all to the same LSN.

    TIMELINE_STATUS is Neon's own command. STAND_IN_SYNC is not: it is what the wrapper around vanilla Postgres calls in
    place of the walproposer's protocol, which only Neon's own Postgres speaks.
    """

    def __init__(self, directory: Path, members: int = 3) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.members = [Safekeeper(directory / f"safekeeper-{number}.json") for number in range(1, members + 1)]

    async def handle(self, member: Safekeeper, session: Session, query: str) -> None:
        """Answer one query that was sent to a member."""
        tenant, timeline = session.option("tenant_id"), session.option("timeline_id")
        if tenant is None or timeline is None:
            raise WireError("tenant_id and timeline_id are required in options")
        key = f"{tenant}/{timeline}"
        word, *arguments = query.split() or [""]
        if word.upper() == "TIMELINE_STATUS":
            lsn = member.lsn(key)
            rows = [] if lsn is None else [[str(lsn), str(lsn)]]
            await session.send_rows(["flush_lsn", "commit_lsn"], rows, "TIMELINE_STATUS")
        elif word.upper() == SYNC_COMMAND:
            await session.send_rows(["lsn"], [[str(self.sync(key, arguments))]], SYNC_COMMAND)
        else:
            raise WireError(f"cannot parse query: {brief_query(query)}")

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


def brief_query(query: str) -> str:
    """Return the start of a query for an error text."""
    return query[:100]
