"""Whose turn it is, and where: asserted on order and counts, at a time of the test's own."""

from __future__ import annotations

import asyncio

import pytest

from convexlayer_server.engine import ComputeOptions
from convexlayer_server.errors import DeadlineError, SolverChoiceError, TooManyError, UnavailableError

from .crews import Setup, done, use_our_clock


@pytest.fixture(autouse=True)
def _our_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    use_our_clock(monkeypatch)


def test_one_key_cannot_flood() -> None:
    async def run() -> list[str]:
        setup, order = await Setup().open(), []
        await setup.send("a1", "a2", "a3", "a4", "b1", "b2")
        for _ in range(6):
            order += setup.in_front
            await setup.end(setup.in_front[0], 0.05)
        return order

    assert done(run()) == ["a1", "b1", "a2", "b2", "a3", "a4"]


def test_what_can_be_merged_goes_together() -> None:
    async def run() -> None:
        setup = await Setup().open()
        await setup.send("x")
        await setup.send("a1", "b1", "c1", problem="p")
        await setup.send("a2", problem="p", options=ComputeOptions(tol=1e-3))
        await setup.send("a3", problem="q")
        await setup.end("x")
        assert setup.in_front == ["a1", "b1", "c1"]
        await setup.end("a1")
        assert len(setup.in_front) == 1
        assert all(setup.tasks[name].done() for name in ("a1", "b1", "c1"))

    done(run())


def test_merging_is_limited_and_can_be_turned_off() -> None:
    async def started(**settings: object) -> int:
        setup = await Setup(**settings).open()
        await setup.send("a")
        await setup.send("a1", "a2", "a3", problem="p")
        await setup.end("a")
        return len(setup.in_front)

    assert done(started()) == 3
    assert done(started(merged_rows=2)) == 2
    assert done(started(batching=False)) == 1


def test_long_computations_are_merged_less() -> None:
    async def run() -> None:
        setup = await Setup().open()
        await setup.send("a0", problem="p")
        await setup.end("a0", 0.05)
        await setup.send("a")
        await setup.send(*(f"a{number}" for number in range(1, 10)), problem="p")
        await setup.end("a")
        assert setup.in_front == ["a1", "a2"]

    done(run())


def test_a_batch_is_cut_finely_only_where_others_compute() -> None:
    async def run() -> None:
        setup = await Setup().open()
        await setup.send("a", rows=3000)
        assert setup.elements("a") == 8  # nothing is known yet
        await setup.end("a", 8 * 1e-3)
        assert setup.elements("a") == 100
        await setup.send("b")
        await setup.end("a", 0.1)
        assert setup.in_front == ["b"]
        await setup.end("b")
        assert setup.elements("a") == 20
        for _ in range(20):
            await setup.end("a", 0.02)
        await setup.pass_time(0.0)
        assert setup.in_front == ["a"]

    done(run())


def test_every_piece_of_a_batch_takes_its_turn() -> None:
    async def run() -> list[str]:
        setup, order = await Setup().open(), []
        await setup.send("b")
        await setup.end("b")
        await setup.send("a1", "a2", rows=100)
        await setup.send("b1", "b2")
        while setup.in_front:
            order += setup.in_front[:1]
            await setup.end(order[-1], 0.01 * setup.elements(order[-1]))
        return order

    order = done(run())
    assert order.index("b1") <= 2
    assert order.index("b2") <= 5
    assert {"a1", "a2"} <= set(order[:6])


def test_the_last_free_worker_is_for_those_who_have_none() -> None:
    async def run() -> None:
        setup = await Setup(workers=2).open()
        await setup.send("b1")
        await setup.end("b1")
        await setup.send("a1", "a2", "a3")
        assert setup.in_front == ["a1"]
        await setup.send("b2")
        assert setup.in_front == ["a1", "b2"]
        await setup.end("b2")
        assert setup.in_front == ["a1"]
        await setup.end("a1", 11.0)  # b computes no more
        assert setup.in_front == ["a2", "a3"]

    done(run())


def test_what_is_known_to_take_long_is_done_in_the_background() -> None:
    async def run() -> None:
        setup = await Setup(workers=2).open()
        await setup.send("a1", problem="p")
        await setup.end("a1", 2.0)
        await setup.send("b1")
        await setup.send("a2", "a3", problem="p")
        assert (setup.in_front, setup.in_background) == (["b1"], ["a2"])  # the last place there is another's
        await setup.send("c1", problem="q")
        await setup.end("c1", 1.0)
        await setup.send("c2", problem="q")
        assert setup.in_background == ["a2", "c2"]
        await setup.end("a2", 2.0)
        assert setup.in_background == ["a3", "c2"]

    done(run())


def test_what_turns_out_to_take_long_makes_way() -> None:
    async def run() -> None:
        setup = await Setup(workers=1).open()
        await setup.send("a1")
        first = setup.at("a1")
        await setup.send("b1")
        assert setup.in_front == ["a1"]
        await setup.pass_time(0.2)
        assert (setup.in_front, setup.in_background) == (["b1"], ["a1"])
        assert first.in_background
        await setup.end("b1")
        await setup.send("a2")  # unknown, but its owner's others take long
        assert setup.in_front == []
        await setup.send("b2")
        assert (setup.in_front, setup.in_background) == (["b2"], ["a1"])
        await setup.end("a1")
        assert setup.in_background == ["a2"]

    done(run())


