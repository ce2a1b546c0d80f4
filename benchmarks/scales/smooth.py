"""Families over the exponential and power cones: exp, log, inv_pos, powers, entropies, logistic function."""

from __future__ import annotations

from collections.abc import Callable

import cvxpy as cp
import numpy as np
import torch

from benchmarks.scales.family import Family, log_uniform
from convexlayer.program import Array

__all__ = ["SMOOTH"]


def _two(n: int, name: str, objective: Callable[..., cp.Expression], solution: Callable[..., torch.Tensor]) -> Family:
    """A family in x (n,) with two positive, log-uniform parameters a and p (n,)."""
    x, a, p = cp.Variable(n), cp.Parameter(n, nonneg=True), cp.Parameter(n, nonneg=True)
    return Family(
        name,
        objective(x, a, p),
        [],
        [a, p],
        [x],
        lambda rng, k: [log_uniform(rng, k, n), log_uniform(rng, k, n)],
        solution,
    )


def exponential() -> Family:
    """Minimise sum exp(x) - p'x, x = log p."""
    n = 3
    x, p = cp.Variable(n), cp.Parameter(n)
    objective = cp.sum(cp.exp(x)) - p @ x
    return Family("exp", objective, [], [p], [x], lambda rng, k: [log_uniform(rng, k, n)], torch.log)


def exp_small() -> Family:
    """As ``exponential``, with all of p in 10^-(k + 1)..10^-(k - 1), so that no coordinate is large."""
    family = exponential()
    return Family(
        "exp, all small", family.objective, [], family.parameters, family.variables,
        lambda rng, k: [10.0**-k * log_uniform(rng, 1.0, 3)], torch.log,
    )  # fmt: skip


def weighted_exp() -> Family:
    """Minimise a'exp(x) - p'x, x = log(p / a)."""
    return _two(5, "a exp", lambda x, a, p: a @ cp.exp(x) - p @ x, lambda a, p: torch.log(p / a))


def log() -> Family:
    """Minimise p'x - a'log(x), x = a / p."""
    return _two(5, "log", lambda x, a, p: p @ x - a @ cp.log(x), lambda a, p: a / p)


def inv_pos() -> Family:
    """Minimise p'x + a'(1 / x), x = sqrt(a / p)."""
    return _two(4, "inv_pos", lambda x, a, p: p @ x + a @ cp.inv_pos(x), lambda a, p: torch.sqrt(a / p))


