"""Quadratic forms with parametrised or nonaffine arguments, such as the tracking cost quad_form(A @ x - r, P).

CVXPY's DPP rule for quadratic objectives requires an argument without parameters, although CVXPY canonicalises the form
as t'Pt with t == A @ x - r anyway; and CVXPY 1.9.3 does not canonicalise convex arguments. A new variable for the
argument leaves the problem equivalent, satisfies the rule, and is canonicalised correctly.
"""

from __future__ import annotations

import cvxpy as cp

from convexlayer.canon.detached import expressions

__all__ = ["lift_arguments"]


def lift_arguments(problem: cp.Problem) -> cp.Problem:
    """Replace parametrised or nonaffine arguments of quadratic forms in the objective by new variables.

    The variable is an upper bound of a convex argument and a lower bound of a concave one; by CVXPY's composition rules
    the form is monotone such that the bound is tight.

    Args:
        problem: a detached problem, whose expressions are modified in place.
    """
    definitions: list[cp.Constraint] = []
    variables: dict[int, cp.Variable] = {}
    for form in expressions(problem.objective):
        if not isinstance(form, cp.QuadForm):
            continue
        argument = form.args[0]
        affine = argument.is_affine()
        if (affine and not argument.parameters()) or not argument.is_dcp(dpp=True):
            continue
        if id(argument) not in variables:
            t = cp.Variable(argument.shape)
            variables[id(argument)] = t
            definitions.append(t == argument if affine else t >= argument if argument.is_convex() else t <= argument)
        form.args[0] = variables[id(argument)]
    return cp.Problem(problem.objective, [*problem.constraints, *definitions]) if definitions else problem
