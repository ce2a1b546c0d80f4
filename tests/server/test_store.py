from __future__ import annotations

import importlib
import json
import random
import sqlite3
import stat
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from convexlayer_server import Settings
from convexlayer_server.admission.keys import new_key, new_token
from convexlayer_server.errors import QuotaError, StoreError, UnauthenticatedError
from convexlayer_server.store import Store, StoredProblem, Usage, backup, restore, schema


def problem(name: str, versions: str = "1", document: bytes = b"{}") -> StoredProblem:
    return StoredProblem(document, {"id": name, "made": versions}, versions)


def random_problem(name: str, size: int) -> StoredProblem:
    """A problem whose document cannot be compressed."""
    return problem(name, document=random.Random(name).randbytes(size))


def listed(store: Store, owner: str) -> list[str]:
    summaries, following = store.page(owner, 0, 1000)
    assert following is None
    return [json.loads(summary)["id"] for summary in summaries]


TEXT = b'{"kind":"expression","minimize":"x"}' * 100


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "store.sqlite"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    with closing(Store(Settings(), path)) as store:
        yield store


def test_problems_persist(path: Path) -> None:
    with closing(Store(Settings(), path)) as store:
        assert store.put("k_1", problem("p_1", document=TEXT))
    with closing(Store(Settings(), path)) as store:
        found = store.get("k_1", "p_1")
        assert found is not None
        assert found.document == TEXT
        assert found.summary == {"id": "p_1", "made": "1"}
        assert found.size_bytes > len(TEXT)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_registrations_belong_to_keys(store: Store) -> None:
    assert store.put("k_1", problem("p_1"))
    assert not store.put("k_1", problem("p_1"))
    assert store.put("k_2", problem("p_1"))
    assert store.get("k_3", "p_1") is None
    assert listed(store, "k_3") == []
    assert not store.delete("k_3", "p_1")
    assert store.delete("k_1", "p_1")
    assert store.get("k_1", "p_1") is None
    assert store.get("k_2", "p_1") is not None
    assert store.put("k_1", problem("p_1"))


def test_the_last_registration_deletes_the_document(store: Store, path: Path) -> None:
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
    assert listed(store, "k") == names


def test_other_versions_replace_the_summary(store: Store) -> None:
    store.put("k", problem("p_1"))
    assert not store.put("k", problem("p_1", "2"))
    found = store.get("k", "p_1")
    assert found is not None
    assert (found.versions, found.summary["made"]) == ("2", "2")


def test_limits(path: Path) -> None:
    with closing(Store(Settings(max_problems_per_key=2), path)) as store:
        for name in ("p_1", "p_2", "p_2"):
            store.put("k_1", problem(name))
        with pytest.raises(QuotaError, match="2 problems"):
            store.put("k_1", problem("p_3"))
        assert listed(store, "k_1") == ["p_1", "p_2"]
        assert store.put("k_2", problem("p_3"))
        store.delete("k_1", "p_1")
        assert store.put("k_1", problem("p_3"))


def made(store: Store, *names: str) -> list[str]:
    """IDs of new keys."""
    keys = [new_key(name, new_token()) for name in names]
    for key in keys:
        store.add_key(key)
    return [key.id for key in keys]


def test_one_key_may_fill_the_store(path: Path) -> None:
    """So may all clients together, if there are no keys."""
    for owners in ([], ["a"]):
        with closing(Store(Settings(max_store_bytes=100_000), path)) as store:
            (owner,) = made(store, *owners) or [""]
            for number in range(9):
                assert store.put(owner, random_problem(f"p_{owner}{number}", 10_000))
            with pytest.raises(QuotaError, match="its share of the 100000 bytes of this server is 50000"):
                store.put(owner, random_problem("p_more", 10_000))
            assert not store.put(owner, random_problem(f"p_{owner}0", 10_000))
            for number in range(9):
                store.delete(owner, f"p_{owner}{number}")


