"""Large problems of the suite, sparse or with a large semidefinite matrix, solved with batch size 1."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import cvxpy as cp
import numpy as np

from benchmarks.problem import Problem
from benchmarks.small import control

__all__ = ["control_large", "factor_portfolio", "lasso", "maximum_cut"]


def factor_portfolio(assets: int = 2000, factors: int = 20) -> Problem:
    """A long-only portfolio under a factor model; expected returns and loadings are parameters."""
    w, f = cp.Variable(assets), cp.Variable(factors)
    mu, F = cp.Parameter(assets), cp.Parameter((factors, assets))
    own = np.random.default_rng(0).uniform(0.5, 1.5, assets)
    risk = cp.sum_squares(f) + cp.sum_squares(cp.multiply(own, w))
    problem = cp.Problem(cp.Maximize(mu @ w - risk), [f == F @ w, cp.sum(w) == 1, w >= 0])

    def draw(rng: np.random.Generator) -> list[Any]:
        return [rng.standard_normal(assets), rng.standard_normal((factors, assets)) / np.sqrt(factors)]

    return Problem(f"factor_portfolio_{assets}", problem, [mu, F], [w], draw)


def lasso(samples: int = 300, features: int = 600) -> Problem:
    """Least squares with a penalty on the sum of absolute values; the data are parameters."""
    x, A, b, weight = (
        cp.Variable(features),
        cp.Parameter((samples, features)),
        cp.Parameter(samples),
        cp.Parameter(nonneg=True),
    )
    problem = cp.Problem(cp.Minimize(cp.sum_squares(A @ x - b) + weight * cp.norm1(x)))

    def draw(rng: np.random.Generator) -> list[Any]:
        A = rng.standard_normal((samples, features)) / np.sqrt(samples)
        truth = rng.standard_normal(features) * (rng.random(features) < 0.1)
        return [A, A @ truth + 0.1 * rng.standard_normal(samples), 0.2]

    return Problem(f"lasso_{samples}x{features}", problem, [A, b, weight], [x], draw)


def control_large(T: int = 200, states: int = 12, inputs: int = 8) -> Problem:
    """Optimal control over a long horizon, with stable dynamics, so that trajectories stay bounded."""
    problem = control(T, states, inputs)

    def draw(rng: np.random.Generator) -> list[Any]:
        dynamics = rng.standard_normal((states, states))
        dynamics *= 0.95 / np.max(np.abs(np.linalg.eigvals(dynamics)))
        return [dynamics, rng.standard_normal((states, inputs)), rng.standard_normal(states)]

    return replace(problem, name=f"control_{T}", draw=draw, qp=None)


def maximum_cut(order: int = 40) -> Problem:
    """The semidefinite relaxation of maximum cut; the weights are parameters."""
    X, W = cp.Variable((order, order), PSD=True), cp.Parameter((order, order), symmetric=True)
    problem = cp.Problem(cp.Minimize(cp.trace(W @ X)), [cp.diag(X) == 1])

    def draw(rng: np.random.Generator) -> list[Any]:
        weights = rng.standard_normal((order, order))
        return [0.5 * (weights + weights.T)]

    return Problem(f"maximum_cut_{order}", problem, [W], [X], draw)
