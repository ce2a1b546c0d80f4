"""Rows that presolve drops or merges, and elements that it finds infeasible or unbounded."""

from __future__ import annotations

import cvxpy as cp
import numpy as np
import pytest
import scipy.sparse as sp

from convexlayer import ParametricProgram, SolutionMap, Status, canonicalize
from convexlayer.canon import OutputSpec, ParameterSpec, presolved
from convexlayer.canon.affine_map import AffineMap, Features
from convexlayer.canon.parametric import Objective
from convexlayer.canon.recovery import Recovery
from convexlayer.program import Cones, Pattern, Structure

from .test_presolve import AGREE, relative

Array = np.ndarray


def projection(A: Array, b: Array, cones: Cones, *, slope: float = 0.0, shown: bool = False) -> ParametricProgram:
    """minimize x'x / 2 - theta'x, A x + s = b, slope theta_1 added to the last b; duals are outputs if ``shown``."""
    m, n = A.shape
    pattern = Pattern((m, n), *np.nonzero(A.T)[::-1])
    constant = np.concatenate([np.ones(n), np.zeros(n), [0.0], A[pattern.rows, pattern.cols], b])
    slopes = sp.lil_matrix((len(constant), n))
    slopes[range(n, 2 * n), range(n)] = -1.0
    slopes[-1, 0] = slope
    outputs = [OutputSpec("x", (n,)), *([OutputSpec("y", (m,))] if shown else [])]
    kept = n + m if shown else n
    return ParametricProgram(
        parameters=(ParameterSpec("theta", (n,)),),
        structure=Structure(Pattern((n, n), np.arange(n), np.arange(n)), pattern, cones),
        features=Features((n,), (None,), np.zeros(0, dtype=np.int64)),
        data=AffineMap(slopes.tocsr(), constant),
        recovery=Recovery(tuple(outputs), sp.identity(n + m, format="csr")[:kept], n),
        objective=Objective(),
    )


THETA = np.array([[2.0, 1.0], [0.3, -0.4]])


@pytest.mark.parametrize(
    ("cones", "right", "slope", "dropped"),
    [
        (Cones(zero=1), 0.0, 0.0, 1),
        (Cones(zero=1), 1.0, 0.0, 0),
        (Cones(zero=1), 0.0, 1.0, 0),
        (Cones(nonnegative=1), 0.0, 0.0, 1),
        (Cones(nonnegative=1), 1.0, 0.0, 1),
        (Cones(nonnegative=1), -1.0, 0.0, 0),
        (Cones(nonnegative=1), 1.0, 1.0, 0),
        (Cones(second_order=(1,)), 1.0, 0.0, 0),
    ],
)
def test_empty_rows_that_always_hold_are_dropped(cones: Cones, right: float, slope: float, dropped: int) -> None:
    program = presolved(projection(np.zeros((1, 2)), np.array([right]), cones, slope=slope))
    assert program.structure.m == 1 - dropped


def test_an_empty_row_that_parameters_violate_is_infeasible() -> None:
    program = presolved(projection(np.zeros((1, 2)), np.array([0.0]), Cones(nonnegative=1), slope=1.0))
    statuses = SolutionMap(program).solve([np.array([[1.0, 1.0], [-1.0, 1.0]])]).report.status
    assert statuses[0].solved
    assert not statuses[1].solved


def test_identical_rows_are_merged() -> None:
    A, b = np.array([[1.0, 1.0], [1.0, 1.0], [1.0, 1.0], [1.0, 0.0]]), np.array([1.0, 1.0, 0.5, 0.5])
    given = projection(A, b, Cones(nonnegative=4))
    program = presolved(given)
    assert program.structure.m == 3
    assert program.presolve is not None
    assert program.presolve.redundant_rows == 1
    ours, theirs = (SolutionMap(part, options={"tol": 1e-10}).solve([THETA]) for part in (program, given))
    assert relative(ours.outputs[0], theirs.outputs[0]) < AGREE


def test_identical_rows_are_kept_if_their_duals_are_outputs() -> None:
    given = projection(np.ones((2, 2)), np.array([1.0, 1.0]), Cones(nonnegative=2), shown=True)
    assert presolved(given) is given


def test_dependent_equalities_with_dual_outputs_stay_degenerate() -> None:
    """After the first is solved for x_1 the second is redundant, but its dual is free and enters that of the first."""
    A, b = np.array([[1.0, 2.0], [2.0, 4.0]]), np.array([1.0, 2.0])
    given = projection(A, b, Cones(zero=2), shown=True)
    program = presolved(given)
    assert program.structure.n == 1
    for part in (given, program):
        solved = SolutionMap(part).solve([THETA])
        _, report = solved.vjp([None, np.array([[1.0, -1.0], [1.0, -1.0]])])
        assert not report.trusted
    assert presolved(projection(A, b, Cones(zero=2))).structure.m == 0


def test_infeasible_and_unbounded_elements_are_detected() -> None:
    x, t, c, bound = cp.Variable(2), cp.Variable(2), cp.Parameter(2), cp.Parameter(2)
    constraints = [t == np.array([[1.0, 2.0], [0.0, 1.0]]) @ x, cp.abs(t) <= bound, x[0] >= 0]
    problem = cp.Problem(cp.Minimize(c @ x), constraints)
    unbounded = cp.Problem(cp.Minimize(c @ x), [t == 2.0 * x, t[0] >= 0, x[1] == 1.0])
    program = canonicalize(problem, [c, bound], [x, t])
    assert program.presolve is not None
    values = [np.ones((2, 2)), np.array([[1.0, 1.0], [-1.0, 1.0]])]
    assert SolutionMap(program).solve(values).report.status == (Status.OPTIMAL, Status.INFEASIBLE)
    program = canonicalize(unbounded, [c], [x])
    assert program.presolve is not None
    values = [np.array([[1.0, 1.0], [-1.0, 1.0]])]
    assert SolutionMap(program).solve(values).report.status == (Status.OPTIMAL, Status.UNBOUNDED)


def test_small_pivots_are_rejected() -> None:
    """x_1 = 1 - 1e6 x_2 is not a stable pivot for x_1, so the row is solved for x_2."""
    program = projection(np.array([[1e-6, 1.0]]), np.array([1.0]), Cones(zero=1))
    reduced = presolved(program)
    assert reduced.structure.n == 1
    assert abs(reduced.recovery.matrix).max() <= 1.0