def test_each_key_has_a_guaranteed_share(path: Path) -> None:
    """Of 120,000 bytes, 20,000 are guaranteed to each of three keys, and 60,000 are shared."""
    with closing(Store(Settings(max_store_bytes=120_000), path)) as store:
        a, b, c = made(store, "a", "b", "c")

        def fill(owner: str) -> int:
            """Register problems of 6,000 bytes until the quota; return their number."""
            for number in range(100):
                try:
                    store.put(owner, random_problem(f"p_{owner}{number}", 5_980))
                except QuotaError:
                    return number
            raise AssertionError

        assert fill(a) == 13  # its share, and the shared half
        assert fill(b) == 3
        store.delete(a, f"p_{a}0")
        assert fill(b) == 4
        assert fill(c) == 4  # the rest of the shared half
        (d,) = made(store, "d")
        assert fill(d) == 2  # every share is 15,000 now, although others hold more
        assert not store.put(a, random_problem(f"p_{a}5", 5_980))
        with pytest.raises(QuotaError):
            store.put(a, random_problem(f"p_{a}0", 5_980))


def test_a_document_counts_for_each_of_its_keys(path: Path) -> None:
    with closing(Store(Settings(max_store_bytes=40_000), path)) as store:
        a, b = made(store, "a", "b")
        store.put(a, random_problem("p_1", 25_000))  # 15,000 beyond its share
        with pytest.raises(QuotaError):
            store.put(b, random_problem("p_1", 25_000))
        assert listed(store, b) == []
        store.delete(a, "p_1")
        assert store.put(b, random_problem("p_1", 25_000))


def test_the_first_key_takes_over_problems_without_a_key(store: Store) -> None:
    for name in ("p_2", "p_1"):
        store.put("", problem(name))
    (first,) = made(store, "first")
    assert listed(store, "") == []
    assert listed(store, first) == ["p_2", "p_1"]
    (second,) = made(store, "second")
    assert listed(store, second) == []
    with pytest.raises(UnauthenticatedError):
        store.put("", problem("p_3"))  # of a request that was admitted before
    assert listed(store, "") == []


def test_revoking_a_key_deletes_its_problems(store: Store, path: Path) -> None:
    one, other = made(store, "one", "other")
    for owner, name in ((one, "p_1"), (one, "p_2"), (other, "p_2")):
        store.put(owner, problem(name))
    assert store.revoke_key(one)
    assert listed(store, one) == []
    assert listed(store, other) == ["p_2"]
    with closing(sqlite3.connect(path)) as connection:
        for table in ("problem", "document"):
            assert connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0] == 1
    with pytest.raises(UnauthenticatedError):
        store.put(one, problem("p_1"))


def test_pages_are_bounded_by_size(store: Store) -> None:
    for number in range(5):
        summary = {"id": f"p_{number}", "text": "x" * 400_000}
        store.put("k", StoredProblem(f"{number}".encode(), summary))
    sizes, after = [], 0
    while True:
        summaries, following = store.page("k", after, 1000)
        sizes.append(len(summaries))
        if following is None:
            break
        after = following
    assert sizes == [2, 2, 1]


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
    assert sum(new) == len(listed(store, "k")) == 20


def test_usage_adds_up(store: Store) -> None:
    for day in ("2026-11-24", "2026-11-25", "2026-11-25"):
        store.add_usage({("k_1", day): Usage(requests=1, elements=3, seconds=0.5)})
    assert store.usage("2026-11-24") == {
        ("k_1", "2026-11-24"): Usage(requests=1, elements=3, seconds=0.5),
        ("k_1", "2026-11-25"): Usage(requests=2, elements=6, seconds=1.0),
    }
    assert list(store.usage("2026-11-25")) == [("k_1", "2026-11-25")]
    store.add_usage({("k_2", "2026-11-25"): Usage(requests=1)})
    assert list(store.usage("2026-11-25", "k_2")) == [("k_2", "2026-11-25")]


def test_other_writers_are_detected(store: Store, path: Path) -> None:
    before = store.version()
    store.put("k", problem("p_1"))
    assert store.version() == before
    with closing(Store(Settings(), path)) as other:
        other.put("k", problem("p_2"))
    assert store.version() != before


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
