"""The tables, and how an older store becomes a present one."""

from __future__ import annotations

import sqlite3

from ..errors import StoreError

__all__ = ["VERSION", "migrate", "version"]

_MIGRATIONS = (
    """
    CREATE TABLE problem (
        id TEXT PRIMARY KEY,
        document BLOB NOT NULL,     -- JSON, compressed by zlib
        bytes INTEGER NOT NULL,     -- of the compressed document
        summary TEXT NOT NULL,      -- JSON
        versions TEXT NOT NULL
    ) STRICT;
    CREATE TABLE registration (
        key_id TEXT NOT NULL,       -- empty where the service asks nobody for a key
        problem_id TEXT NOT NULL REFERENCES problem (id),
        created_s REAL NOT NULL,
        PRIMARY KEY (key_id, problem_id)
    ) STRICT;
    CREATE INDEX registration_of_problem ON registration (problem_id);
    CREATE TABLE key (
        id TEXT PRIMARY KEY,
        name TEXT NOT NULL,
        digest BLOB NOT NULL UNIQUE,
        created_s REAL NOT NULL,
        revoked_s REAL,
        requests_per_minute INTEGER,
        seconds_per_day REAL
    ) STRICT;
    CREATE TABLE usage (
        key_id TEXT NOT NULL,
        day TEXT NOT NULL,          -- UTC, as 2026-11-25
        requests INTEGER NOT NULL,
        elements INTEGER NOT NULL,
        seconds REAL NOT NULL,
        PRIMARY KEY (key_id, day)
    ) STRICT;
    """,
)
"""Scripts that lead from each version to the next, the first from an empty file. Only ever append."""

VERSION = len(_MIGRATIONS)
"""Version of the present tables, which the file holds as ``user_version``."""


def version(connection: sqlite3.Connection) -> int:
    """Version of a store's tables, 0 where there are none."""
    found: int = connection.execute("PRAGMA user_version").fetchone()[0]
    return found


def migrate(connection: sqlite3.Connection) -> None:
    """Bring the tables to the present version, all steps in one transaction.

    Raises:
        StoreError: the store was written by a newer version of this package.
    """
    connection.execute("BEGIN IMMEDIATE")
    found = version(connection)
    if found <= VERSION:
        for script in _MIGRATIONS[found:]:
            for statement in script.split(";\n"):
                connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {VERSION}")
    connection.execute("COMMIT")
    if found > VERSION:
        raise StoreError(
            f"the store has tables of version {found}, this package knows {VERSION}: "
            "install the newer convexlayer that wrote it, or restore a backup from before"
        )
