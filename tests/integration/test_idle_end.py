"""`POST /terminate?if_idle=true` on real Postgres: nobody who works is thrown out."""

from __future__ import annotations

import contextlib
from typing import Any

import httpx
import psycopg
import pytest
import trio

from tests.integration.compute import Rig
from trio_compute.embedded.compute_child import ComputeChild

pytestmark = pytest.mark.postgres
RUSHING_CLIENTS = 8
OTHERS = """
SELECT count(*) FROM pg_stat_activity
WHERE application_name LIKE 'compute_ctl:%' AND application_name <> 'compute_ctl:compute_monitor'
"""


async def terminate_if_idle(rig: Rig, child: ComputeChild) -> httpx.Response:
    headers = {"authorization": f"Bearer {rig.world.api_token()}"}
    async with httpx.AsyncClient(trust_env=False, headers=headers, timeout=60) as client:
        return await client.post(f"{child.external_url}/terminate?mode=immediate&if_idle=true")


async def test_a_working_session_is_counted_and_left_alone_and_an_idle_one_is_not(rig: Rig) -> None:
    async with rig.compute() as child:
        await child.reach("running")
        url = rig.connstr.replace("cloud_admin@", "postgres@")
        with psycopg.connect(rig.connstr, autocommit=True, sslmode="disable") as admin:
            admin.execute("CREATE ROLE postgres LOGIN")
        with psycopg.connect(url, sslmode="disable") as session:
            session.execute("SELECT 1")  # idle in transaction
            response = await terminate_if_idle(rig, child)
            assert (response.status_code, response.json()) == (
                409, {"error": "compute is not idle: 1 active session"},
            )  # fmt: skip
            assert session.execute("SELECT 2").fetchone() == (2,)
            session.rollback()
            response = await terminate_if_idle(rig, child)
            assert response.status_code == 200
            assert response.json()["lsn"] is not None
        assert await child.process.wait() == 0


async def test_who_connects_during_the_look_is_served_or_finds_the_server_gone(rig: Rig) -> None:
    """Nobody's acknowledged work is cut off: a session either counts, or never got to its first statement."""
    async with rig.compute() as child:
        await child.reach("running")
        with psycopg.connect(rig.connstr, autocommit=True, sslmode="disable") as admin:
            admin.execute("CREATE ROLE postgres LOGIN")
            admin.execute("CREATE TABLE public.done (client int); GRANT ALL ON public.done TO postgres")
        url = rig.connstr.replace("cloud_admin@", "postgres@")
        committed: list[int] = []

        def rush(number: int) -> None:
            try:
                with psycopg.connect(url, sslmode="disable", connect_timeout=10) as session:
                    session.execute("INSERT INTO public.done VALUES (%s)", (number,))
                    session.commit()
                    committed.append(number)
            except psycopg.OperationalError:
                return  # the server was gone, or went before the commit was acknowledged

        answers: list[int] = []
        async with trio.open_nursery() as nursery:
            for number in range(RUSHING_CLIENTS):
                nursery.start_soon(trio.to_thread.run_sync, rush, number)
            answers.append((await terminate_if_idle(rig, child)).status_code)
        if answers == [409]:
            assert sorted(committed) == [*range(RUSHING_CLIENTS)]
            answers = [(await terminate_if_idle(rig, child)).status_code]
        assert answers == [200]
        await child.process.wait()
    await trio.to_thread.run_sync(rig.world.recover)
    async with rig.compute() as child:
        await child.reach("running")
        rows = await trio.to_thread.run_sync(read_all, rig.connstr)
        assert {*committed} <= rows
        await child.terminate("immediate")


def fill(held: list[psycopg.Connection[Any]], connstr: str) -> None:
    """Take every connection that there is."""
    with contextlib.suppress(psycopg.OperationalError):
        while True:
            held.append(psycopg.connect(connstr, sslmode="disable"))


def read_all(connstr: str) -> set[int]:
    with psycopg.connect(connstr, sslmode="disable") as session:
        return {row[0] for row in session.execute("SELECT client FROM public.done")}


async def test_a_postgres_that_does_not_answer_is_503_and_goes_on(rig: Rig, sql: Any) -> None:
    """Idleness cannot be known: every connection is taken by somebody else."""
    async with rig.compute() as child:
        await child.reach("running")
        while await trio.to_thread.run_sync(sql, rig.connstr, OTHERS) != [(0,)]:
            await trio.sleep(0.05)  # what the compute does once after its start gives back its connections
        held: list[psycopg.Connection[Any]] = []
        try:
            fill(held, rig.connstr)
            response = await terminate_if_idle(rig, child)
            assert response.status_code == 503
            assert "cannot be known" in response.json()["error"]
        finally:
            for session in held:
                session.close()
        assert (await child.reach("running"))["status"] == "running"
        await child.terminate("immediate")
