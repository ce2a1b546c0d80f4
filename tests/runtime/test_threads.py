"""Thread pool: every part of the work is done once, also in nested calls and after a fork."""

from __future__ import annotations

import os
import sys
import threading

import pytest

from convexlayer.runtime import threads

LONG = 1.0
"""Seconds per item, long enough for all workers to be used."""


@pytest.fixture(params=[1, 2, 5])
def workers(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(threads, "WORKERS", request.param)
    return int(request.param)


@pytest.mark.parametrize("count", [0, 1, 2, 7, 100])
def test_every_item_is_processed_once(workers: int, count: int) -> None:
    done: list[int] = []
    threads.parallel_for(lambda first, last: done.extend(range(first, last)), count, seconds_per_item=LONG)
    assert sorted(done) == list(range(count))


def test_work_is_split_only_if_it_is_worth_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "WORKERS", 4)
    parts: list[tuple[int, int]] = []
    threads.parallel_for(
        lambda first, last: parts.append((first, last)), 8, seconds_per_item=threads.MIN_WORK_PER_THREAD_S / 10.0
    )
    assert parts == [(0, 8)]
    parts.clear()
    threads.parallel_for(lambda first, last: parts.append((first, last)), 8, seconds_per_item=LONG)
    assert sorted(parts) == [(0, 2), (2, 4), (4, 6), (6, 8)]


def test_exceptions_propagate_to_the_caller(workers: int) -> None:
    def fail(first: int, last: int) -> None:
        if last == 10:
            raise ArithmeticError("the last part")

    with pytest.raises(ArithmeticError, match="the last part"):
        threads.parallel_for(fail, 10, seconds_per_item=LONG)


def test_nested_calls_do_not_deadlock(workers: int) -> None:
    done: list[int] = []

    def outer(first: int, last: int) -> None:
        for _ in range(first, last):
            threads.parallel_for(lambda first, last: done.extend(range(first, last)), 10, seconds_per_item=LONG)

    thread = threading.Thread(
        target=threads.parallel_for, args=(outer, 20), kwargs={"seconds_per_item": LONG}, daemon=True
    )
    thread.start()
    thread.join(timeout=600.0)
    assert not thread.is_alive()
    assert len(done) == 200


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_child_has_its_own_threads() -> None:
    threads.parallel_for(lambda first, last: None, 10, seconds_per_item=LONG)
    child = os.fork()
    if child == 0:
        done: list[int] = []
        try:
            threads.parallel_for(lambda first, last: done.extend(range(first, last)), 10, seconds_per_item=LONG)
        finally:
            os._exit(0 if len(done) == 10 else 1)
    assert os.waitpid(child, 0)[1] == 0
