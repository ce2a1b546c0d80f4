"""The problems of the suite: reproducible draws, and agreement of CVXPY problem, QP form and cone program."""

from __future__ import annotations

from pathlib import Path

import cvxpy as cp
import numpy as np
import pytest
import torch

from benchmarks.canonical import ConeMap
from benchmarks.problem import Problem
from benchmarks.suite import LARGE, SMALL, make

QPS = [name for name in SMALL if make(name).qp is not None]


@pytest.mark.parametrize("name", [*SMALL, *LARGE])
def test_draws_have_the_parameters_shapes_and_depend_on_the_seed(name: str) -> None:
    problem = make(name)
    first, again, other = (problem.theta(2, seed=seed) for seed in (0, 0, 1))
    assert [tuple(t.shape) for t in first] == [(2, *p.shape) for p in problem.parameters]
    assert all(t.requires_grad and t.dtype == torch.float64 for t in first)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    assert problem.problem.is_dpp("dgp" if problem.gp else "dcp", quad_form_dpp="qp")
    assert set(problem.problem.parameters()) == set(problem.parameters)


def _values_in_cvxpy(problem: Problem, seed: int) -> list[torch.Tensor]:
    """Set the parameters to one draw; returns its tensors."""
    theta = [t.detach() for t in problem.theta(1, seed=seed)]
    for parameter, value in zip(problem.parameters, theta, strict=True):
        parameter.value = value[0].numpy()
    return theta


@pytest.mark.parametrize("name", QPS)
def test_the_qp_form_has_the_solution_of_the_problem(name: str) -> None:
    problem = make(name)
    assert problem.qp is not None
    theta = _values_in_cvxpy(problem, 3)
    problem.problem.solve(solver=cp.CLARABEL)
    qp = problem.qp.data(*theta).expanded()
    P, q, G, h, A, b = (t[0].numpy() for t in (qp.P, qp.q, qp.G, qp.h, qp.A, qp.b))
    x = cp.Variable(len(q))
    constraints = [G @ x <= h] + ([A @ x == b] if len(b) else [])
    cp.Problem(cp.Minimize(0.5 * cp.quad_form(x, cp.psd_wrap(P)) + q @ x), constraints).solve(solver=cp.CLARABEL)
    for variable, output in zip(problem.variables, problem.qp.outputs(torch.from_numpy(x.value)[None]), strict=True):
        np.testing.assert_allclose(output[0].numpy(), variable.value, atol=2e-3)


@pytest.mark.parametrize(
    "name", ["control", "correlation", "entropy", "gate_sizing_6", "parametric_quad_form", "portfolio"]
)
def test_the_cone_map_equals_cvxpys_canonicalisation(name: str) -> None:
    problem = make(name)
    cones = ConeMap(problem)
    data = cones.data(tuple(_values_in_cvxpy(problem, 4)))
    with cp.utilities.scopes.quad_form_dpp_scope():
        expected, chain, inverse = problem.problem.get_problem_data(cp.CLARABEL, gp=problem.gp, solver_opts={})
    dense = {"A": cones.A.copy(), "P": cones.P.copy()}
    for key, values in (("A", data.A), ("P", data.P)):
        dense[key].data[:] = values[0].numpy()
    np.testing.assert_allclose(dense["A"].toarray(), expected["A"].toarray(), atol=1e-12)
    np.testing.assert_allclose(data.b[0].numpy(), expected["b"], atol=1e-12)
    np.testing.assert_allclose(data.q[0].numpy(), expected["c"], atol=1e-12)
    if "P" in expected:
        np.testing.assert_allclose(np.triu(dense["P"].toarray()), np.triu(expected["P"].toarray()), atol=1e-12)
    solution = chain.solver.solve_via_data(expected, warm_start=False, verbose=False, solver_opts={})
    problem.problem.unpack_results(solution, chain, inverse)
    for variable, output in zip(
        problem.variables, cones.outputs(torch.tensor(solution.x, dtype=torch.float64)[None]), strict=True
    ):
        np.testing.assert_allclose(output[0].numpy(), variable.value, atol=1e-12)


def test_the_cone_map_has_exact_derivatives() -> None:
    problem = make("parametric_factor")
    cones = ConeMap(problem)
    theta = problem.theta(1, seed=0)

    def stacked(*theta: torch.Tensor) -> torch.Tensor:
        data = cones.data(theta)
        return torch.cat([data.P, data.q, data.A, data.b], dim=1)

    outputs = stacked(*theta)
    weight = torch.randn_like(outputs)
    gradients = torch.autograd.grad(outputs, theta, weight)
    moved = tuple((t + torch.randn_like(t)).detach() for t in theta)
    change = ((stacked(*moved) - outputs) * weight).sum()  # the map is affine
    predicted = sum(((m - t) * g).sum() for m, t, g in zip(moved, theta, gradients, strict=True))
    torch.testing.assert_close(predicted, change, atol=1e-10, rtol=1e-10)


def test_the_robotics_data_are_convex_and_attributed() -> None:
    folder = Path(__file__).parents[2] / "benchmarks" / "data" / "mpc"
    assert "Apache-2.0" in (folder / "README.md").read_text(encoding="utf-8")
    for path in folder.glob("*.npz"):
        with np.load(path, allow_pickle=False) as file:
            assert len(file["q"]) == len(file["h"]) == 30
            for key in ("P", "G"):  # the suite uses the first matrix for all instances
                assert np.array_equal(file[key], np.broadcast_to(file[key][0], file[key].shape))
            assert np.linalg.eigvalsh(file["P"][0]).min() > 0
