from __future__ import annotations

import random
import sqlite3
import stat
import threading
from contextlib import closing
from pathlib import Path

import pytest

from convexlayer_server import Settings
from convexlayer_server.errors import QuotaError, UnauthenticatedError
from convexlayer_server.store import Store, StoredProblem, Usage

from .conftest import listed, made, problem


def random_problem(name: str, size: int) -> StoredProblem:
    """A problem whose document cannot be compressed."""
    return problem(name, document=random.Random(name).randbytes(size))


TEXT = b'{"kind":"expression","minimize":"x"}' * 100


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
