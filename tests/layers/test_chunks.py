"""Batches that are solved and differentiated in chunks, in NumPy."""

from __future__ import annotations

import pickle
import tracemalloc
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import cvxpy as cp
import numpy as np
import pytest
from tqdm import tqdm

from convexlayer import Options, ProblemError, ShapeError, SolutionMap, SolvedBatch, SolverError, Status, canonicalize
from convexlayer.layers import chunks
from convexlayer.layers.chunked_batch import ChunkedBatch
from convexlayer.layers.joined import JoinedReport
from convexlayer.program import Array
from convexlayer.solution import Residuals
from convexlayer.solvers.clarabel_ import ClarabelSolver
from tests.families import Family, family

POLYHEDRAL = ("quadratic", "lasso", "linear_program", "control")
CURVED = ("portfolio", "nearest_correlation", "geometric_program", "power_utility")
BATCH, SIZE = 11, 4
REPORT = ("linear_residual", "margin", "condition", "consistent", "status")


def drawn(case: Family, batch: int) -> list[Array]:
    return [t.detach().numpy() for t in case.prepared(case.tensors(batch))]


def pair(solution_map: SolutionMap, theta: list[Array], **keywords: Any) -> tuple[SolvedBatch, ChunkedBatch]:
    """The batch solved whole, and in chunks. The whole one keeps no factor either, so that it differentiates alike."""
    whole = solution_map.solve(theta, differentiable=False, **keywords)
    chunked = solution_map.solve(theta, options={"chunk_size": SIZE}, **keywords)
    assert isinstance(whole, SolvedBatch)
    assert isinstance(chunked, ChunkedBatch)
    return whole, chunked


def interval() -> SolutionMap:
    """Minimise z between two bounds; infeasible if they are in the wrong order."""
    bounds, z = cp.Parameter(2, name="bounds"), cp.Variable(name="z")
    problem = cp.Problem(cp.Minimize(z), [z >= bounds[0], z <= bounds[1]])
    return SolutionMap(canonicalize(problem, [bounds], [z], self_check=False))


def same(left: Any, right: Any) -> None:
    for a, b in zip(left, right, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            np.testing.assert_array_equal(a, b)


def same_report(left: Any, right: Any) -> None:
    same([getattr(left, name) for name in REPORT], [getattr(right, name) for name in REPORT])


@pytest.mark.parametrize("name", POLYHEDRAL + CURVED)
def test_chunks_equal_the_whole_batch_bit_by_bit(name: str) -> None:
    case = family(name)
    solution_map, theta, rng = SolutionMap(case.program()), drawn(case, BATCH), np.random.default_rng(0)
    whole, chunked = pair(solution_map, theta)
    assert (chunked.batch, chunked.chunk_size, chunked.batched) == (BATCH, SIZE, whole.batched)
    same(chunked.outputs, whole.outputs)
    same(chunked.iterates, whole.iterates)
    same([chunked.objective, chunked.report.objective], [whole.objective, whole.objective])
    report, expected = chunked.report, whole.report
    for field in fields(Residuals):
        np.testing.assert_array_equal(getattr(report.residuals, field.name), getattr(expected.residuals, field.name))
    for part in ("x", "y", "s"):
        np.testing.assert_array_equal(getattr(report.solution, part), getattr(expected.solution, part))
    np.testing.assert_array_equal(report.iterations, expected.iterations)
    assert (report.status, report.solver, report.reason) == (expected.status, expected.solver, expected.reason)
    assert set(report.seconds) == set(expected.seconds)
    cotangents = [rng.standard_normal(value.shape) for value in (*whole.outputs, whole.objective)]
    tangents = [rng.standard_normal(value.shape) for value in theta]
    for left, right in zip((chunked.vjp(cotangents), chunked.jvp(tangents)),
                           (whole.vjp(cotangents), whole.jvp(tangents)), strict=True):  # fmt: skip
        same(left[0], right[0])
        same_report(left[1], right[1])
    kept = solution_map.solve(theta)
    for ours, theirs in zip(chunked.vjp(cotangents)[0], kept.vjp(cotangents)[0], strict=True):
        assert ours is not None
        assert theirs is not None
        if name in POLYHEDRAL:
            np.testing.assert_array_equal(ours, theirs)
        else:  # the whole batch differentiates at the point that polish found
            np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-11)


