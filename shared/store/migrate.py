"""Brings the schema to the newest revision. Safe to run at the same time from many places."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config

from shared.store.database import explained_failures
from shared.store.roles import grant_rights

MIGRATIONS = Path(__file__).parent / "migrations"


def alembic_config(database_url: str) -> Config:
    """Alembic's configuration for a database, made in code because an image carries no ini file."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.attributes["database_url"] = database_url
    return config


def upgrade(database_url: str, revision: str = "head") -> list[str]:
    """Apply all migrations up to `revision`; at the newest, give the services' roles their rights.

    Must not be called from a running event loop.

    Args:
        database_url: `postgresql://user:password@host:port/database`.
        revision: where to stop; the newest by default.

    Returns:
        Roles that got no rights because they do not exist yet.

    Raises:
        DatabaseUnavailable: Postgres does not answer, or refuses.
    """
    with explained_failures(database_url):
        command.upgrade(alembic_config(database_url), revision)
    return grant_rights(database_url) if revision == "head" else []


def downgrade(database_url: str, revision: str) -> None:
    """Take migrations back down to `revision` (`base` removes everything)."""
    command.downgrade(alembic_config(database_url), revision)
