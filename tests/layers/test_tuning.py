"""Tuning at the first call: candidates, choice of the fastest, and reuse of the choice."""

from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest

from convexlayer import SolutionMap, SolverError
from convexlayer.layers import choice
from convexlayer.layers.choice import ResolvedSolver, choose, fastest
from tests.families import family


def test_the_first_call_chooses_the_solver_for_all_later_calls() -> None:
    case = family("quadratic")
    tuned, plain = case.layer(tune=True), case.layer()
    assert isinstance(tuned.solution_map, SolutionMap)
    assert not tuned.solution_map.reason.startswith("tuned")
    _, report = tuned.solve(*case.prepared(case.tensors(5)))
    assert report.reason.startswith("tuned: ")
    assert report.solver in report.reason
    for seed, batch in ((1, 2), (2, None)):
        _, later = tuned.solve(*case.prepared(case.tensors(batch, seed=seed)))
        assert (later.solver, later.reason) == (report.solver, report.reason)
    tensors = case.prepared(case.tensors(5))
    for mine, other in zip(tuned(*tensors), plain(*tensors), strict=True):
        np.testing.assert_allclose(mine.detach(), other.detach(), atol=1e-8)


def test_a_pickled_copy_keeps_the_tuned_solver() -> None:
    case = family("quadratic")
    made = SolutionMap(case.program(), tune=True)
    before = pickle.loads(pickle.dumps(made))
    made.solve(case.values(4))
    after = pickle.loads(pickle.dumps(made))
    assert not before.reason.startswith("tuned")
    assert (after.solver, after.reason) == (made.solver, made.reason)
    assert after.solve(case.values(2)).report.reason == made.reason


def test_concurrent_calls_tune_once() -> None:
    case = family("quadratic")
    made = SolutionMap(case.program(), tune=True)
    with ThreadPoolExecutor(4) as threads:
        reasons = set(threads.map(lambda _: made.solve(case.values(3)).report.reason, range(8)))
    assert reasons == {made.reason}


def test_an_empty_batch_does_not_tune() -> None:
    case = family("quadratic")
    made = SolutionMap(case.program(), tune=True)
    assert not made.solve([value[:0] for value in case.values(2)]).report.reason.startswith("tuned")


def test_a_time_limit_restricts_the_candidates() -> None:
    case = family("quadratic")
    made = SolutionMap(case.program(), tune=True, options={"time_limit_s": 60.0})
    report = made.solve(case.values(3)).report
    assert all(status.solved for status in report.status)
    assert choose(report.solver, made.program.structure).solver.supports_time_limit


def test_a_named_solver_is_not_tuned() -> None:
    with pytest.raises(SolverError, match=r"solver='scs' names one: leave one out"):
        SolutionMap(family("quadratic").program(), solver="scs", tune=True)


def test_a_solver_that_solves_fewer_elements_is_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    structure = family("quadratic").program().structure
    slow, quick = choose("scs", structure), choose("clarabel", structure)
    now = [0.0]
    monkeypatch.setattr(choice, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    def attempt(candidate: ResolvedSolver) -> int:
        now[0] += 0.01 if candidate is slow else 0.001
        return 2 if candidate is slow else 1

    assert fastest([quick, slow], attempt).solver.name == "scs"
    assert fastest([quick, slow], lambda candidate: int(attempt(candidate) > 0)).solver.name == "clarabel"
