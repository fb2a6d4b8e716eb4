"""What the handlers work with."""

from __future__ import annotations

from trio_compute.services.life import Life

Context = Life
