"""The part of `Host` that speaks SQL to a Postgres that runs (contract 06); psycopg is loaded at the first use."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any

from trio_compute.plan.activity import Exclusions
from trio_compute.settings import Settings

if TYPE_CHECKING:
    from trio_compute.db.activity import Watch
    from trio_compute.model.responses import CatalogResponse
    from trio_compute.plan.extension_statistics import Statistics


class RuntimeSql:
    """Look at Postgres and do what requests ask of it; all methods raise PostgresError."""

    settings: Settings

    def open_watch(self) -> AbstractAsyncContextManager[Watch]:
        """Open the session of the activity monitor."""
        from trio_compute.db.activity import open_watch

        settings = self.settings
        exclusions = Exclusions.of(settings.activity_exclude_users, settings.activity_exclude_applications)
        return open_watch(settings.connstr, exclusions, settings.deadlines)

    async def collect_installed_extensions(self) -> Statistics:
        """Count the installed extensions of all databases."""
        from trio_compute.db.installed_extensions import collect_installed_extensions

        return await collect_installed_extensions(self.settings.connstr, self.settings.deadlines)

    async def check_writability(self) -> bool:
        """Try whether Postgres can write; return whether there was room."""
        from trio_compute.db.writability import check_writability

        return await check_writability(self.settings.connstr, self.settings.deadlines)

    async def collect_insights(self) -> list[dict[str, Any]]:
        """Return the slowest statements."""
        from trio_compute.db.insights import collect_insights

        return await collect_insights(self.settings.connstr, self.settings.deadlines)

    async def list_catalog(self) -> CatalogResponse:
        """Return all roles and databases."""
        from trio_compute.db.listing import list_catalog

        settings = self.settings
        return await list_catalog(settings.connstr, settings.deadlines, hide_passwords=settings.hide_password_hashes)

    async def install_extension(self, database: str, name: str, version: str) -> bool:
        """Bring an extension to a version; return whether anything had to be done."""
        from trio_compute.db.install_extension import install_extension

        return await install_extension(self.settings.connstr, database, name, version, self.settings.deadlines)

    async def grant_on_schema(self, database: str, schema: str, role: str, privileges: Sequence[str]) -> bool:
        """Grant what a role lacks on a schema; return whether anything had to be done."""
        from trio_compute.db.grants import grant_on_schema

        return await grant_on_schema(self.settings.connstr, database, schema, role, privileges, self.settings.deadlines)
