"""Presolve changes only sizes: outputs, duals, objective values and derivatives agree with those without it."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from dataclasses import dataclass

import cvxpy as cp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from convexlayer import ConvexLayer, ParametricProgram, SolutionMap, Status, canonicalize
from convexlayer.canon import presolved
from tests.families import CANONICAL, duals, family

Array = np.ndarray
Draw = Callable[[np.random.Generator], Array]

AGREE = 1e-7


@dataclass
class Posed:
    """A problem, its parameters, its outputs, and random draws of its parameters."""

    problem: cp.Problem
    parameters: list[cp.Parameter]
    draws: list[Draw]
    outputs: list[cp.Variable]

    def programs(self) -> tuple[ParametricProgram, ParametricProgram]:
        """The programs without and with presolve."""
        given = canonicalize(self.problem, self.parameters, self.outputs, presolve=False, self_check=False)
        return given, presolved(given)

    def values(self, batch: int, seed: int) -> list[Array]:
        rng = np.random.default_rng(seed)
        return [np.stack([draw(rng) for _ in range(batch)]) for draw in self.draws]


class Builder:
    """Builder of random problems that collects their parameters."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.parameters: list[cp.Parameter] = []
        self.draws: list[Draw] = []

    def parameter(self, *shape: int, low: float | None = None, scale: float = 1.0, psd: bool = False) -> cp.Parameter:
        """Create a parameter: normal entries, entries of at least ``low``, or positive definite."""

        def draw(rng: np.random.Generator) -> Array:
            normal = scale * rng.standard_normal(shape)
            if psd:
                return normal @ normal.T + np.eye(shape[0])
            return normal if low is None else low + np.abs(normal)

        self.parameters.append(cp.Parameter(shape, PSD=psd))
        self.draws.append(draw)
        return self.parameters[-1]

    def matrix(self, *shape: int) -> Array:
        return self.rng.standard_normal(shape)

    def heads(self) -> bool:
        return bool(self.rng.random() < 0.5)

    def posed(self, objective: cp.Expression, constraints: list[cp.Constraint]) -> Posed:
        problem = cp.Problem(cp.Minimize(objective), constraints)
        return Posed(problem, self.parameters, self.draws, [*problem.variables(), *duals(*problem.constraints)])


def sparse_rows(builder: Builder, rows: int, cols: int) -> Array:
    """A matrix with two entries in each row."""
    matrix = np.zeros((rows, cols))
    for row in matrix:
        row[builder.rng.choice(cols, 2, replace=False)] = builder.rng.choice([-1.0, 1.0, 2.0], 2)
    return matrix


def random_problem(seed: int) -> Posed:
    """A feasible problem with a strongly convex part, and all structures that presolve reduces."""
    b = Builder(seed)
    n = int(b.rng.integers(3, 7))
    x = cp.Variable(n)
    objective = cp.sum_squares(x - b.parameter(n))
    constraints: list[cp.Constraint] = []
    if b.heads():  # constant equalities that define variables of the objective; substitution may fill P
        rows = int(b.rng.integers(2, 2 * n))
        objective += cp.sum_squares(b.matrix(rows, n) @ x - (b.parameter(rows) if b.heads() else 1.0))
    if b.heads():  # defining equalities with parametrised coefficients are kept
        objective += cp.sum_squares(b.parameter(2, n) @ x - 1.0)
    if b.heads():
        objective += b.parameter() * 0.3 + b.parameter(n, scale=0.1) @ x
    if b.heads():  # a chain of defining equalities, combined with parametrised factors
        t, u = cp.Variable(3), cp.Variable(3)
        offset = b.parameter(3) if b.heads() else b.matrix(3)
        constraints += [t == sparse_rows(b, 3, n) @ x + offset, u == 2.0 * t - b.parameter(3)]
        objective += cp.quad_form(t, b.parameter(3, 3, psd=True)) if b.heads() else cp.sum_squares(t)
        objective += b.parameter(3, scale=0.3) @ u
        if b.heads():
            constraints.append(b.parameter(2, 3) @ t <= b.parameter(2, low=4.0))
    if b.heads():
        constraints.append(b.parameter(2, n) @ x <= b.parameter(2, low=0.0))
    if b.heads():
        constraints.append(cp.abs(x) <= (b.parameter(n, low=0.5) if b.heads() else 0.7))
    if b.heads():
        constraints.append(cp.norm_inf(sparse_rows(b, 2, n) @ x) <= b.parameter(low=0.5))
    if b.heads():
        constraints.append(cp.norm(x[:2], 2) <= b.parameter(low=0.3))
    if b.heads():
        constraints.append(x[0] + 2.0 * x[1] == b.parameter(scale=0.1))
    if b.heads():
        constraints.append(b.parameter(n) @ x == 0.0)
    return b.posed(objective, constraints)


