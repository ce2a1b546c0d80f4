"""Problems, keys and usage in one SQLite file.

A problem's document is kept once; that a key may use it is a registration of its own. A document goes with its last
registration. Calls block, and come from any thread but that of the event loop.
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
import time
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, final

from ..errors import QuotaError, StoreError
from ..settings import Settings
from .records import Key, StoredProblem, Usage
from .schema import migrate

__all__ = ["Store"]

_BUSY_S = 10.0


@final
class Store:
    """A store in a file, or in memory.

    Args:
        settings: ``max_store_bytes``, ``max_problems_per_key`` and ``max_keys`` bound what is kept.
        path: the file, made if it is not there, for its owner alone to read; ``:memory:`` ends with the process.

    Raises:
        StoreError: the file cannot be opened, or was written by a newer version of this package.
    """

    def __init__(self, settings: Settings, path: str | Path = ":memory:") -> None:
        self._settings = settings
        self._lock = threading.Lock()
        if str(path) != ":memory:":
            _make_private(Path(path))
        try:
            self._connection = sqlite3.connect(path, timeout=_BUSY_S, check_same_thread=False, isolation_level=None)
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("PRAGMA foreign_keys = ON")
            migrate(self._connection)
        except sqlite3.Error as error:
            raise StoreError(f"cannot open the store {path}: {error}") from error

    def put(self, owner: str, problem: StoredProblem) -> bool:
        """Register a problem for a key; whether it is new to the key. Its summary is renewed where versions differ.

        Raises:
            QuotaError: the key has too many problems, or the store holds too much.
        """
        document = zlib.compress(json.dumps(problem.document).encode())
        summary = json.dumps(problem.summary)
        with self._transaction() as connection:
            present = connection.execute("SELECT versions FROM problem WHERE id = ?", [problem.id]).fetchone()
            if present is None:
                self._check_room(connection, len(document))
                row = (problem.id, document, len(document), summary, problem.versions)
                connection.execute("INSERT INTO problem VALUES (?, ?, ?, ?, ?)", row)
            elif present[0] != problem.versions:
                connection.execute(
                    "UPDATE problem SET summary = ?, versions = ? WHERE id = ?",
                    (summary, problem.versions, problem.id),
                )
            registration = (owner, problem.id, time.time())
            added = connection.execute("INSERT OR IGNORE INTO registration VALUES (?, ?, ?)", registration).rowcount > 0
            if added:
                self._check_count(connection, owner)
        return added

    def get(self, owner: str, problem_id: str) -> StoredProblem | None:
        """The problem of an id, or None where the key has none."""
        query = """SELECT document, summary, versions FROM problem JOIN registration ON problem.id = problem_id
                   WHERE key_id = ? AND id = ?"""
        rows = self._read(query, owner, problem_id)
        if not rows:
            return None
        document, summary, versions = rows[0]
        text = zlib.decompress(document)
        return StoredProblem(json.loads(text), json.loads(summary), versions, len(text))

    def all(self, owner: str) -> list[Mapping[str, Any]]:
        """Summaries of every problem of a key, in the order of registration."""
        query = """SELECT summary FROM problem JOIN registration ON problem.id = problem_id
                   WHERE key_id = ? ORDER BY created_s, registration.rowid"""
        return [json.loads(summary) for (summary,) in self._read(query, owner)]

    def delete(self, owner: str, problem_id: str) -> bool:
        """End a key's registration; whether there was one. The document goes with the last."""
        with self._transaction() as connection:
            parameters = (owner, problem_id)
            ended = connection.execute("DELETE FROM registration WHERE key_id = ? AND problem_id = ?", parameters)
            connection.execute(
                "DELETE FROM problem WHERE id = ? AND id NOT IN (SELECT problem_id FROM registration)", [problem_id]
            )
        return ended.rowcount > 0

    def all_keys(self) -> list[Key]:
        """Every key, those revoked included, oldest first."""
        query = """SELECT id, name, digest, created_s, revoked_s, requests_per_minute, seconds_per_day
                   FROM key ORDER BY created_s, rowid"""
        names = ("id", "name", "digest", "created_s", "revoked_s", "requests_per_minute", "seconds_per_day")
        return [Key(**dict(zip(names, row, strict=True))) for row in self._read(query)]

    def add_key(self, key: Key) -> None:
        """Keep a new key.

        Raises:
            StoreError: its token or id is known already, or there are too many keys.
        """
        values = (
            key.id, key.name, key.digest, key.created_s, key.revoked_s, key.requests_per_minute, key.seconds_per_day
        )  # fmt: skip
        with self._transaction() as connection:
            if connection.execute("SELECT count(*) FROM key").fetchone()[0] >= self._settings.max_keys:
                raise StoreError(f"there are {self._settings.max_keys} keys, the most that max_keys allows")
            try:
                connection.execute("INSERT INTO key VALUES (?, ?, ?, ?, ?, ?, ?)", values)
            except sqlite3.IntegrityError as error:
                raise StoreError("there is a key of this id or token already, which may have been revoked") from error

    def revoke_key(self, key_id: str) -> bool:
        """Let a key be good no longer; whether it was."""
        with self._transaction() as connection:
            query = "UPDATE key SET revoked_s = ? WHERE id = ? AND revoked_s IS NULL"
            return connection.execute(query, (time.time(), key_id)).rowcount > 0

    def add_usage(self, used: Mapping[tuple[str, str], Usage]) -> None:
        """Count in what keys used, by (key, day)."""
        query = """INSERT INTO usage VALUES (?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET
                   requests = requests + excluded.requests, elements = elements + excluded.elements,
                   seconds = seconds + excluded.seconds"""
        with self._transaction() as connection:
            for (key_id, day), usage in used.items():
                connection.execute(query, (key_id, day, usage.requests, usage.elements, usage.seconds))

    def usage(self, since: str) -> dict[tuple[str, str], Usage]:
        """What keys used from a day on, by (key, day)."""
        query = "SELECT key_id, day, requests, elements, seconds FROM usage WHERE day >= ? ORDER BY day"
        return {
            (key_id, day): Usage(requests=requests, elements=elements, seconds=seconds)
            for key_id, day, requests, elements, seconds in self._read(query, since)
        }

    def version(self) -> int:
        """A number that changes when another process has written."""
        found: int = self._read("PRAGMA data_version")[0][0]
        return found

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._connection.close()

    def _read(self, query: str, *values: str) -> list[Any]:
        try:
            with self._lock:
                return self._connection.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise StoreError(f"the store cannot be read: {error}") from error

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """All or nothing; within, SQLite's errors are the store's."""
        try:
            with self._lock:
                self._connection.execute("BEGIN IMMEDIATE")
                try:
                    yield self._connection
                    self._connection.execute("COMMIT")
                except BaseException:
                    if self._connection.in_transaction:
                        self._connection.execute("ROLLBACK")
                    raise
        except sqlite3.Error as error:
            raise StoreError(f"the store cannot be written: {error}") from error

    def _check_room(self, connection: sqlite3.Connection, more_bytes: int) -> None:
        stored_bytes = connection.execute("SELECT total(bytes) FROM problem").fetchone()[0]
        if stored_bytes + more_bytes > self._settings.max_store_bytes:
            raise QuotaError(
                f"this server keeps documents of {self._settings.max_store_bytes} bytes at most, and they are used up; "
                "delete problems that are no longer needed"
            )

    def _check_count(self, connection: sqlite3.Connection, owner: str) -> None:
        query = "SELECT count(*) FROM registration WHERE key_id = ?"
        if connection.execute(query, [owner]).fetchone()[0] > self._settings.max_problems_per_key:
            raise QuotaError(
                f"one key may have {self._settings.max_problems_per_key} problems registered; "
                "delete those that are no longer needed"
            )


def _make_private(path: Path) -> None:
    """Make the file for its owner alone, before SQLite makes it for everybody."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
    except OSError as error:
        raise StoreError(f"cannot open the store {path}: {error.strerror}") from error
