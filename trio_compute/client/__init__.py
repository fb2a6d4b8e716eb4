"""A client of a compute's HTTP API, for other programs, for our commands and for tests.

`ComputeClient` blocks, `TrioComputeClient` is awaited; both have the same methods, one for each route. Errors are
`ApiError` (the compute said no), `Unreachable` (nobody said anything) and `UnexpectedAnswer`.
"""

from __future__ import annotations

from trio_compute.client.blocking import ComputeClient
from trio_compute.client.core import ApiError, UnexpectedAnswer, Unreachable
from trio_compute.client.events import Event
from trio_compute.client.on_trio import TrioComputeClient

__all__ = ["ApiError", "ComputeClient", "Event", "TrioComputeClient", "UnexpectedAnswer", "Unreachable"]
