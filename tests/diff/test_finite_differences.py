"""The exact derivative against finite differences, over each cone and their product, with and without P."""

from __future__ import annotations

import numpy as np
import pytest

from convexlayer.diff import KKTSystem, SolutionCotangent, SolutionTangent, exact_differentiator, polish
from convexlayer.program import Array, ConeProgram, ProgramCotangent
from convexlayer.solvers import Options
from convexlayer.solvers.clarabel_ import ClarabelSolver
from convexlayer.testing.programs import Known

from .programs import CONES, data_tangents, differences, draw, flat_cotangent, flat_data, flat_point, point_cotangents

pytestmark = pytest.mark.usefixtures("form")

DRAWS = 20
COMPARED = 10
"""Number of draws whose derivatives are compared."""

REJECTED = 0.05
DIFFERENCES = 1e-7
TRANSPOSE = 1e-9
FLOOR = 1e-2
"""Errors are relative to the part of the tangent, but at least to this fraction of the whole tangent."""


@pytest.mark.parametrize("quadratic", [True, False], ids=["quadratic", "linear"])
@pytest.mark.parametrize("name", CONES)
def test_jvp_and_vjp_agree_with_differences(name: str, quadratic: bool) -> None:
    generators = [np.random.default_rng(seed) for seed in range(DRAWS)]
    found = [(rng, draw(rng, CONES[name], quadratic=quadratic)) for rng in generators]
    regular = [(rng, drawn) for rng, drawn in found if drawn is not None]
    assert len(regular) >= (1.0 - REJECTED) * DRAWS
    for rng, drawn in regular[:COMPARED]:
        structure = drawn.program.structure
        tangent, cotangent = data_tangents(rng, structure, 2), point_cotangents(rng, structure, 2)
        expected = differences(drawn, tangent)
        moved, pulled = exact(drawn, tangent, cotangent)
        assert jvp_error(moved, expected) <= DIFFERENCES
        assert vjp_error(pulled, tangent, cotangent, flat_point(expected)) <= DIFFERENCES
        assert vjp_error(pulled, tangent, cotangent, flat_point(moved)) <= TRANSPOSE


@pytest.mark.parametrize("quadratic", [True, False], ids=["quadratic", "linear"])
def test_jvp_agrees_with_differences_of_a_solver(quadratic: bool) -> None:
    rng = np.random.default_rng(1)
    drawn = draw(rng, CONES["product"], quadratic=quadratic)
    assert drawn is not None
    solver, system = ClarabelSolver(), KKTSystem(drawn.program.structure)
    state = solver.init(drawn.program.structure)

    def solve(program: ConeProgram) -> tuple[Array, Array, Array]:
        solution = polish(system, program, solver.solve(state, program, Options()))
        assert np.all(solution.residuals(program).worst <= 1e-12)
        return solution.x, solution.y, solution.s

    for found, known in zip(solve(drawn.program), (drawn.solution.x, drawn.solution.y, drawn.solution.s), strict=True):
        np.testing.assert_allclose(found, known, atol=1e-9)
    tangent, cotangent = (
        data_tangents(rng, drawn.program.structure, 1),
        point_cotangents(rng, drawn.program.structure, 1),
    )
    expected = differences(drawn, tangent, solve)
    moved, pulled = exact(drawn, tangent, cotangent)
    assert jvp_error(moved, expected) <= DIFFERENCES
    assert vjp_error(pulled, tangent, cotangent, flat_point(expected)) <= DIFFERENCES


def exact(drawn: Known, tangent: ConeProgram, cotangent: SolutionCotangent) -> tuple[SolutionTangent, ProgramCotangent]:
    """The jvp of the tangents and the vjp of the cotangents; asserts that all are trusted."""
    system = KKTSystem(drawn.program.structure)
    copies = [drawn.repeat(len(flat)) for flat in (tangent.q, cotangent.x)]
    forward, backward = (exact_differentiator(system, copy.program, copy.solution) for copy in copies)
    moved, forward_report = forward.jvp(tangent)
    pulled, backward_report = backward.vjp(cotangent)
    assert forward_report.trusted, forward_report
    assert backward_report.trusted, backward_report
    return moved, pulled


def jvp_error(moved: SolutionTangent, expected: SolutionTangent) -> float:
    """The worst relative error of dx, dy or ds."""
    whole = FLOOR * norm(flat_point(expected))
    parts = ((moved.x, expected.x), (moved.y, expected.y), (moved.s, expected.s))
    return max(float(np.max(norm(part - known) / np.maximum(norm(known), whole))) for part, known in parts)


def vjp_error(pulled: ProgramCotangent, tangent: ConeProgram, cotangent: SolutionCotangent, moved: Array) -> float:
    """The worst difference of <J'v, u> and <v, J u>, relative to norm(v) and the part of J u where v is nonzero."""
    v = flat_point(cotangent)
    seen = np.sqrt((v != 0) @ (moved**2).T)
    scale = norm(v)[:, None] * np.maximum(seen, FLOOR * norm(moved))
    return float(np.max(np.abs(flat_cotangent(pulled, tangent.structure) @ flat_data(tangent).T - v @ moved.T) / scale))


def norm(rows: Array) -> Array:
    """Euclidean norm of each row."""
    return np.linalg.norm(rows, axis=1)
