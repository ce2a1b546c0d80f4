"""Quadratic forms of arguments that are not affine in the variables alone: the tracking cost quad_form(A @ x - r, P).

CVXPY's rule for parametrised quadratic objectives wants the argument free of parameters, whatever P is, although the
form is canonicalised as t'Pt with t == A @ x - r anyway; and convex arguments it forgets to canonicalise (1.9.3). With
a variable for the argument the problem is the same, follows the rule, and is canonicalised right.
"""

from __future__ import annotations

import cvxpy as cp

from convexlayer.canon.detached import expressions

__all__ = ["name_arguments"]


def name_arguments(problem: cp.Problem) -> cp.Problem:
    """The problem in which quadratic forms of the objective have variables for arguments with parameters or curvature.

    A curved argument is bounded by its variable on the side from which the form, by CVXPY's rules, pushes it.

    Args:
        problem: a detached problem, whose expressions are changed.
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
