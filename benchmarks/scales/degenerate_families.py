"""Degenerate programs with known solutions: derivatives do not exist, or solutions or multipliers are not unique."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from convexlayer.program import Array, Cones

__all__ = ["FAMILIES", "Degenerate", "DerivativeQuery", "Made"]

Made = tuple[Array, Array, Array, Array]
"""P (n, n), A (m, n), x (n,) and w = y - s (m,) of one program."""


@dataclass(frozen=True)
class DerivativeQuery:
    """Queries of derivatives of outputs.

    Attributes:
        wrt: the parameter (of ``DATA``) to differentiate in.
        of: positions of outputs, one query each; None for a random combination of all, and a tangent of all.
        exists: whether these derivatives exist.
    """

    wrt: str
    of: tuple[int, ...] | None
    exists: bool


@dataclass(frozen=True, eq=False)
class Degenerate:
    """A family of degenerate programs.

    Attributes:
        name: name in tables; also seeds the draws.
        cones: cones of every program.
        make: draws one program, with numbers near 1.
        derivatives: queries of derivatives of its outputs.
        value: parameters in which the optimal value is differentiable: q if x is unique, b if y is.
        visible: variables that are outputs, all by default.
        duals: whether multipliers are outputs too.
        ambiguous: positions of outputs that are not unique and therefore not compared.
    """

    name: str
    cones: Cones
    make: Callable[[np.random.Generator], Made]
    derivatives: tuple[DerivativeQuery, ...]
    value: str
    visible: tuple[int, ...] | None = None
    duals: bool = False
    ambiguous: tuple[int, ...] = ()


EXISTS, NONEXISTENT = True, False
ROWS_DEPEND = (
    DerivativeQuery("q", None, EXISTS),
    DerivativeQuery("q", (0, 1), EXISTS),
    DerivativeQuery("b", None, NONEXISTENT),
)
"""x is a smooth function of the objective but not of the right-hand sides: changes make the rows inconsistent."""

WEAK = (DerivativeQuery("q", None, NONEXISTENT), DerivativeQuery("b", None, NONEXISTENT))
"""The solution has only one-sided derivatives."""


def _convex(rng: np.random.Generator, n: int) -> Array:
    F = rng.normal(size=(n, n))
    P: Array = F @ F.T / n + 0.3 * np.eye(n)
    return P


def _size(rng: np.random.Generator, *signs: float) -> Array:
    """Random numbers with these signs and magnitudes between 0.3 and 1.5; 0 for sign 0."""
    drawn: Array = np.array(signs) * rng.uniform(0.3, 1.5, size=len(signs))
    return drawn


def _rows(
    name: str,
    cones: Cones,
    signs: Sequence[float],
    dependent: Callable[[Array], None],
    derivatives: tuple[DerivativeQuery, ...] = ROWS_DEPEND,
    *,
    value: str = "q",
    n: int = 5,
    linear: bool = False,
    duals: bool = False,
    ambiguous: tuple[int, ...] = (),
) -> Degenerate:
    """A family of linear rows with these signs of w, modified in place by ``dependent``; x and objective are random."""

    def make(rng: np.random.Generator) -> Made:
        A = rng.normal(size=(cones.m, n))
        dependent(A)
        P = np.zeros((n, n)) if linear else _convex(rng, n)
        return P, A, rng.normal(size=n), _size(rng, *signs)

    return Degenerate(name, cones, make, derivatives, value, duals=duals, ambiguous=ambiguous)


def _copy(source: int, target: int, factor: float = 1.0) -> Callable[[Array], None]:
    def apply(A: Array) -> None:
        A[target] = factor * A[source]

    return apply


def _combine(sources: Sequence[int], target: int) -> Callable[[Array], None]:
    def apply(A: Array) -> None:
        A[target] = np.sum(A[list(sources)], axis=0)

    return apply


def _nothing(A: Array) -> None:
    """Leave A as drawn."""


def _beside_curved(rng: np.random.Generator) -> Made:
    """Two equal equations beside a second-order and an exponential block on their boundaries."""
    A = rng.normal(size=(8, 6))
    A[1] = A[0]
    return _convex(rng, 6), A, rng.normal(size=6), np.concatenate([_size(rng, 1, -1), _boundary(rng), _smooth(rng)])


def _boundary(rng: np.random.Generator) -> Array:
    """A w (3,) of the second-order cone with y and s both on the boundary."""
    angle = rng.uniform(0.0, 2.0 * np.pi)
    return np.array([rng.uniform(-0.5, 0.5), np.cos(angle), np.sin(angle)])


def _smooth(rng: np.random.Generator) -> Array:
    """A w (3,) of the exponential cone with y and s both on the boundary: y is normal to the boundary at s."""
    ratio, size, weight = rng.uniform(-0.5, 0.5), rng.uniform(0.5, 1.5), rng.uniform(0.5, 1.5)
    s = size * np.array([ratio, 1.0, np.exp(ratio)])
    y = weight * np.array([-np.exp(ratio), -np.exp(ratio) * (1.0 - ratio), 1.0])
    return y - s


def _correlation(rng: np.random.Generator) -> Made:
    """A semidefinite matrix with given diagonal, and redundantly given trace."""
    n, diagonal = 6, [0, 3, 5]
    A = np.zeros((4 + n, n))
    A[[0, 1, 2], diagonal] = 1.0
    A[3, diagonal] = 1.0
    A[4:] = -np.eye(n)
    return (
        _convex(rng, n),
        A,
        rng.normal(size=n),
        np.concatenate([_size(rng, 1, -1, 1, 1), _matrix(rng, 1.0, -0.7, -0.4)]),
    )


def _matrix(rng: np.random.Generator, *eigenvalues: float) -> Array:
    """The scaled lower triangle of a 3 x 3 matrix with these eigenvalues."""
    Q, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    M = (Q * np.array(eigenvalues)) @ Q.T
    rows, cols = np.array([0, 1, 2, 1, 2, 2]), np.array([0, 0, 0, 1, 1, 2])
    return M[rows, cols] * np.where(rows == cols, 1.0, np.sqrt(2.0))


def _curved(name: str, cones: Cones, w: Callable[[np.random.Generator], Array]) -> Degenerate:
    """A family with one curved block at a point where its projection is not differentiable."""

    def make(rng: np.random.Generator) -> Made:
        n = cones.m + 1
        return _convex(rng, n), rng.normal(size=(cones.m, n)), rng.normal(size=n), w(rng)

    return Degenerate(name, cones, make, WEAK, "qb")


def _ray(rng: np.random.Generator, sign: float) -> Array:
    angle = rng.uniform(0.0, 2.0 * np.pi)
    return sign * rng.uniform(0.5, 1.5) * np.array([1.0, np.cos(angle), np.sin(angle)])


def _exponential(rng: np.random.Generator, side: str) -> Array:
    ratio, size = rng.uniform(-0.5, 0.5), rng.uniform(0.5, 1.5)
    if side == "primal":
        return -size * np.array([ratio, 1.0, np.exp(ratio)])
    return size * np.array([-np.exp(ratio), -np.exp(ratio) * (1.0 - ratio), 1.0])


def _power(rng: np.random.Generator, side: str, alpha: float = 0.3) -> Array:
    a, b = rng.uniform(0.5, 1.5, size=2)
    if side == "primal":
        return -np.array([a, b, a**alpha * b ** (1.0 - alpha)])
    return np.array([a, b, (a / alpha) ** alpha * (b / (1.0 - alpha)) ** (1.0 - alpha)])


def _relu(rng: np.random.Generator) -> Made:
    """(x - p)^2 / 2, x >= 0 at p = (+, 0, -)."""
    x = np.array([rng.uniform(0.5, 1.5), 0.0, 0.0])
    return np.eye(3), -np.eye(3), x, np.array([-x[0], 0.0, rng.uniform(0.5, 1.5)])


def _projection(rows: Callable[[], Array], signs: Sequence[float], *, epigraph: bool) -> Callable[..., Made]:
    """Minimise (x - p)^2 / 2, plus t if there is an epigraph variable."""

    def make(rng: np.random.Generator) -> Made:
        A = rows()
        n, w = A.shape[1], _size(rng, *signs)
        P = np.eye(n)
        if epigraph:  # multipliers sum to 1, the coefficient of t
            P[-1, -1] = 0.0
            w[w > 0] /= np.sum(w[w > 0])
        w[w < 0], last = _short(w[w < 0]), _short(rng.uniform(-1.0, 1.0))
        s = np.maximum(-w, 0.0)
        x = np.append(np.linalg.solve(A[:, :-1], -s - A[:, -1] * last), last)  # A x + s is exactly 0
        return P, A, x, w

    return make


def _short(values: Array | float) -> Array:
    """Round to multiples of 2^-20, whose sums are exact."""
    return np.rint(np.ldexp(values, 20)) * 2.0**-20


def _below_t() -> Array:
    return np.c_[np.eye(4), -np.ones(4)]


def _ascending() -> Array:
    A = np.zeros((4, 5))
    A[np.arange(4), np.arange(4)], A[np.arange(4), np.arange(1, 5)] = 1.0, -1.0
    return A


def _simplex(rng: np.random.Generator) -> Made:
    """Minimise c'x over the simplex, with c_0 = c_1 the smallest costs."""
    share = rng.uniform(0.2, 0.8)
    x = np.array([share, 1.0 - share, 0.0, 0.0])
    w = np.concatenate([_size(rng, 1), -x + np.r_[0.0, 0.0, _size(rng, 1, 1)]])
    return np.zeros((4, 4)), np.r_[np.ones((1, 4)), -np.eye(4)], x, w


