"""Quadratic programs with the difficulties of public collections, generated from formulas and seeds.

They resemble problems of the Maros and Meszaros (1999) set: spline fitting, control, partial differential equations,
portfolios, network flow, and linear programs with a few quadratic terms, with dependent rows, degenerate vertices,
rank-deficient P, and coefficients over ten orders of magnitude.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from convexlayer.program import Array

__all__ = ["PROBLEMS", "QP"]


@dataclass(frozen=True, eq=False)
class QP:
    """minimize x'Px/2 + q'x subject to lower <= A x <= upper, low <= x <= high; infinite bounds are inactive.

    Attributes:
        P: (n, n), sparse.
        q: (n,).
        A: (m, n), sparse.
        lower: (m,).
        upper: (m,).
        low: (n,).
        high: (n,).
    """

    P: sp.csc_matrix
    q: Array
    A: sp.csc_matrix
    lower: Array
    upper: Array
    low: Array
    high: Array

    def rows(self) -> tuple[sp.csc_matrix, Array, int]:
        """(A, b, number of equations) with equations A x = b first, then A x <= b; fixed variables are equations."""
        A, eye = sp.csr_matrix(self.A), sp.identity(len(self.q), format="csr")
        same, fixed = self.lower == self.upper, self.low == self.high
        above, below = np.isfinite(self.upper) & ~same, np.isfinite(self.lower) & ~same
        high, low = np.isfinite(self.high) & ~fixed, np.isfinite(self.low) & ~fixed
        rows = sp.vstack([A[same], eye[fixed], A[above], -A[below], eye[high], -eye[low]]).tocsc()
        b = np.concatenate(
            [self.upper[same], self.high[fixed], self.upper[above], -self.lower[below], self.high[high], -self.low[low]]
        )
        return rows, b, int(np.sum(same) + np.sum(fixed))


def _qp(
    P: sp.spmatrix,
    q: NDArray[Any],
    A: sp.spmatrix,
    lower: Array | float = -np.inf,
    upper: Array | float = np.inf,
    low: Array | float = -np.inf,
    high: Array | float = np.inf,
) -> QP:
    m, n = A.shape
    wide = [np.broadcast_to(np.asarray(v, dtype=float), (k,)).copy() for v, k in
            ((lower, m), (upper, m), (low, n), (high, n))]  # fmt: skip
    P, A = sp.csc_matrix(0.5 * (P + P.T)), sp.csc_matrix(A)
    return QP(P, np.asarray(q, dtype=float), A, *wide)


def _differences(n: int, order: int) -> sp.csc_matrix:
    D = sp.identity(n, format="csr")
    for _ in range(order):
        D = D[1:] - D[:-1]
    return D.tocsc()


def smoothing(n: int, order: int) -> QP:
    """LISWET: least-squares fit with nonnegative differences of some order, nearly all of them active."""
    t = np.arange(n) / (n - 1.0)
    data = np.sqrt(t) + 0.1 * np.sin(np.arange(n))
    return _qp(sp.identity(n), -data, _differences(n, order), lower=0.0)


def concave(n: int) -> QP:
    """YAO: least-squares fit by a concave sequence, and a bound that is nearly active."""
    data = np.sin((1.0 + np.arange(n)) / (n + 2.0))
    low = np.full(n, -np.inf)
    low[0] = 0.08
    return _qp(sp.identity(n), -data, _differences(n, 2), upper=0.0, low=low)


def chain(n: int) -> QP:
    """POWELL20: alternating bounds on differences, growing with n."""
    k = 1.0 + np.arange(n - 1)
    around = sp.csr_matrix((np.array([1.0, -1.0]), (np.array([0, 0]), np.array([0, n - 1]))), shape=(1, n))
    lower = np.r_[-0.5 + (-1.0) ** k * k, n - 0.5]
    return _qp(sp.identity(n), np.zeros(n), sp.vstack([_differences(n, 1), around]), lower=lower)


def grid(side: int, *, partial: bool, bounded: bool) -> QP:
    """AUG2D: flows on the edges of a grid with given divergences, which sum to 0; P on half of the edges if partial."""
    nodes = np.arange(side * side).reshape(side, side)
    pairs = np.r_[np.c_[nodes[:, :-1].ravel(), nodes[:, 1:].ravel()], np.c_[nodes[:-1].ravel(), nodes[1:].ravel()]]
    n = len(pairs)
    ones, each = np.ones(n), np.arange(n)
    A = sp.csc_matrix((np.r_[ones, -ones], (pairs.T.ravel(), np.r_[each, each])), shape=(side * side, n))
    rng = np.random.default_rng(side)
    source = A @ rng.integers(0, 3, size=n).astype(float)
    weight = np.where(each % 2 == 0, 1.0, 0.0) if partial else np.ones(n)
    return _qp(
        sp.diags(weight),
        0.1 * rng.integers(1, 4, size=n),
        A,
        source,
        source,
        low=0.0 if bounded or partial else -np.inf,
    )


def cvxqp(n: int, equations: int) -> QP:
    """CVXQP: the published formula, with a sparse nonseparable P and equations in groups of three variables."""
    i = np.arange(1, n + 1)
    groups = np.stack([i - 1, (2 * i - 1) % n, (3 * i - 1) % n])
    R = sp.coo_matrix((np.ones(3 * n), (np.tile(np.arange(n), 3), groups.ravel())), shape=(n, n)).tocsr()
    P = R.T @ sp.diags(i.astype(float)) @ R
    j = np.arange(1, equations + 1)
    cells = np.stack([j - 1, (4 * j - 1) % n, (5 * j - 1) % n])
    values = np.repeat([1.0, 2.0, 3.0], equations)
    A = sp.coo_matrix((values, (np.tile(np.arange(equations), 3), cells.ravel())), shape=(equations, n)).tocsc()
    b = A @ np.full(n, 0.5)
    return _qp(P, np.zeros(n), A, b, b, 0.1, 10.0)


def elliptic(side: int) -> QP:
    """CONT: boundary control of Poisson's equation, with states bounded above and P proportional to the mesh area."""
    n, h = side * side, 1.0 / (side - 1)
    nodes = np.arange(n).reshape(side, side)
    inner = nodes[1:-1, 1:-1].ravel()
    A = sp.lil_matrix((len(inner), n))
    for row, node in enumerate(inner):
        A[row, [node, node - 1, node + 1, node - side, node + side]] = [4.0, -1.0, -1.0, -1.0, -1.0]
    edge = np.setdiff1d(nodes.ravel(), inner)
    weight = np.full(n, h * h)
    weight[edge] = 0.01 * h
    x, y = np.meshgrid(np.linspace(0, 1, side), np.linspace(0, 1, side))
    target = (1.0 + x * (x - 1.0) * y * (y - 1.0) * 8.0).ravel()
    high = np.full(n, 1.2)
    high[inner] = 0.85
    return _qp(sp.diags(weight), -weight * target, A, h * h * 2.0, h * h * 2.0, low=-10.0, high=high)