def linear_problem(seed: int) -> Posed:
    """A linear program with variables defined by equalities, and absolute values."""
    b = Builder(seed)
    n = int(b.rng.integers(2, 5))
    x, t = cp.Variable(n), cp.Variable(2)
    constraints = [t == b.matrix(2, n) @ x + b.parameter(2), cp.abs(x) <= b.parameter(n, low=1.0), x <= 1.5]
    objective = b.parameter(n) @ x + b.parameter(2) @ t
    if b.heads():
        constraints.append(b.parameter(n) @ x <= b.parameter(low=0.5))
    return b.posed(objective, constraints)


def conic_problem(seed: int) -> Posed:
    """Variables defined by equalities in exponential, power, second-order and semidefinite cones."""
    b = Builder(seed)
    x, u, X = cp.Variable(3), cp.Variable(3), cp.Variable((3, 3), symmetric=True)
    objective = cp.sum_squares(X - b.parameter(3, 3)) + cp.sum_squares(x - b.parameter(3))
    constraints = [
        X >> 0.1 * np.eye(3),
        cp.diag(X) == (b.parameter(3, low=1.0) if b.heads() else 1.0),
        u == 0.5 * x + b.parameter(3, scale=0.1),
        cp.sum(cp.exp(u)) <= b.parameter(low=3.0),
        cp.norm(x - u, 2) <= b.parameter(low=1.0),
    ]
    return b.posed(objective, constraints)


POSERS = {"mixed": random_problem, "linear": linear_problem, "conic": conic_problem}


def relative(ours: Array, theirs: Array) -> float:
    return float(np.max(np.abs(ours - theirs), initial=0.0) / max(1.0, float(np.max(np.abs(theirs), initial=0.0))))


def assert_same(posed: Posed, values: list[Array], seed: int = 0) -> bool:
    """Compare results with and without presolve; return False if the derivative may not exist without it."""
    given_map, reduced_map = (SolutionMap(program, options={"tol": 1e-10}) for program in posed.programs())
    theirs, ours = given_map.solve(values), reduced_map.solve(values)
    if not all(status is Status.OPTIMAL for status in theirs.report.status):
        return False
    assert ours.report.status == theirs.report.status
    rng = np.random.default_rng(seed)
    cotangents = [rng.standard_normal(value.shape) for value in theirs.outputs]
    at_objective = rng.standard_normal(theirs.batch)
    tangents = [rng.standard_normal(value.shape) for value in values]
    tangents = [
        t + np.swapaxes(t, -1, -2) if parameter.attributes["PSD"] else t
        for t, parameter in zip(tangents, posed.parameters, strict=True)
    ]
    expected, report = theirs.vjp([*cotangents, at_objective])
    if not report.trusted:
        return False
    found, report = ours.vjp([*cotangents, at_objective])
    assert report.trusted
    assert relative(ours.objective, theirs.objective) < AGREE
    for left, right in zip([*ours.outputs, *found], [*theirs.outputs, *expected], strict=True):
        assert relative(left, right) < AGREE
    (*moved, rate), _ = ours.jvp(tangents)
    for left, right in zip([*moved, rate], theirs.jvp(tangents)[0], strict=True):
        assert relative(left, right) < AGREE
    inner = sum(np.sum((v * u).reshape(len(v), -1), axis=1) for v, u in zip(cotangents, moved, strict=True))
    pulled = sum(np.sum((g * t).reshape(len(t), -1), axis=1) for g, t in zip(found, tangents, strict=True))
    assert relative(inner + at_objective * rate, pulled) < AGREE
    return True


@pytest.mark.parametrize("kind", POSERS)
@settings(max_examples=8)
@given(seed=st.integers(0, 10**6))
def test_results_agree_with_and_without_presolve(kind: str, seed: int) -> None:
    posed = POSERS[kind](seed)
    assume(assert_same(posed, posed.values(3, seed)))


