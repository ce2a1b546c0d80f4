"""What is kept for callers, and who makes room."""

from __future__ import annotations

import pytest

from convexlayer_server import kept
from convexlayer_server.kept import Kept

from .clock import Clock

CLOCK = Clock()


@pytest.fixture(autouse=True)
def _our_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "time", CLOCK)


def filled(*things: tuple[str, int], size: int = 100, seconds: float = 10.0) -> Kept[str]:
    """Things whose owner is their first letter."""
    found: Kept[str] = Kept(size, seconds)
    for name, size_bytes in things:
        found.put(name, name[0], name, size_bytes)
    return found


def test_whoever_keeps_most_makes_room() -> None:
    things = filled(("b1", 20), ("a1", 30), ("a2", 30), ("b2", 20), ("a3", 30), ("c1", 20))
    assert things.all("a") == ["a3"]
    assert things.all("b") == ["b1", "b2"]
    assert things.all("c") == ["c1"]
    assert things.size_bytes == 90


def test_an_equal_share_is_kept_whatever_others_keep() -> None:
    things = filled(("b1", 25), ("b2", 25), *((f"a{number}", 10) for number in range(100)))
    assert things.all("b") == ["b1", "b2"]
    assert things.all("a") == [f"a{number}" for number in range(95, 100)]


def test_the_last_thing_of_an_owner_stays_whatever_its_size() -> None:
    things = filled(("b1", 10), ("a1", 500))
    assert (things.all("a"), things.all("b")) == (["a1"], ["b1"])
    things.put("a2", "a", "a2", 10)
    assert (things.all("a"), things.all("b")) == (["a2"], ["b1"])
    assert things.size_bytes == 20


def test_things_are_their_owners_and_for_a_time() -> None:
    things = filled(("a1", 1), ("a2", 1))
    assert things.get("a1", "b") is None
    CLOCK.seconds += 6.0
    assert things.get("a1", "a", renew=True) == "a1"
    assert things.left_s("a1") == pytest.approx(10.0)
    assert things.left_s("a2") == pytest.approx(4.0)
    CLOCK.seconds += 5.0
    assert things.get("a2", "a") is None
    assert things.all("a") == ["a1"]
    things.drop("a1")
    things.drop("a1")
    assert things.get("a1", "a") is None
    assert (things.size_bytes, things.left_s("a1")) == (0, 0.0)


def test_what_is_used_stays_longest() -> None:
    things = filled(("a1", 40), ("a2", 40))
    things.get("a1", "a", renew=True)
    things.put("a3", "a", "a3", 40)
    assert things.all("a") == ["a1", "a3"]
