"""A rig around real computes: starts them with the production command line and looks for what they leave behind."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from trio_compute.embedded.compute_child import ComputeChild, Ports, open_compute
from trio_compute.embedded.dev import compute_arguments, connstr
from trio_compute.embedded.endpoints import Addresses
from trio_compute.embedded.free_ports import free_port
from trio_compute.embedded.world import World, base_settings


class Rig:
    """Own a world with its services."""

    def __init__(self, world: World, addresses: Addresses, answers: dict[str, dict[str, Any]]) -> None:
        self.world = world
        self.addresses = addresses
        self.ports = Ports(free_port(), free_port(), free_port())
        self.answers = answers
        self.log_path = world.directory / "compute.log"

    @property
    def connstr(self) -> str:
        return connstr(self.ports, "postgres")

    def config(self, **spec_changes: Any) -> dict[str, Any]:
        """Return config.json of a primary on this world, with some fields of the spec changed."""
        config = self.world.config(self.addresses, base_settings(self.ports.postgres))
        config["spec"] |= {"skip_pg_catalog_updates": True, **spec_changes}
        return config

    @asynccontextmanager
    async def compute(
        self,
        config: Mapping[str, Any] | None = None,
        *,
        flags: Mapping[str, str | None] | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> AsyncIterator[ComputeChild]:
        """Run a compute; flags replace those of the command line, None removes one."""
        self.world.write_config(dict(config or self.config()))
        arguments = self.arguments(flags or {})
        async with open_compute(
            arguments,
            self.ports,
            token=self.world.api_token(),
            log_path=self.log_path,
            environ={**os.environ, "OTEL_SDK_DISABLED": "true", **(environ or {})},
        ) as child:
            yield child

    def arguments(self, flags: Mapping[str, str | None]) -> list[str]:
        words = compute_arguments(self.world, self.ports)
        for flag, value in flags.items():
            if flag in words:
                at = words.index(flag)
                del words[at : at + 2]
            if value is not None:
                words += [flag, value]
        return words

    def leftovers(self) -> list[str]:
        """Return the command lines of processes that mention this world's directory."""
        mine = str(self.world.directory).encode()
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                try:
                    line = (entry / "cmdline").read_bytes()
                except OSError:
                    continue
                if mine in line:
                    found.append(line.replace(b"\0", b" ").decode(errors="replace"))
        return found

    def log(self) -> str:
        return self.log_path.read_text(encoding="utf-8", errors="replace")