def control(steps: int) -> QP:
    """DTOC3, UBH1: linear dynamics with bounded controls; P on the controls and the final state only."""
    states, controls, dt = 4, 2, 0.1
    n = steps * (states + controls) + states
    F = np.eye(states) + dt * np.diag([1.0, 1.0], 2)
    G = np.r_[np.zeros((2, 2)), dt * np.eye(2)]
    blocks = [[None] * (2 * steps + 1) for _ in range(steps + 1)]
    blocks[0][0] = sp.identity(states)
    for t in range(steps):
        blocks[t + 1][2 * t], blocks[t + 1][2 * t + 1] = sp.csr_matrix(-F), sp.csr_matrix(-G)
        blocks[t + 1][2 * t + 2] = sp.identity(states)
    A = sp.bmat(blocks, format="csc")
    weight, low = np.zeros(n), np.full(n, -np.inf)
    for t in range(steps):
        at = t * (states + controls) + states
        weight[at : at + controls], low[at : at + controls] = dt, -1.0
    weight[-states:] = 100.0
    b = np.r_[1.0, -2.0, 0.0, 0.5, np.zeros(steps * states)]
    return _qp(sp.diags(weight), np.zeros(n), A, b, b, low, np.where(np.isfinite(low), 1.0, np.inf))


def portfolio(n: int, factors: int) -> QP:
    """DUAL, EXDATA: a dense low-rank P over the simplex; returns have ties."""
    rng = np.random.default_rng(n)
    F = rng.normal(size=(factors, n))
    returns = np.round(rng.normal(size=n), 1)
    return _qp(sp.csc_matrix(F.T @ F), -0.1 * returns, np.ones((1, n)), 1.0, 1.0, 0.0, 0.25)


def semi_infinite(points: int, n: int = 20) -> QP:
    """KSIP: a polynomial in t bounded below by tan t at many points; ill-conditioned, few active rows."""
    t = np.linspace(0.0, 1.0, points)
    j = np.arange(1, n + 1)
    return _qp(sp.diags(1.0 / j), 1.0 / j, t[:, None] ** (j - 1), lower=np.tan(t))


