"""The dense torch interior-point method against Clarabel on random batches; also on a GPU if there is one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from convexlayer import Options, SolverError, Status
from convexlayer.cones import product_cone
from convexlayer.interior_point.torch.solve import TorchInteriorPoint
from convexlayer.program import Array, ConeProgram, Cones
from convexlayer.solution import Solution
from convexlayer.solvers.registry import solver_for
from convexlayer.testing.programs import dense_program

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]

CASES: dict[str, tuple[int, Cones, dict[str, Any]]] = {
    "equalities": (8, Cones(zero=3), {}),
    "nothing": (5, Cones(), {}),
    "qp": (12, Cones(zero=3, nonnegative=15), {}),
    "wide qp": (30, Cones(zero=5, nonnegative=10), {}),
    "singular qp": (12, Cones(zero=2, nonnegative=25), {"rank": 4}),
    "weakly active": (12, Cones(zero=2, nonnegative=25), {"weak": 0.3}),
    "lp": (12, Cones(zero=2, nonnegative=25), {"rank": 0}),
    "socp": (12, Cones(zero=2, nonnegative=6, second_order=(1, 2, 9, 3, 4)), {}),
    "linear socp": (12, Cones(nonnegative=20, second_order=(4, 4)), {"rank": 0}),
    "scaled qp": (12, Cones(zero=3, nonnegative=15), {"decades": 3.0}),
    "scaled lp": (12, Cones(zero=3, nonnegative=20), {"decades": 2.0, "rank": 0}),
    "scaled socp": (12, Cones(zero=2, nonnegative=6, second_order=(3, 9)), {"decades": 3.0}),
}
BATCH = 60


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def solvable(
    rng: np.random.Generator,
    n: int,
    cones: Cones,
    batch: int,
    *,
    rank: int | None = None,
    decades: float = 0.0,
    weak: float = 0.0,
) -> ConeProgram:
    """Programs constructed from a known solution.

    Args:
        rng: random generator.
        n: number of variables.
        cones: blocks.
        batch: number of elements.
        rank: rank of P; 0 for a linear objective, n by default.
        decades: variables, rows and objective are scaled by powers of ten up to this.
        weak: fraction of the inactive nonnegative rows that are weakly active (no slack).
    """
    rank = n if rank is None else rank
    m = cones.m
    y, s = _complementary(rng, cones, batch)
    rows = slice(cones.zero, cones.zero + cones.nonnegative)
    s[:, rows] *= rng.random((batch, cones.nonnegative)) >= weak
    x, A = rng.standard_normal((batch, n)), rng.standard_normal((batch, m, n)) * (rng.random((m, n)) < 0.7)
    root = rng.standard_normal((batch, rank, n))
    P = root.swapaxes(1, 2) @ root / n
    D, E, c = (10.0 ** rng.uniform(-decades, decades, (batch, size)) for size in (n, m, 1))
    start = cones.zero + cones.nonnegative
    for size in cones.second_order:
        E[:, start : start + size] = E[:, start : start + 1]
        start += size
    x, s, y = x / D, E * s, c * y / E
    A, P = E[:, :, None] * A * D[:, None], c[:, :, None] * D[:, :, None] * P * D[:, None]
    q = -(_times(P, x) + _times(A.swapaxes(1, 2), y))
    return dense_program(cones, P if rank else None, q, A, _times(A, x) + s)


def infeasible(rng: np.random.Generator, n: int, cones: Cones, batch: int) -> ConeProgram:
    """Programs with a y in K*, A'y = 0 and b'y = -1."""
    program = solvable(rng, n, cones, batch)
    A = program.structure.A.dense(program.A)
    y, _ = _complementary(rng, cones, batch)
    A -= y[:, :, None] * _times(A.swapaxes(1, 2), y)[:, None] / np.sum(y * y, axis=1)[:, None, None]
    b = program.b - y * (np.sum(y * program.b, axis=1) + 1.0)[:, None] / np.sum(y * y, axis=1)[:, None]
    return replace(program, A=A[:, program.structure.A.rows, program.structure.A.cols], b=b)


def unbounded(rng: np.random.Generator, n: int, cones: Cones, batch: int) -> ConeProgram:
    """Feasible programs with an x, -Ax in K (inside the second-order cones), Px = 0 and q'x = -1."""
    program = solvable(rng, n, cones, batch)
    structure = program.structure
    x = rng.standard_normal((batch, n))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    _, s = _complementary(rng, cones, batch)
    s[:, cones.zero + cones.nonnegative + np.cumsum((0, *cones.second_order))[:-1].astype(int)] += 0.5
    A, P = structure.A.dense(program.A), structure.P.dense(program.P)
    A -= (_times(A, x) + s)[:, :, None] * x[:, None]
    P -= x[:, :, None] * _times(P, x)[:, None]
    P -= _times(P, x)[:, :, None] * x[:, None]
    q = program.q - x * (np.sum(program.q * x, axis=1) + 1.0)[:, None]
    _, inside = _complementary(rng, cones, batch)
    b = _times(A, rng.standard_normal((batch, n))) + inside
    values = P[:, structure.P.rows, structure.P.cols], A[:, structure.A.rows, structure.A.cols]
    return replace(program, P=values[0], A=values[1], q=q, b=b)


