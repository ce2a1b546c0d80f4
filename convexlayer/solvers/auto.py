"""Rules of ``solver="auto"``."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np

from convexlayer.program import Structure
from convexlayer.runtime import kernel_cache
from convexlayer.solvers.base import AbstractSolver

__all__ = ["candidates", "choose_solver", "fallback_of"]

LARGE = 4000
"""Variables plus rows above which a program is solved by Clarabel instead of the batched solver. Trades the speed of
lanes for the factorisation of large sparse systems; a round number, not tuned."""

LARGE_PSD = 24
"""Order of a semidefinite block from which SCS is chosen: the KKT systems of an interior-point method, dense in the
block's k (k + 1) / 2 rows, then cost more than the eigendecompositions of a first-order method (measured)."""

CLARABEL_PSD, FALLBACK_PSD = 60, 100
"""Largest orders of a semidefinite block at which Clarabel is a candidate for the fastest solver, and at which it is
the fallback of SCS. At the latter a solve takes tens of seconds, about as long as SCS has spent by then."""

DENSE_QP = 120
"""Number of variables up to which an active-set method is faster than an interior-point method for dense QPs (measured:
daqp takes 9 microseconds at 10 variables, 90 at 50)."""

DENSE_QP_CANDIDATES = 4 * DENSE_QP
"""Number of variables up to which daqp is tried by ``tune=True``, for sparse programs too: what it costs to try."""

DENSE = 0.5
"""Density (share of stored entries) from which a matrix counts as dense."""


DEVICE_LIMIT = 1500
"""Variables plus rows up to which a batch is solved on an accelerator; dense matrices of this order take 18 MB each."""

DEVICE_CONES = frozenset({"zero", "nonnegative", "second_order"})
"""Cones that the dense torch solver supports."""


def choose_solver(structure: Structure, device: str = "cpu") -> tuple[str, str]:
    """Choose a solver for a structure; returns its name and the reason.

    Args:
        structure: structure of the programs.
        device: the torch device for batches.
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
    """Names of the solvers that may be the fastest for a structure, starting with the choice of ``auto``."""
    names = [choose_solver(structure, device)[0], choose_solver(structure)[0]]
    order = max(structure.cones.psd, default=0)
    if order <= CLARABEL_PSD:
        names.append("clarabel")
    if structure.n + structure.m <= LARGE and order < LARGE_PSD and kernel_cache.ready():
        names.append("batched")
    if (
        structure.cones.kinds <= {"zero", "nonnegative"}
        and find_spec("daqp") is not None
        and structure.n <= DENSE_QP_CANDIDATES
    ):
        names.append("daqp")
    return list(dict.fromkeys(names))


def fallback_of(solver: AbstractSolver, structure: Structure, *, automatic: bool) -> str | None:
    """The name of the fallback for elements that a solver leaves unsettled, or None.

    The batched solver is a fallback only if its kernels are compiled and the program is not too large; Clarabel only if
    no semidefinite block is too large.

    Args:
        solver: the solver.
        structure: structure of the programs.
        automatic: whether ``auto`` chose the solver; only then SCS has a fallback.
    """
    order = max(structure.cones.psd, default=0)
    fallback = "clarabel" if automatic and solver.name == "scs" else solver.fallback
    if fallback == "batched":
        fits = order < LARGE_PSD and structure.n + structure.m <= LARGE
        return fallback if fits and kernel_cache.ready() else None
    return None if fallback == "clarabel" and order > FALLBACK_PSD else fallback


def _fits_device(structure: Structure, device: str) -> bool:
    """Whether the dense torch solver should solve this structure on a device other than the CPU."""
    return device != "cpu" and structure.cones.kinds <= DEVICE_CONES and structure.n + structure.m <= DEVICE_LIMIT


def _is_dense_qp(structure: Structure) -> bool:
    """Whether the structure is a QP with a full diagonal of P, and with a dense P or a dense A."""
    P, A, n = structure.P, structure.A, structure.n
    if n > DENSE_QP or not structure.cones.kinds <= {"zero", "nonnegative"}:
        return False
    if np.count_nonzero(P.rows == P.cols) < n:
        return False
    return P.nnz >= DENSE * n * n or A.nnz >= DENSE * n * structure.m
