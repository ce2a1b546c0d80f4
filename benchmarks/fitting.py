"""Held-out problems that fit models to data, solved in batches."""

from __future__ import annotations

from typing import Any

import cvxpy as cp
import numpy as np
import torch

from benchmarks.problem import QP, Problem, QPForm
from benchmarks.small import no_equalities, whole

__all__ = [
    "d_optimal_design",
    "group_lasso",
    "isotonic_regression",
    "matrix_completion",
    "quantile_regression",
    "robust_least_squares",
    "support_vector_machine",
]

NOT_STRICTLY_CONVEX = (("qpth", "it needs a positive definite P"),)
"""What does not support a QP with variables in which the objective is linear."""


def group_lasso(groups: int, samples: int, size: int = 3) -> Problem:
    """Least squares with a penalty on the sum of the norms of groups of coefficients."""
    n = groups * size
    x, A, b, weight = cp.Variable(n), cp.Parameter((samples, n)), cp.Parameter(samples), cp.Parameter(nonneg=True)
    penalty = cp.sum(cp.norm(cp.reshape(x, (groups, size), order="C"), 2, axis=1))
    problem = cp.Problem(cp.Minimize(cp.sum_squares(A @ x - b) + weight * penalty))

    def draw(rng: np.random.Generator) -> list[Any]:
        A = rng.standard_normal((samples, n)) / np.sqrt(samples)
        truth = rng.standard_normal((groups, size)) * (rng.random((groups, 1)) < 0.5)
        return [A, A @ truth.ravel() + 0.1 * rng.standard_normal(samples), 0.2 + 0.2 * rng.random()]

    return Problem(f"group_lasso_{n}", problem, [A, b, weight], [x], draw)


def quantile_regression(features: int, samples: int, level: float = 0.8, ridge: float = 0.1) -> Problem:
    """Linear regression of a quantile with a ridge penalty; the residual is the difference of two nonnegative parts."""
    w, above, below = cp.Variable(features), cp.Variable(samples), cp.Variable(samples)
    X, y = cp.Parameter((samples, features)), cp.Parameter(samples)
    loss = level * cp.sum(above) + (1 - level) * cp.sum(below)
    constraints = [X @ w + above - below == y, above >= 0, below >= 0]
    problem = cp.Problem(cp.Minimize(loss + ridge * cp.sum_squares(w)), constraints)

    def draw(rng: np.random.Generator) -> list[Any]:
        X = rng.standard_normal((samples, features))
        return [X, X @ rng.standard_normal(features) + rng.standard_normal(samples)]

    n, eye = features + 2 * samples, torch.eye(samples, dtype=torch.float64)
    P = torch.diag(torch.cat([torch.full((features,), 2 * ridge), torch.zeros(2 * samples)]).double())
    weights = (torch.zeros(features), torch.full((samples,), level), torch.full((samples,), 1 - level))
    q = torch.cat([part.double() for part in weights])
    G, h = -torch.eye(n, dtype=torch.float64)[features:], torch.zeros(2 * samples, dtype=torch.float64)

    def data(X: torch.Tensor, y: torch.Tensor) -> QP:
        batch = len(X)
        A = torch.cat([X, eye.expand(batch, -1, -1), -eye.expand(batch, -1, -1)], dim=2)
        return QP(P, q.expand(batch, -1), G, h, A, y)

    form = QPForm(data, lambda x: (x[:, :features],))
    return Problem(f"quantile_regression_{features}x{samples}", problem, [X, y], [w], draw, form, NOT_STRICTLY_CONVEX)


def isotonic_regression(n: int) -> Problem:
    """The nearest ascending sequence."""
    x, y = cp.Variable(n), cp.Parameter(n)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - y)), [x[:-1] <= x[1:]])
    eye = torch.eye(n, dtype=torch.float64)
    rows, h = eye[:-1] - eye[1:], torch.zeros(n - 1, dtype=torch.float64)
    A, b = no_equalities(n)
    form = QPForm(lambda y: QP(2 * eye, -2 * y, rows, h, A, b), whole, fixed_matrices=True)

    def draw(rng: np.random.Generator) -> list[Any]:
        return [np.linspace(0.0, 3.0, n) + rng.standard_normal(n)]

    return Problem(f"isotonic_regression_{n}", problem, [y], [x], draw, form)