def _complementary(rng: np.random.Generator, cones: Cones, batch: int) -> tuple[Array, Array]:
    """Random y in K* and s in K with s'y = 0."""
    w = rng.standard_normal((batch, cones.m)) * np.exp(rng.uniform(-1.0, 1.0, (batch, cones.m)))
    y = product_cone(cones).project_dual(w)
    return y, y - w


def _times(M: Array, v: Array) -> Array:
    return (M @ v[..., None])[..., 0]


def drawn(rng: np.random.Generator, name: str, batch: int = BATCH) -> ConeProgram:
    n, cones, options = CASES[name]
    program = solvable(rng, n, cones, batch, **options)
    return program.with_objective_divided(program.objective_scale())  # as layers do


def solve(program: ConeProgram, device: str, *, tol: float = 1e-8, max_iter: int | None = None) -> Solution:
    return TorchInteriorPoint(program.structure, device).solve(program, tol=tol, max_iter=max_iter, time_limit_s=None)


def clarabel(program: ConeProgram, tol: float = 1e-10) -> Solution:
    solver, _ = solver_for("clarabel", program.structure)
    return solver.solve(solver.init(program.structure), program, Options(tol=tol))


@pytest.mark.parametrize("name", CASES)
def test_solves_what_clarabel_solves(name: str, device: str, rng: np.random.Generator) -> None:
    program = drawn(rng, name)
    found, reference = solve(program, device), clarabel(program)
    assert found.status == (Status.OPTIMAL,) * BATCH
    residuals = found.residuals(program)
    for part in (residuals.primal, residuals.dual, residuals.gap):
        assert np.max(part) <= 1.01e-8
    if not program.structure.cones.second_order and name != "weakly active":
        assert np.mean(residuals.natural <= 1e-8) >= 0.8
    there = reference.solved
    assert np.mean(there) >= 0.9
    ours, theirs = program.objective(found.x)[there], program.objective(reference.x)[there]
    size = np.maximum(1.0, np.sum(np.abs(program.q * found.x), axis=1))[there]
    np.testing.assert_allclose(ours / size, theirs / size, atol=3e-8)


@pytest.mark.parametrize("name", ["qp", "socp", "equalities"])
def test_x_converges_to_clarabels_with_a_smaller_tolerance(name: str, device: str, rng: np.random.Generator) -> None:
    program = drawn(rng, name)
    found, reference = solve(program, device, tol=1e-11), clarabel(program, 1e-12)
    np.testing.assert_allclose(found.x, reference.x, atol=1e-4)  # Clarabel's own natural residual is 1e-5
    assert np.median(np.abs(found.x - reference.x)) <= 1e-7


@pytest.mark.parametrize("cones", [Cones(zero=2, nonnegative=12), Cones(zero=1, nonnegative=6, second_order=(3, 5))])
def test_infeasible_elements_have_a_certificate(cones: Cones, device: str, rng: np.random.Generator) -> None:
    program = infeasible(rng, 8, cones, BATCH)
    found = solve(program, device)
    assert found.status == (Status.INFEASIBLE,) * BATCH
    assert found.certified(program, 1e-8)[0].status == found.status
    np.testing.assert_allclose(np.sum(program.b * found.y, axis=1), -1.0)
    np.testing.assert_allclose(program.structure.A.rmatvec(program.A, found.y), 0.0, atol=1.01e-8)
    assert np.all(np.isnan(found.x))