def power(exponent: float, *, approx: bool, n: int = 3) -> Callable[[], Family]:
    """Minimise +-(a'x^e - p'x), or p'x + a'x^e if e < 0: x = (abs(e) a / p)^(1 / (1 - e))."""

    def objective(x: cp.Variable, a: cp.Parameter, p: cp.Parameter) -> cp.Expression:
        powers = a @ cp.power(x, exponent, approx=approx)
        return powers - p @ x if exponent > 1 else p @ x - powers if exponent > 0 else p @ x + powers

    def solution(a: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
        return (abs(exponent) * a / p) ** (1.0 / (1.0 - exponent))

    name = f"power {exponent:g}" + ("" if approx else ", exact")
    return lambda: _two(n, name, objective, solution)


def entropy() -> Family:
    """Minimise -a'entr(x) - c'x, x = exp(c / a - 1), where c is such that x is log-uniform."""
    n = 4
    x, a, c = cp.Variable(n), cp.Parameter(n, nonneg=True), cp.Parameter(n)

    def draw(rng: np.random.Generator, k: float) -> list[Array]:
        weight = log_uniform(rng, k, n)
        return [weight, weight * (1.0 + np.log(log_uniform(rng, k, n)))]

    objective = -a @ cp.entr(x) - c @ x
    return Family("entropy", objective, [], [a, c], [x], draw, lambda a, c: torch.exp(c / a - 1.0))


def entropy_on_simplex() -> Family:
    """Minimise -sum entr(x) - c'x over the simplex, x = softmax(c), where exp(c) is log-uniform."""
    n = 5
    x, c = cp.Variable(n), cp.Parameter(n)
    return Family(
        "entropy on the simplex", -cp.sum(cp.entr(x)) - c @ x, [cp.sum(x) == 1], [c], [x],
        lambda rng, k: [np.log(log_uniform(rng, k, n))], lambda c: torch.softmax(c, 0), coupled=True,
    )  # fmt: skip


def divergence() -> Family:
    """Minimise sum kl_div(p, x), x = p."""
    n = 3
    x, p = cp.Variable(n), cp.Parameter(n, nonneg=True)
    objective = cp.sum(cp.kl_div(p, x))
    return Family("kl_div", objective, [], [p], [x], lambda rng, k: [log_uniform(rng, k, n)], lambda p: p.clone())


def kl_div_simplex() -> Family:
    """Minimise sum kl_div(p, x) with p on the simplex, x = p: small blocks beside large ones."""
    family = divergence()

    def draw(rng: np.random.Generator, k: float) -> list[Array]:
        p = log_uniform(rng, k, 3)
        return [p / np.sum(p)]

    return Family("kl_div, sum 1", family.objective, [], family.parameters, family.variables, draw, lambda p: p.clone())


def weighted_kl_div() -> Family:
    """Minimise sum kl_div(p, x) + a'x, x = p / (1 + a)."""
    return _two(3, "kl_div + a x", lambda x, a, p: cp.sum(cp.kl_div(p, x)) + a @ x, lambda a, p: p / (1.0 + a))


def kl_projection() -> Family:
    """Minimise sum kl_div(x, p), sum(x) = total: x = total p / sum(p)."""
    n = 4
    x, p, total = cp.Variable(n), cp.Parameter(n, nonneg=True), cp.Parameter(nonneg=True)
    return Family(
        "kl_div(x, p), sum fixed", cp.sum(cp.kl_div(x, p)), [cp.sum(x) == total], [p, total], [x],
        lambda rng, k: [log_uniform(rng, k, n), log_uniform(rng, k)], lambda p, total: total * p / torch.sum(p),
        coupled=True,
    )  # fmt: skip


def relative_entropy() -> Family:
    """Minimise sum rel_entr(p, x) + a'x, x = p / a."""
    return _two(3, "rel_entr", lambda x, a, p: cp.sum(cp.rel_entr(p, x)) + a @ x, lambda a, p: p / a)


def rel_entr_tilted() -> Family:
    """Minimise sum rel_entr(x, p) - c'x, x = p exp(c - 1), where exp(c) is log-uniform."""
    n = 3
    x, p, c = cp.Variable(n), cp.Parameter(n, nonneg=True), cp.Parameter(n)
    return Family(
        "rel_entr(x, p)", cp.sum(cp.rel_entr(x, p)) - c @ x, [], [p, c], [x],
        lambda rng, k: [log_uniform(rng, k, n), np.log(log_uniform(rng, k, n))],
        lambda p, c: p * torch.exp(c - 1.0),
    )  # fmt: skip


def logistic() -> Family:
    """Minimise a'logistic(x) - p'x, x = log(p / (a - p)), where p / (a - p) is log-uniform."""
    n = 4
    x, a, p = cp.Variable(n), cp.Parameter(n, nonneg=True), cp.Parameter(n)

    def draw(rng: np.random.Generator, k: float) -> list[Array]:
        weight, odds = log_uniform(rng, k, n), log_uniform(rng, k, n)
        return [weight, weight * odds / (1.0 + odds)]

    objective = a @ cp.logistic(x) - p @ x
    return Family("logistic", objective, [], [a, p], [x], draw, lambda a, p: torch.log(p / (a - p)))


def poisson(rows: int = 30, columns: int = 3) -> Family:
    """Minimise sum exp(X b) - y'X b: X'(exp(X b) - y) = 0; means in 10^-k..10^k."""
    X = np.c_[np.ones(rows), np.random.default_rng(0).normal(size=(rows, columns - 1))]
    b, y = cp.Variable(columns), cp.Parameter(rows)
    of, inverse = torch.from_numpy(X), torch.from_numpy(np.linalg.pinv(X))

    def draw(rng: np.random.Generator, k: float) -> list[Array]:
        level, tilt = np.log(log_uniform(rng, k)), rng.normal(size=columns - 1)
        return [np.exp(level + X[:, 1:] @ tilt + 0.3 * rng.normal(size=rows))]

    def solution(y: torch.Tensor) -> torch.Tensor:
        b = inverse @ torch.log(y)
        for _ in range(20):  # Newton; the last step carries the derivative
            b = b.detach()
            mean = torch.exp(of @ b)
            b = b - torch.linalg.inv(of.T @ (mean[:, None] * of)) @ (of.T @ (mean - y))
        return b

    objective = cp.sum(cp.exp(X @ b)) - y @ (X @ b)
    return Family("poisson", objective, [], [y], [b], draw, solution, coupled=True)


SMOOTH: list[Callable[[], Family]] = [
    exponential, exp_small, weighted_exp, log, inv_pos,
    power(1.5, approx=True), power(3.0, approx=True), power(4.0, approx=True), power(0.5, approx=True),
    power(-0.5, approx=True), power(1.5, approx=False), power(3.3, approx=False), power(0.3, approx=False),
    power(-0.7, approx=False),
    entropy, entropy_on_simplex, divergence, kl_div_simplex, weighted_kl_div, kl_projection, relative_entropy,
    rel_entr_tilted, logistic, poisson,
]  # fmt: skip
"""Constructors of these families."""
