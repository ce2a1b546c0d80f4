"""Reference solutions of quadratic programs to double precision, without Convexlayer, and their finite differences."""

from __future__ import annotations

from dataclasses import dataclass

import clarabel
import numpy as np
import scipy.sparse as sp
from scipy.sparse.linalg import splu

from benchmarks.scales.public_problems import QP
from convexlayer.program import Array

__all__ = ["EXACT", "Directional", "Reference"]

STEPS = (1e-6, 1e-8)
"""Steps of the finite differences, in equilibrated units; the second is used if the first changes the active set."""

ONE_SIDED = 1e-3
"""Largest relative difference between one-sided differences of an existing derivative."""

PROXIMAL = 1e-9
"""Regularisation of the polishing system; its iterations remove the effect."""

ROUNDING = 1e-13
"""Tolerance of Clarabel, of the polished point and of signs: rounding in equilibrated units."""

LAST_STEP = 1e-14
"""Newton step after which refinement of a polished point ends."""

MIN_SCALE = 1e-3
"""Smallest scale of errors of a derivative, relative to that of x: a derivative that is 0 has no scale of its own."""

MAX_ACTIVE_SETS, MAX_REFINEMENTS, RUIZ_PASSES = 6, 15, 15
"""Limits of changes of the active set, and of steps for each; passes of equilibration."""

EXACT = 1e-10
"""Largest violation of a sign or row, in equilibrated units, at which an active set is accepted as correct."""


@dataclass(frozen=True, eq=False)
class Directional:
    """A derivative of weight'x along a direction of the data.

    Attributes:
        exists: whether one-sided differences from both sides, with a step and a quarter of it, agree.
        value: their mean.
        scale: sum of abs(weight_i dx_i), the scale of errors.
    """

    exists: bool
    value: float
    scale: float


