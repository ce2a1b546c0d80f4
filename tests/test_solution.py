"""Certification of solutions: residuals by their formulas, and the resulting statuses."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from convexlayer.cones import ProductCone, product_cone
from convexlayer.program import ConeProgram, Cones, Pattern, Structure
from convexlayer.solution import Solution
from convexlayer.status import Status
from convexlayer.testing.programs import Known, solution_at

from .diff.programs import CONES, assemble, draw


@pytest.fixture(params=["quadratic", "linear"])
def drawn(request: pytest.FixtureRequest) -> Known:
    found = draw(np.random.default_rng(0), CONES["product"], quadratic=request.param == "quadratic")
    assert found is not None
    return found


def half_line(x: float, y: float, s: float) -> tuple[ConeProgram, Solution]:
    """Minimise x over x >= 2, so -x + s = -2 with solution x = 2, y = 1, s = 0; and the given point."""
    program = assemble(np.zeros((1, 1)), -np.ones((1, 1)), np.array([2.0]), np.ones(1), Cones(nonnegative=1)).program
    return program, solution_at(np.array([[x]]), np.array([[y]]), np.array([[s]]))


def test_exact_solutions_have_zero_residuals(drawn: Known) -> None:
    assert drawn.solution.residuals(drawn.program).worst[0] <= 1e-14


def test_residuals_match_their_formulas(drawn: Known) -> None:
    rng, structure = np.random.default_rng(1), drawn.program.structure
    x, y, s = (rng.normal(size=v.shape) for v in (drawn.solution.x, drawn.solution.y, drawn.solution.s))
    found = solution_at(x, y, s).residuals(drawn.program)
    P, A = structure.P.dense(drawn.program.P)[0], structure.A.dense(drawn.program.A)[0]
    q, b, x, y, s = drawn.program.q[0], drawn.program.b[0], x[0], y[0], s[0]

    def relative(value: float, *terms: float) -> float:
        return abs(value) / max(1.0, *(abs(term) for term in terms))

    def size(v: np.ndarray) -> float:
        return float(np.max(np.abs(v)))

    assert found.primal[0] == pytest.approx(relative(size(A @ x + s - b), size(A @ x), size(s), size(b)))
    assert found.dual[0] == pytest.approx(relative(size(P @ x + q + A.T @ y), size(P @ x), size(q), size(A.T @ y)))
    assert found.gap[0] == pytest.approx(relative(x @ P @ x + q @ x + b @ y, x @ P @ x, q @ x, b @ y))
    projected = ProductCone(structure.cones).project_dual((y - s)[None])[0]
    assert found.natural[0] == pytest.approx(relative(size(y - projected), size(y), size(s)))
    assert found.worst[0] == max(found.primal[0], found.dual[0], found.gap[0], found.natural[0])


@pytest.mark.parametrize(
    ("point", "residuals"),
    [
        ((2.0, 1.0, 0.0), (0.0, 0.0, 0.0, 0.0)),
        ((3.0, 1.0, 0.0), (1.0 / 3.0, 0.0, 1.0 / 3.0, 0.0)),  # not primal feasible
        ((2.0, 3.0, 0.0), (0.0, 2.0 / 3.0, 4.0 / 6.0, 0.0)),  # not dual feasible
        ((1.0, 1.0, -1.0), (0.0, 0.0, 1.0 / 2.0, 1.0)),  # s is not in K
        ((3.0, 1.0, 1.0), (0.0, 0.0, 1.0 / 3.0, 1.0)),  # not complementary
    ],
)
def test_residuals_of_a_half_line(point: tuple[float, float, float], residuals: tuple[float, ...]) -> None:
    program, solution = half_line(*point)
    found = solution.residuals(program)
    measured = [found.primal[0], found.dual[0], found.gap[0], found.natural[0]]
    np.testing.assert_allclose(measured, residuals, atol=1e-15)


def test_nonfinite_points_have_infinite_residuals(drawn: Known) -> None:
    copies = drawn.repeat(2)
    copies.solution.x[1], copies.solution.y[1], copies.solution.s[1] = np.nan, np.nan, np.nan
    worst = copies.solution.residuals(copies.program).worst
    assert worst[0] <= 1e-14
    assert worst[1] == np.inf


@pytest.mark.parametrize(
    ("error", "word", "expected"),
    [
        (0.0, Status.OPTIMAL, Status.OPTIMAL),
        (5e-8, Status.OPTIMAL, Status.OPTIMAL),
        (1e-6, Status.OPTIMAL, Status.OPTIMAL_INACCURATE),
        (1e-4, Status.OPTIMAL, Status.NUMERICAL_ERROR),
        (0.0, Status.OPTIMAL_INACCURATE, Status.OPTIMAL),  # more accurate than the solver reported, or polished
        (0.0, Status.ITERATION_LIMIT, Status.OPTIMAL),
        (1e-6, Status.TIME_LIMIT, Status.OPTIMAL_INACCURATE),
        (1e-4, Status.ITERATION_LIMIT, Status.ITERATION_LIMIT),
        (1e-4, Status.NUMERICAL_ERROR, Status.NUMERICAL_ERROR),
        (0.0, Status.INFEASIBLE, Status.NUMERICAL_ERROR),  # an optimal point is not a certificate
        (0.0, Status.UNBOUNDED, Status.NUMERICAL_ERROR),
    ],
)
def test_statuses_follow_from_residuals(error: float, word: Status, expected: Status) -> None:
    """The error is in x, whose value is 2, so the primal residual is half of it."""
    program, solution = half_line(2.0 + 2.0 * error, 1.0, 0.0)
    certified, residuals = replace(solution, status=(word,)).certified(program, tol=1e-8)
    assert residuals.primal[0] == pytest.approx(error, rel=1e-3, abs=1e-15)
    assert certified.status == (expected,)


def test_the_natural_residual_has_a_larger_tolerance() -> None:
    """Its bound is sqrt(tol) instead of 10 tol, because solvers reach no more at weakly active constraints."""
    program, solution = half_line(2.0 + 1e-5, 1.0, 1e-5)
    certified, residuals = solution.certified(program, tol=5e-7)
    assert residuals.natural[0] == pytest.approx(1e-5)
    assert certified.status == (Status.OPTIMAL,)


def test_a_wrong_row_beside_a_large_one_is_detected() -> None:
    """Minimise x1 + x2 over x1 >= 1e7, x2 >= 1 at (1e7, 3): norms of the whole problem are 2e-7."""
    program = assemble(np.zeros((2, 2)), -np.eye(2), np.array([1e7, 1.0]), np.ones(2), Cones(nonnegative=2)).program
    solution = solution_at(np.array([[1e7, 3.0]]), np.ones((1, 2)), np.zeros((1, 2)))
    certified, residuals = solution.certified(program, tol=1e-7, row_by_row=True)
    assert residuals.worst[0] <= 1e-6
    assert residuals.backward[0] == pytest.approx(0.5)
    assert certified.status == (Status.OPTIMAL_INACCURATE,)
    assert solution.certified(program, tol=1e-7)[0].status == (Status.OPTIMAL,)  # by norms, as solvers do


def test_solved_statuses() -> None:
    assert {status for status in Status if status.solved} == {Status.OPTIMAL, Status.OPTIMAL_INACCURATE}
    assert [str(status) for status in (Status.OPTIMAL, Status.TIME_LIMIT)] == ["optimal", "time_limit"]


def test_select_and_solved(drawn: Known) -> None:
    words = (Status.OPTIMAL, Status.INFEASIBLE, Status.OPTIMAL_INACCURATE)
    solution = replace(drawn.repeat(3).solution, status=words, iterations=np.array([1, 2, 3]))
    np.testing.assert_array_equal(solution.solved, [True, False, True])
    part = solution.select(np.array([2, 1]))
    assert part.status == (Status.OPTIMAL_INACCURATE, Status.INFEASIBLE)
    np.testing.assert_array_equal(part.iterations, [3, 2])
    assert len(part.x) == len(part.y) == len(part.s) == len(part.seconds) == 2


def test_a_program_without_rows() -> None:
    drawn = assemble(np.eye(2), np.zeros((0, 2)), np.ones(2), np.zeros(0), Cones())
    assert drawn.solution.residuals(drawn.program).worst[0] <= 1e-15


def test_equal_cones_share_one_product_cone() -> None:
    assert product_cone(Cones(2, power=(0.3,))) is product_cone(Cones(2, power=(0.3,)))


def test_invalid_rays_are_not_certificates() -> None:
    """Claims of infeasibility and unboundedness need a valid ray, or none at all.

    Maximise x over 1 <= x <= 0.
    """
    column = Pattern((2, 1), np.array([0, 1]), np.array([0, 0]))
    structure = Structure(Pattern((1, 1), np.zeros(0, int), np.zeros(0, int)), column, Cones(nonnegative=2))
    program = ConeProgram(
        structure, np.zeros((1, 0)), np.array([[-1.0]]), np.zeros(1), np.array([[-1.0, 1.0]]), np.array([[-1.0, 0.0]])
    )

    def judged(claim: Status, x: list[float], y: list[float]) -> Status:
        point = Solution(np.array([x]), np.array([y]), np.zeros((1, 2)), (claim,), np.zeros(1, int), np.zeros(1), {})
        return point.certified(program, 1e-8)[0].status[0]

    assert judged(Status.INFEASIBLE, [0.0], [1.0, 1.0]) is Status.INFEASIBLE
    assert judged(Status.INFEASIBLE, [0.0], [np.nan, np.nan]) is Status.INFEASIBLE
    assert judged(Status.INFEASIBLE, [0.0], [1.0, 0.5]) is Status.INFEASIBLE  # valid after refinement
    assert judged(Status.INFEASIBLE, [0.0], [-1.0, -1.0]) is Status.NUMERICAL_ERROR
    assert judged(Status.UNBOUNDED, [1.0], [0.0, 0.0]) is Status.NUMERICAL_ERROR  # x <= 0 forbids it
    assert judged(Status.UNBOUNDED, [np.nan], [0.0, 0.0]) is Status.UNBOUNDED
