"""Polish reaches rounding accuracy from a solver's accuracy, and never returns a worse point."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from convexlayer.diff import KKTSystem, polish, polished
from convexlayer.program import Array
from convexlayer.solution import Solution
from convexlayer.solvers import Options
from convexlayer.solvers.scs_ import ScsSolver
from convexlayer.status import Status
from convexlayer.testing.programs import Known

from .programs import CONES, batch_of, draw

pytestmark = pytest.mark.usefixtures("form")


def regular(name: str, *, quadratic: bool, seed: int = 0) -> Known:
    drawn = draw(np.random.default_rng(seed), CONES[name], quadratic=quadratic)
    assert drawn is not None
    return drawn


def disturbed(drawn: Known, noise: float, seed: int = 0) -> Solution:
    rng = np.random.default_rng(seed)
    points = {name: getattr(drawn.solution, name) for name in "xys"}
    return replace(drawn.solution, **{name: v + noise * rng.normal(size=v.shape) for name, v in points.items()})


def worst(drawn: Known, solution: Solution) -> Array:
    return solution.residuals(drawn.program).worst


@pytest.mark.parametrize("quadratic", [True, False], ids=["quadratic", "linear"])
@pytest.mark.parametrize("name", CONES)
def test_polish_reaches_rounding_from_1e5(name: str, quadratic: bool) -> None:
    for seed in range(5):
        drawn = regular(name, quadratic=quadratic, seed=seed)
        start = disturbed(drawn, 1e-5, seed)
        polished = polish(KKTSystem(drawn.program.structure), drawn.program, start)
        assert worst(drawn, start)[0] > 1e-6
        assert worst(drawn, polished)[0] < 1e-11
        np.testing.assert_allclose(polished.x, drawn.solution.x, atol=1e-8)


@pytest.mark.parametrize("quadratic", [True, False], ids=["quadratic", "linear"])
@pytest.mark.parametrize("name", CONES)
def test_polish_after_a_first_order_solver(name: str, quadratic: bool) -> None:
    drawn, solver = regular(name, quadratic=quadratic, seed=2), ScsSolver()
    solution = solver.solve(solver.init(drawn.program.structure), drawn.program, Options(tol=1e-5))
    polished = polish(KKTSystem(drawn.program.structure), drawn.program, solution)
    assert worst(drawn, polished)[0] < 1e-11


@settings(max_examples=60)
@given(seed=st.integers(0, 2**16), exponent=st.integers(-9, 6), name=st.sampled_from(list(CONES)))
def test_polish_never_returns_a_worse_point(seed: int, exponent: int, name: str) -> None:
    drawn = regular(name, quadratic=True, seed=1)
    garbage = disturbed(drawn, 10.0**exponent, seed)
    polished = polish(KKTSystem(drawn.program.structure), drawn.program, garbage)
    before, after = worst(drawn, garbage)[0], worst(drawn, polished)[0]
    assert after <= before or before > 0.1  # backward errors, which polish compares, order no points without a digit


def test_elements_are_polished_independently() -> None:
    drawn = regular("product", quadratic=True).repeat(4)
    noise = np.array([[1e-4], [0.0], [1e-6], [1e-5]])
    start = replace(drawn.solution, x=drawn.solution.x + noise, y=drawn.solution.y + noise)
    system = KKTSystem(drawn.program.structure)
    together = polish(system, drawn.program, start)
    assert np.all(worst(drawn, together) < 1e-11)
    np.testing.assert_array_equal(together.x[1], start.x[1])
    for i in range(4):
        index = np.array([i])
        alone = polish(system, drawn.program.select(index), start.select(index))
        np.testing.assert_allclose(alone.x[0], together.x[i], atol=1e-12)


@pytest.mark.parametrize("status", [Status.INFEASIBLE, Status.UNBOUNDED, Status.ITERATION_LIMIT, Status.TIME_LIMIT])
def test_certificates_and_points_at_a_limit_are_not_changed(status: Status) -> None:
    drawn = regular("nonnegative", quadratic=True).repeat(2)
    start = replace(disturbed(drawn, 1e-3), status=(Status.OPTIMAL, status))
    polished = polish(KKTSystem(drawn.program.structure), drawn.program, start)
    np.testing.assert_array_equal(flat(polished)[1], flat(start)[1])
    assert worst(drawn, polished)[0] < 1e-11
    assert polished.status == start.status


@pytest.mark.parametrize(("deadline", "steps"), [(0.0, 0), (1.0, 1), (2.0, 2)])
def test_no_step_starts_after_the_deadline(
    deadline: float, steps: int, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fake clock advances by one second per reading, so the deadline is the number of steps, or of lane groups."""
    drawn = regular("psd", quadratic=True)
    start, system = disturbed(drawn, 1e-5), KKTSystem(drawn.program.structure)
    expected = polished(system, drawn.program, start, steps=16 if form == "lanes" else steps).solution
    expected = expected if steps else start
    now = iter(range(100))
    monkeypatch.setattr("time.perf_counter", lambda: float(next(now)))
    found = polished(system, drawn.program, start, deadline=deadline).solution
    np.testing.assert_array_equal(flat(found), flat(expected))
    assert steps == 0 or worst(drawn, found)[0] < 1e-2 * worst(drawn, start)[0]


def test_nonfinite_points_are_not_changed() -> None:
    drawn = regular("product", quadratic=True).repeat(2)
    start = disturbed(drawn, 1e-5)
    start.x[0], start.y[0], start.s[0] = np.nan, np.nan, np.nan
    polished = polish(KKTSystem(drawn.program.structure), drawn.program, start)
    assert np.all(np.isnan(flat(polished)[0]))
    assert worst(drawn, polished)[1] < 1e-11


def test_the_argument_is_not_modified() -> None:
    drawn = batch_of([regular("second_order", quadratic=True)])
    start = disturbed(drawn, 1e-4)
    kept = flat(start).copy()
    polished = polish(KKTSystem(drawn.program.structure), drawn.program, start)
    np.testing.assert_array_equal(flat(start), kept)
    assert np.any(flat(polished) != kept)


def test_empty_batch() -> None:
    drawn = regular("product", quadratic=True).repeat(0)
    polished = polish(KKTSystem(drawn.program.structure), drawn.program, drawn.solution)
    assert polished.x.shape == drawn.solution.x.shape


def flat(solution: Solution) -> Array:
    return np.concatenate([solution.x, solution.y, solution.s], axis=1)
