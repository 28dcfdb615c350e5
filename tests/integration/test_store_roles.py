"""Every role on a real database: what it may do works, every other verb on every table is refused."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest

from localhub.hub import HubAddresses
from shared.domain.artifact import ArtifactRequest, ArtifactState, SignRecipe, Stage
from shared.domain.kernel import KernelVersion
from shared.domain.lease import Built, Failure, Signed
from shared.domain.work import ObservedWork
from shared.store import artifacts
from shared.store.database import DatabaseUnavailable, connect
from shared.store.migrate import upgrade
from shared.store.port import Facts, StoreUnavailable
from shared.store.postgres import PostgresStore
from shared.store.roles import ROLES, InvalidPassword, create_roles, grant_rights, role_name, scram_verifier
from shared.store.tables import metadata

pytestmark = pytest.mark.integration

TABLES = (*sorted(metadata.tables), "alembic_version")
# Written out here and not derived: this is what the product promises. S, I, U, D as above; L: rows can be locked;
# small u: only some columns can be changed.
MAY: dict[str, dict[str, str]] = {
    "watcher": {
        "clusters": "SIUDL",
        "modules": "SIUDL",
        "config_maps": "SIUDL",
        "secrets": "SIUDL",
        "works": "SIUDL",
        "syncs": "SIUL",
        "outbox": "SIDuL",
    },
    "dispatcher": {
        "clusters": "S",
        "modules": "S",
        "config_maps": "S",
        "secrets": "S",
        "syncs": "S",
        "works": "SIUL",
        "artifacts": "SIuL",
        "module_kernels": "SIUDL",
        "outbox": "SIDuL",
        "dead_letters": "SIDuL",
    },
    "builder": {"artifacts": "SuL", "outbox": "SIDuL", "dead_letters": "SIDuL"},
    "signer": {"artifacts": "SuL", "outbox": "SIDuL", "dead_letters": "SIDuL"},
    "operator": {
        **dict.fromkeys(metadata.tables, "S"),
        "artifacts": "SuL",
        "outbox": "SI",
        "dead_letters": "SD",
    },
}
CHANGEABLE = {
    "artifacts": {column.name for column in metadata.tables["artifacts"].c}
    - {"key", "target", "kernel", "request", "created_at"},
    "outbox": {"id"},
    "dead_letters": {"cause", "deliveries"},
}


@pytest.fixture(scope="module")
def database(hub: HubAddresses) -> Iterator[HubAddresses]:
    """A database of the newest schema, for everybody."""
    name = "roles_of_services"
    asyncio.run(
        _execute(hub.database_url, f"DROP DATABASE IF EXISTS {name} WITH (FORCE)", f"CREATE DATABASE {name}")
    )
    addresses = hub.with_database(name)
    upgrade(addresses.database_url)
    yield addresses
    asyncio.run(_execute(hub.database_url, f"DROP DATABASE {name} WITH (FORCE)"))


async def _execute(url: str, *statements: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        for statement in statements:
            await connection.execute(statement)
    finally:
        await connection.close()


@pytest.fixture
async def connection(
    database: HubAddresses, request: pytest.FixtureRequest
) -> AsyncIterator[asyncpg.Connection]:
    """As the role of the test's parameter `role`."""
    role = request.node.callspec.params["role"]
    opened = await asyncpg.connect(database.database_urls[role])
    assert await opened.fetchval("SELECT current_user") == role_name(role)
    yield opened
    await opened.close()


async def is_allowed(connection: asyncpg.Connection, statement: str) -> bool:
    """Whether Postgres lets the role do it; nothing stays done. Rights are checked before contents."""
    transaction = connection.transaction()
    await transaction.start()
    try:
        await connection.execute(statement)
    except asyncpg.InsufficientPrivilegeError:
        return False
    except asyncpg.IntegrityConstraintViolationError:
        return True  # it may insert, but not a row of nothing
    finally:
        await transaction.rollback()
    return True


