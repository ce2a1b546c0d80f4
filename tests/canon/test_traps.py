"""Regression tests of known pitfalls in CVXPY's canonicalisation."""

from __future__ import annotations

import pickle
from typing import Any

import cvxpy as cp
import numpy as np
import pytest
from cvxpy.reductions.solvers.conic_solvers.conic_solver import ConicSolver

from convexlayer import NotDPPError, ProblemError, SolutionMap, UnsupportedError, canonicalize
from convexlayer.canon import frontend, instance_check
from convexlayer.canon.frontend import instance_of_constants
from tests.families import family

x = cp.Variable(3, name="x")
b = cp.Parameter(3, name="b")
a, c = cp.Parameter(pos=True, name="a"), cp.Parameter(pos=True, name="c")
P = cp.Parameter((3, 3), PSD=True, name="P")


def test_a_problem_that_is_not_dpp_is_rejected_even_after_a_solve() -> None:
    problem = cp.Problem(cp.Minimize(cp.sum_squares(a * c * x - b)))
    for parameter, value in ((a, 1.0), (c, 2.0), (b, np.ones(3))):
        parameter.value = value
    with pytest.warns(UserWarning, match="not DPP"):
        problem.solve(solver=cp.CLARABEL)
    with pytest.raises(NotDPPError, match="not affine in the parameters"):
        canonicalize(problem, [a, c, b], [x])


@pytest.mark.parametrize("value", [None, np.eye(3)])
def test_a_parameter_that_cvxpy_would_treat_as_a_constant_is_rejected(value: Any) -> None:
    parameter = cp.Parameter((3, 3), PSD=True, value=value)
    problem = cp.Problem(cp.Minimize(cp.maximum(cp.quad_form(x, parameter), 1)))
    assert problem.is_dpp(quad_form_dpp="qp")
    with pytest.raises(NotDPPError, match="without values of its parameters"):
        canonicalize(problem, [parameter], [x])


def test_a_parametric_quad_form_that_plain_is_dpp_rejects_is_accepted() -> None:
    problem = cp.Problem(cp.Minimize(cp.quad_form(x, P) + b @ x))
    assert not problem.is_dpp()
    canonicalize(problem, [P, b], [x])


def test_a_quad_form_parameter_without_psd_is_rejected() -> None:
    plain = cp.Parameter((3, 3), symmetric=True)
    with pytest.raises(ProblemError):
        canonicalize(cp.Problem(cp.Minimize(cp.quad_form(x, plain))), [plain], [x])


def test_a_parameter_of_a_geometric_program_may_have_two_features() -> None:
    case = family("geometric_exponent")
    program = case.program(self_check=True)
    assert program.features.size == 3 + 3
    assert 0 in program.features.log


def test_the_objective_of_a_maximisation_keeps_its_sign_and_offset() -> None:
    case = family("objective_in_parameters_alone")
    solved = SolutionMap(case.program(self_check=True)).solve(case.values())
    np.testing.assert_allclose(solved.objective, [3.0])
    (gradient, *_), _ = solved.vjp([None, np.ones(1)])
    np.testing.assert_allclose(gradient, [2.0])


@pytest.mark.parametrize(
    ("field", "value", "named"),
    [
        ("lower_bounds", np.zeros(3), "variable bounds"),
        ("ub_tensor", np.zeros((3, 1)), "variable bounds"),
        ("dir_cones", [("soc", [0, 1], 1, {})], "direct cones"),
    ],
)
def test_unsupported_parts_of_the_canonical_form_are_rejected(field: str, value: Any, named: str) -> None:
    form = frontend.canonical_form(cp.Problem(cp.Minimize(cp.sum_squares(x)), [x >= 1]), gp=False)
    setattr(form.param_prog, field, value)
    with pytest.raises(UnsupportedError, match=named):
        frontend._check_program(form.param_prog)


def test_an_unsupported_release_of_cvxpy_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cp, "__version__", "2.0.0")
    with pytest.raises(UnsupportedError, match=r"installed is 2\.0\.0"):
        canonicalize(cp.Problem(cp.Minimize(cp.sum_squares(x - b))), [b], [x])


def test_geometric_means_become_three_dimensional_power_cones() -> None:
    problem = cp.Problem(cp.Maximize(cp.geo_mean(x, approx=False)), [x <= b])
    cones = canonicalize(problem, [b], [x]).structure.cones
    assert len(cones.power) == 2
    assert not cones.second_order


def test_approximated_powers_become_second_order_cones() -> None:
    def kinds(approx: bool) -> frozenset[str]:
        problem = cp.Problem(cp.Minimize(cp.sum(x)), [cp.power(x, -0.7, approx=approx) <= b])
        return canonicalize(problem, [b], [x]).structure.cones.kinds

    with pytest.warns(UserWarning, match="approximated"):
        assert "second_order" in kinds(approx=True)
    assert "power" in kinds(approx=False)


