"""The database schema and its migrations."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

from ..errors import StoreError

__all__ = ["VERSION", "connect", "version"]

_BUSY_S = 10.0
"""Seconds to wait for the lock of another process, such as a backup or the command line."""

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
        key_id TEXT NOT NULL,       -- empty if the service requires no keys
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
    """
    ALTER TABLE problem RENAME TO former_problem;
    ALTER TABLE registration RENAME TO former_registration;
    CREATE TABLE problem (
        id TEXT PRIMARY KEY,
        bytes INTEGER NOT NULL,     -- of the compressed document
        versions TEXT NOT NULL,
        summary TEXT NOT NULL       -- JSON
    ) STRICT;
    CREATE TABLE document (         -- not with its problem, of which nothing could be read without all of it
        problem_id TEXT PRIMARY KEY REFERENCES problem (id) ON DELETE CASCADE,
        content BLOB NOT NULL       -- JSON, compressed by zlib
    ) STRICT;
    CREATE TABLE registration (
        number INTEGER PRIMARY KEY AUTOINCREMENT,  -- in the order of registration
        key_id TEXT NOT NULL,       -- empty if the service requires no keys
        problem_id TEXT NOT NULL REFERENCES problem (id),
        created_s REAL NOT NULL,
        UNIQUE (key_id, problem_id)
    ) STRICT;
    CREATE TABLE held (
        key_id TEXT PRIMARY KEY,
        bytes INTEGER NOT NULL      -- of all documents that the key has registered, compressed; kept by the triggers
    ) STRICT;
    CREATE TRIGGER registered AFTER INSERT ON registration BEGIN
        INSERT INTO held SELECT NEW.key_id, bytes FROM problem WHERE id = NEW.problem_id
        ON CONFLICT DO UPDATE SET bytes = bytes + excluded.bytes; END;
    CREATE TRIGGER unregistered AFTER DELETE ON registration BEGIN
        UPDATE held SET bytes = bytes - (SELECT bytes FROM problem WHERE id = OLD.problem_id)
        WHERE key_id = OLD.key_id; END;
    INSERT INTO problem SELECT id, bytes, versions, summary FROM former_problem;
    INSERT INTO document SELECT id, document FROM former_problem;
    INSERT OR IGNORE INTO registration (key_id, problem_id, created_s)  -- keyless ones now belong to the first key
        SELECT CASE WHEN key_id = '' THEN coalesce(
            (SELECT id FROM key WHERE revoked_s IS NULL ORDER BY created_s, rowid LIMIT 1), '') ELSE key_id END,
        problem_id, created_s FROM former_registration ORDER BY created_s, rowid;
    DROP TABLE former_registration;
    DROP TABLE former_problem;
    CREATE INDEX registration_in_order ON registration (key_id, number);
    CREATE INDEX registration_of_problem ON registration (problem_id);
    """,
)
"""Migrations from each schema version to the next; the first creates the tables. Only append to them.

Each statement ends with a semicolon at the end of a line, and no other line does.
"""

VERSION = len(_MIGRATIONS)
"""The present schema version, stored as ``user_version``."""


def version(connection: sqlite3.Connection) -> int:
    """Return the schema version of a database; 0 if it is empty."""
    found: int = connection.execute("PRAGMA user_version").fetchone()[0]
    return found


def connect(path: str | Path) -> sqlite3.Connection:
    """Open a store, and migrate it. A new file is created with access for its owner alone.

    Raises:
        StoreError: the file cannot be created, or a newer version of this package wrote it.
        sqlite3.Error: the file cannot be opened.
    """
    if str(path) != ":memory:":
        _make_private(Path(path))
    connection = sqlite3.connect(path, timeout=_BUSY_S, check_same_thread=False, isolation_level=None)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA foreign_keys = ON")
        _migrate(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def _make_private(path: Path) -> None:
    """Create the file with access for its owner alone; SQLite would create it with the default permissions."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
    except OSError as error:
        raise StoreError(f"cannot open the store {path}: {error.strerror}") from error


def _migrate(connection: sqlite3.Connection) -> None:
    """Apply the missing migrations in one transaction.

    Raises:
        StoreError: a newer version of this package wrote the store.
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
            f"the store has schema version {found}, this package supports {VERSION}: install the newer convexlayer "
            "that wrote it, or move the store away and restore an older backup"
        )
