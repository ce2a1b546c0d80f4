"""Batches of dense cone programs with known solutions and derivatives, and their scaling.

Programs are constructed from their solutions: given P, A, x and w, set y = Pi_{K*}(w), s = y - w, b = A x + s and
q = -(P x + A'y). Derivatives follow from the Newton matrix of the optimality conditions in (x, w),

    N = [[P, A'D], [A, D - I]],    D the derivative of Pi_{K*} at w,

by dense linear algebra on the unscaled program, whose numbers are near 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from convexlayer import ParametricProgram
from convexlayer.canon.document import write_pattern
from convexlayer.cones import product_cone
from convexlayer.program import Array, Cones, IndexArray, Pattern

__all__ = [
    "DATA",
    "Programs",
    "Units",
    "assembled",
    "block_heights",
    "derivative",
    "parametric",
    "pull",
    "stacked",
    "value_gradient",
]

DATA = ("P", "q", "A", "b")
"""Names of the parameters: values of the upper triangle of P, q, values of A, b."""


@dataclass(frozen=True, eq=False)
class Units:
    """Scaling of a program to x', s', objective': x = variables * x', s' = rows * s, objective' = objective * value.

    Attributes:
        variables: (B, n).
        rows: (B, m), the same for all rows of a curved block.
        objective: (B,).
    """

    variables: Array
    rows: Array
    objective: Array

    def select(self, index: slice) -> Units:
        """The units of some elements."""
        return Units(self.variables[index], self.rows[index], self.objective[index])


@dataclass(frozen=True, eq=False)
class Programs:
    """minimize x'Px/2 + q'x subject to b - Ax in K, with known solutions.

    Attributes:
        cones: K.
        P: (B, n, n).
        q: (B, n).
        A: (B, m, n).
        b: (B, m).
        x: (B, n).
        w: y - s, (B, m).
    """

    cones: Cones
    P: Array
    q: Array
    A: Array
    b: Array
    x: Array
    w: Array

    @property
    def batch(self) -> int:
        """Number of elements."""
        return len(self.x)

    @cached_property
    def y(self) -> Array:
        """Dual solutions, (B, m)."""
        return product_cone(self.cones).project_dual(self.w)

    @cached_property
    def upper(self) -> tuple[IndexArray, IndexArray]:
        """Rows and columns of the entries of P that are parameters."""
        rows, cols = np.nonzero(np.triu(np.any(self.P != 0.0, axis=0)))
        return rows.astype(np.int64), cols.astype(np.int64)

    @cached_property
    def pattern(self) -> Pattern:
        """Sparsity pattern of A, column by column."""
        cols, rows = np.nonzero(np.any(self.A != 0.0, axis=0).T)
        return Pattern(self.A.shape[1:], rows, cols)

    def theta(self) -> list[Array]:
        """Values of the parameters (see ``DATA``)."""
        i, j = self.upper
        return [self.P[:, i, j], self.q, self.A[:, self.pattern.rows, self.pattern.cols], self.b]

    def units_of(self, units: Units) -> list[Array]:
        """Factors by which these units multiply the parameters, one array per parameter."""
        d, e, c = units.variables, units.rows, units.objective[:, None]
        (i, j), A = self.upper, self.pattern
        return [c * d[:, i] * d[:, j], c * d, e[:, A.rows] * d[:, A.cols], e]

    def select(self, index: slice) -> Programs:
        """Some elements, with the sparsity patterns of the whole batch."""
        parts = {name: getattr(self, name)[index] for name in ("P", "q", "A", "b", "x", "w")}
        chosen = replace(self, **parts)
        chosen.__dict__.update(upper=self.upper, pattern=self.pattern)
        return chosen


def assembled(P: Array, A: Array, x: Array, w: Array, cones: Cones) -> Programs:
    """The programs with P (B, n, n) and A (B, m, n) whose solutions are x (B, n) and w (B, m)."""
    y = product_cone(cones).project_dual(w)
    q = -(np.einsum("bij,bj->bi", P, x) + np.einsum("bji,bj->bi", A, y))
    return Programs(cones, P, q, A, np.einsum("bij,bj->bi", A, x) + y - w, x, w)


def stacked(programs: Sequence[Programs]) -> Programs:
    """Concatenate batches."""
    parts = (np.concatenate([getattr(p, name) for p in programs]) for name in ("P", "q", "A", "b", "x", "w"))
    return Programs(programs[0].cones, *parts)


def block_heights(cones: Cones) -> list[int]:
    """Number of rows of each block with one unit: single rows of the zero and nonnegative cones, curved blocks."""
    triangles = [side * (side + 1) // 2 for side in cones.psd]
    flat = [1] * (cones.zero + cones.nonnegative)
    return [*flat, *cones.second_order, *triangles, *[3] * (cones.exponential + len(cones.power))]


def parametric(programs: Programs, visible: Sequence[int], *, duals: bool) -> ParametricProgram:
    """The parametric program with all data as parameters; outputs are the visible variables, and y if ``duals``."""
    n, m, (i, j), A = programs.x.shape[1], programs.w.shape[1], programs.upper, programs.pattern
    full = np.zeros((n, n), dtype=bool)
    full[i, j] = full[j, i] = True
    cols, rows = np.nonzero(full)
    position = np.zeros((n, n), dtype=np.int64)
    position[i, j] = position[j, i] = np.arange(len(i))
    sizes = [len(i), n, A.nnz, m]
    start = np.cumsum([0, *sizes]).tolist()
    lines = np.concatenate([position[rows, cols], start[1] + np.arange(sum(sizes[1:]))])
    places = np.concatenate([np.arange(len(rows) + n), 1 + len(rows) + n + np.arange(A.nnz + m)])  # r is constant
    outputs = [{"name": "x", "shape": [len(visible)], "log": False}]
    shown = list(visible)
    if duals:
        outputs.append({"name": "y", "shape": [m], "log": False})
        shown += list(range(n, n + m))
    return ParametricProgram.from_document(
        {
            "version": 1,
            "n": n,
            "parameters": [
                {"name": name, "shape": [size], "attributes": [], "sparsity": None}
                for name, size in zip(DATA, sizes, strict=True)
            ],
            "log": [],
            "cones": programs.cones.as_dict(),
            "P": write_pattern(Pattern((n, n), rows, cols)),
            "A": write_pattern(A),
            "data": {
                "constant": [0.0] * (len(rows) + n + 1 + A.nnz + m),
                "rows": places.tolist(),
                "cols": lines.tolist(),
                "values": [1.0] * len(places),
            },
            "outputs": outputs,
            "recovery": {"rows": list(range(len(shown))), "cols": shown, "values": [1.0] * len(shown)},
            "objective": {"maximize": False, "log": False},
        }
    )


def derivative(cones: Cones, w: Array) -> Array:
    """D as dense matrices, (B, m, m)."""
    D = np.zeros((*w.shape, cones.m))
    for group in product_cone(cones).groups:
        basis = group.cone.derivative(group.split(w))
        d = basis.d[..., None, :]
        blocks = d * np.eye(group.size) if basis.Q is None else (basis.Q * d) @ np.swapaxes(basis.Q, -1, -2)
        for block in range(group.blocks):
            rows = slice(group.start + block * group.size, group.start + (block + 1) * group.size)
            D[:, rows, rows] = blocks[:, block]
    return D


def newton(programs: Programs, D: Array) -> Array:
    """The Newton matrices N, (B, n + m, n + m)."""
    n, m = programs.x.shape[1], programs.w.shape[1]
    out = np.zeros((programs.batch, n + m, n + m))
    out[:, :n, :n], out[:, n:, :n] = programs.P, programs.A
    out[:, :n, n:] = np.swapaxes(programs.A, 1, 2) @ D
    out[:, n:, n:] = D - np.eye(m)
    return out


def pull(programs: Programs, v: Array) -> list[Array]:
    """The gradients of c'(x, w) in the parameters, from v (B, n + m) with N'v = c.

    With v = (u, g), c'(dx, dw) = -u'(dP x + dq + dA'y) - g'(dA x - db).
    """
    n = programs.x.shape[1]
    u, g, x, y, (i, j), A = v[:, :n], v[:, n:], programs.x, programs.y, programs.upper, programs.pattern
    both = u[:, i] * x[:, j] + np.where(i == j, 0.0, u[:, j] * x[:, i])
    return [-both, -u, -(y[:, A.rows] * u[:, A.cols] + g[:, A.rows] * x[:, A.cols]), g]


def value_gradient(programs: Programs) -> list[Array]:
    """The gradients of the optimal value in the parameters: those of the Lagrangian, if x and y are unique."""
    x, y, (i, j), A = programs.x, programs.y, programs.upper, programs.pattern
    return [np.where(i == j, 0.5, 1.0) * x[:, i] * x[:, j], x, y[:, A.rows] * x[:, A.cols], -y]