REFUSED = {
    "integer variables": (
        cp.Problem(cp.Minimize(cp.sum(cp.abs(cp.Variable(3, integer=True, name="z") - b)))),
        UnsupportedError,
    ),
    "complex variables": (
        cp.Problem(cp.Minimize(cp.norm(cp.Variable(3, complex=True, name="z") - b))),
        UnsupportedError,
    ),
    "complex constants": (cp.Problem(cp.Minimize(cp.norm(cp.Variable(3, name="z") - b * 1j))), UnsupportedError),
    "quasiconvex": (cp.Problem(cp.Minimize(cp.ceil(cp.Variable(name="z"))), [x >= b]), UnsupportedError),
    "concave": (cp.Problem(cp.Maximize(cp.sum_squares(cp.Variable(3, name="z") - b))), ProblemError),
}


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_problems_without_a_derivative_are_rejected(name: str) -> None:
    problem, error = REFUSED[name]
    with pytest.raises(error):
        canonicalize(problem, [b], problem.variables()[:1])


def test_a_geometric_program_without_gp_gets_a_hint() -> None:
    case = family("geometric_exponent")
    with pytest.raises(ProblemError, match="pass gp=True"):
        canonicalize(case.problem, case.parameters, case.outputs)


def test_arguments_that_do_not_belong_to_the_problem_are_named() -> None:
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - b)), [x >= a])
    with pytest.raises(ProblemError, match="missing: a"):
        canonicalize(problem, [b], [x])
    with pytest.raises(ProblemError, match="twice"):
        canonicalize(problem, [a, b, b], [x])
    with pytest.raises(ProblemError, match="'stranger' is neither"):
        canonicalize(problem, [a, b], [cp.Variable(name="stranger")])
    with pytest.raises(ProblemError, match="at least one"):
        canonicalize(problem, [a, b], [])
    with pytest.raises(ProblemError, match="Parameter objects"):
        canonicalize(problem, [a, b, x], [x])
    with pytest.raises(ProblemError, match=r"cvxpy\.Problem"):
        canonicalize(x, [a, b], [x])
    with pytest.raises(ProblemError, match="no variables"):
        frontend.canonical_form(cp.Problem(cp.Minimize(a)), gp=False)


def test_the_users_problem_is_neither_used_nor_changed() -> None:
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - b) + cp.quad_form(x, P)), [x >= 0])
    b.value, P.value = np.array([1.0, -1.0, 2.0]), np.eye(3)
    problem.solve(solver=cp.CLARABEL)
    before = pickle.dumps([b.value, P.value, x.value, problem.constraints[0].dual_value, problem.value])
    cached = problem._cache.param_prog
    canonicalize(problem, [b, P], [x, problem.constraints[0].dual_variables[0]])
    assert pickle.dumps([b.value, P.value, x.value, problem.constraints[0].dual_value, problem.value]) == before
    assert problem._cache.param_prog is cached


def test_the_self_check_detects_a_wrong_map(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - b)), [x >= a])

    def doubled(*args: Any, **kwargs: Any) -> frontend.Instance:
        right = instance_of_constants(*args, **kwargs)
        assert right is not None
        return right._replace(b=right.b + 1.0)

    monkeypatch.setattr(instance_check, "instance_of_constants", doubled)
    with pytest.raises(ProblemError, match="self-check failed: b "):
        canonicalize(problem, [a, b], [x])
    canonicalize(problem, [a, b], [x], self_check=False)


def test_the_self_check_compares_the_instance_if_constants_change_the_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - b)), [x >= a])

    def doubled(*args: Any) -> frontend.Instance:
        right = frontend.instance(*args)
        return right._replace(b=right.b + 1.0)

    monkeypatch.setattr(instance_check, "instance_of_constants", lambda *args, **kwargs: None)
    canonicalize(problem, [a, b], [x])
    monkeypatch.setattr(instance_check, "instance", doubled)
    with pytest.raises(ProblemError, match="self-check failed: b "):
        canonicalize(problem, [a, b], [x])


def test_the_solver_class_satisfies_cvxpys_interface() -> None:
    solver = frontend._StandardForm()
    assert isinstance(solver, ConicSolver)
    assert solver.is_installed()
    assert not solver.BOUNDED_VARIABLES
    assert not solver.DIR_CONE_KINDS
    with pytest.raises(NotImplementedError):
        solver.solve_via_data()


@pytest.mark.parametrize("constant", [np.inf, np.nan])
def test_nonfinite_coefficients_are_rejected(constant: float) -> None:
    with pytest.raises(ProblemError, match="not finite"):
        canonicalize(cp.Problem(cp.Minimize(cp.sum_squares(x - b) + constant * x[0])), [b], [x])
    with pytest.raises(ProblemError, match="infinite bounds"):
        canonicalize(cp.Problem(cp.Minimize(cp.sum_squares(x - b)), [x <= constant]), [b], [x])
