"""The file of the store: migration, backup and restore, damaged and foreign files."""

from __future__ import annotations

import importlib
import json
import sqlite3
import stat
import zlib
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from convexlayer_server import Settings
from convexlayer_server.admission.keys import new_key, new_token
from convexlayer_server.errors import StoreError
from convexlayer_server.store import Store, Usage, backup, restore, schema

from .conftest import listed, made, problem


def test_older_stores_are_migrated(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(Store(Settings(), path)) as store:
        store.put("k", problem("p_1"))
    monkeypatch.setattr(schema, "_MIGRATIONS", (*schema._MIGRATIONS, "ALTER TABLE problem ADD COLUMN note TEXT;\n"))
    monkeypatch.setattr(schema, "VERSION", schema.VERSION + 1)
    with closing(Store(Settings(), path)) as store:
        assert store.get("k", "p_1") is not None
    with closing(sqlite3.connect(path)) as connection:
        assert schema.version(connection) == schema.VERSION
        assert "note" in [row[1] for row in connection.execute("PRAGMA table_info(problem)")]


def first_version(path: Path, *, keys: bool) -> None:
    """A store of schema version 1: p_2 and p_1 have no key, p_2 has a valid key, and p_3 a revoked one."""
    path.parent.mkdir()
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(schema._MIGRATIONS[0])
        for number in (1, 2, 3):
            content = zlib.compress(b'{"kind": "expression"}')
            row = (f"p_{number}", content, len(content), json.dumps({"id": f"p_{number}"}), "1")
            connection.execute("INSERT INTO problem VALUES (?, ?, ?, ?, ?)", row)
        owned = [("", "p_2"), ("", "p_1"), *([("k_2", "p_2"), ("k_1", "p_3")] if keys else [])]
        for number, (owner, name) in enumerate(owned):
            connection.execute("INSERT INTO registration VALUES (?, ?, ?)", (owner, name, float(number)))
        for number, revoked_s in ((1, 5.0), (2, None), (3, None)) if keys else ():
            key = (f"k_{number}", "name", bytes([number]), float(number), revoked_s, None, None)
            connection.execute("INSERT INTO key VALUES (?, ?, ?, ?, ?, ?, ?)", key)
        connection.execute("PRAGMA user_version = 1")
        connection.commit()


@pytest.mark.parametrize("keys", [False, True])
def test_migration_from_version_1(path: Path, tmp_path: Path, *, keys: bool) -> None:
    first_version(path, keys=keys)
    older = tmp_path / "older.sqlite"
    backup(path, older)
    for turn in range(2):  # opened directly, and restored from a backup
        with closing(Store(Settings(), path)) as store:
            assert listed(store, "k_2" if keys else "") == ["p_2", "p_1"]
            found = store.get("k_2" if keys else "", "p_1")
            assert found is not None
            assert json.loads(found.document) == {"kind": "expression"}
            assert len(store.all_keys()) == (3 if keys else 0)
            store.put("k_2" if keys else "", problem("p_4"))
            if turn == 0:
                restore(older, path)
    with closing(sqlite3.connect(path)) as connection:
        held = dict(connection.execute("SELECT key_id, bytes FROM held"))
        counted = dict(
            connection.execute(
                "SELECT key_id, sum(bytes) FROM registration JOIN problem ON problem.id = problem_id GROUP BY key_id"
            )
        )
    assert {owner: size for owner, size in held.items() if size} == counted


def test_newer_stores_are_refused(path: Path) -> None:
    Store(Settings(), path).close()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 99")
    for _ in range(2):
        with pytest.raises(StoreError, match="version 99, this package supports"):
            Store(Settings(), path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("no database" * 100)
    calls: list[Callable[[], object]] = [
        lambda: Store(Settings(), file),
        lambda: backup(file, tmp_path / "b"),
        lambda: restore(file, "s"),
    ]
    for call in calls:
        with pytest.raises(StoreError, match=r"notes\.txt"):
            call()
    with pytest.raises(StoreError, match="cannot open"):
        Store(Settings(), file / "below")


def test_backup_and_restore_while_the_store_is_open(store: Store, path: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.sqlite"
    store.put("k", problem("p_1"))
    backup(path, copy)
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600
    store.put("k", problem("p_2"))
    before = store.version()
    restore(copy, path)
    assert store.version() != before
    assert listed(store, "k") == ["p_1"]
    assert store.put("k", problem("p_2"))
    with pytest.raises(StoreError, match="does not exist"):
        backup(path, copy)
    with pytest.raises(StoreError, match="not a convexlayer store"):
        backup(tmp_path / "none", tmp_path / "other")


def test_failures_are_reported(store: Store) -> None:
    store.close()
    with pytest.raises(StoreError, match="cannot be read"):
        store.get("k", "p_1")
    with pytest.raises(StoreError, match="cannot be written"):
        store.delete("k", "p_1")


def test_revoked_keys_stay_revoked(store: Store, path: Path, tmp_path: Path) -> None:
    """Keys created since the backup stay, too, and so does usage."""
    copy = tmp_path / "copy.sqlite"
    early, leaving = made(store, "early", "leaving")
    for owner in (early, leaving):
        store.put(owner, problem("p_1"))
    store.add_usage({(early, "2026-11-24"): Usage(requests=1, seconds=2.0)})
    backup(path, copy)
    late, short = made(store, "late", "short")
    store.put(late, problem("p_2"))
    store.revoke_key(leaving)
    store.revoke_key(short)
    store.add_usage({(early, "2026-11-24"): Usage(requests=1), (early, "2026-11-25"): Usage(requests=3)})
    before = store.all_keys()
    restore(copy, path)
    assert store.all_keys() == before
    assert [listed(store, owner) for owner in (early, leaving, late, short)] == [["p_1"], [], [], []]
    assert [usage.requests for usage in store.usage("2026-11-24").values()] == [2, 3]
    assert sum(usage.seconds for usage in store.usage("2026-11-24").values()) == 2.0


def test_restoring_a_backup_without_keys(store: Store, path: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.sqlite"
    store.put("", problem("p_1"))
    backup(path, copy)
    first, second = made(store, "first", "second")
    store.revoke_key(first)
    restore(copy, path)
    assert [key.revoked_s is None for key in store.all_keys()] == [False, True]
    assert listed(store, second) == ["p_1"]


def test_one_token_is_one_key(path: Path, tmp_path: Path) -> None:
    """For instance the first key, which a new store creates again with another ID."""
    copy, token = tmp_path / "copy.sqlite", new_token()
    with closing(Store(Settings(), copy)) as lost:
        former = new_key("first", token)
        lost.add_key(former)
        lost.put(former.id, problem("p_1"))
        lost.add_usage({(former.id, "2026-11-24"): Usage(requests=1)})
    with closing(Store(Settings(), path)) as store:
        again = new_key("first", token)
        store.add_key(again)
        store.add_usage({(again.id, "2026-11-25"): Usage(requests=2)})
        restore(copy, path)
        assert [key.id for key in store.all_keys()] == [former.id]
        assert listed(store, former.id) == ["p_1"]
        assert list(store.usage("2026-11-24", former.id)) == [(former.id, "2026-11-24"), (former.id, "2026-11-25")]


def test_a_damaged_store_is_refused(path: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.sqlite"
    Store(Settings(), copy).close()
    path.parent.mkdir()
    path.write_bytes(b"no database" * 1000)
    with pytest.raises(StoreError, match="move it and the files"):
        restore(copy, path)
    assert path.read_bytes() == b"no database" * 1000
    path.unlink()
    restore(copy, path)
    assert [each.name for each in path.parent.iterdir()] == [path.name]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_failed_restore_changes_nothing(
    store: Store, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "copy.sqlite"
    backup(path, copy)
    store.put("k", problem("p_1"))

    def fail(connection: sqlite3.Connection) -> None:
        raise sqlite3.OperationalError("disk full")

    monkeypatch.setattr(importlib.import_module("convexlayer_server.store.backup"), "_join_keys", fail)
    with pytest.raises(StoreError, match="disk full"):
        restore(copy, path)
    assert listed(store, "k") == ["p_1"]
    assert store.put("k", problem("p_2"))
