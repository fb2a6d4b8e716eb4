"""What the handlers work with."""

from __future__ import annotations

from msgspec import Struct

from trio_compute.lifecycle.compute import Compute
from trio_compute.ports import Host
from trio_compute.services.apply_queue import ApplyQueue


class Context(Struct, frozen=True):
    """Hold the compute and the way to ask it for changes."""

    compute: Compute
    queue: ApplyQueue
    host: Host
