"""Copies of a store, made and put back while a server may run."""

from __future__ import annotations

import os
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path

from ..errors import StoreError
from .owners import clear, take_over
from .schema import VERSION, connect, version

__all__ = ["backup", "restore"]


def backup(store: str | Path, target: str | Path) -> None:
    """Write a consistent copy of a store to a new file, which the owner alone can read.

    Raises:
        StoreError: there is no store, or the file exists.
    """
    _check(store)
    try:
        os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    except OSError as error:
        raise StoreError(f"cannot write {target}: {error.strerror}; name a file that does not exist") from error
    _copy(store, target)


def restore(source: str | Path, store: str | Path) -> None:
    """Replace the problems of a store, which a server may have open, by those of a copy.

    Keys and usage only ever grow, so those of both are kept: nobody who was given a key since is shut out, no key that
    was revoked is good again, and nobody has used less.

    Raises:
        StoreError: the copy is no store, or the store cannot be read, so that it is not known what was revoked.
    """
    _check(source)
    folder = Path(store).absolute().parent
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="restore-", dir=folder) as temporary:
        copy = Path(temporary, "copy.sqlite")
        _copy(source, copy)
        try:
            with closing(connect(copy)):  # which brings an older copy up to date
                pass
            with closing(connect(store)) as connection:
                connection.execute("ATTACH ? AS copy", [str(copy)])
                connection.execute("BEGIN IMMEDIATE")
                _replace_problems(connection)
                _join_keys(connection)
                clear(connection)
                connection.execute("COMMIT")
        except sqlite3.Error as error:
            raise StoreError(
                f"cannot restore {store}: {error}; if the file is damaged, move it away with those that begin with its "
                "name, restore again, and revoke once more the keys that were revoked since"
            ) from error
    os.chmod(store, 0o600)


def _replace_problems(connection: sqlite3.Connection) -> None:
    for table in ("registration", "problem", "held"):  # documents go with their problems
        connection.execute(f"DELETE FROM {table}")
    for table in ("problem", "document", "registration"):
        connection.execute(f"INSERT INTO {table} SELECT * FROM copy.{table}")


def _join_keys(connection: sqlite3.Connection) -> None:
    """Keep every key: one token is one key, by the id that the copy knows it by, for its problems are under that."""
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
        raise StoreError(f"{path} is no store of convexlayer: {error}") from error
    if not 0 < found <= VERSION:
        raise StoreError(f"{path} has tables of version {found}, expected 1 to {VERSION}")


def _copy(source: str | Path, target: str | Path) -> None:
    try:
        with closing(sqlite3.connect(source)) as origin, closing(sqlite3.connect(target)) as copy:
            origin.backup(copy)
    except sqlite3.Error as error:
        raise StoreError(f"cannot copy {source} to {target}: {error}") from error
