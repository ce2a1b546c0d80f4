"""The store: problems, keys and usage in one SQLite file.

A document is stored once, with a registration for each key that may use it; it is deleted with its last registration.
All methods block: call them from any thread but that of the event loop.
"""

from __future__ import annotations

import sqlite3
import threading
import time
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, final

from pydantic_core import from_json, to_json

from ..errors import QuotaError, StoreError
from ..settings import Settings
from .owners import check_owner, check_room, delete_revoked, take_over
from .records import Key, StoredProblem, Usage
from .schema import connect

__all__ = ["Store"]

_PAGE_LENGTH = 2**20
"""Characters of a page of several summaries at most."""

_SUMMARY_CHARACTER_BYTES = 16
"""Assumed bytes in memory of each character of a parsed summary; only the cache's account depends on it."""


@final
class Store:
    """A store in a file, or in memory.

    Args:
        settings: ``max_store_bytes``, ``max_problems_per_key`` and ``max_keys``.
        path: the file; a new one is created with access for its owner alone. ``:memory:`` ends with the process.

    Raises:
        StoreError: the file cannot be opened, or a newer version of this package wrote it.
    """

    def __init__(self, settings: Settings, path: str | Path = ":memory:") -> None:
        self._settings = settings
        self._lock = threading.Lock()
        try:
            self._connection = connect(path)
        except sqlite3.Error as error:
            raise StoreError(f"cannot open the store {path}: {error}") from error

    def put(self, owner: str, problem: StoredProblem) -> bool:
        """Register a problem for a key; return whether it is new to the key. Replace a summary of other versions.

        Raises:
            QuotaError: the key has too many problems, or too many bytes of them.
            UnauthenticatedError: the key was revoked.
        """
        known = self._read("SELECT 1 FROM problem WHERE id = ?", problem.id)
        content = b"" if known else zlib.compress(problem.document)  # slow, so outside the lock
        summary = to_json(problem.summary).decode()
        with self._transaction() as connection:
            check_owner(connection, owner)
            present = connection.execute("SELECT versions FROM problem WHERE id = ?", [problem.id]).fetchone()
            if present is None:
                content = content or zlib.compress(problem.document)
                row = (problem.id, len(content), problem.versions, summary)
                connection.execute("INSERT INTO problem VALUES (?, ?, ?, ?)", row)
                connection.execute("INSERT INTO document VALUES (?, ?)", (problem.id, content))
            elif present[0] != problem.versions:
                connection.execute(
                    "UPDATE problem SET summary = ?, versions = ? WHERE id = ?",
                    (summary, problem.versions, problem.id),
                )
            query = "INSERT OR IGNORE INTO registration (key_id, problem_id, created_s) VALUES (?, ?, ?)"
            added = connection.execute(query, (owner, problem.id, time.time())).rowcount > 0
            if added:
                self._check_count(connection, owner)
                check_room(connection, owner, self._settings.max_store_bytes)
        return added

    def get(self, owner: str, problem_id: str) -> StoredProblem | None:
        """Return a problem of a key, or None."""
        query = """SELECT content, summary, versions FROM registration
                   JOIN problem ON problem.id = registration.problem_id
                   JOIN document ON document.problem_id = problem.id WHERE key_id = ? AND id = ?"""
        rows = self._read(query, owner, problem_id)
        if not rows:
            return None
        content, summary, versions = rows[0]
        document = zlib.decompress(content)
        return StoredProblem(
            document, from_json(summary), versions, len(document) + _SUMMARY_CHARACTER_BYTES * len(summary)
        )

    def page(self, owner: str, after: int, limit: int) -> tuple[list[str], int | None]:
        """Return a page of summaries of a key's problems as JSON, in the order of registration.

        Args:
            owner: ID of the key.
            after: the number that the previous page returned; 0 for the first page.
            limit: number of summaries at most; a page of large ones may have fewer, although more follow.

        Returns:
            The summaries, and the number of the last one if more follow.
        """
        query = """SELECT number, summary FROM registration JOIN problem ON problem.id = problem_id
                   WHERE key_id = ? AND number > ? ORDER BY number LIMIT ?"""
        summaries: list[str] = []
        last, room = after, _PAGE_LENGTH
        with self._reading() as connection:
            for number, summary in connection.execute(query, (owner, after, limit + 1)):
                room -= len(summary)
                if len(summaries) == limit or (summaries and room < 0):
                    return summaries, last
                summaries.append(summary)
                last = number
        return summaries, None

    def delete(self, owner: str, problem_id: str) -> bool:
        """Delete a key's registration; return whether there was one. The last one deletes the document, too."""
        with self._transaction() as connection:
            parameters = (owner, problem_id)
            ended = connection.execute("DELETE FROM registration WHERE key_id = ? AND problem_id = ?", parameters)
            connection.execute(
                "DELETE FROM problem WHERE id = ? AND NOT EXISTS (SELECT 1 FROM registration WHERE problem_id = ?)",
                (problem_id, problem_id),
            )
        return ended.rowcount > 0

    def all_keys(self) -> list[Key]:
        """Return all keys, including revoked ones, oldest first."""
        query = """SELECT id, name, digest, created_s, revoked_s, requests_per_minute, seconds_per_day
                   FROM key ORDER BY created_s, rowid"""
        names = ("id", "name", "digest", "created_s", "revoked_s", "requests_per_minute", "seconds_per_day")
        return [Key(**dict(zip(names, row, strict=True))) for row in self._read(query)]

    def add_key(self, key: Key) -> int:
        """Add a key; return the number of problems without a key, which now belong to it.

        Raises:
            StoreError: its token or ID exists already, or there are too many keys.
        """
        values = (
            key.id, key.name, key.digest, key.created_s, key.revoked_s, key.requests_per_minute, key.seconds_per_day
        )  # fmt: skip
        with self._transaction() as connection:
            if connection.execute("SELECT count(*) FROM key").fetchone()[0] >= self._settings.max_keys:
                raise StoreError(f"the store has {self._settings.max_keys} keys, the limit of max_keys")
            try:
                connection.execute("INSERT INTO key VALUES (?, ?, ?, ?, ?, ?, ?)", values)
            except sqlite3.IntegrityError as error:
                raise StoreError("a key of this ID or token exists already, possibly revoked") from error
            return take_over(connection, key.id)

    def revoke_key(self, key_id: str) -> bool:
        """Revoke a key, and delete its problems; return whether the key was valid."""
        with self._transaction() as connection:
            query = "UPDATE key SET revoked_s = ? WHERE id = ? AND revoked_s IS NULL"
            revoked = connection.execute(query, (time.time(), key_id)).rowcount > 0
            delete_revoked(connection)
        return revoked

    def add_usage(self, used: Mapping[tuple[str, str], Usage]) -> None:
        """Add usage by (key, day)."""
        query = """INSERT INTO usage VALUES (?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET
                   requests = requests + excluded.requests, elements = elements + excluded.elements,
                   seconds = seconds + excluded.seconds"""
        with self._transaction() as connection:
            for (key_id, day), usage in used.items():
                connection.execute(query, (key_id, day, usage.requests, usage.elements, usage.seconds))

    def usage(self, since: str, key_id: str | None = None) -> dict[tuple[str, str], Usage]:
        """Return usage since a day, of one key or of all, by (key, day)."""
        query = "SELECT key_id, day, requests, elements, seconds FROM usage WHERE day >= ?"
        rows = (
            self._read(f"{query} ORDER BY day", since)
            if key_id is None
            else self._read(f"{query} AND key_id = ? ORDER BY day", since, key_id)
        )
        return {
            (key_id, day): Usage(requests=requests, elements=elements, seconds=seconds)
            for key_id, day, requests, elements, seconds in rows
        }

    def version(self) -> int:
        """Return a number that changes when another process writes."""
        found: int = self._read("PRAGMA data_version")[0][0]
        return found

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._connection.close()

    def _read(self, query: str, *values: str) -> list[Any]:
        with self._reading() as connection:
            return connection.execute(query, values).fetchall()

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        """Read within this context, which converts SQLite's errors."""
        try:
            with self._lock:
                yield self._connection
        except sqlite3.Error as error:
            raise StoreError(f"the store cannot be read: {error}") from error

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """Write within this context: a transaction, which converts SQLite's errors."""
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

    def _check_count(self, connection: sqlite3.Connection, owner: str) -> None:
        query = "SELECT count(*) FROM registration WHERE key_id = ?"
        if connection.execute(query, [owner]).fetchone()[0] > self._settings.max_problems_per_key:
            raise QuotaError(f"a key may register {self._settings.max_problems_per_key} problems; delete unneeded ones")
