"""Quotas of keys in the store, and the transfer and deletion of registrations.

Half of the store is divided equally among the valid keys, and guaranteed to each. The other half is shared, first come
first served. A document that several keys registered counts for each of them.

These functions run within a transaction of their caller.
"""

from __future__ import annotations

import sqlite3

from ..errors import QuotaError, UnauthenticatedError

__all__ = ["check_owner", "check_room", "delete_revoked", "take_over"]

_ANONYMOUS = ""
"""Owner of the problems that are registered while the service has no keys."""


def check_owner(connection: sqlite3.Connection, owner: str) -> None:
    """Check that an owner may still register problems.

    Raises:
        UnauthenticatedError: during the request, its key was revoked, or the first key was created.
    """
    query = "SELECT count(*), max(id = ? AND revoked_s IS NULL) FROM key"
    keys, valid = connection.execute(query, [owner]).fetchone()
    if keys and not valid:
        raise UnauthenticatedError(
            "the key was revoked during the request, or the server has required a key only since then"
        )


def check_room(connection: sqlite3.Connection, owner: str, max_bytes: int) -> None:
    """Check the quota of an owner, including what it has just registered.

    Args:
        connection: connection to the store.
        owner: ID of a valid key, or empty if there are no keys.
        max_bytes: bytes of the store.

    Raises:
        QuotaError: the owner exceeds its share, and the shared half is full.
    """
    valid = connection.execute("SELECT count(*) FROM key WHERE revoked_s IS NULL").fetchone()[0]
    share = max_bytes // 2 // max(1, valid)
    held = connection.execute("SELECT total(bytes) FROM held WHERE key_id = ?", [owner]).fetchone()[0]
    if held <= share:
        return
    beyond = connection.execute("SELECT total(max(0, bytes - ?)) FROM held", [share]).fetchone()[0]
    if beyond > max_bytes - max_bytes // 2:
        raise QuotaError(
            f"with this problem, the key would store {held:.0f} bytes of compressed documents; its share of the "
            f"{max_bytes} bytes of this server is {share}, and the bytes shared by all keys are used up: delete "
            "problems that are no longer needed, or ask the operator to raise max_store_bytes"
        )


def take_over(connection: sqlite3.Connection, key_id: str) -> int:
    """Transfer the problems that were registered without a key to a key; return their number."""
    query = """INSERT OR IGNORE INTO registration (key_id, problem_id, created_s)
               SELECT ?, problem_id, created_s FROM registration WHERE key_id = ? ORDER BY number"""
    taken = connection.execute(query, (key_id, _ANONYMOUS)).rowcount
    connection.execute("DELETE FROM registration WHERE key_id = ?", [_ANONYMOUS])
    return taken


def delete_revoked(connection: sqlite3.Connection) -> None:
    """Delete the registrations of revoked keys, and problems without registrations."""
    connection.execute("DELETE FROM registration WHERE key_id IN (SELECT id FROM key WHERE revoked_s IS NOT NULL)")
    connection.execute(
        "DELETE FROM problem WHERE NOT EXISTS (SELECT 1 FROM registration WHERE problem_id = problem.id)"
    )
