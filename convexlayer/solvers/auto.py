"""What ``solver="auto"`` chooses."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np

from convexlayer.program import Structure
from convexlayer.runtime import kernel_cache
from convexlayer.solvers.base import AbstractSolver

__all__ = ["candidates", "choose_solver", "fallback_of"]

LARGE = 4000
"""From this many variables and rows on a program is solved by a solver that is made for large ones."""

LARGE_PSD = 24
"""From this order on the systems of an interior-point method, dense in a semidefinite block's k (k + 1) / 2 rows, cost
more than the eigendecompositions of a first-order method; measured."""

CLARABEL_PSD, FALLBACK_PSD = 60, 100
"""Up to the first order Clarabel may be the faster one, up to the second it is asked for what SCS leaves unsolved:
there that takes tens of seconds, and SCS has spent as much by then."""

DENSE_QP = 120
"""Up to this many variables an active-set method solves a dense quadratic program sooner than an interior-point one."""

DENSE = 0.5
"""Share of stored entries from which a matrix counts as dense."""


DEVICE_LIMIT = 1500
"""Up to this many variables and rows a batch of dense programs is kept on a device."""

DEVICE_CONES = frozenset({"zero", "nonnegative", "second_order"})
"""Cones that the dense torch solver supports."""


def choose_solver(structure: Structure, device: str = "cpu") -> tuple[str, str]:
    """The name of a solver for a structure, and why.

    Args:
        structure: of the programs.
        device: the torch device that batches are meant for.
    """
    kinds = ", ".join(sorted(structure.cones.kinds)) or "no constraints"
    size = f"{structure.n} variables, {structure.m} rows, {kinds}"
    if _fits_device(structure, device):
        return "dense", f"small enough for {device}: {size}"
    order = max(structure.cones.psd, default=0)
    if order >= LARGE_PSD:
        return "scs", f"semidefinite blocks of order {order}: {size}"
    if structure.n + structure.m > LARGE:
        return "clarabel", f"large: {size}"
    if not kernel_cache.ready():
        return "clarabel", f"the kernels are not compiled yet (convexlayer compile): {size}"
    if _is_dense_qp(structure) and find_spec("daqp") is not None:
        return "daqp", f"a dense strictly convex quadratic program: {size}"
    return "batched", f"small or middle-sized: {size}"


def candidates(structure: Structure, device: str = "cpu") -> list[str]:
    """Names of the solvers that could be the fastest for a structure, the one that auto chooses first."""
    names = [choose_solver(structure, device)[0], choose_solver(structure)[0]]
    order = max(structure.cones.psd, default=0)
    if order <= CLARABEL_PSD:
        names.append("clarabel")
    if structure.n + structure.m <= LARGE and order < LARGE_PSD and kernel_cache.ready():
        names.append("batched")
    if (
        structure.cones.kinds <= {"zero", "nonnegative"}
        and find_spec("daqp") is not None
        and structure.n <= 4 * DENSE_QP
    ):
        names.append("daqp")
    return list(dict.fromkeys(names))


def fallback_of(solver: AbstractSolver, structure: Structure, *, automatic: bool) -> str | None:
    """The name of the solver that is asked again for elements which this one leaves unsettled; None where none is.

    The batched solver is one where it is compiled already, and where the program is not too large for it; Clarabel
    where it can afford the largest semidefinite block.

    Args:
        solver: the solver.
        structure: of the programs.
        automatic: whether ``auto`` chose it; then SCS has a fallback too.
    """
    order = max(structure.cones.psd, default=0)
    fallback = "clarabel" if automatic and solver.name == "scs" else solver.fallback
    if fallback == "batched":
        fits = order < LARGE_PSD and structure.n + structure.m <= LARGE
        return fallback if fits and kernel_cache.ready() else None
    return None if fallback == "clarabel" and order > FALLBACK_PSD else fallback


def _fits_device(structure: Structure, device: str) -> bool:
    """Whether the dense torch solver should solve these on a device other than the CPU."""
    return device != "cpu" and structure.cones.kinds <= DEVICE_CONES and structure.n + structure.m <= DEVICE_LIMIT


def _is_dense_qp(structure: Structure) -> bool:
    """Whether it is a quadratic program with a dense P, no diagonal entry missing, or dense constraints."""
    P, A, n = structure.P, structure.A, structure.n
    if n > DENSE_QP or not structure.cones.kinds <= {"zero", "nonnegative"}:
        return False
    if np.count_nonzero(P.rows == P.cols) < n:
        return False
    return P.nnz >= DENSE * n * n or A.nnz >= DENSE * n * structure.m
