"""Bitwise reproducibility: results of an element depend neither on its lane, nor on its neighbours, nor on the batch.

Tests every cone and stage with compiled kernels; ``make test-processors`` runs this for the instruction
sets of other processors.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from convexlayer import SolutionMap
from convexlayer.cones import product_cone
from convexlayer.diff import KKTSystem, SolutionCotangent, exact_differentiator, polish
from convexlayer.interior_point.lanes.solve import LanesInteriorPoint
from convexlayer.linalg.refined import StoredFactor
from convexlayer.program import Array, ConeProgram, Cones, Pattern, Structure
from convexlayer.runtime import kernel_cache
from convexlayer.solution import Solution
from convexlayer.status import Status
from tests.families import SMOOTH, family

pytestmark = pytest.mark.skipif(
    os.environ.get(kernel_cache.SETTING) == "never",
    reason="portable code leaves rounding to BLAS and LAPACK, which round by where an array lies in memory",
)

CONES = {
    "zero": Cones(zero=9),
    "nonnegative": Cones(nonnegative=12),
    "second_order": Cones(zero=1, second_order=(1, 2, 3, 3, 17)),
    "psd": Cones(zero=1, psd=(1, 3, 3, 5)),
    "exponential": Cones(zero=1, exponential=4),
    "power": Cones(zero=1, power=(0.2, 0.5, 0.9)),
    "product": Cones(zero=2, nonnegative=9, second_order=(3, 11), psd=(2, 3), exponential=2, power=(0.3, 0.7)),
}

DIFFERENT = 11
"""Number of different elements."""

MANY = 400
"""Number of elements that fill all lanes of all threads."""

Numbers = dict[str, NDArray[Any]]
"""Results of a batch, arrays (B, ...)."""


@cache
def drawn(name: str, quadratic: bool) -> tuple[ConeProgram, Solution]:
    """Draw programs over these cones, and approximate solutions of various accuracy.

    One program has many solutions, one has only weakly active constraints, and one has neither P nor A.
    """
    rng = np.random.default_rng([len(name), quadratic])
    cones = CONES[name]
    m, n = cones.m, cones.m // 2 + 2
    stored = rng.uniform(size=(m, n)) < 0.8
    cols, rows = np.nonzero(stored.T)
    P_cols, P_rows = np.nonzero(np.full((n, n), quadratic))
    structure = Structure(Pattern((n, n), P_rows, P_cols), Pattern((m, n), rows, cols), cones)
    F = rng.normal(size=(DIFFERENT, n, n))
    P, A = (F @ F.swapaxes(1, 2))[:, P_rows, P_cols], rng.normal(size=(DIFFERENT, len(rows)))
    P[2, (P_rows == 0) | (P_cols == 0)], A[2, cols == 0] = 0.0, 0.0
    P[8], A[8] = 0.0, 0.0
    x, w = rng.normal(size=(DIFFERENT, n)), rng.normal(size=(DIFFERENT, m))
    w[5] = 0.0
    y = product_cone(cones).project_dual(w)
    s = y - w
    q, b = -structure.P.matvec(P, x) - structure.A.rmatvec(A, y), structure.A.matvec(A, x) + s
    program = ConeProgram(structure, P, q, rng.normal(size=DIFFERENT), A, b)
    noise = 10.0 ** rng.uniform(-12, -3, size=(DIFFERENT, 1))
    noise[[2, 5, 8]] = 0.0
    x, y, s = (value + noise * rng.normal(size=value.shape) for value in (x, y, s))
    status, iterations = (Status.OPTIMAL,) * DIFFERENT, np.ones(DIFFERENT, dtype=np.int64)
    return program, Solution(x, y, s, status, iterations, np.zeros(DIFFERENT), {})


def words(status: tuple[str, ...]) -> Array:
    return np.array(status, dtype=object)


def interior_point_solutions(program: ConeProgram, _: Solution) -> Numbers:
    found = LanesInteriorPoint(program.structure).solve(program, tol=1e-8)
    return {"x": found.x, "y": found.y, "s": found.s, "status": words(found.status), "iterations": found.iterations}


def judged(program: ConeProgram, solution: Solution) -> Numbers:
    return vars(solution.residuals(program))


def projected(program: ConeProgram, solution: Solution) -> Numbers:
    cone, w = product_cone(program.structure.cones), solution.y - solution.s
    point = cone.at(w)
    derivative = point.derivative
    return {"y": point.projection, "D": derivative.apply(w), "margin": derivative.margin}


def polished(program: ConeProgram, solution: Solution) -> Numbers:
    found = polish(KKTSystem(program.structure), program, solution)
    return {"x": found.x, "y": found.y, "s": found.s}


def factorised(program: ConeProgram, solution: Solution) -> Numbers:
    system = KKTSystem(program.structure)
    point = solution.complementary(program)
    factor = system.refined(program, point.derivative, point.scales.c)
    assert isinstance(factor, StoredFactor)
    scale, E = factor.equilibrated(np.arange(program.batch))
    z, residual = factor.refine(E[:, np.arange(system.pattern.shape[0]) % E.shape[1]])
    return {
        "scale": scale,
        "E": E,
        "z": z,
        "residual": residual,
        "condition": factor.condition,
        "null direction": factor.null_direction,
    }


def differentiated(program: ConeProgram, solution: Solution) -> Numbers:
    derivative = exact_differentiator(KKTSystem(program.structure), program, solution)
    pulled, vjp_report = derivative.vjp(SolutionCotangent(solution.x, solution.y, solution.s))
    moved, jvp_report = derivative.jvp(program)
    structure = program.structure
    dP, dA = pulled.P(structure.P), pulled.A(structure.A)
    numbers = {"dP": dP, "dq": pulled.q, "dA": dA, "db": pulled.b, **vars(moved)}
    for way, report in (("vjp", vjp_report), ("jvp", jvp_report)):
        numbers |= {f"{way} {what}": value for what, value in vars(report).items() if what != "status"}
        numbers[f"{way} status"] = words(report.status)
    return numbers


STAGES: tuple[Callable[[ConeProgram, Solution], Numbers], ...] = (
    interior_point_solutions,
    judged,
    projected,
    factorised,
    polished,
    differentiated,
)


def same_bits(numbers: Numbers, expected: Numbers, index: NDArray[np.int64]) -> None:
    """Assert that rows ``index`` of the expected results are bitwise equal to the results."""
    assert numbers.keys() == expected.keys()
    for what, value in numbers.items():
        np.testing.assert_array_equal(value, expected[what][index], err_msg=what)


def batches() -> list[NDArray[np.int64]]:
    """Batches: each element alone, some in another order, and many, so that each element occurs in all lanes."""
    rng = np.random.default_rng(0)
    return [*np.arange(DIFFERENT)[:, None], np.arange(DIFFERENT)[::-2], rng.integers(0, DIFFERENT, MANY)]


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.__name__)
@pytest.mark.parametrize("quadratic", [True, False], ids=["quadratic", "linear"])
@pytest.mark.parametrize("name", CONES)
def test_results_of_each_cone_do_not_depend_on_the_batch(
    name: str, quadratic: bool, stage: Callable[[ConeProgram, Solution], Numbers]
) -> None:
    program, solution = drawn(name, quadratic)
    expected = stage(program, solution)
    for index in batches():
        same_bits(stage(program.select(index), solution.select(index)), expected, index)


@pytest.mark.parametrize("solver", ["auto", "batched"])
@pytest.mark.parametrize("name", SMOOTH)
def test_results_of_a_layer_do_not_depend_on_the_batch(name: str, solver: str) -> None:
    """Solutions, gradients and tangents of the layer."""
    solution_map, theta = SolutionMap(family(name).program(), solver=solver), family(name).values(DIFFERENT)

    def through(index: NDArray[np.int64]) -> Numbers:
        values = [value[index] for value in theta]
        solved = solution_map.solve(values)
        gradients, _ = solved.vjp([*solved.outputs, solved.objective])
        (*tangents, slope), _ = solved.jvp(values)
        numbers = {"objective": solved.objective, "objective's tangent": slope}
        parts = {"output": solved.outputs, "gradient": gradients, "tangent": tangents}
        numbers |= {f"{what} {i}": value for what, all_of_them in parts.items() for i, value in enumerate(all_of_them)}
        return numbers

    expected = through(np.arange(DIFFERENT))
    for index in batches():
        same_bits(through(index), expected, index)
