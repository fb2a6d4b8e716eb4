"""One compute with all that its phases and its HTTP servers share."""

from __future__ import annotations

from trio_compute.lifecycle.compute import Compute
from trio_compute.lifecycle.ending import asked_for
from trio_compute.ports import Host
from trio_compute.postgres.postmaster import Postmaster
from trio_compute.services.apply_queue import ApplyQueue
from trio_compute.services.errands import Errands
from trio_compute.services.extensions import RemoteExtensions
from trio_compute.services.lfc import Lfc
from trio_compute.services.lsn_lease import LsnLease
from trio_compute.services.promotion import Promotions
from trio_compute.settings import Settings
from trio_compute.telemetry.spans import Recorder


class Life:
    """Hold the compute, the world it acts on, and whom to ask for what."""

    def __init__(self, settings: Settings, host: Host, spans: Recorder) -> None:
        self.compute = Compute(settings, spans=spans)
        self.host = host
        self.queue = ApplyQueue()
        self.errands = Errands()
        self.extensions = RemoteExtensions(self.compute, host, self.errands)
        self.postmaster: Postmaster | None = None
        self.neighbours_stopped = False
        self.lease = LsnLease(self.compute, host.request_lsn_lease)
        self.lfc = Lfc(self.compute, host, self.errands)
        self.promotions = Promotions(self.compute, host, self.queue, self.lfc)

    @property
    def is_primary(self) -> bool:
        """Tell whether the current spec is a primary's."""
        spec = self.compute.state.spec
        return spec is not None and spec.is_primary

    def begin_end(self) -> None:
        """Turn away who waits for a spec to be applied, and stop the neighbours, who go before Postgres (02 §10.1)."""
        self.queue.close()
        if asked_for(self.compute.ending.value) and not self.neighbours_stopped:
            self.neighbours_stopped = True
            self.host.stop_neighbours()