def test_the_matrix_is_complete() -> None:
    assert set(MAY) == set(ROLES)
    assert all(set(tables) <= set(TABLES) for tables in MAY.values())
    assert set().union(*(MAY[role] for role in MAY)) == set(metadata.tables)


@pytest.mark.parametrize("role", MAY)
@pytest.mark.parametrize("table", TABLES)
async def test_each_verb_on_each_table(connection: asyncpg.Connection, role: str, table: str) -> None:
    may = MAY[role].get(table, "")
    column = (
        "version_num"
        if table == "alembic_version"
        else next(iter(metadata.tables[table].primary_key.columns)).name
    )
    statements = {
        "S": f"SELECT * FROM {table}",
        "I": f"INSERT INTO {table} DEFAULT VALUES",
        "D": f"DELETE FROM {table} WHERE false",
        "L": f"SELECT FROM {table} FOR UPDATE",
        "T": f"TRUNCATE {table}",
        "R": f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE",
        "A": f"ALTER TABLE {table} ADD COLUMN more text",
        "X": f"DROP TABLE {table}",
        "G": f"CREATE INDEX ON {table} ({column})",
    }
    found = {verb for verb, statement in statements.items() if await is_allowed(connection, statement)}
    # Whoever may change or delete all rows of a table may also lock it as a whole (LOCK, "Notes").
    assert found - {"R"} == set(may) - {"U", "u"}
    assert ("R" in found) <= bool(set(may) & {"U", "D"})


@pytest.mark.parametrize("role", MAY)
@pytest.mark.parametrize("table", sorted(metadata.tables))
async def test_each_column_is_changed_by_whoever_may(
    connection: asyncpg.Connection, role: str, table: str
) -> None:
    columns = {column.name for column in metadata.tables[table].c}
    changeable = {
        name
        for name in columns
        if await is_allowed(connection, f'UPDATE {table} SET "{name}" = DEFAULT WHERE false')
    }
    may = MAY[role].get(table, "")
    assert changeable == (columns if "U" in may else CHANGEABLE[table] if "u" in may else set())


@pytest.mark.parametrize("role", MAY)
@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TABLE mine (a int)",
        "CREATE TEMPORARY TABLE mine (a int)",
        "CREATE VIEW mine AS SELECT 1",
        "CREATE SCHEMA mine",
        "CREATE FUNCTION mine() RETURNS int LANGUAGE sql AS 'SELECT 1'",
        "CREATE TYPE mine AS ENUM ('a')",
        "CREATE SEQUENCE mine",
        "CREATE ROLE mine",
        "ALTER ROLE kmmhub_watcher SUPERUSER",
        "ALTER ROLE kmmhub PASSWORD 'mine'",
        "GRANT SELECT ON secrets TO PUBLIC",
        "SET ROLE kmmhub",
        "SET SESSION AUTHORIZATION kmmhub",
        "SELECT pg_read_file('/etc/hostname')",
        "COPY (SELECT 1) TO PROGRAM 'true'",
        "SELECT rolpassword FROM pg_authid",
    ],
)
async def test_no_role_changes_the_schema_or_becomes_another(
    connection: asyncpg.Connection, role: str, statement: str
) -> None:
    with_rights = await is_allowed(connection, statement)
    # Granting what one may not grant is a warning in Postgres, and does nothing.
    if statement.startswith("GRANT"):
        query = "SELECT has_table_privilege('kmmhub_builder', 'secrets', 'SELECT')"
        assert not await connection.fetchval(query)
    else:
        assert not with_rights


