"""What ``solver="auto"`` chooses."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np

from convexlayer import compiled
from convexlayer.program import Structure

__all__ = ["candidates", "choose_solver"]

LARGE = 4000
"""From this many variables and rows on a program is solved by a solver that is made for large ones."""

DENSE_QP = 120
"""Up to this many variables an active-set method solves a dense quadratic program sooner than an interior-point one."""

DENSE = 0.5
"""Share of stored entries from which a matrix counts as dense."""


def choose_solver(structure: Structure) -> tuple[str, str]:
    """The name of a solver for a structure, and why."""
    kinds = ", ".join(sorted(structure.cones.kinds)) or "no constraints"
    size = f"{structure.n} variables, {structure.m} rows, {kinds}"
    if structure.n + structure.m > LARGE:
        return "clarabel", f"large: {size}"
    if _is_dense_qp(structure) and find_spec("daqp") is not None:
        return "daqp", f"a dense strictly convex quadratic program: {size}"
    if not compiled.ready():
        return "clarabel", f"the batched engine is not compiled yet (convexlayer compile): {size}"
    return "batched", f"small or middle-sized: {size}"


def candidates(structure: Structure) -> list[str]:
    """Names of the solvers that could be the fastest for a structure, the one that auto chooses first."""
    names = [choose_solver(structure)[0], "clarabel"]
    if structure.n + structure.m <= LARGE and compiled.ready():
        names.append("batched")
    if (
        structure.cones.kinds <= {"zero", "nonnegative"}
        and find_spec("daqp") is not None
        and structure.n <= 4 * DENSE_QP
    ):
        names.append("daqp")
    return list(dict.fromkeys(names))


def _is_dense_qp(structure: Structure) -> bool:
    """Whether it is a quadratic program with a dense P, no diagonal entry missing, or dense constraints."""
    P, A, n = structure.P, structure.A, structure.n
    if n > DENSE_QP or not structure.cones.kinds <= {"zero", "nonnegative"}:
        return False
    if np.count_nonzero(P.rows == P.cols) < n:
        return False
    return P.nnz >= DENSE * n * n or A.nnz >= DENSE * n * structure.m
