"""What happens to the rows that decide, recorded by Postgres itself: triggers that the run adds to its own database.

The record is drained by existence, because its numbers commit out of order.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import asyncpg

TABLES: Mapping[str, str] = {
    "artifacts": "INSERT OR UPDATE OR DELETE",
    "outbox": "INSERT OR DELETE",
}
INSTALL = """
CREATE SCHEMA chaos;
CREATE TABLE chaos.record (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at timestamptz NOT NULL,
    began timestamptz NOT NULL,
    port integer,
    application text NOT NULL,
    name text NOT NULL,
    before jsonb,
    after jsonb
);
CREATE FUNCTION chaos.note() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    INSERT INTO chaos.record (at, began, port, application, name, before, after) VALUES (
        clock_timestamp(), now(), inet_client_port(), current_setting('application_name'), TG_TABLE_NAME,
        CASE WHEN TG_OP <> 'INSERT' THEN to_jsonb(OLD) - 'payload' - 'log_tail' END,
        CASE WHEN TG_OP <> 'DELETE' THEN to_jsonb(NEW) - 'payload' - 'log_tail' END
    );
    RETURN NULL;
END $$;
"""
DRAIN = """
WITH taken AS (DELETE FROM chaos.record RETURNING *)
SELECT id, at, began, port, application, name, before, after FROM taken ORDER BY id
"""

ESTABLISHED = "01"
"""State of a connection in /proc/net/tcp (Linux, Documentation/networking/proc_net_tcp.rst)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One change of a row.

    Attributes:
        at: by the database's clock.
        began: when its transaction began.
        port: from which TCP port of loopback it was written.
        application: what the writer calls itself.
        before, after: the row; None where there was or is none.
    """

    number: int
    at: datetime
    began: datetime
    port: int | None
    application: str
    table: str
    before: Mapping[str, Any] | None
    after: Mapping[str, Any] | None

    @property
    def row(self) -> Mapping[str, Any]:
        """The row as it is now, or was before it went."""
        found = self.after or self.before
        assert found is not None
        return found


async def install(connection: asyncpg.Connection) -> None:
    """Add the triggers to the database."""
    await connection.execute(INSTALL)
    for table, operations in TABLES.items():
        await connection.execute(
            f"CREATE TRIGGER chaos AFTER {operations} ON {table} FOR EACH ROW EXECUTE FUNCTION chaos.note()"
        )


async def drain(connection: asyncpg.Connection) -> list[Change]:
    """What was recorded since the last time, in order for each row."""
    return [
        Change(
            number=row["id"],
            at=row["at"],
            began=row["began"],
            port=row["port"],
            application=row["application"],
            table=row["name"],
            before=json.loads(row["before"]) if row["before"] else None,
            after=json.loads(row["after"]) if row["after"] else None,
        )
        for row in await connection.fetch(DRAIN)
    ]


def owners_of_ports(pids: Mapping[int, str], server_port: int) -> dict[int, int]:
    """Which of these processes talks to a server of loopback from which local port, as of now."""
    inodes: dict[str, int] = {}
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        local, remote, state, inode = fields[1], fields[2], fields[3], fields[9]
        if state == ESTABLISHED and int(remote.partition(":")[2], 16) == server_port:
            inodes[f"socket:[{inode}]"] = int(local.partition(":")[2], 16)
    found = {}
    for pid in pids:
        try:
            links = [str(link.readlink()) for link in Path(f"/proc/{pid}/fd").iterdir()]
        except OSError:
            continue  # ended meanwhile
        found.update({inodes[link]: pid for link in links if link in inodes})
    return found