def matrix_completion(rows: int, columns: int) -> Problem:
    """A matrix of low rank from three quarters of its entries, by a penalty on the nuclear norm."""
    observed = np.zeros((rows, columns))
    observed.flat[np.random.default_rng(0).permutation(rows * columns)[: 3 * rows * columns // 4]] = 1.0
    X, M, weight = cp.Variable((rows, columns)), cp.Parameter((rows, columns)), cp.Parameter(nonneg=True)
    misfit = cp.sum_squares(cp.multiply(observed, X - M))
    problem = cp.Problem(cp.Minimize(misfit + weight * cp.normNuc(X)))

    def draw(rng: np.random.Generator) -> list[Any]:
        truth = rng.standard_normal((rows, 2)) @ rng.standard_normal((2, columns))
        return [truth + 0.3 * rng.standard_normal((rows, columns)), 0.5 + 0.2 * rng.random()]

    return Problem(f"matrix_completion_{rows}x{columns}", problem, [M, weight], [X], draw)


def d_optimal_design(n: int, order: int) -> Problem:
    """Weights of n experiments that maximise the determinant of the information, with costs and prior information."""
    vectors = np.random.default_rng(0).standard_normal((order, n))
    w, prior, cost = cp.Variable(n), cp.Parameter((order, order), PSD=True), cp.Parameter(n)
    information = vectors @ cp.diag(w) @ vectors.T + prior
    problem = cp.Problem(cp.Maximize(cp.log_det(information) - cost @ w), [cp.sum(w) == 1, w >= 0])

    def draw(rng: np.random.Generator) -> list[Any]:
        root = rng.standard_normal((order, order)) / np.sqrt(order)
        return [0.1 * (root @ root.T + np.eye(order)), 0.5 * rng.random(n)]

    return Problem(f"d_optimal_design_{n}", problem, [prior, cost], [w], draw)


def robust_least_squares(n: int, samples: int) -> Problem:
    """Least squares under the worst perturbation of the matrix of a given norm (El Ghaoui and Lebret 1997)."""
    x, A, b, radius = cp.Variable(n), cp.Parameter((samples, n)), cp.Parameter(samples), cp.Parameter(nonneg=True)
    problem = cp.Problem(cp.Minimize(cp.norm(A @ x - b) + radius * cp.norm(x)))

    def draw(rng: np.random.Generator) -> list[Any]:
        A = rng.standard_normal((samples, n))
        return [A, A @ rng.standard_normal(n) + rng.standard_normal(samples), 0.2 + 0.3 * rng.random()]

    return Problem(f"robust_least_squares_{n}", problem, [A, b, radius], [x], draw)


def support_vector_machine(features: int, samples: int) -> Problem:
    """The hyperplane of largest margin, with slack; the rows of Z are features times the label."""
    w, slack = cp.Variable(features), cp.Variable(samples)
    Z, weight = cp.Parameter((samples, features)), cp.Parameter(nonneg=True)
    objective = 0.5 * cp.sum_squares(w) + weight * cp.sum(slack)
    problem = cp.Problem(cp.Minimize(objective), [Z @ w + slack >= 1, slack >= 0])

    def draw(rng: np.random.Generator) -> list[Any]:
        Z = rng.standard_normal((samples, features))
        return [Z + 0.5 * rng.standard_normal(features), 0.5 + rng.random()]

    n = features + samples
    P = torch.diag(torch.cat([torch.ones(features), torch.zeros(samples)]).double())
    own, h = -torch.eye(n, dtype=torch.float64)[features:], torch.zeros(2 * samples, dtype=torch.float64)
    h[:samples] = -1.0
    A, b = no_equalities(n)

    def data(Z: torch.Tensor, weight: torch.Tensor) -> QP:
        batch = len(Z)
        margins = torch.cat([-Z, own[:, features:].expand(batch, -1, -1)], dim=2)
        q = torch.cat([torch.zeros(batch, features, dtype=torch.float64), weight[:, None].expand(-1, samples)], dim=1)
        return QP(P, q, torch.cat([margins, own.expand(batch, -1, -1)], dim=1), h, A, b)

    form = QPForm(data, lambda x: (x[:, :features],))
    name = f"support_vector_machine_{features}x{samples}"
    return Problem(name, problem, [Z, weight], [w], draw, form, NOT_STRICTLY_CONVEX)
