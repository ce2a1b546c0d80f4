from __future__ import annotations

from collections import Counter

import pytest

from convexlayer_server.shared.fair_queue import FairQueue


def test_a_flow_is_served_in_order() -> None:
    queue: FairQueue[int] = FairQueue()
    for number in range(5):
        queue.push("a", number)
    assert [queue.pop(1.0) for _ in range(len(queue))] == list(range(5))
    with pytest.raises(IndexError):
        queue.pop(1.0)


def test_a_flood_does_not_delay_others() -> None:
    queue: FairQueue[str] = FairQueue()
    for _ in range(100):
        queue.push("flood", "flood")
    for _ in range(10):
        queue.pop(1.0)
    for _ in range(3):
        queue.push("other", "other")
    assert Counter(queue.pop(1.0) for _ in range(7))["other"] == 3


def test_service_is_shared_by_cost() -> None:
    queue: FairQueue[str] = FairQueue()
    costs = {"cheap": 1.0, "expensive": 4.0}
    for flow in costs:
        for _ in range(100):
            queue.push(flow, flow)
    served = Counter[str]()
    for _ in range(50):
        flow = queue.pop(0.0)
        queue.charge(flow, costs[flow])
        served[flow] += 1
    assert served == {"cheap": 40, "expensive": 10}


def test_idle_time_earns_no_credit() -> None:
    queue: FairQueue[str] = FairQueue()
    queue.push("early", "early")
    queue.pop(1.0)
    for _ in range(100):
        queue.push("busy", "busy")
        queue.pop(1.0)
    for flow in ("early", "late", "busy"):
        for _ in range(30):
            queue.push(flow, flow)
    assert max(Counter(queue.pop(1.0) for _ in range(30)).values()) <= 11


def test_items_of_one_line_of_all_flows() -> None:
    queue: FairQueue[str] = FairQueue()
    for flow in "ab":
        for number in range(2):
            queue.push(flow, f"{flow}{number}", "even" if number % 2 == 0 else "odd")
    queue.charge("a", 1.0)
    assert [head.item for head in queue.in_line("even")] == ["b0", "a0"]
    assert queue.in_line("none") == []


def test_lines_of_a_flow_are_served_in_turn() -> None:
    queue: FairQueue[str] = FairQueue()
    for number in range(3):
        queue.push("a", f"long {number}", "long")
    queue.push("a", "quick", "quick")
    assert [queue.pop(1.0) for _ in range(4)] == ["long 0", "quick", "long 1", "long 2"]


def test_served_items_stay_until_removed() -> None:
    queue: FairQueue[str] = FairQueue()
    queue.push("a", "batch")
    queue.push("b", "other")
    first = next(queue.heads())
    queue.serve(first, 2.0)
    assert [head.item for head in queue.heads()] == ["other", "batch"]
    assert len(queue) == 2
    queue.push("b", "again", first=True)
    assert [head.item for head in queue.heads()] == ["again", "batch"]


def test_removal() -> None:
    queue: FairQueue[list[int]] = FairQueue()
    items: list[list[int]] = [[], [], []]
    for item in items:
        queue.push("a", item)
    queue.push("b", [])
    assert queue.remove("a", items[1])
    assert not queue.remove("a", items[1])
    assert not queue.remove("c", items[0])
    assert queue.lengths() == {"a": 2, "b": 1}
    assert queue.remove("a", items[2])
    assert queue.remove("a", items[0])
    assert queue.lengths() == {"b": 1}
    queue.pop(1.0)
    assert (queue.lengths(), len(queue)) == ({}, 0)
    with pytest.raises(IndexError):
        queue.pop(1.0)


def test_the_longest_flow_loses_its_last_item() -> None:
    queue: FairQueue[str] = FairQueue()
    for item in ("a0", "a1", "a2", "b0"):
        queue.push(item[0], item)
    assert queue.evict_for("a") is None
    assert queue.evict_for("b") == "a2"
    assert queue.evict_for("b") is None, "with one more item, b would be as long as a"
    assert queue.evict_for("c") == "a1"
    assert queue.evict_for("c") is None
    assert queue.lengths() == {"a": 1, "b": 1}
    assert FairQueue[str]().evict_for("a") is None
