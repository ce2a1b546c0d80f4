"""Solutions, duals, objective values and gradients against CVXPY and finite differences."""

from __future__ import annotations

import cvxpy as cp
import numpy as np
import pytest
import scipy.sparse as sp

from convexlayer import SolutionMap
from tests.families import CANONICAL, Family, family

TIGHT = {"tol_feas": 1e-11, "tol_gap_abs": 1e-11, "tol_gap_rel": 1e-11}


@pytest.fixture(params=CANONICAL)
def case(request: pytest.FixtureRequest) -> Family:
    return family(request.param)


def solved_by_cvxpy(case: Family) -> float:
    for parameter, value in zip(case.parameters, case.values(), strict=True):
        if parameter.sparse_idx is not None:
            entries = (value[parameter.sparse_idx], parameter.sparse_idx)
            parameter.value_sparse = sp.coo_array(entries, shape=parameter.shape)
        else:
            parameter.value = value
    return float(case.problem.solve(solver=cp.CLARABEL, gp=case.gp, **TIGHT))


@pytest.mark.filterwarnings("ignore:Reading from a sparse", "ignore:Solution may be inaccurate")
def test_solutions_and_duals_match_cvxpy(case: Family) -> None:
    program = case.program(self_check=True)
    assert case.cones <= program.structure.cones.kinds
    solved = SolutionMap(program).solve(case.values())
    assert [str(status) for status in solved.report.status] == ["optimal"]
    value = solved_by_cvxpy(case)
    np.testing.assert_allclose(solved.objective[0], value, rtol=1e-7, atol=1e-7)
    for variable, output in zip(case.outputs, solved.outputs, strict=True):
        value_of = variable.value_sparse if variable.sparse_idx is not None else variable.value
        theirs = value_of.toarray() if sp.issparse(value_of) else np.asarray(value_of)
        np.testing.assert_allclose(output[0], theirs.reshape(variable.shape), rtol=2e-5, atol=2e-5)


def test_directional_derivatives_match_finite_differences(case: Family) -> None:
    if not case.parameters:
        pytest.skip("nothing to differentiate by")
    solution_map = SolutionMap(case.program(self_check=True))
    rng = np.random.default_rng(0)
    directions = [_direction(p, v, rng) for p, v in zip(case.parameters, case.values(), strict=True)]
    solved = solution_map.solve(case.values())
    (*tangents, objective), _ = solved.jvp(directions)
    weights = [rng.normal(size=output.shape) for output in solved.outputs]
    gradients, report = solved.vjp(weights)
    if report.status != ("ok",):
        pytest.skip("the derivative does not exist here, as reported")

    def shifted(h: float) -> tuple[list[np.ndarray], np.ndarray]:
        moved = solution_map.solve([v + h * d for v, d in zip(case.values(), directions, strict=True)])
        return list(moved.outputs), moved.objective

    h = 1e-4
    (up, up_value), (down, down_value) = shifted(h), shifted(-h)
    np.testing.assert_allclose(objective, (up_value - down_value) / (2 * h), rtol=1e-5, atol=1e-6)
    for tangent, high, low in zip(tangents, up, down, strict=True):
        np.testing.assert_allclose(tangent, (high - low) / (2 * h), rtol=1e-4, atol=1e-5)
    pushed = sum(float(np.sum(w * t)) for w, t in zip(weights, tangents, strict=True))
    pulled = sum(float(np.sum(g * d)) for g, d in zip(gradients, directions, strict=True) if g is not None)
    np.testing.assert_allclose(pulled, pushed, rtol=1e-9, atol=1e-9)


def _direction(parameter: cp.Parameter, value: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A random direction that preserves the parameter's attributes."""
    direction = rng.normal(size=value.shape)
    if any(parameter.attributes[name] for name in ("symmetric", "PSD", "NSD")):
        return 0.5 * (direction + direction.T)
    if parameter.attributes["diag"] or parameter.sparse_idx is not None:
        return direction * (value != 0)
    return direction


def test_the_gradient_of_a_symmetric_parameter_is_symmetric() -> None:
    case = family("semidefinite")
    solved = SolutionMap(case.program(self_check=True)).solve(case.values())
    (gradient,), _ = solved.vjp([np.random.default_rng(0).normal(size=output.shape) for output in solved.outputs])
    assert gradient is not None
    np.testing.assert_allclose(gradient[0], gradient[0].T, atol=1e-14)