def test_where_there_is_no_room_in_the_background_it_is_stopped_and_done_again() -> None:
    async def run() -> None:
        setup = await Setup(workers=1).open()
        await setup.send("a1")
        await setup.send("b1")
        await setup.pass_time(0.2)
        await setup.send("c1")
        await setup.pass_time(0.2)
        hand = setup.at("b1")
        assert (setup.in_background, hand.ending) == (["a1"], "stopped")
        await setup.kill("b1", "stopped")
        assert setup.in_front == ["c1"]
        await setup.end("c1")
        assert setup.in_front == []
        await setup.end("a1", 5.0)
        assert setup.in_background == ["b1"]
        await setup.end("b1")
        assert setup.tasks["b1"].result().status == ("optimal",)

    done(run())


def test_whoever_has_most_in_the_background_makes_room_there() -> None:
    async def run() -> None:
        setup = await Setup(workers=2).open()
        await setup.send("a1")
        await setup.pass_time(0.01)
        await setup.send("a2")
        for name in ("b1", "c1"):
            await setup.send(name)
            await setup.pass_time(0.2)
        assert (setup.in_front, setup.in_background) == (["b1", "c1"], ["a1", "a2"])
        await setup.send("d1")
        await setup.pass_time(0.2)
        assert [setup.at(name).ending for name in ("a1", "a2", "b1", "c1")] == [None, "stopped", None, None]
        await setup.kill("a2", "stopped")
        assert setup.in_background == ["a1", "b1"]
        assert "d1" in setup.in_front
        await setup.end("b1")
        assert setup.in_background == ["a1"], "the last place there is another's"

    done(run())


def test_a_key_alone_has_all_workers_however_long_it_takes() -> None:
    async def run() -> None:
        setup = await Setup(workers=2).open()
        await setup.send("a1", problem="p")
        await setup.end("a1", 2.0)
        await setup.send("a2", "a3", "a4", problem="p")
        await setup.pass_time(5.0)
        assert (setup.in_front, setup.in_background) == (["a2", "a3"], [])

    done(run())


def test_what_one_key_makes_expensive_is_no_matter_of_another() -> None:
    async def run() -> None:
        setup = await Setup(workers=1).open()
        await setup.send("a1", problem="p")
        await setup.end("a1", 5.0)
        for name in ("a2", "a3", "a4"):
            await setup.send(name, problem="p")
            await setup.kill(name, "deadline")
            with pytest.raises(DeadlineError):
                await setup.tasks[name]
        await setup.send("b1", problem="p")
        assert setup.in_front == ["b1"]
        await setup.send("a5", problem="p")  # nor is it refused to the same one
        assert setup.in_background == ["a5"]

    done(run())


def test_strikes_are_those_of_a_key() -> None:
    async def run() -> None:
        setup = await Setup(workers=1).open()
        for number in range(2):
            await setup.send(f"a{number}", problem="p")
            await setup.kill(f"a{number}", "crash")
        await setup.send("a2", "b2", problem="p")
        with pytest.raises(UnavailableError, match="for this key, and is refused to it"):
            await setup.tasks["a2"]
        assert setup.in_front == ["b2"]
        await setup.end("b2")
        await setup.send("a3", problem="q")
        assert setup.in_front == ["a3"]

    done(run())


def test_a_solver_that_crashes_loses_its_place_for_that_key() -> None:
    async def run() -> None:
        setup = await Setup(workers=1).open()
        for number in range(2):
            await setup.send(f"a{number}", options=ComputeOptions(solver="ecos"))
            await setup.kill(f"a{number}", "crash")
        await setup.send("a2", options=ComputeOptions(solver="ECOS"))
        with pytest.raises(SolverChoiceError, match="ECOS ended 2 workers that computed for this key"):
            await setup.tasks["a2"]
        await setup.send("a3", options=ComputeOptions(solver="scs"))
        assert setup.in_front == ["a3"]
        await setup.end("a3")
        await setup.send("b1", options=ComputeOptions(solver="ecos"))
        assert setup.in_front == ["b1"]

    done(run())


def test_a_key_that_ends_many_workers_is_refused() -> None:
    async def run() -> None:
        setup = await Setup(workers=1).open()
        for number in range(8):
            await setup.send(f"a{number}")
            await setup.kill(f"a{number}", "crash")
        await setup.send("a8", "b8")
        with pytest.raises(TooManyError, match="ended 8 workers"):
            await setup.tasks["a8"]
        assert setup.in_front == ["b8"]

    done(run())


def test_who_leaves_is_charged_for_what_it_left() -> None:
    async def run() -> None:
        setup = await Setup(workers=1).open()
        await setup.send("a1", "a2")
        await setup.send("b1", "b2")
        setup.tasks["a1"].cancel()
        setup.tasks["a2"].cancel()
        await setup.pass_time(0.5)
        assert not setup.scheduler.is_waited_for(setup.at("a1"))
        await setup.kill("a1", "abandoned")
        assert setup.used["a"] == pytest.approx(0.5, abs=0.01)
        await setup.send("a3")
        order = []
        while setup.in_front:
            order += setup.in_front
            await setup.end(order[-1])
        assert order[-2:] != ["a3", "b2"], "whoever left is behind those who stayed"
        assert order.count("a3") + setup.in_background.count("a3") <= 1

    done(run())


def test_what_both_compute_both_are_charged() -> None:
    async def run() -> None:
        setup = await Setup().open()
        await setup.send("x")
        await setup.send("a1", "b1", problem="p")
        await setup.end("x")
        await setup.end("a1", 0.02)
        assert setup.used["a"] == setup.used["b"] == pytest.approx(0.01)

    done(run())


def test_cancelled_tasks_leave_no_gap() -> None:
    async def run() -> None:
        setup = await Setup().open()
        await setup.send("a1", "a2", "a3")
        setup.tasks["a2"].cancel()
        await setup.end("a1")
        assert setup.in_front == ["a3"]
        assert await setup.engine.cancel("a3")
        with pytest.raises(asyncio.CancelledError):
            await setup.tasks["a3"]

    done(run())
