"""Bodies of the HTTP API (contract 03)."""

from __future__ import annotations

from typing import Any, Literal

from trio_compute.model.spec import ComputeSpec, Wire

TerminateMode = Literal["fast", "immediate"]


class ConfigureRequest(Wire, frozen=True):
    """Be the body of `/configure`; `compute_ctl_config` is taken at process start only, so here it may be absent."""

    spec: ComputeSpec
    compute_ctl_config: Any = None
