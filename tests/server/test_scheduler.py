"""The order and placement of tasks, with manual workers and a manual clock."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from convexlayer_server.compute.protocol import ComputeOptions
from convexlayer_server.errors import DeadlineError, SolverChoiceError, TooManyError, UnavailableError

from .worker_pools import Setup, run, use_manual_clock


@pytest.fixture(autouse=True)
def _manual_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    use_manual_clock(monkeypatch)


def test_a_flood_of_one_key_does_not_delay_others() -> None:
    async def scenario() -> list[str]:
        setup, order = await Setup().open(), []
        await setup.send("a1", "a2", "a3", "a4", "b1", "b2")
        for _ in range(6):
            order += setup.in_foreground
            await setup.finish(setup.in_foreground[0], 0.05)
        return order

    assert run(scenario()) == ["a1", "b1", "a2", "b2", "a3", "a4"]


def test_mergeable_requests_are_computed_together() -> None:
    async def scenario() -> None:
        setup = await Setup().open()
        await setup.send("x")
        await setup.send("a1", "b1", "c1", problem="p")
        await setup.send("a2", problem="p", options=ComputeOptions(tol=1e-3))
        await setup.send("a3", problem="q")
        await setup.finish("x")
        assert setup.in_foreground == ["a1", "b1", "c1"]
        await setup.finish("a1")
        assert len(setup.in_foreground) == 1
        assert all(setup.tasks[name].done() for name in ("a1", "b1", "c1"))

    run(scenario())


def test_merging_is_limited_and_can_be_disabled() -> None:
    async def started(**settings: Any) -> int:
        setup = await Setup(**settings).open()
        await setup.send("a")
        await setup.send("a1", "a2", "a3", problem="p")
        await setup.finish("a")
        return len(setup.in_foreground)

    assert run(started()) == 3
    assert run(started(merged_elements=2)) == 2
    assert run(started(batching=False)) == 1


def test_slow_requests_are_merged_less() -> None:
    async def scenario() -> None:
        setup = await Setup().open()
        await setup.send("a0", problem="p")
        await setup.finish("a0", 0.05)
        await setup.send("a")
        await setup.send(*(f"a{number}" for number in range(1, 10)), problem="p")
        await setup.finish("a")
        assert setup.in_foreground == ["a1", "a2"]

    run(scenario())


def test_chunks_are_short_while_other_owners_compute() -> None:
    async def scenario() -> None:
        setup = await Setup().open()
        await setup.send("a", elements=3000)
        assert setup.elements("a") == 8  # the duration is unknown
        await setup.finish("a", 8 * 1e-3)
        assert setup.elements("a") == 100
        await setup.send("b")
        await setup.finish("a", 0.1)
        assert setup.in_foreground == ["b"]
        await setup.finish("b")
        assert setup.elements("a") == 20
        for _ in range(20):
            await setup.finish("a", 0.02)
        await setup.pass_time(0.0)
        assert setup.in_foreground == ["a"]

    run(scenario())


def test_chunks_are_scheduled_fairly() -> None:
    async def scenario() -> list[str]:
        setup, order = await Setup().open(), []
        await setup.send("b")
        await setup.finish("b")
        await setup.send("a1", "a2", elements=100)
        await setup.send("b1", "b2")
        while setup.in_foreground:
            order += setup.in_foreground[:1]
            await setup.finish(order[-1], 0.01 * setup.elements(order[-1]))
        return order

    order = run(scenario())
    assert order.index("b1") <= 2
    assert order.index("b2") <= 5
    assert {"a1", "a2"} <= set(order[:6])


def test_the_last_idle_worker_is_reserved_for_owners_without_one() -> None:
    async def scenario() -> None:
        setup = await Setup(workers=2).open()
        await setup.send("b1")
        await setup.finish("b1")
        await setup.send("a1", "a2", "a3")
        assert setup.in_foreground == ["a1"]
        await setup.send("b2")
        assert setup.in_foreground == ["a1", "b2"]
        await setup.finish("b2")
        assert setup.in_foreground == ["a1"]
        await setup.finish("a1", 11.0)  # b no longer counts as computing
        assert setup.in_foreground == ["a2", "a3"]

    run(scenario())


def test_slow_tasks_run_in_the_background() -> None:
    async def scenario() -> None:
        setup = await Setup(workers=2).open()
        await setup.send("a1", problem="p")
        await setup.finish("a1", 2.0)
        await setup.send("b1")
        await setup.send("a2", "a3", problem="p")
        assert (setup.in_foreground, setup.in_background) == (["b1"], ["a2"])  # the last place is reserved
        await setup.send("c1", problem="q")
        await setup.finish("c1", 1.0)
        await setup.send("c2", problem="q")
        assert setup.in_background == ["a2", "c2"]
        await setup.finish("a2", 2.0)
        assert setup.in_background == ["a3", "c2"]

    run(scenario())


def test_a_task_that_turns_out_slow_moves_to_the_background() -> None:
    async def scenario() -> None:
        setup = await Setup(workers=1).open()
        await setup.send("a1")
        first = setup.worker_of("a1")
        await setup.send("b1")
        assert setup.in_foreground == ["a1"]
        await setup.pass_time(0.2)
        assert (setup.in_foreground, setup.in_background) == (["b1"], ["a1"])
        assert first.in_background
        await setup.finish("b1")
        await setup.send("a2")  # unknown, but other tasks of its owner are slow
        assert setup.in_foreground == []
        await setup.send("b2")
        assert (setup.in_foreground, setup.in_background) == (["b2"], ["a1"])
        await setup.finish("a1")
        assert setup.in_background == ["a2"]

    run(scenario())


def test_a_slow_task_is_preempted_if_the_background_is_full() -> None:
    async def scenario() -> None:
        setup = await Setup(workers=1).open()
        await setup.send("a1")
        await setup.send("b1")
        await setup.pass_time(0.2)
        await setup.send("c1")
        await setup.pass_time(0.2)
        worker = setup.worker_of("b1")
        assert (setup.in_background, worker.terminated_for) == (["a1"], "preempted")
        await setup.kill("b1", "preempted")
        assert setup.in_foreground == ["c1"]
        await setup.finish("c1")
        assert setup.in_foreground == []
        await setup.finish("a1", 5.0)
        assert setup.in_background == ["b1"]
        await setup.finish("b1")
        assert setup.tasks["b1"].result().status == ("optimal",)

    run(scenario())


def test_the_owner_with_most_background_workers_is_preempted() -> None:
    async def scenario() -> None:
        setup = await Setup(workers=2).open()
        await setup.send("a1")
        await setup.pass_time(0.01)
        await setup.send("a2")
        for name in ("b1", "c1"):
            await setup.send(name)
            await setup.pass_time(0.2)
        assert (setup.in_foreground, setup.in_background) == (["b1", "c1"], ["a1", "a2"])
        await setup.send("d1")
        await setup.pass_time(0.2)
        assert [setup.worker_of(name).terminated_for for name in ("a1", "a2", "b1", "c1")] == [
            None,
            "preempted",
            None,
            None,
        ]
        await setup.kill("a2", "preempted")
        assert setup.in_background == ["a1", "b1"]
        assert "d1" in setup.in_foreground
        await setup.finish("b1")
        assert setup.in_background == ["a1"], "the last place is reserved for other owners"

    run(scenario())


def test_a_single_key_uses_all_foreground_workers() -> None:
    async def scenario() -> None:
        setup = await Setup(workers=2).open()
        await setup.send("a1", problem="p")
        await setup.finish("a1", 2.0)
        await setup.send("a2", "a3", "a4", problem="p")
        await setup.pass_time(5.0)
        assert (setup.in_foreground, setup.in_background) == (["a2", "a3"], [])

    run(scenario())


def test_slow_requests_of_one_key_do_not_affect_estimates_of_another() -> None:
    async def scenario() -> None:
        setup = await Setup(workers=1).open()
        await setup.send("a1", problem="p")
        await setup.finish("a1", 5.0)
        for name in ("a2", "a3", "a4"):
            await setup.send(name, problem="p")
            await setup.kill(name, "deadline")
            with pytest.raises(DeadlineError):
                await setup.tasks[name]
        await setup.send("b1", problem="p")
        assert setup.in_foreground == ["b1"]
        await setup.send("a5", problem="p")  # deadlines do not count as strikes
        assert setup.in_background == ["a5"]

    run(scenario())


def test_strikes_count_by_key() -> None:
    async def scenario() -> None:
        setup = await Setup(workers=1).open()
        for number in range(2):
            await setup.send(f"a{number}", problem="p")
            await setup.kill(f"a{number}", "crash")
        await setup.send("a2", "b2", problem="p")
        with pytest.raises(UnavailableError, match="for this key, and is unavailable to it"):
            await setup.tasks["a2"]
        assert setup.in_foreground == ["b2"]
        await setup.finish("b2")
        await setup.send("a3", problem="q")
        assert setup.in_foreground == ["a3"]

    run(scenario())


def test_a_crashing_solver_is_quarantined_for_its_key() -> None:
    async def scenario() -> None:
        setup = await Setup(workers=1).open()
        for number in range(2):
            await setup.send(f"a{number}", options=ComputeOptions(solver="ecos"))
            await setup.kill(f"a{number}", "crash")
        await setup.send("a2", options=ComputeOptions(solver="ECOS"))
        with pytest.raises(SolverChoiceError, match="ECOS ended 2 workers that computed for this key"):
            await setup.tasks["a2"]
        await setup.send("a3", options=ComputeOptions(solver="scs"))
        assert setup.in_foreground == ["a3"]
        await setup.finish("a3")
        await setup.send("b1", options=ComputeOptions(solver="ecos"))
        assert setup.in_foreground == ["b1"]

    run(scenario())


def test_a_key_that_ends_many_workers_is_quarantined() -> None:
    async def scenario() -> None:
        setup = await Setup(workers=1).open()
        for number in range(8):
            await setup.send(f"a{number}")
            await setup.kill(f"a{number}", "crash")
        await setup.send("a8", "b8")
        with pytest.raises(TooManyError, match="ended 8 workers"):
            await setup.tasks["a8"]
        assert setup.in_foreground == ["b8"]

    run(scenario())


def test_cancelled_work_is_charged() -> None:
    async def scenario() -> None:
        setup = await Setup(workers=1).open()
        await setup.send("a1", "a2")
        await setup.send("b1", "b2")
        setup.tasks["a1"].cancel()
        setup.tasks["a2"].cancel()
        await setup.pass_time(0.5)
        assert not setup.scheduler.is_awaited(setup.worker_of("a1"))
        await setup.kill("a1", "cancelled")
        assert setup.used["a"] == pytest.approx(0.5, abs=0.01)
        await setup.send("a3")
        order = []
        while setup.in_foreground:
            order += setup.in_foreground
            await setup.finish(order[-1])
        assert order[-2:] != ["a3", "b2"], "the cancelled work counts for a"
        assert order.count("a3") + setup.in_background.count("a3") <= 1

    run(scenario())


def test_merged_work_is_charged_to_all_owners() -> None:
    async def scenario() -> None:
        setup = await Setup().open()
        await setup.send("x")
        await setup.send("a1", "b1", problem="p")
        await setup.finish("x")
        await setup.finish("a1", 0.02)
        assert setup.used["a"] == setup.used["b"] == pytest.approx(0.01)

    run(scenario())


def test_cancelled_tasks_leave_the_queue() -> None:
    async def scenario() -> None:
        setup = await Setup().open()
        await setup.send("a1", "a2", "a3")
        setup.tasks["a2"].cancel()
        await setup.finish("a1")
        assert setup.in_foreground == ["a3"]
        assert await setup.backend.cancel("a3")
        with pytest.raises(asyncio.CancelledError):
            await setup.tasks["a3"]

    run(scenario())
