"""A CVXPY problem becomes a ParametricProgram, checked with a solver."""

from __future__ import annotations

from collections.abc import Sequence

import cvxpy as cp

from convexlayer.canon import ParametricProgram, parametrised
from convexlayer.program import ConeProgram
from convexlayer.solution import Solution
from convexlayer.solvers import Options
from convexlayer.solvers.registry import solver_for

__all__ = ["canonicalize"]

REFERENCE = "clarabel"
"""The solver of the self-check: always installed, and for every cone."""


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
        presolve: reduce the program (see ``canon/presolve.py``); outputs and gradients are the same.
        self_check: compare the compiled program with CVXPY's own at two random parameter values, and where it is of
            moderate size evaluate the problem itself at a solution.

    Raises:
        ProblemError: arguments that do not belong to the problem, a problem that is not convex, or a failed self-check.
        NotDPPError: the problem is not DPP.
        UnsupportedError: the problem uses what Convexlayer does not know.
    """
    check = _solved if self_check else None
    return parametrised(problem, parameters, variables, gp=gp, presolve=presolve, check=check)


def _solved(program: ConeProgram, accuracy: float) -> Solution:
    solver, _ = solver_for(REFERENCE, program.structure)
    return solver.solve(solver.init(program.structure), program, Options(tol=accuracy))
