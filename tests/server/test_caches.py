"""The cache that owners share fairly."""

from __future__ import annotations

import pytest

from convexlayer_server.shared import caches
from convexlayer_server.shared.caches import FairShareCache

from .clock import Clock

CLOCK = Clock()


@pytest.fixture(autouse=True)
def _manual_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caches, "time", CLOCK)


def filled(*entries: tuple[str, int], max_bytes: int = 100, lifetime_s: float = 10.0) -> FairShareCache[str]:
    """A cache of values whose owner is their first letter."""
    cache: FairShareCache[str] = FairShareCache(max_bytes, lifetime_s)
    for name, size_bytes in entries:
        cache.put(name, name[0], name, size_bytes)
    return cache


def test_the_owner_with_the_most_bytes_loses_its_oldest_values() -> None:
    cache = filled(("b1", 20), ("a1", 30), ("a2", 30), ("b2", 20), ("a3", 30), ("c1", 20))
    assert cache.all("a") == ["a3"]
    assert cache.all("b") == ["b1", "b2"]
    assert cache.all("c") == ["c1"]
    assert cache.size_bytes == 90


def test_an_owner_keeps_its_equal_share() -> None:
    cache = filled(("b1", 25), ("b2", 25), *((f"a{number}", 10) for number in range(100)))
    assert cache.all("b") == ["b1", "b2"]
    assert cache.all("a") == [f"a{number}" for number in range(95, 100)]


def test_the_only_value_of_an_owner_stays_whatever_its_size() -> None:
    cache = filled(("b1", 10), ("a1", 500))
    assert (cache.all("a"), cache.all("b")) == (["a1"], ["b1"])
    cache.put("a2", "a", "a2", 10)
    assert (cache.all("a"), cache.all("b")) == (["a2"], ["b1"])
    assert cache.size_bytes == 20


def test_values_belong_to_owners_and_expire() -> None:
    cache = filled(("a1", 1), ("a2", 1))
    assert cache.get("a1", "b") is None
    CLOCK.seconds += 6.0
    assert cache.get("a1", "a", renew=True) == "a1"
    assert cache.left_s("a1") == pytest.approx(10.0)
    assert cache.left_s("a2") == pytest.approx(4.0)
    CLOCK.seconds += 5.0
    assert cache.get("a2", "a") is None
    assert cache.all("a") == ["a1"]
    cache.drop("a1")
    cache.drop("a1")
    assert cache.get("a1", "a") is None
    assert (cache.size_bytes, cache.left_s("a1")) == (0, 0.0)


def test_renewed_values_stay_longest() -> None:
    cache = filled(("a1", 40), ("a2", 40))
    cache.get("a1", "a", renew=True)
    cache.put("a3", "a", "a3", 40)
    assert cache.all("a") == ["a1", "a3"]