def seismic(n: int) -> QP:
    """HUESTIS: two rows with coefficients of 1e5 and 1e2 over densities of 1e3, x >= 0."""
    i = np.arange(n)
    radius = (i + 0.5) / n
    A = np.stack([1e5 * radius**2, 1e2 * radius**4])
    b = A @ np.full(n, 2.5e3) * np.array([1.0, 0.7])
    return _qp(sp.diags(2e-4 * np.ones(n)), np.zeros(n), A, b, b, low=0.0)


def staircase(periods: int, width: int = 8, *, curved: float = 0.3) -> QP:
    """QPCSTAIR, QPCBLEND: production periods coupled by stocks, integer coefficients; P on a few variables."""
    rng = np.random.default_rng(periods)
    n, rows = periods * width, []
    A = sp.lil_matrix((periods * 5, n))
    for t in range(periods):
        here = t * width
        A[5 * t : 5 * t + 5, here : here + width] = rng.integers(-2, 4, size=(5, width))
        if t:
            A[5 * t : 5 * t + 2, here - width : here] = -rng.integers(0, 2, size=(2, width))
        rows.append(5 * t + 4)
    A[rows] = A[[row - 1 for row in rows]]  # duplicate rows
    A = A.tocsr()
    x = rng.integers(0, 3, size=n).astype(float)
    b = A @ x
    slack = np.where(np.arange(5 * periods) % 5 < 2, 0.0, rng.integers(0, 3, size=5 * periods))
    slack[rows] = slack[[row - 1 for row in rows]]
    weight = np.where(rng.uniform(size=n) < curved, 1.0, 0.0)
    return _qp(sp.diags(weight), rng.integers(-3, 4, size=n), A, np.where(slack == 0, b, -np.inf), b + slack, 0.0, 5.0)


def transport(sources: int, sinks: int, *, spread: float, every: int = 3, ties: bool = True) -> QP:
    """QSHIP, QGROW: transport with both marginals given, so that one equation is redundant; costs optionally tied."""
    rng = np.random.default_rng(sources)
    n = sources * sinks
    A = sp.vstack(
        [sp.kron(sp.identity(sources), np.ones((1, sinks))), sp.kron(np.ones((1, sources)), sp.identity(sinks))]
    )
    flow = rng.integers(1, 4, size=(sources, sinks)).astype(float)
    b = np.r_[flow.sum(axis=1), flow.sum(axis=0)]
    P = sp.diags(spread * (np.arange(n) % every == 0))
    return _qp(P, rng.integers(1, 6, size=n) if ties else rng.uniform(1.0, 6.0, size=n), A, b, b, low=0.0)