@pytest.mark.parametrize("cones", [Cones(zero=2, nonnegative=12), Cones(zero=1, nonnegative=6, second_order=(3, 5))])
def test_unbounded_elements_have_a_ray(cones: Cones, device: str, rng: np.random.Generator) -> None:
    program = unbounded(rng, 15, cones, BATCH)
    found = solve(program, device)
    assert found.status == (Status.UNBOUNDED,) * BATCH
    assert found.certified(program, 1e-8)[0].status == found.status
    np.testing.assert_allclose(np.sum(program.q * found.x, axis=1), -1.0)
    np.testing.assert_allclose(program.structure.P.matvec(program.P, found.x), 0.0, atol=1.01e-8)
    np.testing.assert_allclose(program.structure.A.matvec(program.A, found.x) + found.s, 0.0, atol=1.01e-8)
    assert np.all(np.isnan(found.y))


def test_an_element_that_overflows_does_not_affect_the_others(device: str, rng: np.random.Generator) -> None:
    """One element has values close to overflow."""
    program = drawn(rng, "qp", batch=4)
    alone = solve(program, device)
    b = program.b.copy()
    b[2] *= 1e300
    beside = solve(replace(program, b=b), device)
    others = np.array([0, 1, 3])
    np.testing.assert_allclose(beside.x[others], alone.x[others], atol=1e-9)
    assert beside.status[2] is not Status.OPTIMAL
    assert [beside.status[i] for i in others] == [Status.OPTIMAL] * 3


def test_finished_elements_keep_their_results_when_the_batch_is_compacted(
    device: str, rng: np.random.Generator
) -> None:
    """Most elements are easy and finish before the batch is compacted to the others."""
    hard = drawn(rng, "qp", batch=3)
    easy = replace(hard, q=0.0 * hard.q, b=np.ones_like(hard.b) * (np.arange(hard.b.shape[1]) >= 3))
    names = ("P", "q", "r", "A", "b")
    parts: dict[str, Any] = {name: np.concatenate([getattr(p, name) for p in (easy, hard, easy)]) for name in names}
    found = solve(replace(hard, **parts), device)
    assert found.status == (Status.OPTIMAL,) * 9
    np.testing.assert_allclose(found.x[[0, 1, 2, 6, 7, 8]], 0.0, atol=1e-5)
    np.testing.assert_allclose(found.x[3:6], solve(hard, device).x, atol=1e-8)
    assert np.max(found.iterations[:3]) < np.max(found.iterations[3:6])


def test_iteration_limit_returns_the_best_point(device: str, rng: np.random.Generator) -> None:
    program = drawn(rng, "qp")
    stopped = solve(program, device, max_iter=4)
    assert stopped.status == (Status.ITERATION_LIMIT,) * BATCH
    assert np.all(stopped.residuals(program).worst < 10.0)


def test_dependent_equalities(device: str, rng: np.random.Generator) -> None:
    program = drawn(rng, "qp")
    A, b = program.structure.A.dense(program.A), program.b.copy()
    A[:, 2], b[:, 2] = A[:, 0] - A[:, 1], b[:, 0] - b[:, 1]
    program = replace(program, A=A[:, program.structure.A.rows, program.structure.A.cols], b=b)
    found = solve(program, device)
    assert found.status == (Status.OPTIMAL,) * BATCH
    assert np.max(found.residuals(program).worst) <= 1e-6


def test_the_device_is_an_option(rng: np.random.Generator) -> None:
    program = drawn(rng, "qp", batch=2)
    solver, _ = solver_for("dense", program.structure)
    state = solver.init(program.structure)
    said = solver.solve(state, program, Options(solver_options={"dense": {"device": "cpu"}}))
    assert said.stats["device"] == "cpu"
    with pytest.raises(SolverError, match="no device 'nonsense'"):
        solver.solve(state, program, Options(solver_options={"dense": {"device": "nonsense"}}))
