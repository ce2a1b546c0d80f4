"""The exact derivative, by one symmetric system.

With D the derivative of Pi_{K*} at w = y - s and L L' = D, L = Q sqrt(d),

    K = [ P      A'L         ]
        [ L'A   -diag(1 - d) ]

is symmetric, quasi-definite up to regularisation, and of one pattern for all active sets. One factorisation serves
every vjp, every jvp, and the Newton steps of ``polish``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import final

import numpy as np

from convexlayer.cones import ProductDerivative
from convexlayer.diff.base import (
    AbstractDifferentiator,
    SolutionCotangent,
    SolutionTangent,
    data_cotangent,
    whole_data,
    whole_point,
)
from convexlayer.diff.report import ACCURATE, DerivativeReport
from convexlayer.linalg import ACCEPTED, SINGULAR, AbstractBackend, RefinedFactor, choose_backend
from convexlayer.program import Array, ConeProgram, IndexArray, Pattern, Structure, max_norm
from convexlayer.solution import Solution, product_cone

__all__ = ["ExactDifferentiator", "ReducedSystem"]

VISIBLE = 1e-5
"""Effect of a unit null direction, from which the choice among several solutions matters."""

DOUBTFUL = 1e-3
"""Margin relative to w, below which it is worth asking which rows it comes from."""

NEGLIGIBLE = 1e-11
"""Part of the solution of the linear system that counts as zero, relative to its largest entry."""


@dataclass(frozen=True, eq=False)
class _Blocks:
    """Blocks of one cone kind with k rows and c occurring columns each: where their entries of A and of K stand.

    Attributes:
        group: index of the cone group among those with a basis.
        members: which blocks of that group, (blocks,).
        source: position in A's values of each (row, column), or -1, (blocks, k, c).
        target: position in K's values of each (eigen-direction, column), (blocks, k, c).
    """

    group: int
    members: IndexArray
    source: IndexArray
    target: IndexArray


@final
class ReducedSystem:
    """The symbolic part: pattern of K and where each value comes from. Once a layer."""

    def __init__(self, structure: Structure, backend: AbstractBackend | None = None) -> None:
        """Analyse a structure; the backend is chosen by size and density unless given."""
        self.structure = structure
        self.cone = product_cone(structure.cones)
        n, m, P, A = structure.n, structure.m, structure.P, structure.A
        bases = self.cone.derivative(np.zeros((1, m))).blocks()
        in_block = np.zeros(m, dtype=bool)
        for group in bases:
            in_block[group.start : group.start + group.blocks * group.size] = True

        upper = np.flatnonzero(P.rows <= P.cols)
        plain = np.flatnonzero(~in_block[A.rows])
        diagonal = np.arange(n + m)
        rows = [P.rows[upper], diagonal, A.cols[plain]]
        cols = [P.cols[upper], diagonal, n + A.rows[plain]]
        pending: list[tuple[int, list[int], list[IndexArray], list[IndexArray]]] = []
        by_row = np.argsort(A.rows, kind="stable")
        row_start = np.searchsorted(A.rows[by_row], np.arange(m + 1))
        for position, group in enumerate(bases):
            shapes: dict[int, tuple[int, list[int], list[IndexArray], list[IndexArray]]] = {}
            for block in range(group.blocks):
                first = group.start + block * group.size
                entries = by_row[row_start[first] : row_start[first + group.size]]
                occurring, local = np.unique(A.cols[entries], return_inverse=True)
                source = np.full((group.size, len(occurring)), -1)
                source[A.rows[entries] - first, local] = entries
                _, members, sources, columns = shapes.setdefault(len(occurring), (position, [], [], []))
                members.append(block)
                sources.append(source)
                columns.append(occurring)
            pending += shapes.values()
        for position, members, _, columns in pending:
            group = bases[position]
            first_rows = group.start + np.asarray(members) * group.size
            shape = (len(members), group.size, columns[0].size)
            rows.append(np.broadcast_to(np.stack(columns)[:, None, :], shape).ravel())
            cols.append(np.broadcast_to((n + first_rows[:, None] + np.arange(group.size))[:, :, None], shape).ravel())

        all_rows, all_cols = np.concatenate(rows), np.concatenate(cols)
        keys, place = np.unique(all_cols * (n + m) + all_rows, return_inverse=True)
        size = max(n + m, 1)
        self.pattern = Pattern((n + m, n + m), keys % size, keys // size)
        ends = np.cumsum([len(part) for part in rows])
        self._P_source, self._P_target = upper, place[: ends[0]]
        self._diagonal = place[ends[0] + n : ends[1]]
        self._A_source, self._A_rows, self._A_target = plain, A.rows[plain], place[ends[1] : ends[2]]
        self._blocks = [
            _Blocks(
                position, np.asarray(members), np.stack(sources), place[start:stop].reshape(np.stack(sources).shape)
            )
            for (position, members, sources, _), start, stop in zip(pending, ends[2:-1], ends[3:], strict=True)
        ]
        self.signs = np.concatenate([np.ones(n), -np.ones(m)])
        self.backend = backend or choose_backend(self.pattern)
        self.state = self.backend.init(self.pattern)

    def factor(self, program: ConeProgram, derivative: ProductDerivative) -> RefinedFactor:
        """Assemble K for every element and factorise it."""
        batch = program.batch
        values = np.zeros((batch, self.pattern.nnz))
        values[:, self._P_target] = program.P[:, self._P_source]
        values[:, self._diagonal] = -derivative.complement
        root = derivative.sqrt_d
        values[:, self._A_target] = root[:, self._A_rows] * program.A[:, self._A_source]
        bases = derivative.blocks()
        for blocks in self._blocks:
            start, _, size, Q = bases[blocks.group]
            A_blocks = np.where(blocks.source >= 0, program.A[:, blocks.source], 0.0)
            rows = start + blocks.members[:, None] * size + np.arange(size)
            LtA = np.swapaxes(Q[:, blocks.members], -1, -2) @ A_blocks * root[:, rows][..., None]
            values[:, blocks.target] = LtA
        return RefinedFactor(self.backend, self.state, self.pattern, values, self.signs)


@final
class ExactDifferentiator(AbstractDifferentiator):
    """Derivative at a batch of solutions; factorises at the first use and keeps the factors."""

    def __init__(self, system: ReducedSystem, program: ConeProgram, solution: Solution) -> None:
        """Nothing is computed yet. Every element must have a finite point."""
        self._system = system
        self._program = program
        self._solution = solution

    @cached_property
    def _w(self) -> Array:
        return self._solution.y - self._solution.s

    @cached_property
    def _derivative(self) -> ProductDerivative:
        return self._system.cone.derivative(self._w)

    @cached_property
    def _solution_residual(self) -> Array:
        return self._solution.residuals(self._program).worst

    @cached_property
    def _margin(self) -> Array:
        return self._system.cone.margin(self._w)

    @cached_property
    def _factor(self) -> RefinedFactor:
        return self._system.factor(self._program, self._derivative)

    def vjp(
        self, cotangent: SolutionCotangent, *, seen: Callable[[ConeProgram], Array] = whole_data
    ) -> tuple[ConeProgram, DerivativeReport]:
        """K [l; u] = [dx - A'ds; L'dy], v = ds + L u, then the gradients of ``data_cotangent``."""
        program, D = self._program, self._derivative
        A, n = program.structure.A, program.structure.n
        size = np.maximum(1.0, np.maximum(max_norm(self._solution.x), max_norm(self._solution.y)))[:, None]

        def gradient(z: Array, ds: Array) -> ConeProgram:
            v = ds + D.apply_L(z[:, n:])
            return data_cotangent(program, self._solution.x, self._solution.y, z[:, :n], v)

        def visible(direction: Array) -> Array:
            data = gradient(direction, np.zeros_like(cotangent.s))
            return max_norm(seen(replace(data, P=data.P / size, A=data.A / size)))

        z, report = self._solve(cotangent.x - A.rmatvec(program.A, cotangent.s), cotangent.y, visible)
        return gradient(z, cotangent.s), report

    def jvp(
        self, tangent: ConeProgram, *, seen: Callable[[SolutionTangent], Array] = whole_point
    ) -> tuple[SolutionTangent, DerivativeReport]:
        """With r1 = dP x + dq + dA'y and r2 = dA x - db: K [dx; u] = -[r1; L'r2], dy = L u, ds = -(A dx + r2)."""
        P, A = self._program.structure.P, self._program.structure.A
        x, y = self._solution.x, self._solution.y
        r1 = P.matvec(tangent.P, x) + tangent.q + A.rmatvec(tangent.A, y)
        r2 = A.matvec(tangent.A, x) - tangent.b

        def visible(direction: Array) -> Array:
            return max_norm(seen(self._tangent(direction, np.zeros_like(r2))))

        z, report = self._solve(-r1, -r2, visible)
        return self._tangent(z, r2), report

    def objective_report(self, *, seen: Callable[[SolutionTangent], Array]) -> DerivativeReport:
        """A null direction of K moves (x, y) among the solutions; all is well where the derivative does not move.

        The optimal value is smooth where multipliers are unique, whether constraints are weakly active or not: the
        margin is of no concern.
        """
        factor, batch = self._factor, self._program.batch
        singular = factor.condition >= SINGULAR
        if np.any(singular):
            direction = self._tangent(factor.null_direction, np.zeros_like(self._w))
            singular = singular & (max_norm(seen(direction)) > VISIBLE)
        return DerivativeReport.judge(
            np.zeros(batch),
            np.full(batch, np.inf),
            factor.condition,
            singular,
            max_norm(self._w),
            self._solution_residual,
        )

    def newton_step(self) -> SolutionTangent:
        """One semismooth Newton step on (Px + q + A'y, Ax + s - b)."""
        program, solution = self._program, self._solution
        P, A = program.structure.P, program.structure.A
        r1 = P.matvec(program.P, solution.x) + program.q + A.rmatvec(program.A, solution.y)
        r2 = A.matvec(program.A, solution.x) + solution.s - program.b
        z, _ = self._factor.refine(-np.concatenate([r1, self._derivative.apply_Lt(r2)], axis=1), steps=3)
        return self._tangent(z, r2)

    def _tangent(self, z: Array, r2: Array) -> SolutionTangent:
        dx = z[:, : self._program.structure.n]
        dy = self._derivative.apply_L(z[:, self._program.structure.n :])
        return SolutionTangent(dx, dy, -(self._program.structure.A.matvec(self._program.A, dx) + r2))

    def _solve(self, top: Array, bottom: Array, visible: Callable[[Array], Array]) -> tuple[Array, DerivativeReport]:
        """Solve K z = [top; L'bottom], with minimum norm where z is not unique and the difference is visible."""
        factor = self._factor
        rhs = np.concatenate([top, self._derivative.apply_Lt(bottom)], axis=1)
        z, residual = factor.refine(rhs)
        singular = factor.condition >= SINGULAR
        if np.any(singular):
            singular = singular & ((visible(factor.null_direction) > VISIBLE) | (residual > ACCEPTED))
        finite = np.isfinite(residual) & np.isfinite(factor.condition)
        again = np.flatnonzero(finite & (singular | (residual > ACCEPTED)))
        if len(again):
            least, least_residual = factor.minimum_norm(rhs, again)
            inconsistent = singular[again] & (residual[again] > ACCURATE)
            chosen = inconsistent | (least_residual <= np.maximum(residual[again], ACCEPTED))
            z[again[chosen]], residual[again[chosen]] = least[chosen], least_residual[chosen]
        margin = self._margin_that_matters(z, bottom)
        return z, DerivativeReport.judge(
            residual, margin, factor.condition, singular, max_norm(self._w), self._solution_residual
        )

    def _margin_that_matters(self, z: Array, bottom: Array) -> Array:
        """The margin without the nonnegative rows on which z is right whether they are active or not.

        Active rows ask for (A z_x - bottom)_i = 0 and leave u_i free, inactive ones ask for u_i = 0; where both hold,
        the side that row i lies on makes no difference.
        """
        cones, n = self._program.structure.cones, self._program.structure.n
        rows = slice(cones.zero, cones.zero + cones.nonnegative)
        doubtful = np.any(np.abs(self._w[:, rows]) <= self._margin[:, None], axis=1) & np.isfinite(self._margin)
        if not np.any(doubtful & (self._margin <= DOUBTFUL * np.maximum(1.0, max_norm(self._w)))):
            return self._margin
        active = self._program.structure.A.matvec(self._program.A, z[:, :n]) - bottom
        negligible = NEGLIGIBLE * np.maximum(max_norm(z), max_norm(bottom))[:, None]
        either = (np.abs(active[:, rows]) <= negligible) & (np.abs(z[:, n:][:, rows]) <= negligible)
        w = self._w.copy()
        w[:, rows] = np.where(either, np.inf, w[:, rows])
        return self._system.cone.margin(w)