def wide_range(n: int, m: int, orders: float) -> QP:
    """QFORPLAN, QPILOTNO: sparse, scaled over many orders of magnitude; P on a tenth of the variables."""
    rng = np.random.default_rng([n, m])
    A = sp.random(m, n, density=4.0 / n, random_state=rng, data_rvs=lambda size: rng.normal(size=size)).tocsr()
    A = A + sp.csr_matrix((np.ones(m), (np.arange(m), rng.permutation(n)[:m])), shape=(m, n))
    d, e = 10.0 ** rng.uniform(-orders / 2, orders / 2, size=n), 10.0 ** rng.uniform(-orders / 2, orders / 2, size=m)
    x = rng.uniform(size=n) * (rng.uniform(size=n) < 0.6)
    A = sp.diags(e) @ A @ sp.diags(d)
    few = rng.permutation(n)[: n // 10]
    R = sp.random(len(few), len(few), density=0.2, random_state=rng) + sp.identity(len(few))
    pick = sp.csr_matrix((np.ones(len(few)), (few, np.arange(len(few)))), shape=(n, len(few)))
    P = sp.diags(d) @ pick @ (R.T @ R) @ pick.T @ sp.diags(d)
    equal = np.arange(m) % 2 == 0
    b = A @ (x / d)
    return _qp(P, d * rng.normal(size=n), A, np.where(equal, b, -np.inf), b + np.where(equal, 0.0, e), 0.0, 1.0 / d)


def cliques(n: int, size: int = 8) -> QP:
    """STCQP: P is a sum of squares over overlapping cliques; sparse equations, some duplicated, and bounds."""
    rng = np.random.default_rng(n)
    starts = np.arange(0, n - size + 1, size // 2)
    R = sp.lil_matrix((len(starts), n))
    for row, start in enumerate(starts):
        R[row, start : start + size] = rng.integers(-2, 3, size=size)
    P = R.tocsr().T @ R.tocsr() + 0.1 * sp.diags((np.arange(n) % 2).astype(float))
    m = n // 3
    A = sp.random(
        m, n, density=3.0 / n, random_state=rng, data_rvs=lambda s: rng.integers(1, 4, size=s).astype(float)
    ).tocsr()
    A = sp.vstack([A[: m - m // 10], A[: m // 10]]).tocsr()
    b = A @ np.full(n, 0.5)
    return _qp(P, rng.integers(-2, 3, size=n), A, b, b, 0.0, 1.0)


def regression(rows: int, n: int) -> QP:
    """MOSARQP, LASER: P on few variables, many sparse inequalities."""
    rng = np.random.default_rng(rows)
    A = sp.random(rows, n, density=5.0 / n, random_state=rng, data_rvs=lambda size: rng.normal(size=size)).tocsr()
    x = rng.normal(size=n)
    R = sp.random(n // 2, n, density=3.0 / n, random_state=rng).tocsr()
    P = R.T @ R + sp.diags(np.where(np.arange(n) < n // 2, 1.0, 0.0))
    return _qp(P, rng.normal(size=n), A, A @ x - rng.uniform(size=rows), low=x - 2.0, high=x + 2.0)


def polygon(sides: int) -> QP:
    """DUALC, TAME: few variables and many rows that meet in one vertex."""
    angle = 2.0 * np.pi * np.arange(sides) / sides
    A = np.c_[np.cos(angle), np.sin(angle), np.ones(sides)]
    return _qp(sp.diags([1.0, 1.0, 0.0]), np.array([0.0, 0.0, -1.0]), A, upper=1.0)


PROBLEMS: dict[str, Callable[[], QP]] = {
    "smoothing 100, order 2": lambda: smoothing(100, 2),
    "smoothing 300, order 3": lambda: smoothing(300, 3),
    "smoothing 1000, order 2": lambda: smoothing(1000, 2),
    "concave 200": lambda: concave(200),
    "concave 1000": lambda: concave(1000),
    "chain 100": lambda: chain(100),
    "chain 1000": lambda: chain(1000),
    "grid 10": lambda: grid(10, partial=False, bounded=False),
    "grid 20, bounded": lambda: grid(20, partial=False, bounded=True),
    "grid 20, half": lambda: grid(20, partial=True, bounded=True),
    "grid 38, half": lambda: grid(38, partial=True, bounded=True),
    "cvxqp 100, 25": lambda: cvxqp(100, 25),
    "cvxqp 100, 75": lambda: cvxqp(100, 75),
    "cvxqp 1000, 250": lambda: cvxqp(1000, 250),
    "cvxqp 600, 450": lambda: cvxqp(600, 450),
    "elliptic 12": lambda: elliptic(12),
    "elliptic 30": lambda: elliptic(30),
    "control 30": lambda: control(30),
    "control 300": lambda: control(300),
    "portfolio 60": lambda: portfolio(60, 5),
    "portfolio 200": lambda: portfolio(200, 20),
    "semi-infinite 300": lambda: semi_infinite(300, 8),
    "semi-infinite 1001": lambda: semi_infinite(1001),
    "seismic 100": lambda: seismic(100),
    "seismic 2000": lambda: seismic(2000),
    "staircase 10": lambda: staircase(10),
    "staircase 40": lambda: staircase(40),
    "staircase 120": lambda: staircase(120),
    "staircase 40, linear": lambda: staircase(40, curved=0.0),
    "transport 8 x 10, ties": lambda: transport(8, 10, spread=1.0),
    "transport 20 x 30": lambda: transport(20, 30, spread=0.1, every=1),
    "transport 50 x 55": lambda: transport(50, 55, spread=0.1, every=3, ties=False),
    "transport 20 x 20, linear": lambda: transport(20, 20, spread=0.0, ties=False),
    "wide range 60, 4": lambda: wide_range(60, 30, 4.0),
    "wide range 300, 6": lambda: wide_range(300, 150, 6.0),
    "wide range 1000, 6": lambda: wide_range(1000, 450, 6.0),
    "cliques 120": lambda: cliques(120),
    "cliques 1500": lambda: cliques(1500),
    "regression 200": lambda: regression(200, 80),
    "regression 1400": lambda: regression(1400, 600),
    "polygon 12": lambda: polygon(12),
    "polygon 200": lambda: polygon(200),
}
"""Problems by name, which includes the size."""
