"""Cone programs with known solutions: draw the solution, then construct data for which it is optimal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from convexlayer.cones import product_cone
from convexlayer.program import Array, ConeProgram, Cones, Pattern, Structure
from convexlayer.solution import Solution
from convexlayer.status import Status

N = 12
"""Number of variables of these programs."""


@dataclass(frozen=True, eq=False)
class Known:
    """A batch of programs and their solutions (B, n), (B, m), (B, m), unique where the objective is quadratic."""

    program: ConeProgram
    x: Array
    y: Array
    s: Array

    def solution(self) -> Solution:
        """The solution as a solver would return it."""
        batch = len(self.x)
        nothing = np.zeros(batch)
        return Solution(self.x, self.y, self.s, (Status.OPTIMAL,) * batch, nothing.astype(np.int64), nothing, {})


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


def known(cones: Cones, *, quadratic: bool, batch: int = 2, seed: int = 0) -> Known:
    """Random strictly complementary programs over a product cone; without a quadratic term the solution is a vertex.

    w is drawn, y and s are its projections, x and A are drawn, b = Ax + s and q = -(Px + A'y).
    """
    rng = np.random.default_rng(seed)
    structure = dense_structure(N, cones, quadratic=quadratic)
    w = np.sign(rng.standard_normal((batch, cones.m))) * rng.uniform(0.5, 2.0, (batch, cones.m))
    if not quadratic:
        active = N - cones.zero
        w[:, cones.zero : cones.zero + cones.nonnegative] = rng.uniform(0.5, 2.0, (batch, cones.nonnegative))
        w[:, cones.zero + active : cones.zero + cones.nonnegative] *= -1.0
    y = product_cone(cones).project_dual(w)
    s = y - w
    x, A = rng.standard_normal((batch, N)), rng.standard_normal((batch, N * cones.m))
    root = rng.standard_normal((batch, N, N))
    P = (root @ root.swapaxes(1, 2) / N + np.eye(N)).reshape(batch, N * N) if quadratic else np.zeros((batch, 0))
    b = structure.A.matvec(A, x) + s
    q = -(structure.P.matvec(P, x) + structure.A.rmatvec(A, y))
    return Known(ConeProgram(structure, P, q, np.zeros(batch), A, b), x, y, s)


def rows(cones: Cones, A: Sequence[Sequence[float]], b: Sequence[float], q: Sequence[float]) -> ConeProgram:
    """One program without a quadratic term, from its data."""
    matrix = np.array(A, dtype=float)
    structure = dense_structure(matrix.shape[1], cones, quadratic=False)
    values = matrix.ravel(order="F")[None]
    return ConeProgram(structure, np.zeros((1, 0)), np.array([q], float), np.zeros(1), values, np.array([b], float))


FEASIBLE = rows(Cones(nonnegative=4), [[-1, 0], [0, -1], [0, 1], [-1, -1]], [1, 0, 2, 1], [1, 1])
"""Minimise x1 + x2 over x1 >= -1, 0 <= x2 <= 2 and x1 + x2 >= -1."""

INFEASIBLE = rows(Cones(nonnegative=4), [[-1, 0], [1, 0], [0, 1], [0, -1]], [-1, -1, 1, 0], [1, 1])
"""x1 >= 1 and x1 <= -1."""

UNBOUNDED = rows(Cones(nonnegative=4), [[-1, 0], [0, -1], [0, 1], [-1, -1]], [0, 0, 1, 0], [-1, 1])
"""Minimise x2 - x1 over x1 >= 0 and 0 <= x2 <= 1."""


def stack(*programs: ConeProgram) -> ConeProgram:
    """Concatenate programs of equal structure to a batch."""
    names = ("P", "q", "r", "A", "b")
    parts: dict[str, Any] = {name: np.concatenate([getattr(p, name) for p in programs]) for name in names}
    return replace(programs[0], **parts)
