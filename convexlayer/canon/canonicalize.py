"""The entrance: a CVXPY problem becomes a ParametricProgram, checked."""

from __future__ import annotations

from collections.abc import Sequence

import cvxpy as cp

from convexlayer.canon.detached import detached
from convexlayer.canon.frontend import canonical_form
from convexlayer.canon.parametric import ParametricProgram
from convexlayer.canon.presolve import presolved
from convexlayer.canon.self_check import check_instances
from convexlayer.canon.translate import parametric_program
from convexlayer.errors import ProblemError

__all__ = ["canonicalize"]


def canonicalize(
    problem: cp.Problem,
    parameters: Sequence[cp.Parameter],
    variables: Sequence[cp.Variable],
    *,
    gp: bool = False,
    presolve: bool = True,
    self_check: bool = True,
) -> ParametricProgram:
    """Compile a CVXPY problem to a parametric cone program.

    Args:
        problem: a DPP problem; its own state (values, caches) is neither used nor changed.
        parameters: every parameter of the problem, in the order in which values will be given. Parameters that the
            problem does not use are allowed; their gradients are zero.
        variables: what to return: variables of the problem, and dual variables of its constraints
            (``constraint.dual_variables[i]``).
        gp: the problem is a geometric program.
        presolve: reduce the program (see ``presolve.py``); outputs and gradients are the same.
        self_check: compare the compiled program with CVXPY's own at two random parameter values.

    Raises:
        ProblemError: arguments that do not belong to the problem, a problem that is not convex, or a failed self-check.
        NotDPPError: the problem is not DPP.
        UnsupportedError: the problem uses what Convexlayer does not know.
    """
    _check_arguments(problem, parameters, variables)
    form = canonical_form(detached(problem), gp=gp)
    program = parametric_program(form, parameters, variables)
    if self_check:
        check_instances(problem, form, parameters, program)
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