def _largest(rng: np.random.Generator) -> Made:
    """The two largest of five entries, with a tie for second place."""
    share = rng.uniform(0.2, 0.8)
    x = np.array([1.0, share, 1.0 - share, 0.0, 0.0])
    low, high = -x.copy(), x - 1.0
    low[3:], high[0] = _size(rng, 1, 1), rng.uniform(0.3, 1.5)
    A = np.r_[np.ones((1, 5)), -np.eye(5), np.eye(5)]
    return np.zeros((5, 5)), A, x, np.concatenate([_size(rng, 1), low, high])


def _flat(hidden: bool) -> Callable[[np.random.Generator], Made]:
    """(x_0 + x_1 - 1)^2 + (z_0 - z_1)^2, or, if hidden, unique x and non-unique z, with an equation in x."""

    def make(rng: np.random.Generator) -> Made:
        P = np.zeros((4, 4))
        P[:2, :2] = _convex(rng, 2) if hidden else 1.0
        P[2:, 2:] = [[1.0, -1.0], [-1.0, 1.0]]
        A = np.zeros((2, 4))
        A[0] = np.r_[rng.normal(size=2), 0.0, 0.0]
        A[1] = np.r_[rng.normal(size=2), 0.0, 0.0] if hidden else np.r_[1.0, 1.0, 0.0, 0.0]
        return P, A, rng.normal(size=4), _size(rng, *((1, -1) if hidden else (-1, -1)))

    return make


