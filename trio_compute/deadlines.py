"""How long everything may take, in one place (contract 02 §4.1, §6, §10)."""

from __future__ import annotations

from msgspec import Struct


class Deadlines(Struct, frozen=True, kw_only=True):
    """Hold every time limit of a compute's life, in seconds (contract 02 §4.1, §6, §10)."""

    postgres_ready: float = 60.0
    fast_stop: float = 60.0
    quit_stop: float = 5.0
    signal_stop: float = 8.0
    signal_kill: float = 1.0
    log_drain: float = 5.0
    final_sync: float = 120.0
    linger: float = 30.0
    brief_linger: float = 0.3
    drain: float = 1.0
    safekeeper_check: float = 0.1
    sync_safekeepers_stop: float = 2.0
    pageserver_connect: float = 10.0
    pageserver_idle: float = 330.0
    catalog_connect: float = 5.0
    catalog_lock: float = 30.0
    catalog_statement: float = 120.0
    catalog_retry: float = 30.0
    catalog_total: float = 1800.0
    # How long whoever sits in a database that has to be empty may stay there (contract 11 T-15).
    catalog_patience: float = 5.0
    # The first one at a start; the second when a pair from before can stay in use (contract 02 §9, D-52).
    certificate: float = 60.0
    certificate_renewal: float = 30.0
    monitor_connect: float = 5.0
    monitor_statement: float = 5.0
    # What a request that speaks SQL may take to connect, and in all (contract 03 A-15).
    request_connect: float = 5.0
    request_total: float = 60.0
    extension_writers: float = 10.0  # for open transactions, before the script of an extension (11 T-02)
    idle_look: float = 12.0  # is anybody working? while that lasts nobody can connect
    dump_connect: float = 5.0
    dump_lock: float = 10.0
    dump_total: float = 300.0  # with the wait for its turn (11 T-13)
    # The neon library waits 60 s for an extension (06 R-18).
    extension_connect: float = 5.0
    extension_idle: float = 15.0
    extension_total: float = 55.0
    endpoint_storage_connect: float = 5.0
    endpoint_storage_idle: float = 30.0
    trace_flush: float = 2.0
