"""Who may do what in the database, as data: one role per service, and for each table the least that its work needs.

The owner migrates, and grants afterwards: whatever a role had before and has not here is taken away. No role may change
the schema, and none owns anything. A row is locked (`SELECT … FOR UPDATE`) by whoever may update one of its columns.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import hmac
import secrets
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeAlias, TypeVar

import asyncpg

from shared.domain.errors import PermanentError
from shared.store import tables
from shared.store.database import DatabaseUnavailable, async_url

T = TypeVar("T")

ROLE_PREFIX = "kmmhub_"
ADVISORY_LOCK = 0x6B6D6D67726E74  # "kmmgrnt"
SCRAM_ITERATIONS = 4096
CONNECT_TIMEOUT_SECONDS = 10


class Verb(StrEnum):
    """What can be done to the rows of a table."""

    SELECT = "SELECT"
    INSERT = "INSERT"
    UPDATE = "UPDATE"
    DELETE = "DELETE"


@dataclass(frozen=True, slots=True, kw_only=True)
class Right:
    """A verb, on certain columns or, without any, on all."""

    verb: Verb
    columns: tuple[str, ...] = ()


Rights: TypeAlias = Mapping[str, tuple[Right, ...]]
"""By name of the table; a table that is not there may not be touched."""


def _update(*columns: str) -> Right:
    return Right(verb=Verb.UPDATE, columns=columns)


_SELECT, _INSERT, _DELETE = (Right(verb=verb) for verb in (Verb.SELECT, Verb.INSERT, Verb.DELETE))
_READ = (_SELECT,)
_WRITE = (_SELECT, _INSERT, _update())
_OWN = (*_WRITE, _DELETE)

_PROGRESS = _update(
    *(one.name for one in tables.artifacts.c if one.name not in tables.FIXED_ARTIFACT_COLUMNS)
)

# A relay locks rows, and deletes those that it has published; it changes none.
_RELAY: Rights = {"outbox": (_SELECT, _INSERT, _DELETE, _update("id"))}
# The same message that dies again only counts its deliveries. Of too many the oldest go.
_CONSUMER: Rights = {"dead_letters": (_SELECT, _INSERT, _update("cause", "deliveries"), _DELETE)}
_WORKER: Rights = {**_RELAY, **_CONSUMER, "artifacts": (_SELECT, _PROGRESS)}

ROLES: Mapping[str, Rights] = {
    "watcher": {
        **_RELAY,
        "clusters": _OWN,
        "modules": _OWN,
        "config_maps": _OWN,
        "secrets": _OWN,
        "works": _OWN,
        "syncs": _WRITE,
    },
    "dispatcher": {
        **_RELAY,
        **_CONSUMER,
        "clusters": _READ,
        "modules": _READ,
        "config_maps": _READ,
        "secrets": _READ,
        "syncs": _READ,
        "works": _WRITE,
        "artifacts": (_SELECT, _INSERT, _PROGRESS),
        "module_kernels": _OWN,
    },
    "builder": _WORKER,
    "signer": _WORKER,
    # People with `kmmhub status` and what puts things right again.
    "operator": {
        **dict.fromkeys(tables.metadata.tables, _READ),
        "artifacts": (_SELECT, _PROGRESS),
        "outbox": (_SELECT, _INSERT),
        "dead_letters": (_SELECT, _DELETE),
    },
}
"""By name of the service; `operator` is for people."""


# Those of an extension in the same schema are not ours to take rights on.
_ALL_TABLES = ", ".join(f"public.{name}" for name in (*tables.metadata.tables, "alembic_version"))


class InvalidPassword(PermanentError):
    """A password that a role cannot have."""

    reason = "InvalidPassword"


def role_name(service: str) -> str:
    """The role of a service."""
    return f"{ROLE_PREFIX}{service}"


def grant_statements(service: str, database: str) -> list[str]:
    """Statements that give a role its rights, and no others, in the database that they are executed in."""
    role = role_name(service)
    statements = [
        f"REVOKE ALL ON {_ALL_TABLES} FROM {role}",
        f"REVOKE ALL ON SCHEMA public FROM {role}",
        f"GRANT USAGE ON SCHEMA public TO {role}",
        f"GRANT CONNECT ON DATABASE {_quoted(database)} TO {role}",
    ]
    for table, rights in ROLES[service].items():
        verbs = ", ".join(
            f"{right.verb} ({', '.join(map(_quoted, right.columns))})" if right.columns else right.verb
            for right in rights
        )
        statements.append(f"GRANT {verbs} ON public.{_quoted(table)} TO {role}")
    return statements


def grant_rights(database_url: str) -> list[str]:
    """Bring the rights of all roles that exist to what is written here. Must not be called from a running event loop.

    Args:
        database_url: as the owner of database and tables, after the migrations.

    Returns:
        Names of roles that do not exist yet: `create_roles` makes them.

    Raises:
        DatabaseUnavailable: Postgres does not answer, or refuses.
    """
    return asyncio.run(_explained(_grant(database_url)))


def create_roles(database_url: str, passwords: Mapping[str, str]) -> list[str]:
    """Make roles, or give those that exist these passwords. Must not be called from a running event loop.

    The passwords themselves do not reach the server, nor its log: it gets what it checks them by.

    Args:
        database_url: as a user who may create roles.
        passwords: by service.

    Returns:
        Names of the roles.

    Raises:
        InvalidPassword: one is empty, or not ASCII.
        DatabaseUnavailable: Postgres does not answer, or refuses.
    """
    verifiers = {role_name(service): scram_verifier(password) for service, password in passwords.items()}
    asyncio.run(_explained(_create(database_url, verifiers)))
    return [*verifiers]


def scram_verifier(password: str, *, salt: bytes | None = None) -> str:
    """What Postgres stores to check a password by (SCRAM-SHA-256, RFC 5803).

    Raises:
        InvalidPassword: it is empty or not ASCII; for others clients and servers disagree about their preparation.
    """
    if not password or not password.isascii() or not password.isprintable():
        raise InvalidPassword("a role's password must be made of printable ASCII characters, at least one")
    salt = secrets.token_bytes(16) if salt is None else salt
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, SCRAM_ITERATIONS)
    stored = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    server = hmac.digest(salted, b"Server Key", "sha256")
    encoded = [base64.b64encode(part).decode() for part in (salt, stored, server)]
    return f"SCRAM-SHA-256${SCRAM_ITERATIONS}:{encoded[0]}${encoded[1]}:{encoded[2]}"


async def _grant(database_url: str) -> list[str]:
    connection = await _connect(database_url)
    try:
        async with connection.transaction():
            await connection.execute("SELECT pg_advisory_xact_lock($1)", ADVISORY_LOCK)
            present = {name for (name,) in await connection.fetch("SELECT rolname FROM pg_roles")}
            database = await connection.fetchval("SELECT current_database()")
            # What everybody may do by default: connect, make temporary tables, before 15 also tables.
            await connection.execute(f"REVOKE ALL ON DATABASE {_quoted(database)} FROM PUBLIC")
            await connection.execute("REVOKE ALL ON SCHEMA public FROM PUBLIC")
            await connection.execute(f"REVOKE ALL ON {_ALL_TABLES} FROM PUBLIC")
            for service in ROLES:
                if role_name(service) in present:
                    for statement in grant_statements(service, database):
                        await connection.execute(statement)
        return [name for name in map(role_name, ROLES) if name not in present]
    finally:
        await connection.close()


async def _create(database_url: str, verifiers: Mapping[str, str]) -> None:
    connection = await _connect(database_url)
    try:
        for role, verifier in verifiers.items():
            # Somebody else may be at it, too.
            with contextlib.suppress(asyncpg.DuplicateObjectError, asyncpg.UniqueViolationError):
                await connection.execute(f"CREATE ROLE {role}")
            may_not = "NOSUPERUSER NOCREATEDB NOCREATEROLE NOINHERIT NOREPLICATION NOBYPASSRLS"
            await connection.execute(f"ALTER ROLE {role} LOGIN {may_not} PASSWORD '{verifier}'")
    finally:
        await connection.close()


async def _connect(database_url: str) -> asyncpg.Connection:
    url = async_url(database_url).replace("+asyncpg", "", 1)
    return await asyncpg.connect(url, timeout=CONNECT_TIMEOUT_SECONDS)


async def _explained(work: Coroutine[Any, Any, T]) -> T:
    try:
        return await work
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, ValueError) as error:
        first_line = str(error).partition("\n")[0]
        raise DatabaseUnavailable(
            f"the rights in Postgres could not be set: {first_line}; does it run, is DATABASE_URL that of the owner?"
        ) from error


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