def test_masks_and_parameters_without_a_batch_axis() -> None:
    case = family("quadratic")
    theta = drawn(case, BATCH)
    theta = [theta[0], *(value[0] for value in theta[1:])]
    whole, chunked = pair(SolutionMap(case.program()), theta)
    assert chunked.batched == (True, False, False, False, False)
    rng = np.random.default_rng(0)
    cotangents = [rng.standard_normal(value.shape) for value in whole.outputs]
    wrt = [True, False, True, True, False]
    same(chunked.vjp(cotangents, wrt=wrt)[0], whole.vjp(cotangents, wrt=wrt)[0])
    gradients, _ = chunked.vjp([None, *cotangents[1:]], wrt=wrt, per_element=False)
    expected, _ = whole.vjp([None, *cotangents[1:]], wrt=wrt, per_element=False)
    assert [g is None for g in gradients] == [False, True, False, False, True]
    for ours, theirs, value in zip(gradients, expected, theta, strict=True):
        if ours is not None and theirs is not None:
            assert ours.shape == value.shape
            np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-13)  # summed in another order
    tangents = [rng.standard_normal((BATCH, 4)), None, rng.standard_normal(theta[2].shape), None, None]
    of = [True] + [False] * len(whole.outputs)
    for mask in (None, of, of[:-1]):
        same(chunked.jvp(tangents, of=mask)[0], whole.jvp(tangents, of=mask)[0])
    same(chunked.vjp([None] * len(whole.outputs))[0], whole.vjp([None] * len(whole.outputs))[0])


@pytest.mark.parametrize(
    "call",
    [
        lambda solved: solved.vjp([np.ones(BATCH + 1)]),
        lambda solved: solved.vjp([np.ones(BATCH)], wrt=[True, False]),
        lambda solved: solved.vjp([]),
        lambda solved: solved.jvp([np.ones((SIZE, 2))]),
        lambda solved: solved.jvp([np.ones(2)], of=[True] * 3),
    ],
)
def test_wrong_arguments_are_refused_as_by_a_whole_batch(call: Callable[[Any], Any]) -> None:
    messages = []
    for solved in pair(interval(), [np.tile([0.0, 1.0], (BATCH, 1))]):
        with pytest.raises(ShapeError) as caught:
            call(solved)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]


def test_failed_elements_have_their_positions_in_the_whole_batch() -> None:
    theta = np.tile([0.0, 1.0], (BATCH, 1)) + np.arange(float(BATCH))[:, None]
    theta[5] = 6.0, 5.0
    theta[8, 1] = np.nan
    theta[9] = np.inf
    whole, chunked = pair(interval(), [theta])
    assert chunked.report.failed == whole.report.failed == (5, 8, 9)
    assert chunked.report.status == whole.report.status
    assert chunked.report.status[5] is Status.INFEASIBLE
    assert dict(chunked.report.details) == dict(whole.report.details)
    assert chunked.report.solved_again == whole.report.solved_again
    same(chunked.outputs, whole.outputs)
    same(chunked.iterates, whole.iterates)
    for solved in (whole, chunked):
        gradients, report = solved.vjp([np.ones(BATCH)])
        assert gradients[0] is not None
        assert np.all(gradients[0][[5, 8, 9]] == 0.0)
        assert report.status.count("failed") == 3
    same(chunked.vjp([np.ones(BATCH)])[0], whole.vjp([np.ones(BATCH)])[0])
    same(chunked.jvp([np.ones(2)])[0], whole.jvp([np.ones(2)])[0])
    same_report(chunked.jvp([np.ones(2)])[1], whole.jvp([np.ones(2)])[1])


def test_elements_that_are_solved_again_have_their_positions_in_the_whole_batch() -> None:
    chunk = replace(interval().solve([np.tile([0.0, 1.0], (3, 1))]).report, solved_again=(0, 2))
    joined = JoinedReport(6)
    for rows in (slice(0, 3), slice(3, 6)):
        joined.add(rows, chunk)
    assert joined.report().solved_again == (0, 2, 3, 5)


