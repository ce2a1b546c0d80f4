"""The batched interior-point method against Clarabel on random programs of every cone, with and without solutions."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from convexlayer.cones import product_cone
from convexlayer.interior_point.lanes.solve import LanesInteriorPoint
from convexlayer.program import ConeProgram, Cones, Pattern, Structure
from convexlayer.solution import Solution
from convexlayer.solvers import Options
from convexlayer.solvers.clarabel_ import ClarabelSolver
from convexlayer.status import Status
from tests.rays import BATCH, KINDS


def random_program(rng: np.random.Generator, cones: Cones, *, quadratic: bool, spread: float = 0.0) -> ConeProgram:
    """Programs with a known solution; columns and free rows are scaled by up to 10^spread."""
    m, n = cones.m, int(rng.integers(4, 15))
    mask = rng.random((n, m)) < rng.choice([0.3, 1.0])
    mask[rng.integers(0, n, m), np.arange(m)] = True
    cols, rows = np.nonzero(mask)
    rank = int(rng.integers(1, n + 1)) if quadratic else 0
    F = rng.standard_normal((BATCH, n, rank))
    P_cols, P_rows = np.nonzero(np.full((n, n), bool(rank)))
    structure = Structure(Pattern((n, n), P_rows, P_cols), Pattern((m, n), rows, cols), cones)
    A = rng.standard_normal((BATCH, len(rows)))
    P = (F @ F.swapaxes(1, 2))[:, P_rows, P_cols]
    w = rng.standard_normal((BATCH, m))
    y = product_cone(cones).project_dual(w)
    x = rng.standard_normal((BATCH, n))
    b = structure.A.matvec(A, x) + y - w
    q = -(structure.P.matvec(P, x) + structure.A.rmatvec(A, y))
    d = 10.0 ** rng.uniform(-spread, spread, n)
    e = np.ones(m)
    e[: cones.zero + cones.nonnegative] = 10.0 ** rng.uniform(-spread, spread, cones.zero + cones.nonnegative)
    program = ConeProgram(structure, P * d[P_rows] * d[P_cols], q * d, np.zeros(BATCH), A * e[rows] * d[cols], b * e)
    return program.with_objective_divided(program.objective_scale())


def solved(program: ConeProgram) -> Solution:
    return LanesInteriorPoint(program.structure).solve(program, tol=1e-8)


def by_clarabel(program: ConeProgram) -> Solution:
    solver = ClarabelSolver()
    return solver.solve(solver.init(program.structure), program, Options())


def draws(kind: str, count: int, **options: float) -> Iterator[ConeProgram]:
    rng = np.random.default_rng(sum(map(ord, kind)))
    for number in range(count):
        yield random_program(rng, KINDS[kind], quadratic=number % 2 == 0, **options)


@pytest.mark.parametrize("spread", [0.0, 3.0], ids=["even", "badly_scaled"])
@pytest.mark.parametrize("kind", KINDS)
def test_agrees_with_clarabel(kind: str, spread: float) -> None:
    left = compared = 0
    for program in draws(kind, 12, spread=spread):
        ours, theirs = solved(program), by_clarabel(program)
        judged, residuals = ours.certified(program, 1e-8)
        reference, _ = theirs.certified(program, 1e-8)
        mine = np.array([word is Status.OPTIMAL for word in ours.status])
        both = mine & np.array([word is Status.OPTIMAL for word in reference.status])
        left += int(np.count_nonzero(~mine))
        compared += int(np.count_nonzero(both))
        worst = np.max([residuals.primal, residuals.dual, residuals.gap], axis=0)
        assert np.all(worst[mine] <= 1e-8)
        assert all(judged.status[i] is Status.OPTIMAL for i in np.flatnonzero(mine))
        difference = np.abs(program.objective(ours.x) - program.objective(theirs.x))
        terms = np.abs(program.q * ours.x).sum(axis=1)
        assert np.all(difference[both] <= 1e-7 * (1.0 + terms[both]))
    assert compared >= 60
    assert left <= 4


@pytest.mark.parametrize("kind", KINDS)
def test_certificates_of_infeasible_and_unbounded_elements(kind: str) -> None:
    """Unbounded: q decreases along a direction in the interior of the recession cone. Infeasible: A = 0, b not in K."""
    cones = KINDS[kind]
    rng = np.random.default_rng(5)
    base = random_program(rng, cones, quadratic=False)
    n, m = base.structure.n, base.structure.m
    w = rng.standard_normal((30, m))
    interior = np.mean(product_cone(cones).project_dual(w) - w, axis=0)
    A = base.structure.A
    moving = np.arange(cones.zero, m)
    wider = Structure(
        Pattern((n + 1, n + 1), np.zeros(0, np.int64), np.zeros(0, np.int64)),
        Pattern((m, n + 1), np.concatenate([A.rows, moving]), np.concatenate([A.cols, np.full(len(moving), n)])),
        cones,
    )
    column = np.tile(-interior[moving], (BATCH, 1))
    falling = np.concatenate([base.q, np.full((BATCH, 1), -50.0)], axis=1)
    unbounded = ConeProgram(
        wider, np.zeros((BATCH, 0)), falling, base.r, np.concatenate([base.A, column], axis=1), base.b
    )
    found = solved(unbounded)
    assert found.status == (Status.UNBOUNDED,) * BATCH
    assert found.certified(unbounded, 1e-8)[0].status == found.status
    np.testing.assert_allclose(np.sum(unbounded.q * found.x, axis=1), -1.0, rtol=1e-6)

    zero = Pattern((m, n), np.zeros(0, np.int64), np.zeros(0, np.int64))
    outside = -product_cone(cones).project_dual(rng.standard_normal((BATCH, m))) - 0.1 * np.eye(m)[m - 1]
    infeasible = ConeProgram(
        Structure(base.structure.P, zero, cones), base.P, 0.0 * base.q, base.r, np.zeros((BATCH, 0)), outside
    )
    if cones.zero:
        assert np.all(outside[:, : cones.zero] != 0)
    found = solved(infeasible)
    assert found.status == (Status.INFEASIBLE,) * BATCH
    assert found.certified(infeasible, 1e-8)[0].status == found.status
    np.testing.assert_allclose(np.sum(infeasible.b * found.y, axis=1), -1.0, rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_result_does_not_depend_on_its_neighbours(kind: str) -> None:
    program = next(draws(kind, 1))
    spoilt = program.select(np.arange(BATCH))
    spoilt.q[1], spoilt.b[2], spoilt.A[3] = np.nan, 1e300, -1e300
    whole, part = solved(program), solved(spoilt)
    for i in (0, 4, 5, 6, 7):
        np.testing.assert_array_equal(part.x[i], whole.x[i])
        np.testing.assert_array_equal(part.y[i], whole.y[i])


def test_more_elements_than_lanes_are_returned_in_order() -> None:
    program = next(draws("second_order", 1))
    many = program.select(np.arange(100) % BATCH)
    whole, once = solved(many), solved(program)
    np.testing.assert_array_equal(whole.x, once.x[np.arange(100) % BATCH])
    assert whole.status == tuple(once.status[i % BATCH] for i in range(100))
