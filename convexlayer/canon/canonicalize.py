"""Canonicalisation of a CVXPY problem to a checked ParametricProgram: the entry point of this package."""

from __future__ import annotations

from collections.abc import Sequence

import cvxpy as cp

from convexlayer.canon.detached import detached
from convexlayer.canon.frontend import canonical_form
from convexlayer.canon.instance_check import check_instance
from convexlayer.canon.parametric import ParametricProgram
from convexlayer.canon.presolve import presolved
from convexlayer.canon.solution_check import Solve, check_solution
from convexlayer.canon.translate import parametric_program
from convexlayer.errors import ProblemError

__all__ = ["canonicalise_problem"]


def canonicalise_problem(
    problem: cp.Problem,
    parameters: Sequence[cp.Parameter],
    variables: Sequence[cp.Variable],
    *,
    gp: bool,
    presolve: bool,
    check: Solve | None,
) -> ParametricProgram:
    """Canonicalise a CVXPY problem to a parametric cone program, whose data are affine in functions of the parameters.

    Args:
        problem: the problem, which is not changed.
        parameters: all parameters of the problem, in the order of the layer's arguments.
        variables: the variables and dual variables to return.
        gp: whether the problem is a geometric program.
        presolve: whether to reduce the program.
        check: the solver of the self-check, which compares the program with CVXPY's (``instance_check.py``) and the
            problem with a solution of the program (``solution_check.py``); None skips both.

    Raises:
        ProblemError: the arguments do not fit the problem, the problem is not convex, or the self-check failed.
        NotDPPError: the program data are not affine in the parameters.
        UnsupportedError: the problem has a part that is not supported.
    """
    _check_arguments(problem, parameters, variables)
    form = canonical_form(detached(problem), gp=gp)
    program = parametric_program(form, parameters, variables)
    if check is not None:
        check_instance(problem, form, parameters, program)
        check_solution(problem, form, parameters, program, check)
    return presolved(program) if presolve else program


def _check_arguments(problem: cp.Problem, parameters: Sequence[cp.Parameter], variables: Sequence[cp.Variable]) -> None:
    if not isinstance(problem, cp.Problem):
        raise ProblemError(f"expected a cvxpy.Problem, got {type(problem).__name__}")
    for parameter in parameters:
        if not isinstance(parameter, cp.Parameter):
            raise ProblemError(f"parameters must hold cvxpy.Parameter objects, got {type(parameter).__name__}")
    ids = [parameter.id for parameter in parameters]
    if len(set(ids)) < len(ids):
        raise ProblemError("parameters holds the same parameter twice")
    missing = [parameter.name() for parameter in problem.parameters() if parameter.id not in ids]
    if missing:
        raise ProblemError(f"parameters must hold every parameter of the problem; missing: {', '.join(missing)}")
    if not variables:
        raise ProblemError("variables is empty: name at least one variable to return")
    known = {variable.id for variable in problem.variables()}
    known |= {dual.id for constraint in problem.constraints for dual in constraint.dual_variables}
    for variable in variables:
        if not isinstance(variable, cp.Variable):
            raise ProblemError(
                "variables must hold cvxpy.Variable objects or a constraint's dual_variables, "
                f"got {type(variable).__name__}"
            )
        if variable.id not in known:
            raise ProblemError(
                f"{variable.name()!r} is neither a variable of the problem nor a dual variable of its constraints"
            )
