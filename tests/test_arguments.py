"""Arguments of the wrong type: errors name the expected and the received type."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cvxpy as cp
import numpy as np
import pytest
import torch

from convexlayer import ConvexLayer, Options, ProblemError, ShapeError, SolutionMap, SolverError, canonicalize
from convexlayer.arguments import as_array, describe

x, c = cp.Variable(3, name="x"), cp.Parameter(3, name="c")
PROBLEM = cp.Problem(cp.Minimize(cp.sum_squares(x - c)), [x >= 0])
ONE = torch.ones(3, dtype=torch.float64)


def layer(**keywords: Any) -> ConvexLayer:
    return ConvexLayer(PROBLEM, [c], [x], **keywords)


def solution_map(**keywords: Any) -> SolutionMap:
    return SolutionMap(canonicalize(PROBLEM, [c], [x], self_check=False), **keywords)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("solver", None, "solver must be a name such as 'auto' or 'clarabel', got None"),
        ("solver", 3, r"solver must be a name .*, got 3 \(int\)"),
        ("solver", ["clarabel"], r"solver must be a name .*, got \['clarabel'\] \(list\)"),
        ("tune", "yes", r"tune must be True or False, got 'yes' \(str\)"),
        ("tune", None, "tune must be True or False, got None"),
        ("device", None, "device must be a name such as 'cpu' or 'cuda', got None"),
        ("device", torch.device("cpu"), "device must be a name such as 'cpu' or 'cuda', got device"),
        ("derivative", None, "derivative must be a name such as 'exact', got None"),
        ("check_attributes", 0, r"check_attributes must be True or False, got 0 \(int\)"),
        ("options", "fast", r"options must be an Options, a mapping .*, or None, got 'fast' \(str\)"),
        ("options", [("tol", 1e-9)], r"options must be .*, got \[\('tol', 1e-09\)\] \(list\)"),
    ],
)
@pytest.mark.parametrize("make", [layer, solution_map])
def test_constructors(make: Callable[..., Any], name: str, value: object, expected: str) -> None:
    with pytest.raises(ProblemError, match=f"^{expected}"):
        make(**{name: value})


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("gp", "no", "gp must be True or False, got 'no'"),
        ("presolve", 1, "presolve must be True or False, got 1"),
        ("self_check", None, "self_check must be True or False, got None"),
        ("on_failure", None, "on_failure must be one of raise, nan, keep, got None"),
        ("on_failure", ["nan"], "on_failure must be one of raise, nan, keep, got "),
        ("on_degenerate", True, r"on_degenerate must be one of warn, report, raise, got True \(bool\)"),
    ],
)
def test_arguments_of_the_layer_only(name: str, value: object, expected: str) -> None:
    with pytest.raises(ProblemError, match=f"^{expected}"):
        layer(**{name: value})


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((PROBLEM.objective, [c], [x]), "problem must be a cvxpy.Problem, got "),
        ((None, [c], [x]), "problem must be a cvxpy.Problem, got None"),
        ((PROBLEM, c, [x]), "parameters must be a list of cvxpy.Parameter, got "),
        ((PROBLEM, None, [x]), "parameters must be a list of cvxpy.Parameter, got None"),
        ((PROBLEM, [np.ones(3)], [x]), r"parameters\[0\] must be a cvxpy.Parameter, got "),
        ((PROBLEM, [c], x), "variables must be a list of cvxpy.Variable"),
        ((PROBLEM, [c], [2 * x]), r"variables\[0\] must be a cvxpy.Variable"),
        ((PROBLEM, [c], ["x"]), r"variables\[0\] must be a cvxpy.Variable .*, got 'x' \(str\)"),
    ],
)
def test_problem_parameters_and_variables(arguments: tuple[Any, ...], expected: str) -> None:
    with pytest.raises(ProblemError, match=f"^{expected}"):
        ConvexLayer(*arguments)


OPTIONS: list[tuple[dict[str, Any], str]] = [
    ({"tol": "1e-9"}, r"tol must be a number such as 1e-8, got '1e-9' \(str\)"),
    ({"tol": None}, "tol must be a number such as 1e-8, got None"),
    ({"tol": True}, "tol must be a number such as 1e-8, got True"),
    ({"tol": 1e-9 + 0j}, "tol must be a number such as 1e-8, got "),
    ({"tol": [1e-9]}, "tol must be a number such as 1e-8, got "),
    ({"max_iter": 10.0}, r"max_iter must be an integer, or None, got 10.0 \(float\)"),
    ({"max_iter": "10"}, "max_iter must be an integer, or None, got '10'"),
    ({"max_iter": False}, "max_iter must be an integer, or None, got False"),
    ({"time_limit_s": "1"}, "time_limit_s must be a number of seconds, or None, got '1'"),
    ({"polish": 1}, "polish must be True or False, got 1"),
    ({"polish": None}, "polish must be True or False, got None"),
    ({"solver_options": "clarabel"}, "solver_options must be a mapping from solver names"),
    ({"solver_options": {"clarabel": None}}, r"solver_options\['clarabel'\] must be a mapping of the solver's options"),
]


@pytest.mark.parametrize(("options", "expected"), OPTIONS)
def test_options(options: dict[str, Any], expected: str) -> None:
    made, prepared = layer(), solution_map()
    for attempt in (
        lambda: Options(**options),
        lambda: layer(options=options),
        lambda: made(ONE, options=options),
        lambda: made.solve(ONE, options=options),
        lambda: prepared.solve([np.ones(3)], options=options),
    ):
        with pytest.raises(ProblemError, match=f"^{expected}"):
            attempt()


def test_options_may_be_numpy_scalars() -> None:
    numbers: dict[str, Any] = {"tol": np.float32(1e-4), "max_iter": np.int64(7), "time_limit_s": np.float64(2.0)}
    options = Options(**numbers)
    assert [type(value) for value in (options.tol, options.max_iter, options.time_limit_s)] == [float, int, float]
    for solver in ("clarabel", "scs", "osqp"):
        assert layer(solver=solver, on_failure="nan").solve(ONE, options=options)[1].solver == solver


def test_out_of_range_and_unknown_options_are_solver_errors() -> None:
    for options in ({"tol": 2.0}, {"max_iter": 0}, {"time_limit_s": -1.0}, {"tolerance": 1e-3}):
        with pytest.raises(SolverError):
            layer()(ONE, options=options)
    with pytest.raises(SolverError, match="no solver ''"):
        layer(solver="")


@pytest.mark.parametrize("value", [True, 1, "report", np.ones(3), (1, 2)])
def test_warm_starts(value: Any) -> None:
    made = layer(solver="scs")
    for call in (made, made.solve):
        with pytest.raises(ProblemError, match=r"^warm_start must be the Report of an earlier call, or None, got "):
            call(ONE, warm_start=value)
    with pytest.raises(ProblemError, match=r"^warm_start must be"):
        made.solution_map.solve([np.ones(3)], warm_start=value)


@pytest.mark.parametrize("value", [None, 1.0, "ones", np.ones(3), [1.0, 2.0, 3.0]])
def test_arguments_that_are_not_tensors(value: object) -> None:
    with pytest.raises(ProblemError, match="expected torch tensors, got "):
        layer()(value)


@pytest.mark.parametrize(
    ("theta", "expected"),
    [
        (None, "expected a list or tuple of one array per parameter, got None"),
        (1.0, "expected a list or tuple of one array per parameter, got 1.0"),
        ([[1.0, [2.0], 3.0]], "parameter 'c': expected an array of real numbers, got "),
        ([["a", "b", "c"]], "parameter 'c': expected an array of real numbers, got "),
        ([np.ones(3) + 1j], "parameter 'c': expected an array of real numbers, got .*complex128"),
        ([None], "parameter 'c': expected an array of real numbers, got None"),
        ([torch.ones(3, requires_grad=True)], "parameter 'c': expected an array of real numbers, got "),
    ],
)
def test_parameter_values_of_a_solution_map(theta: Any, expected: str) -> None:
    with pytest.raises(ProblemError, match=f"^{expected}"):
        solution_map().solve(theta)
    with pytest.raises(ShapeError, match=r"expected 1 values \(for c\), got 2"):
        solution_map().solve([np.ones(3), np.ones(3)])


def test_arguments_of_a_solution_map() -> None:
    with pytest.raises(ProblemError, match=r"^program must be the result of canonicalize, got "):
        SolutionMap(PROBLEM)
    with pytest.raises(ProblemError, match=r"^solution must be a Solution, such as a report's ``solution``, got None"):
        solution_map().at([np.ones(3)], None)


def test_cotangents_and_tangents_of_a_solved_batch() -> None:
    solved = solution_map().solve([np.ones((2, 3))])
    (gradient,), _ = solved.vjp([np.ones((2, 3)), np.ones(2)])
    assert gradient is not None
    assert gradient.shape == (2, 3)
    attempts: list[tuple[Callable[[], object], str]] = [
        (lambda: solved.vjp([]), r"expected 2 cotangents \(for x, objective\), got 0"),
        (lambda: solved.vjp([np.ones(3)]), r"cotangents of 'x': expected shape \(2, 3\), got \(3,\)"),
        (lambda: solved.vjp([None, np.ones(3)]), r"cotangents of 'objective': expected shape \(2,\), got"),
        (lambda: solved.vjp([None], wrt=[True, False]), "expected 1 entries in wrt, got 2"),
        (lambda: solved.jvp([np.ones((2, 4))]), r"tangents of 'c': expected shape \(2, 3\), got \(2, 4\)"),
        (lambda: solved.jvp([None, None]), r"expected 1 tangents \(for c\), got 2"),
    ]
    for attempt, expected in attempts:
        with pytest.raises(ShapeError, match=expected):
            attempt()
    with pytest.raises(ProblemError, match="cotangents of 'x': expected an array of real numbers"):
        solved.vjp(["ones"])  # type: ignore[list-item]


def test_descriptions() -> None:
    assert describe(None) == "None"
    assert describe(3) == "3 (int)"
    assert describe(np.ones(100)) == "a value of type ndarray"
    assert as_array("a", [1, 2]).dtype == np.float64
    values = np.ones(3)
    assert as_array("a", values) is values