def _point(rng: np.random.Generator) -> Made:
    """norm(u) <= 0, where u is two rows of A x - b: a constraint with empty interior."""
    A = rng.normal(size=(3, 4))
    A[0] = 0.0
    angle = rng.uniform(0.0, 2.0 * np.pi)
    return _convex(rng, 4), A, rng.normal(size=4), np.array([1.5, np.cos(angle), np.sin(angle)])


FAMILIES: list[Degenerate] = [
    _rows("two equal equations", Cones(zero=3, nonnegative=1), (1, -1, 1, 1), _copy(0, 1)),
    _rows("equations in proportion", Cones(zero=3, nonnegative=1), (1, 1, 1, -1), _copy(0, 2, -2.5)),
    _rows("an equation that is a sum", Cones(zero=3, nonnegative=2), (1, -1, 1, 1, -1), _combine((0, 1), 2)),
    _rows("two equal active rows", Cones(nonnegative=4), (1, 1, 1, -1), _copy(0, 1)),
    _rows("active rows in proportion", Cones(nonnegative=4), (1, 1, 1, -1), _copy(0, 1, 3.0)),
    _rows("an active row that is a sum", Cones(nonnegative=5), (1, 1, 1, 1, -1), _combine((0, 1), 2)),
    _rows("an equation and the same inequality", Cones(zero=2, nonnegative=2), (1, 1, 1, -1), _copy(0, 2)),
    _rows("nothing inside: a row and its negative", Cones(nonnegative=4), (1, 1, 1, -1), _copy(0, 1, -1.0)),
    Degenerate("nothing inside: a ball of radius 0", Cones(second_order=(3,)), _point, ROWS_DEPEND, "q"),
    _rows("a vertex with more rows, quadratic", Cones(nonnegative=6), (1, 1, 1, 1, 1, -1), _nothing, n=3),
    _rows("a vertex with more rows, linear", Cones(nonnegative=6), (1, 1, 1, 1, 1, -1), _nothing, n=3, linear=True),
    _rows(
        "two equal equations, multipliers seen", Cones(zero=3, nonnegative=1), (1, -1, 1, 1), _copy(0, 1),
        (
            DerivativeQuery("q", (0, 1, 7, 8), EXISTS),
            DerivativeQuery("q", (5,), NONEXISTENT),
            DerivativeQuery("b", None, NONEXISTENT),
        ),
        duals=True, ambiguous=(5, 6),
    ),
    _rows("a weak row", Cones(nonnegative=4), (1, -1, 0, 1), _nothing, WEAK, value="qb"),
    _rows("a weak row beside equations", Cones(zero=2, nonnegative=3), (1, -1, 0, 1, -1), _nothing, WEAK, value="qb"),
    Degenerate(
        "relu at 0", Cones(nonnegative=3), _relu,
        (
            DerivativeQuery("q", (0, 2), EXISTS),
            DerivativeQuery("b", (0, 2), EXISTS),
            DerivativeQuery("q", (1,), NONEXISTENT),
            DerivativeQuery("b", (1,), NONEXISTENT),
        ),
        "qb",
    ),
    Degenerate(
        "max, one entry at the level", Cones(nonnegative=4), _projection(_below_t, (1, 1, 0, -1), epigraph=True),
        (DerivativeQuery("q", (3,), EXISTS), DerivativeQuery("q", (0, 2), NONEXISTENT)), "qb", (0, 1, 2, 3),
    ),
    Degenerate(
        "max, ties below no level", Cones(nonnegative=4), _projection(_below_t, (1, 1, 1, -1), epigraph=True),
        (DerivativeQuery("q", (0, 1, 2, 3), EXISTS), DerivativeQuery("b", None, EXISTS)), "qb", (0, 1, 2, 3),
    ),
    Degenerate(
        "sorting, a tie", Cones(nonnegative=4), _projection(_ascending, (-1, 0, 1, -1), epigraph=False),
        (DerivativeQuery("q", (0, 4), EXISTS), DerivativeQuery("q", (1, 2, 3), NONEXISTENT)), "qb",
    ),
    Degenerate(
        "a tie on the simplex", Cones(zero=1, nonnegative=4), _simplex,
        (DerivativeQuery("q", (0, 1), NONEXISTENT), DerivativeQuery("b", (0, 1), NONEXISTENT)), "b", ambiguous=(0, 1),
    ),
    Degenerate(
        "a tie for the second place", Cones(zero=1, nonnegative=10), _largest,
        (DerivativeQuery("q", (1, 2), NONEXISTENT), DerivativeQuery("b", (1, 2), NONEXISTENT)), "b", ambiguous=(1, 2),
    ),
    Degenerate(
        "not unique, seen", Cones(nonnegative=2), _flat(False),
        (DerivativeQuery("q", (0,), NONEXISTENT), DerivativeQuery("b", (0,), NONEXISTENT)), "b", (0, 1),
        ambiguous=(0, 1),
    ),
    Degenerate(
        "not unique, hidden", Cones(zero=1, nonnegative=1), _flat(True),
        (DerivativeQuery("b", (0, 1), EXISTS),), "b", (0, 1),
    ),
    Degenerate(
        "two equal equations, curved blocks", Cones(zero=2, second_order=(3,), exponential=1), _beside_curved,
        ROWS_DEPEND, "q",
    ),
    Degenerate("a diagonal and its trace, semidefinite", Cones(zero=4, psd=(3,)), _correlation, ROWS_DEPEND, "q"),
    _curved("weak second-order, y", Cones(second_order=(3,)), lambda rng: _ray(rng, 1.0)),
    _curved("weak second-order, s", Cones(second_order=(3,)), lambda rng: _ray(rng, -1.0)),
    _curved("second-order at its apex", Cones(second_order=(3,)), lambda rng: np.zeros(3)),
    _curved("weak semidefinite", Cones(psd=(3,)), lambda rng: _matrix(rng, 1.0, 0.0, -0.8)),
    _curved("weak exponential, y", Cones(exponential=1), lambda rng: _exponential(rng, "dual")),
    _curved("weak exponential, s", Cones(exponential=1), lambda rng: _exponential(rng, "primal")),
    _curved("weak power, y", Cones(power=(0.3,)), lambda rng: _power(rng, "dual")),
    _curved("weak power, s", Cones(power=(0.3,)), lambda rng: _power(rng, "primal")),
]  # fmt: skip
"""All degenerate families. Their names seed the draws."""