@pytest.mark.parametrize("role", MAY)
async def test_other_databases_and_wrong_passwords_are_refused(
    database: HubAddresses, hub: HubAddresses, role: str
) -> None:
    parts = urlsplit(database.database_urls[role])
    wrong = urlunsplit(parts._replace(netloc=f"{parts.username}:wrong@{parts.hostname}:{parts.port}"))
    with pytest.raises(asyncpg.InvalidPasswordError):
        await asyncpg.connect(wrong)
    await _execute(
        hub.database_url, "DROP DATABASE IF EXISTS closed_to_roles", "CREATE DATABASE closed_to_roles"
    )
    closed = hub.with_database("closed_to_roles")
    await asyncio.to_thread(upgrade, closed.database_url)
    await _execute(closed.database_url, f"REVOKE CONNECT ON DATABASE closed_to_roles FROM {role_name(role)}")
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await asyncpg.connect(closed.database_urls[role])
    await _execute(hub.database_url, "DROP DATABASE closed_to_roles WITH (FORCE)")


async def test_rights_that_are_too_many_are_taken_away_and_missing_ones_given(database: HubAddresses) -> None:
    too_many = (
        "GRANT ALL ON clusters, artifacts TO kmmhub_builder",
        "GRANT CREATE ON SCHEMA public TO kmmhub_builder",
        "GRANT SELECT ON secrets TO PUBLIC",
        "REVOKE ALL ON outbox FROM kmmhub_builder",
    )
    await _execute(database.database_url, *too_many)
    assert await asyncio.to_thread(grant_rights, database.database_url) == []
    connection = await asyncpg.connect(database.database_urls["builder"])
    try:
        for statement, expected in (
            ("SELECT FROM clusters", False),
            ("SELECT FROM secrets", False),
            ("DELETE FROM artifacts", False),
            ("UPDATE artifacts SET request = request", False),
            ("CREATE TABLE mine (a int)", False),
            ("SELECT FROM outbox FOR UPDATE", True),
            ("UPDATE artifacts SET digest = digest", True),
        ):
            assert await is_allowed(connection, statement) == expected, statement
    finally:
        await connection.close()


async def test_several_grants_at_once_are_one(database: HubAddresses) -> None:
    await asyncio.gather(*(asyncio.to_thread(grant_rights, database.database_url) for _ in range(6)))


async def test_a_role_gets_a_new_password(database: HubAddresses, hub: HubAddresses) -> None:
    parts = urlsplit(database.database_urls["operator"])
    for password in ('it\'s 50% "new"', str(parts.password)):
        assert await asyncio.to_thread(create_roles, hub.database_url, {"operator": password}) == [
            "kmmhub_operator"
        ]
        opened = await asyncpg.connect(
            host=parts.hostname,
            port=parts.port,
            user=parts.username,
            password=password,
            database=parts.path[1:],
        )
        await opened.close()


async def test_whoever_may_not_grant_is_told(database: HubAddresses) -> None:
    with pytest.raises(DatabaseUnavailable, match=r"permission denied to create role; .*that of the owner"):
        await asyncio.to_thread(create_roles, database.database_urls["builder"], {"builder": "x"})


@pytest.mark.parametrize("password", ["", "ü", "a\nb"])
def test_a_password_that_two_would_read_differently_is_refused(password: str) -> None:
    with pytest.raises(InvalidPassword):
        scram_verifier(password)


@contextlib.asynccontextmanager
async def opened(database: HubAddresses, role: str) -> AsyncIterator[PostgresStore]:
    """The product's own store, as a role."""
    engine = connect(database.database_urls[role], application="test", pool_size=1)
    try:
        yield PostgresStore(engine)
    finally:
        await engine.dispose()