@pytest.mark.parametrize("name", CANONICAL)
def test_results_agree_on_the_table_of_problems(name: str) -> None:
    case = family(name)
    given = case.program(presolve=False)
    theirs, ours = (
        SolutionMap(program, options={"tol": 1e-10}).solve(case.values()) for program in (given, presolved(given))
    )
    rng = np.random.default_rng(0)
    cotangents = [rng.standard_normal(value.shape) for value in theirs.outputs]
    for left, right in zip(ours.outputs, theirs.outputs, strict=True):
        assert relative(left, right) < AGREE
    assert relative(ours.objective, theirs.objective) < AGREE
    (found, report), (expected, report_there) = ours.vjp(cotangents), theirs.vjp(cotangents)
    for left, right in zip(found, expected, strict=True):
        assert relative(left, right) < AGREE
    assert report.trusted or not report_there.trusted


def recovered_duals() -> Posed:
    """A problem in which t == D x + 0.3 is solved for t; its dual depends on parametrised P, q and A.

    D is small, so the rows are not solved for x; P is full in x, so the substitution of t causes no fill.
    """
    b = Builder(3)
    x, t = cp.Variable(4), cp.Variable(2)
    P, q, G, h = b.parameter(2, 2, psd=True), b.parameter(2), b.parameter(2, 2), b.parameter(2, low=0.0, scale=0.05)
    constraints = [t == 0.004 * sparse_rows(b, 2, 4) @ x + 0.3, G @ t <= h, cp.sum(x) <= 1e3]
    objective = cp.quad_form(t, P) + q @ t + cp.quad_form(x, np.eye(4) + 0.1) - b.parameter(4, scale=30.0) @ x
    problem = cp.Problem(cp.Minimize(objective), constraints)
    return Posed(problem, b.parameters, b.draws, [x, t, *duals(*problem.constraints)])


def test_gradients_through_recovered_duals_match_finite_differences() -> None:
    posed = recovered_duals()
    given, program = posed.programs()
    assert program.structure.n == 4
    assert program.structure.m == 3
    assert given.structure.n == 6
    direct = program.recovery.direct
    assert direct is not None
    assert direct.factor.nnz > 0
    values = posed.values(2, seed=5)
    solution_map = SolutionMap(program, options={"tol": 1e-11})
    solved = solution_map.solve(values)
    assert np.any(np.abs(solved.outputs[-2]) > 0.1)  # G t <= h is active for some element
    rng = np.random.default_rng(1)
    weights = [rng.standard_normal(value.shape[1:]) for value in solved.outputs]

    def loss(at: list[Array]) -> Array:
        outputs = solution_map.solve(at).outputs
        return np.array([sum(float(np.sum(w * o[i])) for w, o in zip(weights, outputs, strict=True)) for i in range(2)])

    gradients, _ = solved.vjp([np.stack([w, w]) for w in weights])
    for position, gradient in enumerate(gradients):
        direction = rng.standard_normal(values[position].shape)
        if posed.parameters[position].attributes["PSD"]:
            direction = direction + np.swapaxes(direction, -1, -2)
        step = 1e-4 * direction
        ahead, behind = ([*values[:position], values[position] + d, *values[position + 1 :]] for d in (step, -step))
        difference = (loss(ahead) - loss(behind)) / 2e-4
        exact = np.sum((gradient * direction).reshape(2, -1), axis=1)
        np.testing.assert_allclose(exact, difference, rtol=1e-6, atol=1e-7)


def test_gradients_without_the_direct_term_are_wrong() -> None:
    """Without the direct term, gradients through recovered duals are wrong, so the tests above cover it."""
    posed = recovered_duals()
    _, program = posed.programs()
    assert program.recovery.direct is not None
    values = posed.values(1, seed=5)
    solved = SolutionMap(program).solve(values)
    cotangents = [np.ones_like(value) for value in solved.outputs]
    at = (program.features.apply(values, 1), solved.report.solution.x, solved.report.solution.y)
    moved, _, _ = program.recovery.pull(at, solved.outputs, cotangents)
    assert moved is not None
    assert np.linalg.norm(moved) > 0.1 * np.linalg.norm(np.concatenate([g.ravel() for g in solved.vjp(cotangents)[0]]))