def test_messages_of_the_solver_have_their_positions_in_the_whole_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    theta = np.tile([0.0, 1.0], (BATCH, 1))
    theta[[2, 6]] = 1.0, 0.0
    solve = ClarabelSolver.solve

    def stalled(self: Any, state: Any, program: Any, options: Options, warm_start: Any = None) -> Any:
        found = solve(self, state, program, options, warm_start)
        lost = [word if word is Status.OPTIMAL else Status.NUMERICAL_ERROR for word in found.status]
        messages = {i: "stalled" for i, word in enumerate(lost) if word is Status.NUMERICAL_ERROR}
        return replace(found, status=tuple(lost), stats=found.stats | {"messages": messages})

    monkeypatch.setattr(ClarabelSolver, "solve", stalled)
    solution_map = SolutionMap(interval().program, solver="clarabel")
    whole, chunked = pair(solution_map, [theta])
    assert chunked.report.status == whole.report.status
    assert chunked.report.solution.stats == whole.report.solution.stats
    assert set(chunked.report.solution.stats["messages"]) == {2, 6}


def test_a_warm_start_is_divided_among_the_chunks() -> None:
    case = family("quadratic")
    solution_map, theta = SolutionMap(case.program(), solver="scs"), drawn(case, BATCH)
    cold = solution_map.solve(theta).report
    whole, chunked = pair(solution_map, [theta[0] + 0.01, *theta[1:]], warm_start=cold)
    assert chunked.report.cold_start is None
    np.testing.assert_array_equal(chunked.report.iterations, whole.report.iterations)
    same(chunked.outputs, whole.outputs)
    fewer = solution_map.solve([value[:SIZE] for value in theta], options={"chunk_size": 2}).report
    whole, chunked = pair(solution_map, theta, warm_start=fewer)
    assert chunked.report.cold_start == whole.report.cold_start == "the warm start has 4 elements, this batch 11"
    with pytest.raises(ProblemError, match="warm_start"):
        solution_map.solve(theta, options={"chunk_size": SIZE}, warm_start=np.zeros(3))  # type: ignore[arg-type]
    other = SolutionMap(family("lasso").program(), solver="scs")
    with pytest.raises(ShapeError, match="warm_start must come from a call of this layer"):
        other.solve(drawn(family("lasso"), BATCH), options={"chunk_size": SIZE}, warm_start=cold)


