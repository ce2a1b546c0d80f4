"""Who may hold how much, and what becomes of what is nobody's.

Half of the store is shared out equally among the keys that are good: that much is there for each, whatever the others
do. The other half is for whoever comes first. A document that several keys have registered counts for each of them.

These functions are parts of a transaction of the caller's.
"""

from __future__ import annotations

import sqlite3

from ..errors import QuotaError, UnauthenticatedError

__all__ = ["check_owner", "check_room", "clear", "take_over"]

_NOBODY = ""
"""The owner of what is registered where the service asks for no key."""


def check_owner(connection: sqlite3.Connection, owner: str) -> None:
    """See that an owner can still reach what it is about to register.

    Raises:
        UnauthenticatedError: its key was revoked, or the first key was made, while it was served.
    """
    query = "SELECT count(*), max(id = ? AND revoked_s IS NULL) FROM key"
    keys, good = connection.execute(query, [owner]).fetchone()
    if keys and not good:
        raise UnauthenticatedError("the key was revoked meanwhile, or the server did not ask for one until now")


def check_room(connection: sqlite3.Connection, owner: str, max_bytes: int) -> None:
    """See that there is room for what an owner holds, what it has just registered included.

    Args:
        connection: to the store.
        owner: a key that is good, or nobody where there are no keys.
        max_bytes: of the store.

    Raises:
        QuotaError: it holds more than its share, and the common half is used up.
    """
    good = connection.execute("SELECT count(*) FROM key WHERE revoked_s IS NULL").fetchone()[0]
    share = max_bytes // 2 // max(1, good)
    held = connection.execute("SELECT total(bytes) FROM held WHERE key_id = ?", [owner]).fetchone()[0]
    if held <= share:
        return
    beyond = connection.execute("SELECT total(max(0, bytes - ?)) FROM held", [share]).fetchone()[0]
    if beyond > max_bytes - max_bytes // 2:
        raise QuotaError(
            f"with this problem the key would hold documents of {held:.0f} bytes, compressed; its share of the "
            f"{max_bytes} that this server keeps is {share}, and what all may hold beyond their shares is used up: "
            "delete problems that are no longer needed, or have max_store_bytes raised"
        )


def take_over(connection: sqlite3.Connection, key_id: str) -> int:
    """Give a key what was registered when no key was asked for; the number of problems."""
    query = """INSERT OR IGNORE INTO registration (key_id, problem_id, created_s)
               SELECT ?, problem_id, created_s FROM registration WHERE key_id = ? ORDER BY number"""
    taken = connection.execute(query, (key_id, _NOBODY)).rowcount
    connection.execute("DELETE FROM registration WHERE key_id = ?", [_NOBODY])
    return taken


def clear(connection: sqlite3.Connection) -> None:
    """End the registrations of keys that were revoked: nobody can reach them any more."""
    connection.execute("DELETE FROM registration WHERE key_id IN (SELECT id FROM key WHERE revoked_s IS NOT NULL)")
    connection.execute(
        "DELETE FROM problem WHERE NOT EXISTS (SELECT 1 FROM registration WHERE problem_id = problem.id)"
    )
