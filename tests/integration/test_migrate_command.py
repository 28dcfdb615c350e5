"""`kmmhub migrate` on a server that has none of our roles yet."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest
from running_services import ROOT

from localhub import postgres as pg
from localhub.server import free_port
from shared.store.roles import ROLES, role_name

pytestmark = pytest.mark.integration

OWNER = "secret-of-the-owner"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """A database server of the test's own; the address of its owner."""
    port = free_port()
    command = pg.Postgres(pg.find_installation(), directory=tmp_path / "pg", password=OWNER).command(port)
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            command.arguments, cwd=command.directory, stdout=log, stderr=log, user=command.user
        )
    try:
        yield pg.url(OWNER, port, "postgres")
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(20)


def migrate(url: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.pathsep.join(os.get_exec_path()), "DATABASE_URL": url, **variables}
    command = [sys.executable, "-m", "kmmhub.main", "migrate", *arguments]
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False
    )


def migrated(url: str) -> subprocess.CompletedProcess[str]:
    """Without roles, as soon as the server is there."""
    for _ in range(40):
        done = migrate(url)
        if done.returncode == 0:
            return done
        assert "Postgres" in done.stderr
        time.sleep(0.2)
    raise AssertionError(done.stderr)


async def test_roles_are_made_get_their_rights_and_their_new_passwords(server: str) -> None:
    names = [role_name(service) for service in ROLES]
    first = migrated(server)
    assert first.stdout == "the schema and the rights are current\n"
    assert f"no such roles yet: {', '.join(names)}; make them with --create-roles" in first.stderr

    for number in (1, 2):
        urls = {
            service: server.replace(f"kmmhub:{OWNER}@", f"{role_name(service)}:p%40{number}{service}@")
            for service in ROLES
        }
        variables = {f"DATABASE_URL_{service.upper()}": url for service, url in urls.items()}
        done = migrate(server, "--create-roles", **variables)
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines() == [
            *(f"role {name} is there" for name in names),
            "the schema and the rights are current",
        ]
        assert done.stderr == ""
        for service, url in urls.items():
            connection = await asyncpg.connect(url)
            try:
                assert await connection.fetch("SELECT FROM outbox") == []
                assert await connection.fetchval("SELECT current_user") == role_name(service)
            finally:
                await connection.close()


async def test_no_password_reaches_the_servers_log(server: str, tmp_path: Path) -> None:
    migrated(server)
    owner = await asyncpg.connect(server)
    await owner.execute("ALTER SYSTEM SET log_statement = 'all'")
    await owner.execute("SELECT pg_reload_conf()")
    await owner.close()
    url = server.replace(f"kmmhub:{OWNER}@", "kmmhub_builder:canary-in-the-mine@")
    assert migrate(server, "--create-roles", DATABASE_URL_BUILDER=url).returncode == 0
    text = (tmp_path / "log").read_text()
    assert "ALTER ROLE kmmhub_builder LOGIN" in text
    assert "canary" not in text


def test_whoever_gives_no_address_is_told(server: str) -> None:
    migrated(server)
    told = migrate(server, "--create-roles")
    assert told.returncode == 1
    assert "DATABASE_URL_WATCHER" in told.stderr
