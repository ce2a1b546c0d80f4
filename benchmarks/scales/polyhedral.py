"""Families with quadratic and linear functions over the linear, second-order and semidefinite cones, and log_det."""

from __future__ import annotations

from collections.abc import Callable

import cvxpy as cp
import numpy as np
import torch

from benchmarks.scales.family import Family, log_uniform
from convexlayer.program import Array

__all__ = ["NORMS"]


def _signs(rng: np.random.Generator, n: int) -> Array:
    return rng.choice([-1.0, 1.0], size=n)


def _kink_ratios(rng: np.random.Generator, n: int) -> Array:
    """Random ratios to the position of a kink, at least a tenth away from it."""
    ratio: Array = rng.choice([1.0, -1.0], size=n) * rng.uniform(0.1, 2.0, size=n)
    return np.exp(ratio)


def _norms(p: torch.Tensor) -> torch.Tensor:
    """Norms of the rows."""
    return torch.sqrt(torch.sum(p**2, dim=1))


def squares() -> Family:
    """Minimise a'x^2 / 2 - c'x, l <= x <= u: x = clip(c / a, l, u)."""
    n = 5
    x = cp.Variable(n)
    a, c, low, high = cp.Parameter(n, nonneg=True), cp.Parameter(n), cp.Parameter(n), cp.Parameter(n)

    def draw(rng: np.random.Generator, k: float) -> list[Array]:
        weight, free = log_uniform(rng, k, n), log_uniform(rng, k, n) * _signs(rng, n)
        side = rng.integers(3, size=n)  # below, inside, above
        near, far = np.abs(free) * rng.uniform(0.1, 0.9, size=n), np.abs(free) * rng.uniform(0.1, 0.9, size=n)
        shift = np.array([free + near, free - near, free - near - far])[side, np.arange(n)]
        return [weight, weight * free, shift, np.array([shift + far, free + far, free - near])[side, np.arange(n)]]

    def solution(a: torch.Tensor, c: torch.Tensor, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
        return torch.where(c / a < low, low, torch.where(c / a > high, high, c / a))

    objective = 0.5 * a @ cp.square(x) - c @ x
    return Family("squares in a box", objective, [low <= x, x <= high], [a, c, low, high], [x], draw, solution)


def nonnegative_squares() -> Family:
    """Minimise sum (x - p)^2, x >= 0: x = max(p, 0)."""
    n = 6
    x, p = cp.Variable(n), cp.Parameter(n)
    return Family(
        "squares, x >= 0", cp.sum_squares(x - p), [x >= 0], [p], [x],
        lambda rng, k: [log_uniform(rng, k, n) * _signs(rng, n)], torch.relu, torch.abs,
    )  # fmt: skip


def squares_in_units() -> Family:
    """Minimise sum (k_i x_i - p_i)^2, k_i x_i >= 0: x_i = max(p_i, 0) / k_i, with constants k in 10^-6..10^6."""
    n, units = 6, np.array([1e-6, 1e-3, 1.0, 1e2, 1e4, 1e6])
    x, p, k = cp.Variable(n), cp.Parameter(n), torch.from_numpy(units)
    return Family(
        "squares in units", cp.sum_squares(cp.multiply(units, x) - p), [cp.multiply(units, x) >= 0], [p], [x],
        lambda rng, k: [log_uniform(rng, k, n) * _signs(rng, n)],
        lambda p: torch.relu(p) / k, lambda p: p.abs() / k,
    )  # fmt: skip


def half_space() -> Family:
    """Minimise sum (k_i x_i - a_i)^2, k'x <= c, with scales k_i: k_i x_i = a_i - max(sum(a) - c, 0) / n."""
    n = 3
    x, k, a, c = cp.Variable(n), cp.Parameter(n, nonneg=True), cp.Parameter(n), cp.Parameter()

    def draw(rng: np.random.Generator, order: float) -> list[Array]:
        point = rng.normal(size=n)
        excess = rng.uniform(0.1, 1.0) * rng.choice([-1.0, 1.0])
        return [log_uniform(rng, order, n), point, np.array(np.sum(point) - excess)]

    def solution(k: torch.Tensor, a: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        return (a - torch.relu(torch.sum(a) - c) / n) / k

    return Family(
        "half-space in units", cp.sum_squares(cp.multiply(k, x) - a), [k @ x <= c], [k, a, c], [x], draw, solution,
        lambda k, a, c: (1.0 + a.abs()) / k, coupled=True,
    )  # fmt: skip


def quadratic_half_space() -> Family:
    """Minimise d'x^2 / 2 - g'x, k'x <= c: x = (g - l k) / d with l = max(k'(g / d) - c, 0) / k'(k / d).

    The variables are scaled by units in 10^-k..10^k; unscaled numbers are near 1.
    """
    n = 4
    x, d, g, k, c = cp.Variable(n), cp.Parameter(n, nonneg=True), cp.Parameter(n), cp.Parameter(n), cp.Parameter()

    def draw(rng: np.random.Generator, order: float) -> list[Array]:
        unit, row, free = log_uniform(rng, order, n), rng.normal(size=n), rng.normal(size=n)
        weight = rng.uniform(0.5, 2.0, size=n)
        excess = rng.uniform(0.1, 1.0) * rng.choice([-1.0, 1.0])
        return [unit**2 * weight, unit * weight * free, unit * row, np.array(row @ free - excess)]

    def multiplier(d: torch.Tensor, g: torch.Tensor, k: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        return torch.relu(k @ (g / d) - c) / (k @ (k / d))

    def solution(d: torch.Tensor, g: torch.Tensor, k: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        return (g - multiplier(d, g, k, c) * k) / d

    def size(d: torch.Tensor, g: torch.Tensor, k: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        return (g.abs() + multiplier(d, g, k, c) * k.abs()) / d

    objective = 0.5 * d @ cp.square(x) - g @ x
    return Family(
        "half-space, quadratic", objective, [k @ x <= c], [d, g, k, c], [x], draw, solution, size, coupled=True
    )


def norm_1() -> Family:
    """Minimise a norm1(x) + sum (x - p)^2 / 2 for groups of two: x = sign(p) max(abs(p) - a, 0)."""
    n = 3
    x, a, p = [cp.Variable(2) for _ in range(n)], cp.Parameter(n, nonneg=True), cp.Parameter((n, 2))

    def draw(rng: np.random.Generator, k: float) -> list[Array]:
        weight = log_uniform(rng, k, n)
        return [weight, weight[:, None] * _kink_ratios(rng, 2 * n).reshape(n, 2) * _signs(rng, 2 * n).reshape(n, 2)]

    def solution(a: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
        return (torch.sign(p) * torch.relu(p.abs() - a[:, None])).reshape(-1)

    objective = sum(a[g] * cp.norm1(x[g]) + 0.5 * cp.sum_squares(x[g] - p[g]) for g in range(n))
    return Family("norm1", objective, [], [a, p], x, draw, solution, lambda a, p: p.abs().reshape(-1))


def norm_2() -> Family:
    """Minimise a norm(x) + sum (x - p)^2 / 2 for groups of two: x = p max(1 - a / norm(p), 0)."""
    n = 3
    x, a, p = [cp.Variable(2) for _ in range(n)], cp.Parameter(n, nonneg=True), cp.Parameter((n, 2))

    def draw(rng: np.random.Generator, k: float) -> list[Array]:
        weight, angle = log_uniform(rng, k, n), rng.uniform(0.0, 2.0 * np.pi, size=n)
        return [weight, (weight * _kink_ratios(rng, n))[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)]

    def solution(a: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
        return (p * torch.relu(1.0 - a / _norms(p))[:, None]).reshape(-1)

    def size(a: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
        return _norms(p).repeat_interleave(2)

    objective = sum(a[g] * cp.norm(x[g]) + 0.5 * cp.sum_squares(x[g] - p[g]) for g in range(n))
    return Family("norm2", objective, [], [a, p], x, draw, solution, size, coupled=True)


def max_norm() -> Family:
    """Minimise a norm_inf(x) + sum (x - p)^2 / 2 for groups of three: x = clip(p, -l, l)."""
    n, length = 2, 3
    x, a, p = [cp.Variable(length) for _ in range(n)], cp.Parameter(n, nonneg=True), cp.Parameter((n, length))

    def draw(rng: np.random.Generator, k: float) -> list[Array]:
        weight = log_uniform(rng, k, n)
        while True:  # until no entry is near the clipping level
            p = weight[:, None] * np.exp(rng.normal(size=(n, length))) * rng.choice([-1.0, 1.0], size=(n, length))
            level = np.array([_level(a, row) for a, row in zip(weight, np.abs(p), strict=True)])
            if np.all(np.abs(np.abs(p) - level[:, None]) > 0.05 * weight[:, None]) and np.all(level > 0.05 * weight):
                return [weight, p]

    def solution(a: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
        ordered = torch.sort(p.abs(), dim=1, descending=True).values
        count = torch.arange(1, length + 1, dtype=p.dtype)
        levels = (torch.cumsum(ordered, dim=1) - a[:, None]) / count  # clipping level if this many entries are clipped
        level = torch.max(levels, dim=1, keepdim=True).values  # the true level is the largest
        return torch.where(p.abs() > level, torch.sign(p) * level, p).reshape(-1)

    def size(a: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
        return torch.max(p.abs(), dim=1, keepdim=True).values.expand(n, length).reshape(-1)

    objective = sum(a[g] * cp.norm_inf(x[g]) + 0.5 * cp.sum_squares(x[g] - p[g]) for g in range(n))
    return Family("norm_inf", objective, [], [a, p], x, draw, solution, size, coupled=True)


def _level(a: float, p: Array) -> float:
    """Clipping level of the prox of norm_inf: sum max(p - level, 0) = a; negative if p is in the dual ball."""
    ordered = np.sort(p)[::-1]
    return float(np.max((np.cumsum(ordered) - a) / np.arange(1, len(p) + 1)))


def quad_over_lin() -> Family:
    """Minimise sum u_i^2 / y_i + a'y with u = p: y = abs(p) / sqrt(a)."""
    n = 4
    y, u, a, p = cp.Variable(n), cp.Variable(n), cp.Parameter(n, nonneg=True), cp.Parameter(n)
    objective = cp.sum([cp.quad_over_lin(u[i], y[i]) for i in range(n)]) + a @ y
    return Family(
        "quad_over_lin", objective, [u == p], [a, p], [y],
        lambda rng, k: [log_uniform(rng, k, n), log_uniform(rng, k, n) * _signs(rng, n)],
        lambda a, p: p.abs() / torch.sqrt(a),
    )  # fmt: skip


def ball() -> Family:
    """Minimise sum (x - p)^2 subject to norm(x_g) <= r_g for groups of two: x = p min(1, r / norm(p))."""
    n = 3
    x, r, p = [cp.Variable(2) for _ in range(n)], cp.Parameter(n, nonneg=True), cp.Parameter((n, 2))

    def draw(rng: np.random.Generator, k: float) -> list[Array]:
        radius, angle = log_uniform(rng, k, n), rng.uniform(0.0, 2.0 * np.pi, size=n)
        return [radius, (radius * _kink_ratios(rng, n))[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)]

    def solution(r: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
        length = _norms(p)
        return (p * torch.where(length < r, torch.ones_like(r), r / length)[:, None]).reshape(-1)

    def size(r: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
        return _norms(p).repeat_interleave(2)

    objective = sum(cp.sum_squares(x[g] - p[g]) for g in range(n))
    balls = [cp.norm(x[g]) <= r[g] for g in range(n)]
    return Family("balls", objective, balls, [r, p], x, draw, solution, size, coupled=True)


def determinant(*, mixed: bool, n: int = 3) -> Callable[[], Family]:
    """Minimise trace(S X) - log_det(X), X = S^-1, with S = D S0 D; D is scalar, or diagonal if mixed.

    Errors of X_ij are relative to sqrt(X_ii X_jj), those of d X_ij / d S_kl to sqrt(X_ii X_jj X_kk X_ll).
    """

    def make() -> Family:
        X, S = cp.Variable((n, n), symmetric=True), cp.Parameter((n, n), PSD=True)

        def draw(rng: np.random.Generator, k: float) -> list[Array]:
            root = rng.normal(size=(n, n))
            d = np.sqrt(log_uniform(rng, k, n) if mixed else np.full(n, log_uniform(rng, k)))
            unscaled = root @ root.T / n + 0.2 * np.eye(n)
            return [d[:, None] * (0.5 * (unscaled + unscaled.T)) * d]

        def solution(S: torch.Tensor) -> torch.Tensor:
            d = torch.rsqrt(torch.diagonal(S)).detach()
            return (d[:, None] * torch.linalg.inv(d[:, None] * (0.5 * (S + S.T)) * d) * d).reshape(-1)

        def size(S: torch.Tensor) -> torch.Tensor:
            root = torch.sqrt(torch.diagonal(solution(S).reshape(n, n)))
            return (root[:, None] * root).reshape(-1)

        lower = [i * n + j for i in range(n) for j in range(i + 1)]
        name = "log_det, D S D" if mixed else "log_det, c S"
        return Family(
            name, cp.trace(S @ X) - cp.log_det(X), [], [S], [X], draw, solution, size, coupled=True, queries=lower
        )

    return make


NORMS: list[Callable[[], Family]] = [
    squares, nonnegative_squares, squares_in_units, half_space, quadratic_half_space, norm_1, norm_2, max_norm,
    quad_over_lin, ball,
    determinant(mixed=False), determinant(mixed=True),
]  # fmt: skip
"""Constructors of these families."""