class Reference:
    """An equilibrated program and its solution.

    Attributes:
        x: solution in unscaled units, (n,).
        objective: optimal value in unscaled units.
        error: largest violation of the optimality conditions, in equilibrated units.
        d: x = d x', for equilibrated x'.
        e: scales of the rows of A.
        c: scale of the objective.
    """

    def __init__(self, qp: QP) -> None:
        """Equilibrate and solve, then scale the variables by the size of the solution and solve again."""
        self._program, (self._rows, b, self._equations) = qp, qp.rows()
        self.d, self.e = _equilibration(qp.P, self._rows)
        self._pose(b)
        x, _, _ = self._solved(self._q, self._b)
        size = np.exp2(np.rint(np.log2(float(np.max(np.abs(x))) or 1.0)))
        self.d, self.e = self.d * size, self.e / size
        self._pose(b)
        self._x, self._y, self.error = self._solved(self._q, self._b)
        self.x = self.d * self._x
        self.objective = float(0.5 * self.x @ (qp.P @ self.x) + qp.q @ self.x)

    def _pose(self, b: Array) -> None:
        """Scale the program, with the largest coefficient of the objective near 1."""
        D, E, qp = sp.diags(self.d), sp.diags(self.e), self._program
        P, q = D @ qp.P @ D, self.d * qp.q
        self.c = 1.0 / (max(float(_largest(abs(P), 0).max()), float(np.max(np.abs(q)))) or 1.0)
        self._P, self._q = (self.c * P).tocsc(), self.c * q
        self._A, self._b = (E @ self._rows @ D).tocsc(), self.e * b

    def along(self, weight: Array, dq: Array | None, db: Array | None) -> Directional:
        """The directional derivative of weight'x along dq and db, which are in equilibrated units."""
        nothing = Directional(False, 0.0, 0.0)
        return next((found for step in STEPS if (found := self._along(weight, dq, db, step)).exists), nothing)

    def _along(self, weight: Array, dq: Array | None, db: Array | None, step: float) -> Directional:
        """One-sided differences from both sides, with a step and a quarter of it."""
        own, values, scale = (
            weight * self.d,
            list[float](),
            MIN_SCALE * float(np.abs(weight * self.d) @ np.abs(self._x)),
        )
        for reach in (step, 0.25 * step):
            there, back = self._moved(dq, db, reach), self._moved(dq, db, -reach)
            if there is None or back is None:
                return Directional(False, 0.0, 0.0)
            values += [float(own @ (there - self._x)) / reach, float(own @ (self._x - back)) / reach]
            scale = max(scale, float(np.abs(own) @ np.abs(there - back)) / (2.0 * reach))
        return Directional(bool(np.ptp(values) <= ONE_SIDED * scale), float(np.mean(values)), scale)

    def own(self, dq: Array | None, db: Array | None) -> Array:
        """A perturbation of q or b in unscaled units."""
        moves = [] if dq is None else [dq / (self.c * self.d)]
        return np.concatenate(moves + ([] if db is None else [db / self.e]))

    def _moved(self, dq: Array | None, db: Array | None, step: float) -> Array | None:
        """The solution for perturbed data, or None if it is not computed to full precision."""
        q = self._q if dq is None else self._q + step * dq
        b = self._b if db is None else self._b + step * db
        x, _, error = self._polished(q, b, self._x, self._y, self._active(self._x, self._y, self._b))
        if error > EXACT:
            x, _, error = self._solved(q, b)
        return x if error <= EXACT else None

    def _solved(self, q: Array, b: Array) -> tuple[Array, Array, float]:
        settings = clarabel.DefaultSettings()
        settings.verbose = False
        settings.max_threads = 1
        settings.tol_feas = settings.tol_gap_abs = settings.tol_gap_rel = ROUNDING
        rows = len(b) - self._equations
        cones = [clarabel.ZeroConeT(self._equations), clarabel.NonnegativeConeT(rows)]
        found = clarabel.DefaultSolver(sp.triu(self._P).tocsc(), q, self._A, b, cones, settings).solve()
        x, y = np.array(found.x), np.array(found.z)
        return self._polished(q, b, x, y, self._active(x, y, b))

    def _active(self, x: Array, y: Array, b: Array) -> Array:
        active: Array = y > b - self._A @ x
        active[: self._equations] = True
        return active

    def _polished(self, q: Array, b: Array, x: Array, y: Array, active: Array) -> tuple[Array, Array, float]:
        """Newton's method on the active set, updated by the signs; returns the best point (x, y) and its error."""
        best = x, y, self._violation(q, b, x, y)
        for _ in range(MAX_ACTIVE_SETS):
            rows = np.flatnonzero(active)
            A, n = self._A[rows], len(q)
            K = sp.bmat(
                [[self._P + PROXIMAL * sp.identity(n), A.T], [A, -PROXIMAL * sp.identity(len(rows))]], format="csc"
            )
            factor = splu(K, permc_spec="MMD_AT_PLUS_A")
            z, held = x.copy(), y[rows].copy()
            for _ in range(MAX_REFINEMENTS):
                step = factor.solve(np.concatenate([-(self._P @ z + q + A.T @ held), b[rows] - A @ z]))
                z, held = z + step[:n], held + step[n:]
                if np.max(np.abs(step)) < LAST_STEP:
                    break
            full = np.zeros(len(b))
            full[rows] = held
            error = self._violation(q, b, z, full)
            if error < best[2]:
                best = z, full, error
            if error <= ROUNDING:
                break
            changed = np.where(active, full > -ROUNDING, b - self._A @ z < -ROUNDING)
            changed[: self._equations] = True
            if np.array_equal(changed, active):
                break
            active = changed
        return best

    def _violation(self, q: Array, b: Array, x: Array, y: Array) -> float:
        s, dual = b - self._A @ x, self._P @ x + q + self._A.T @ y
        e = self._equations
        parts = [np.abs(dual), np.abs(s[:e]), -s[e:], -y[e:], np.minimum(np.abs(s[e:]), np.abs(y[e:]))]
        return float(max(np.max(part, initial=0.0) for part in parts))


def _equilibration(P: sp.csc_matrix, A: sp.csc_matrix) -> tuple[Array, Array]:
    """Powers of two that bring the norms of rows and columns of [[P, A'], [A, 0]] near 1."""
    d, e = np.ones(A.shape[1]), np.ones(A.shape[0])
    for _ in range(RUIZ_PASSES):
        scaled_P, scaled_A = sp.diags(d) @ abs(P) @ sp.diags(d), sp.diags(e) @ abs(A) @ sp.diags(d)
        columns, lines = np.maximum(_largest(scaled_P, 0), _largest(scaled_A, 0)), _largest(scaled_A, 1)
        d, e = d / np.sqrt(np.where(columns > 0, columns, 1.0)), e / np.sqrt(np.where(lines > 0, lines, 1.0))
    return np.exp2(np.rint(np.log2(d))), np.exp2(np.rint(np.log2(e)))


def _largest(matrix: sp.spmatrix, axis: int) -> Array:
    return np.asarray(matrix.max(axis=axis).todense()).ravel()
