"""The number of remembered durations."""

from __future__ import annotations

from typing import Any

import pytest

from convexlayer_server.compute import estimates
from convexlayer_server.compute.estimates import Estimates
from convexlayer_server.compute.task import Task


def task(problem_id: str) -> Task:
    unused: Any = None
    return Task(owner="a", problem_id=problem_id, document=b"", future=unused)


def test_tasks_that_take_longer_than_expected_do_not_accumulate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimates, "_MAX_KEYS", 4)
    known = Estimates()
    for number in range(20):
        known.record_overrun(task(f"p{number}"), 1, 1.0)
    known.record_duration(task("last"), 1, 1.0)
    assert sum(known.element_s(task(f"p{number}")) is not None for number in range(20)) <= 4
    assert known.element_s(task("last")) == 1.0