def dense_quadratic_program(n: int, m: int, p: int) -> Posed:
    b = Builder(0)
    x, L = cp.Variable(n), b.matrix(n, n) / np.sqrt(n) + np.eye(n)
    q, G, h, A, right = b.parameter(n), b.parameter(m, n), b.parameter(m), b.parameter(p, n), b.parameter(p)
    objective = 0.5 * cp.sum_squares(L @ x) + q @ x
    problem = cp.Problem(cp.Minimize(objective), [G @ x <= h, A @ x == right])
    return Posed(problem, b.parameters, b.draws, [x])


def test_a_dense_quadratic_program_keeps_its_original_size() -> None:
    given, program = dense_quadratic_program(50, 50, 10).programs()
    assert (given.structure.n, given.structure.m) == (100, 110)
    assert (program.structure.n, program.structure.m) == (50, 60)
    assert program.recovery.direct is None
    record = program.presolve
    assert record is not None
    assert (record.source, record.eliminated_variables, record.bound_variables, record.redundant_rows) == (
        given,
        50,
        0,
        0,
    )


def lasso() -> Posed:
    b = Builder(0)
    x = cp.Variable(600)
    objective = cp.sum_squares(b.matrix(300, 600) @ x - b.parameter(300)) + 0.1 * cp.norm1(x)
    return b.posed(objective, [])


def factor_portfolio() -> Posed:
    b = Builder(0)
    w, f = cp.Variable(2000), cp.Variable(20)
    F, d = b.matrix(20, 2000), b.rng.uniform(0.1, 1.0, 2000)
    objective = cp.sum_squares(f) + cp.sum_squares(cp.multiply(d, w)) - b.parameter(2000) @ w
    return b.posed(objective, [f == F @ w, cp.sum(w) == 1, w >= 0])


def control() -> Posed:
    b = Builder(0)
    X, U = cp.Variable((4, 21)), cp.Variable((2, 20))
    A, B, start = b.parameter(4, 4), b.parameter(4, 2), b.parameter(4)
    steps = [X[:, t + 1] == A @ X[:, t] + B @ U[:, t] for t in range(20)]
    return b.posed(cp.sum_squares(X) + 0.1 * cp.sum_squares(U), [X[:, 0] == start, *steps, cp.abs(U) <= 1.0])


@pytest.mark.parametrize("pose", [lasso, factor_portfolio, control])
def test_sparse_programs_do_not_fill_in(pose: Callable[[], Posed]) -> None:
    given, program = (part.structure for part in pose().programs())
    assert program.n <= given.n
    assert program.m <= given.m
    assert program.P.nnz + program.A.nnz <= given.P.nnz + given.A.nnz


def test_absolute_values_become_bounds() -> None:
    _, program = control().programs()
    assert program.presolve is not None
    assert program.presolve.bound_variables == 40
    assert program.structure.cones.nonnegative == 80


def test_an_irreducible_program_is_returned_unchanged() -> None:
    x, c = cp.Variable(3), cp.Parameter(3)
    given = canonicalize(cp.Problem(cp.Minimize(c @ x), [x >= -1, x <= 1]), [c], [x], presolve=False)
    assert presolved(given) is given
    reduced = dense_quadratic_program(4, 3, 1).programs()[1]
    assert presolved(reduced) is reduced


def test_the_document_holds_the_program_before_presolve() -> None:
    given, program = dense_quadratic_program(4, 3, 1).programs()
    assert program.to_document() == given.to_document()
    again = presolved(ParametricProgram.from_document(program.to_document()))
    np.testing.assert_array_equal(again.data.matrix.toarray(), program.data.matrix.toarray())
    np.testing.assert_array_equal(again.data.constant, program.data.constant)


def test_the_layer_reports_reductions_and_can_skip_presolve() -> None:
    posed = dense_quadratic_program(4, 3, 1)
    layer = ConvexLayer(posed.problem, posed.parameters, posed.outputs)
    assert "n=4, m=4 (n=8, m=8 before presolve)" in repr(layer)
    assert pickle.loads(pickle.dumps(layer)).program.structure.n == 4
    assert copy.deepcopy(layer).program.structure.n == 4
    whole = ConvexLayer(posed.problem, posed.parameters, posed.outputs, presolve=False)
    assert whole.program.presolve is None
    assert "before presolve" not in repr(whole)
