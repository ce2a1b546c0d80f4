"""Cone programs with known solutions: draw the solution, then construct data for which it is optimal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import ArrayLike

from convexlayer.cones import Nonnegative, Zero, product_cone
from convexlayer.program import Array, ConeProgram, Cones, IndexArray, Pattern, Structure
from convexlayer.solution import Solution
from convexlayer.status import Status

__all__ = [
    "FEASIBLE",
    "INFEASIBLE",
    "KINDS",
    "UNBOUNDED",
    "Known",
    "constructed",
    "dense_program",
    "dense_structure",
    "known",
    "product_of",
    "solution_at",
    "stack",
]

N = 12
"""Number of variables of these programs."""


@final
@dataclass(frozen=True, eq=False)
class Known:
    """A batch of programs and their solutions.

    Attributes:
        program: the programs.
        solution: their solutions, as a solver would return them.
    """

    program: ConeProgram
    solution: Solution

    @property
    def w(self) -> Array:
        """The vector w = y - s, (B, m)."""
        return self.solution.y - self.solution.s

    def repeat(self, count: int) -> Known:
        """A batch of ``count`` copies of the first element."""
        index = np.zeros(count, dtype=np.int64)
        return Known(self.program.select(index), self.solution.select(index))


KINDS = {
    "lp": Cones(zero=3, nonnegative=15),
    "qp": Cones(zero=3, nonnegative=9),
    "socp": Cones(nonnegative=2, second_order=(3, 4, 1, 2)),
    "sdp": Cones(zero=1, psd=(3, 4, 1)),
    "exponential": Cones(zero=1, exponential=3),
    "power": Cones(zero=1, power=(0.3, 0.5, 0.8)),
}
"""One program of each kind; all but the LP have a quadratic objective as well as a linear one."""


def product_of(kinds: frozenset[str]) -> Cones:
    """A product cone with one block of each of these kinds."""
    blocks = Cones(zero=2, nonnegative=3, second_order=(3,), psd=(3,), exponential=1, power=(0.4,))
    return Cones(**{kind: getattr(blocks, kind) for kind in kinds})


def dense_structure(n: int, cones: Cones, *, quadratic: bool) -> Structure:
    """A structure with dense A, and dense P if quadratic."""
    everything, nothing = (np.divmod(np.arange(n * height), max(height, 1)) for height in (n, 0))
    cols, lines = everything if quadratic else nothing
    A_cols, A_rows = np.divmod(np.arange(n * cones.m), max(cones.m, 1))
    return Structure(Pattern((n, n), lines, cols), Pattern((cones.m, n), A_rows, A_cols), cones)


def dense_program(cones: Cones, P: ArrayLike | None, q: ArrayLike, A: ArrayLike, b: ArrayLike) -> ConeProgram:
    """Programs from dense data: P (B, n, n), or None without a quadratic term, q (B, n), A (B, m, n) and b (B, m)."""
    q, A = np.asarray(q, dtype=float), np.asarray(A, dtype=float)
    batch, n = q.shape
    structure = dense_structure(n, cones, quadratic=P is not None)
    P = np.zeros((batch, n, n)) if P is None else np.asarray(P, dtype=float)
    P_values, A_values = P[:, structure.P.rows, structure.P.cols], A[:, structure.A.rows, structure.A.cols]
    return ConeProgram(structure, P_values, q, np.zeros(batch), A_values, np.asarray(b, dtype=float))


def constructed(structure: Structure, P: Array, A: Array, x: Array, w: Array) -> Known:
    """The programs with the values P and A of the entries whose solutions are at x (B, n) and w = y - s (B, m).

    y = Pi_{K*}(w) and s = y - w are complementary; q = -(Px + A'y) and b = Ax + s make (x, y, s) a solution.
    """
    y = product_cone(structure.cones).project_dual(w)
    s = y - w
    q = -(structure.P.matvec(P, x) + structure.A.rmatvec(A, y))
    program = ConeProgram(structure, P, q, np.zeros(len(x)), A, structure.A.matvec(A, x) + s)
    return Known(program, solution_at(x, y, s))


def solution_at(x: Array, y: Array, s: Array) -> Solution:
    """Points (B, n), (B, m) and (B, m) with the status optimal, as a solver would return them."""
    batch = len(x)
    return Solution(x, y, s, (Status.OPTIMAL,) * batch, np.zeros(batch, dtype=np.int64), np.zeros(batch), {})


def known(cones: Cones, *, quadratic: bool, batch: int = 2, seed: int = 0) -> Known:
    """Random strictly complementary programs over a product cone, in ``N`` variables, made by ``constructed``.

    The solution is unique where the objective is quadratic. Without a quadratic term it is if there are enough
    nonnegative rows: then as many of them are active as determine x and y (with flat cones alone, the solution is a
    vertex).
    """
    rng = np.random.default_rng(seed)
    w = _dual_minus_slack(rng, (batch, cones.m))
    if not quadratic:
        _activate(rng, cones, w)
    x, A = rng.standard_normal((batch, N)), rng.standard_normal((batch, N * cones.m))
    root = rng.standard_normal((batch, N, N))
    P = (root @ root.swapaxes(1, 2) / N + np.eye(N)).reshape(batch, N * N) if quadratic else np.zeros((batch, 0))
    return constructed(dense_structure(N, cones, quadratic=quadratic), P, A, x, w)


def _dual_minus_slack(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Draw w with entries that are not small."""
    signs = np.sign(rng.standard_normal(shape))
    return np.asarray(signs * rng.uniform(0.5, 2.0, shape))


def _activate(rng: np.random.Generator, cones: Cones, w: Array) -> None:
    """Choose the signs of the nonnegative rows of w (B, m), such that linear programs have unique solutions.

    With E1 and E0 the eigenspaces of D for the eigenvalues 1 and 0, x is unique if n <= m - dim E0, and y if
    dim E1 <= n, for generic A. A row with w > 0 adds a dimension to E1. Curved blocks are drawn again while they alone
    exceed n.
    """
    first, last = cones.zero, cones.zero + cones.nonnegative
    w[:, first:last] = rng.uniform(0.5, 2.0, (len(w), cones.nonnegative))
    while (crowded := _unit_eigenvalues(cones, w) > N - cones.zero).any():
        w[crowded, last:] = _dual_minus_slack(rng, (int(np.count_nonzero(crowded)), cones.m - last))
    for row, taken in zip(w, _unit_eigenvalues(cones, w), strict=True):
        row[N - taken : last] *= -1.0


def _unit_eigenvalues(cones: Cones, w: Array) -> IndexArray:
    """Number of eigenvalues 1 of D in the curved blocks of each element, (B,)."""
    counts = np.zeros(len(w), dtype=np.int64)
    for group in product_cone(cones).groups:
        if not isinstance(group.cone, Zero | Nonnegative):
            counts += np.count_nonzero(group.cone.derivative(group.split(w)).complement < 1e-9, axis=(1, 2))
    return counts


FEASIBLE = dense_program(Cones(nonnegative=4), None, [[1, 1]], [[[-1, 0], [0, -1], [0, 1], [-1, -1]]], [[1, 0, 2, 1]])
"""Minimise x1 + x2 over x1 >= -1, 0 <= x2 <= 2 and x1 + x2 >= -1."""

INFEASIBLE = dense_program(Cones(nonnegative=4), None, [[1, 1]], [[[-1, 0], [1, 0], [0, 1], [0, -1]]], [[-1, -1, 1, 0]])
"""x1 >= 1 and x1 <= -1."""

UNBOUNDED = dense_program(Cones(nonnegative=4), None, [[-1, 1]], [[[-1, 0], [0, -1], [0, 1], [-1, -1]]], [[0, 0, 1, 0]])
"""Minimise x2 - x1 over x1 >= 0 and 0 <= x2 <= 1."""


def stack(*programs: ConeProgram) -> ConeProgram:
    """Concatenate programs of equal structure to a batch."""
    P, q, r, A, b = (np.concatenate([getattr(p, part) for p in programs]) for part in ("P", "q", "r", "A", "b"))
    return ConeProgram(programs[0].structure, P, q, r, A, b)