async def test_an_artifact_goes_from_role_to_role(database: HubAddresses) -> None:
    """Every statement of the services on artifacts, outbox and dead letters, each as its own role."""
    sign = SignRecipe(files=("/m.ko",), key_secret="k", key_version="1", cert_secret="c", cert_version="1")
    request = ArtifactRequest(
        target="registry.example/roles:1", kernel=KernelVersion("6.1.0"), architecture="amd64", sign=sign
    )
    image = f"registry.example/roles@sha256:{'0' * 64}"
    async with (
        opened(database, "dispatcher") as dispatcher,
        opened(database, "builder") as builder,
        opened(database, "signer") as signer,
        opened(database, "operator") as operator,
    ):
        async with dispatcher.begin() as transaction:
            (key,) = await artifacts.want(transaction, [request])
            await transaction.put_module_kernels({("m", "6.1.0"): key})
        for store, stage, result in (
            (builder, Stage.BUILD, Built(source=image, is_adopted=False)),
            (signer, Stage.SIGN, Failure(reason="Wrong", message="wrong", retry_seconds=None)),
            (signer, Stage.SIGN, Signed(digest=f"sha256:{'1' * 64}", signed_by="00")),
        ):
            async with store.begin() as transaction:
                given_back = await artifacts.take_lease(transaction, key, stage, owner="one", seconds=9)
                assert given_back is not None
                assert await artifacts.release_lease(transaction, given_back)
                lease = await artifacts.take_lease(transaction, key, stage, owner="two", seconds=9)
                assert lease is not None
                assert await artifacts.extend_lease(transaction, lease, seconds=9)
                assert await artifacts.finish(transaction, lease, result, seconds=1)
                await transaction.bury(queue="Q", subject="s", payload=b"p", cause="c", deliveries=1)
                rows = await transaction.lock_outbox(limit=100)
                await transaction.delete_from_outbox([row.id for row in rows])
                assert rows
            if isinstance(result, Failure):
                async with operator.begin() as transaction:
                    keys = await transaction.read_artifact_keys("m")
                    assert await artifacts.retry_failed(transaction, keys) == [key]
        async with dispatcher.begin() as transaction:
            assert (await transaction.read_artifacts([key]))[key].state is ArtifactState.READY
            await artifacts.announce_overdue(transaction)
            assert await artifacts.check_again(transaction, [key]) == [key]
        async with operator.begin() as transaction:
            assert await transaction.count_dead_letters() == 1
            letters = await transaction.read_dead_letters()
            assert len(await transaction.take_dead_letters([letter.id for letter in letters])) == 1


async def test_the_watcher_stores_facts_that_the_dispatcher_only_reads(database: HubAddresses) -> None:
    row = {"name": "c", "dockerfile": "FROM scratch", "resource_version": 1}
    async with opened(database, "watcher") as watcher, opened(database, "dispatcher") as dispatcher:
        async with watcher.begin() as transaction:
            assert await transaction.lock_facts(Facts.CONFIG_MAPS, ["c"]) == {}
            await transaction.put_facts(Facts.CONFIG_MAPS, [row])
            await transaction.mark_synced("config_maps", resource_version=1)
        async with dispatcher.begin() as transaction:
            assert (await transaction.read_facts(Facts.CONFIG_MAPS))["c"]["dockerfile"] == "FROM scratch"
        with pytest.raises(StoreUnavailable, match="permission denied for table config_maps"):
            async with dispatcher.begin() as transaction:
                await transaction.put_facts(Facts.CONFIG_MAPS, [row])
        async with watcher.begin() as transaction:
            assert await transaction.remove_facts(Facts.CONFIG_MAPS, ["c"]) == {"c"}


async def test_watcher_and_dispatcher_write_works_and_the_watcher_forgets_them(
    database: HubAddresses,
) -> None:
    work = ObservedWork(
        cluster="c",
        name="m",
        uid="u",
        resource_version=1,
        module="m",
        content_hash="h",
        observed_hash="h",
        served={},
        conditions={},
        feedback={},
    )
    async with opened(database, "watcher") as watcher, opened(database, "dispatcher") as dispatcher:
        async with dispatcher.begin() as transaction:
            assert await transaction.record_works([work], is_own_write=True) == {("c", "m")}
            assert set(await transaction.read_works(modules=None)) == {("m", "c")}
        async with watcher.begin() as transaction:
            assert await transaction.known_works() == {("c", "m")}
            assert await transaction.mark_works_gone([("c", "m")], resource_version=2) == {("c", "m")}
        async with watcher.begin() as transaction:
            await transaction.forget_gone_works(older_than_seconds=0, limit=9)
        async with dispatcher.begin() as transaction:
            assert await transaction.read_works(modules=[], clusters=["c"]) == {}
