"""Run a Neon compute node: compute_ctl as a Trio structured-concurrency service."""

__version__ = "0.1.0"