def test_which_batches_are_divided(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole as long as the estimated memory allows it; a chunk size is kept; single elements are never divided."""
    solution_map = interval()
    theta = np.tile([0.0, 1.0], (300, 1))
    each = chunks.element_bytes(solution_map.program)
    assert isinstance(solution_map.solve([theta]), SolvedBatch)
    assert isinstance(solution_map.solve([theta], options={"chunk_size": 300}), SolvedBatch)
    assert isinstance(solution_map.solve([theta[0]], options={"chunk_size": 1, "progress": True}), SolvedBatch)
    assert isinstance(solution_map.solve([theta[:0]], options={"chunk_size": 1}), SolvedBatch)
    monkeypatch.setattr(chunks, "WHOLE_BYTES", 200 * each)
    for budget, size in ((150 * each, 128), (50 * each, 50), (1, 1)):
        monkeypatch.setattr(chunks, "CHUNK_BYTES", budget)
        solved = solution_map.solve([theta])
        assert isinstance(solved, ChunkedBatch)
        assert solved.chunk_size == size
    assert isinstance(solution_map.solve([theta[:200]]), SolvedBatch)
    assert isinstance(solution_map.solve([theta.tolist()]), ChunkedBatch)


def test_the_options_of_chunks_are_checked() -> None:
    assert Options(chunk_size=np.int64(3)).chunk_size == 3  # type: ignore[arg-type]
    with pytest.raises(SolverError, match="chunk_size must be at least 1"):
        Options(chunk_size=0)
    with pytest.raises(ProblemError, match="chunk_size"):
        Options(chunk_size=2.5)  # type: ignore[arg-type]
    with pytest.raises(ProblemError, match="progress"):
        Options(progress=1)  # type: ignore[arg-type]


def test_the_callers_arrays_may_change_between_solve_and_derivative() -> None:
    theta = np.tile([0.0, 1.0], (BATCH, 1))
    solution_map = interval()
    chunked = solution_map.solve([theta], options={"chunk_size": SIZE})
    expected, _ = chunked.vjp([np.ones(BATCH)])
    theta[:] = np.nan
    same(chunked.vjp([np.ones(BATCH)])[0], expected)
    same(pickle.loads(pickle.dumps(chunked)).vjp([np.ones(BATCH)])[0], expected)


def test_a_time_limit_holds_for_all_chunks_together(monkeypatch: pytest.MonkeyPatch) -> None:
    case, limits = family("quadratic"), list[float]()
    solve = ClarabelSolver.solve

    def recorded(self: Any, state: Any, program: Any, options: Options, warm_start: Any = None) -> Any:
        assert options.time_limit_s is not None
        limits.append(options.time_limit_s)
        return solve(self, state, program, options, warm_start)

    monkeypatch.setattr(ClarabelSolver, "solve", recorded)
    solution_map = SolutionMap(case.program(), solver="clarabel")
    solution_map.solve(drawn(case, BATCH), options={"chunk_size": SIZE, "time_limit_s": 1e3})
    assert len(limits) == 3
    assert 1e3 > limits[0] > limits[1] > limits[2]
    late = solution_map.solve(drawn(case, BATCH), options={"chunk_size": SIZE, "time_limit_s": 1e-6})
    assert late.report.status == (Status.TIME_LIMIT,) * BATCH
    assert all(np.all(np.isnan(value)) for value in late.outputs)


def _raising_on(solve: Any, error: type[BaseException], *, after: int) -> Any:
    """A solve that raises at the call after the given number of calls."""
    calls: list[None] = []

    def raising(*arguments: Any) -> Any:
        calls.append(None)
        if len(calls) == after + 1:
            raise error
        return solve(*arguments)

    return raising


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_an_interruption_between_chunks_breaks_nothing(
    error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    case = family("quadratic")
    solution_map, theta = SolutionMap(case.program(), solver="clarabel"), drawn(case, BATCH)
    options = {"chunk_size": SIZE, "progress": True}
    with monkeypatch.context() as patch:
        patch.setattr(ClarabelSolver, "solve", _raising_on(ClarabelSolver.solve, error, after=1))
        with pytest.raises(error):
            solution_map.solve(theta, options=options)
    assert not getattr(tqdm, "_instances", ())  # no bar is left open
    chunked = solution_map.solve(theta, options=options)
    cotangents = [np.ones_like(value) for value in chunked.outputs]
    vjp = SolvedBatch.vjp
    with monkeypatch.context() as patch:
        patch.setattr(SolvedBatch, "vjp", lambda self, *a, **k: _raising_on(vjp, error, after=0)(self, *a))
        with pytest.raises(error):
            chunked.vjp(cotangents)
    assert not getattr(tqdm, "_instances", ())
    same(chunked.vjp(cotangents)[0], solution_map.solve(theta, differentiable=False).vjp(cotangents)[0])


def test_progress_is_shown_on_standard_error_if_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    solution_map, theta = interval(), [np.tile([0.0, 1.0], (BATCH, 1))]
    silent = solution_map.solve(theta, options={"chunk_size": SIZE})
    silent.vjp([np.ones(BATCH)])
    assert capsys.readouterr() == ("", "")
    shown = solution_map.solve(theta, options={"chunk_size": SIZE, "progress": True})
    out, err = capsys.readouterr()
    assert out == ""
    assert "solve: 100%" in err
    assert "11/11" in err
    shown.vjp([np.ones(BATCH)])
    assert "vjp: 100%" in capsys.readouterr().err
    shown.jvp([np.ones(2)])
    assert "jvp: 100%" in capsys.readouterr().err
    assert isinstance(solution_map.solve(theta, options={"progress": True}), ChunkedBatch)  # one chunk
    assert "11/11" in capsys.readouterr().err


def test_memory_beside_inputs_and_results_is_that_of_a_chunk() -> None:
    """Neither the peak of a solve and a derivative nor what is kept between them holds program data of the batch."""
    case, batch = family("control"), 256
    solution_map = SolutionMap(case.program())
    theta = drawn(case, batch)
    theta = [theta[0][0], theta[1][0], theta[2]]

    def run(options: dict[str, int]) -> tuple[int, int]:
        """Peak, and bytes kept after the derivative."""
        tracemalloc.start()
        try:
            solved = solution_map.solve(theta, options=options)
            solved.vjp([np.ones_like(value) for value in solved.outputs], per_element=False)
            kept, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert solved.report.solution.all_solved
        return peak, kept

    run({"chunk_size": 16})  # what is computed once
    whole, chunked = run({}), run({"chunk_size": 16})
    structure = solution_map.program.structure
    results = 8 * batch * (2 * structure.n + 3 * structure.m)
    assert chunked[0] < whole[0] / 3
    assert chunked[1] < whole[1] / 3
    assert chunked[1] < 3 * results
