"""Backup and restoration of a store, while a server may be running."""

from __future__ import annotations

import os
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path

from ..errors import StoreError
from .owners import delete_revoked, take_over
from .schema import VERSION, connect, version

__all__ = ["backup", "restore"]


def backup(store: str | Path, target: str | Path) -> None:
    """Write a consistent copy of a store to a new file, which only its owner can read.

    Raises:
        StoreError: there is no store, the file exists, or it cannot be written; then no part of it is left.
    """
    _check(store)
    try:
        os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    except OSError as error:
        raise StoreError(f"cannot write {target}: {error.strerror}; name a file that does not exist") from error
    try:
        _copy(store, target)
    except StoreError:
        Path(target).unlink()
        raise


def restore(source: str | Path, store: str | Path) -> None:
    """Replace the problems of a store by those of a backup; a server may have the store open.

    Keys and usage of both are merged: keys that were created since the backup stay valid, revoked keys stay revoked,
    and usage never decreases.

    Raises:
        StoreError: the backup is not a store; or the store cannot be read, so it is unknown which keys were revoked.
    """
    _check(source)
    folder = Path(store).absolute().parent
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="restore-", dir=folder) as temporary:
        copy = Path(temporary, "copy.sqlite")
        _copy(source, copy)
        try:
            with closing(connect(copy)):  # migrates an older backup
                pass
            with closing(connect(store)) as connection:
                connection.execute("ATTACH ? AS copy", [str(copy)])
                connection.execute("BEGIN IMMEDIATE")
                _replace_problems(connection)
                _join_keys(connection)
                delete_revoked(connection)
                connection.execute("COMMIT")
        except sqlite3.Error as error:
            raise StoreError(
                f"cannot restore {store}: {error}; if the file is damaged, move it and the files that begin with its "
                "name away, restore again, and revoke again the keys that were revoked since the backup"
            ) from error
    os.chmod(store, 0o600)


def _replace_problems(connection: sqlite3.Connection) -> None:
    for table in ("registration", "problem", "held"):  # deletes their documents, too
        connection.execute(f"DELETE FROM {table}")
    for table in ("problem", "document", "registration"):
        connection.execute(f"INSERT INTO {table} SELECT * FROM copy.{table}")


def _join_keys(connection: sqlite3.Connection) -> None:
    """Merge the keys. A token that both know gets the ID of the backup, to which its problems belong."""
    connection.execute(
        """UPDATE OR IGNORE usage SET key_id = (SELECT theirs.id FROM key JOIN copy.key AS theirs USING (digest)
           WHERE key.id = key_id) WHERE key_id IN (SELECT key.id FROM key JOIN copy.key AS theirs USING (digest))"""
    )
    connection.execute(
        """INSERT INTO usage SELECT * FROM copy.usage WHERE true ON CONFLICT DO UPDATE SET
           requests = max(requests, excluded.requests), elements = max(elements, excluded.elements),
           seconds = max(seconds, excluded.seconds)"""
    )
    connection.execute(
        """INSERT INTO key SELECT * FROM copy.key WHERE true ON CONFLICT DO UPDATE SET
           id = excluded.id, revoked_s = coalesce(revoked_s, excluded.revoked_s)"""
    )
    oldest = connection.execute(
        "SELECT id FROM key WHERE revoked_s IS NULL ORDER BY created_s, rowid LIMIT 1"
    ).fetchone()
    if oldest is not None:
        take_over(connection, oldest[0])


def _check(path: str | Path) -> None:
    try:
        with closing(sqlite3.connect(f"{Path(path).absolute().as_uri()}?mode=ro", uri=True)) as connection:
            found = version(connection)
    except sqlite3.Error as error:
        raise StoreError(f"{path} is not a convexlayer store: {error}") from error
    if not 0 < found <= VERSION:
        raise StoreError(f"{path} has schema version {found}, expected 1 to {VERSION}")


def _copy(source: str | Path, target: str | Path) -> None:
    try:
        with closing(sqlite3.connect(source)) as origin, closing(sqlite3.connect(target)) as copy:
            origin.backup(copy)
    except sqlite3.Error as error:
        raise StoreError(f"cannot copy {source} to {target}: {error}") from error
