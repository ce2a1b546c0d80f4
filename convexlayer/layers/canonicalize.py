"""Canonicalisation of a CVXPY problem to a ParametricProgram, with the solver of the self-check."""

from __future__ import annotations

from collections.abc import Sequence

import cvxpy as cp

from convexlayer.canon import ParametricProgram, canonicalise_problem
from convexlayer.program import ConeProgram
from convexlayer.solution import Solution
from convexlayer.solvers import Options
from convexlayer.solvers.registry import solver_for

__all__ = ["canonicalize"]

REFERENCE = "clarabel"
"""The solver of the self-check: always installed, and supports every cone."""


def canonicalize(
    problem: cp.Problem,
    parameters: Sequence[cp.Parameter],
    variables: Sequence[cp.Variable],
    *,
    gp: bool = False,
    presolve: bool = True,
    self_check: bool = True,
) -> ParametricProgram:
    """Canonicalise a CVXPY problem to a parametric cone program.

    Args:
        problem: a DPP problem; its state (values, caches) is neither used nor changed.
        parameters: all parameters of the problem, in the order of their values in a call. Parameters that the problem
            does not use are allowed; their gradients are zero.
        variables: the outputs: variables of the problem, and dual variables of its constraints
            (``constraint.dual_variables[i]``).
        gp: whether the problem is a geometric program.
        presolve: whether to reduce the program (see ``canon/presolve.py``); outputs and gradients stay the same.
        self_check: whether to compare the program with CVXPY's at a random parameter value and, for programs of
            moderate size, to evaluate the problem at a solution of the program.

    Raises:
        ProblemError: arguments that do not belong to the problem, a problem that is not convex, or a failed self-check.
        NotDPPError: the problem is not DPP.
        UnsupportedError: the problem has a part that Convexlayer does not support.
    """
    check = _solved if self_check else None
    return canonicalise_problem(problem, parameters, variables, gp=gp, presolve=presolve, check=check)


def _solved(program: ConeProgram, accuracy: float) -> Solution:
    """Solve a program by the reference solver with this tolerance."""
    solver, _ = solver_for(REFERENCE, program.structure)
    return solver.solve(solver.init(program.structure), program, Options(tol=accuracy))
