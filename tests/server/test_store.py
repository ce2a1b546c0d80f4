from __future__ import annotations

import json
import sqlite3
import stat
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from convexlayer_server import Settings
from convexlayer_server.errors import QuotaError, StoreError
from convexlayer_server.store import Store, StoredProblem, Usage, backup, restore, schema


def problem(name: str, versions: str = "1", **document: Any) -> StoredProblem:
    return StoredProblem({"kind": "expression", "name": name, **document}, {"id": name, "made": versions}, versions)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "store.sqlite"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    with closing(Store(Settings(), path)) as store:
        yield store


def test_problems_outlive_the_process(path: Path) -> None:
    with closing(Store(Settings(), path)) as store:
        assert store.put("k_1", problem("p_1", text="é" * 1000))
    with closing(Store(Settings(), path)) as store:
        found = store.get("k_1", "p_1")
        assert found is not None
        assert found.document == problem("p_1", text="é" * 1000).document
        assert found.summary == {"id": "p_1", "made": "1"}
        assert found.size_bytes == len(json.dumps(found.document))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_registrations_belong_to_keys(store: Store) -> None:
    assert store.put("k_1", problem("p_1"))
    assert not store.put("k_1", problem("p_1"))
    assert store.put("k_2", problem("p_1"))
    assert store.get("k_3", "p_1") is None
    assert store.all("k_3") == []
    assert not store.delete("k_3", "p_1")
    assert store.delete("k_1", "p_1")
    assert store.get("k_1", "p_1") is None
    assert store.get("k_2", "p_1") is not None
    assert store.put("k_1", problem("p_1"))


def test_a_document_goes_with_its_last_registration(store: Store, path: Path) -> None:
    for owner in ("k_1", "k_2"):
        store.put(owner, problem("p_1"))
    for owner, left in (("k_1", 1), ("k_2", 0)):
        store.delete(owner, "p_1")
        with closing(sqlite3.connect(path)) as connection:
            assert connection.execute("SELECT count(*) FROM problem").fetchone()[0] == left


def test_problems_are_listed_in_the_order_of_registration(store: Store) -> None:
    names = [f"p_{number}" for number in (3, 1, 2)]
    for name in names:
        store.put("k", problem(name))
    assert [summary["id"] for summary in store.all("k")] == names


def test_other_versions_renew_the_summary(store: Store) -> None:
    store.put("k", problem("p_1"))
    assert not store.put("k", problem("p_1", "2"))
    found = store.get("k", "p_1")
    assert found is not None
    assert (found.versions, found.summary["made"]) == ("2", "2")


def test_caps(path: Path) -> None:
    with closing(Store(Settings(max_problems_per_key=2), path)) as store:
        for name in ("p_1", "p_2", "p_2"):
            store.put("k_1", problem(name))
        with pytest.raises(QuotaError, match="2 problems"):
            store.put("k_1", problem("p_3"))
        assert [summary["id"] for summary in store.all("k_1")] == ["p_1", "p_2"]
        assert store.put("k_2", problem("p_3"))
        store.delete("k_1", "p_1")
        assert store.put("k_1", problem("p_3"))
    with closing(Store(Settings(max_store_bytes=10), path)) as store:
        assert store.put("k_2", problem("p_2"))  # which is stored already
        with pytest.raises(QuotaError, match="10 bytes"):
            store.put("k_2", problem("p_4"))


def test_calls_from_many_threads(store: Store) -> None:
    new: list[bool] = []

    def register() -> None:
        for number in range(20):
            new.append(store.put("k", problem(f"p_{number}")))

    threads = [threading.Thread(target=register) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(new) == len(store.all("k")) == 20


def test_usage_adds_up(store: Store) -> None:
    for day in ("2026-11-24", "2026-11-25", "2026-11-25"):
        store.add_usage({("k_1", day): Usage(requests=1, elements=3, seconds=0.5)})
    assert store.usage("2026-11-24") == {
        ("k_1", "2026-11-24"): Usage(requests=1, elements=3, seconds=0.5),
        ("k_1", "2026-11-25"): Usage(requests=2, elements=6, seconds=1.0),
    }
    assert list(store.usage("2026-11-25")) == [("k_1", "2026-11-25")]


def test_another_writer_is_seen(store: Store, path: Path) -> None:
    before = store.version()
    store.put("k", problem("p_1"))
    assert store.version() == before
    with closing(Store(Settings(), path)) as other:
        other.put("k", problem("p_2"))
    assert store.version() != before


def test_a_store_of_an_older_version_is_brought_up_to_date(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(Store(Settings(), path)) as store:
        store.put("k", problem("p_1"))
    monkeypatch.setattr(schema, "_MIGRATIONS", (*schema._MIGRATIONS, "ALTER TABLE problem ADD COLUMN note TEXT;\n"))
    monkeypatch.setattr(schema, "VERSION", schema.VERSION + 1)
    with closing(Store(Settings(), path)) as store:
        assert store.get("k", "p_1") is not None
    with closing(sqlite3.connect(path)) as connection:
        assert schema.version(connection) == schema.VERSION
        assert "note" in [row[1] for row in connection.execute("PRAGMA table_info(problem)")]


def test_a_store_of_a_newer_version_is_left_alone(path: Path) -> None:
    Store(Settings(), path).close()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 99")
    for _ in range(2):
        with pytest.raises(StoreError, match="version 99, this package knows"):
            Store(Settings(), path)


def test_files_that_are_no_stores(tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("no database" * 100)
    for call in (lambda: Store(Settings(), file), lambda: backup(file, tmp_path / "b"), lambda: restore(file, "s")):
        with pytest.raises(StoreError, match=r"notes\.txt"):
            call()
    with pytest.raises(StoreError, match="cannot open"):
        Store(Settings(), file / "below")


def test_backup_and_restore_while_it_is_open(store: Store, path: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.sqlite"
    store.put("k", problem("p_1"))
    backup(path, copy)
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600
    store.put("k", problem("p_2"))
    before = store.version()
    restore(copy, path)
    assert store.version() != before
    assert [summary["id"] for summary in store.all("k")] == ["p_1"]
    assert store.put("k", problem("p_2"))
    with pytest.raises(StoreError, match="does not exist"):
        backup(path, copy)
    with pytest.raises(StoreError, match="no store"):
        backup(tmp_path / "none", tmp_path / "other")


def test_a_store_that_fails_says_so(store: Store) -> None:
    store.close()
    with pytest.raises(StoreError, match="cannot be read"):
        store.get("k", "p_1")
    with pytest.raises(StoreError, match="cannot be written"):
        store.put("k", problem("p_1"))
