"""Bilevel problem of the open questions: one ridge weight per feature, learnt by the error on held-out patients.

    x*(theta) = argmin over x of 1/2 |A x - b|^2 / m + 1/2 sum w(theta) x^2,    w = 3 sigmoid(theta)
    minimise over theta  1/2 |A' x*(theta) - b'|^2 / m'

on scikit-learn's diabetes data. The Hessian of the lower problem, A'A / m + diag(w), is far from diagonal.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from convexlayer.nodes import AbstractDerivative, FixedPointNode, ForwardBackward
from convexlayer.nodes.fixed_point.differentiation import PEAK_DECAY

__all__ = ["Ridge", "cosine", "diabetes", "iterations", "path"]

MAX_WEIGHT = 3.0
"""Largest ridge weight w."""


@dataclass(frozen=True)
class Ridge:
    """Data of the problem, float64.

    Attributes:
        A: features of the training patients, (m, n).
        b: their targets, (m,).
        A_held: features of the held-out patients.
        b_held: their targets.
    """

    A: torch.Tensor
    b: torch.Tensor
    A_held: torch.Tensor
    b_held: torch.Tensor

    @property
    def n(self) -> int:
        """Number of features and of weights."""
        return self.A.shape[1]

    @property
    def step_size(self) -> float:
        """Step size of gradient descent on the lower problem, valid for all weights."""
        return 1.0 / (float(torch.linalg.matrix_norm(self.A, 2)) ** 2 / len(self.A) + MAX_WEIGHT)

    def lower(self, x: torch.Tensor, theta: torch.Tensor) -> torch.Tensor:
        """Lower objective."""
        return 0.5 * (self.A @ x - self.b).square().mean() + 0.5 * (_weights(theta) * x.square()).sum()

    def lower_gradient(self, x: torch.Tensor, theta: torch.Tensor) -> torch.Tensor:
        """Gradient of the lower objective in x."""
        return self.A.T @ (self.A @ x - self.b) / len(self.A) + _weights(theta) * x

    def hessian(self, theta: torch.Tensor) -> torch.Tensor:
        """Hessian of the lower objective in x."""
        return self.A.T @ self.A / len(self.A) + torch.diag(_weights(theta))

    def solution(self, theta: torch.Tensor) -> torch.Tensor:
        """Exact lower solution."""
        return torch.linalg.solve(self.hessian(theta), self.A.T @ self.b / len(self.A))

    def upper(self, x: torch.Tensor, theta: torch.Tensor) -> torch.Tensor:
        """Upper objective."""
        return 0.5 * (self.A_held @ x - self.b_held).square().mean()

    def node(self, derivative: AbstractDerivative) -> FixedPointNode:
        """Node that solves the lower problem by gradient descent."""
        step = ForwardBackward(self.lower_gradient, self.step_size)
        return FixedPointNode(
            step, (self.n,), [(self.n,)], derivative=derivative, on_failure="keep", on_degenerate="report"
        )

    def exact_gradient(self, theta: torch.Tensor) -> torch.Tensor:
        """Exact gradient of the upper objective."""
        leaf = theta.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(self.upper(self.solution(leaf), leaf), leaf)
        return gradient


def diabetes() -> Ridge:
    """Load the data: half of the patients for training; features are ten measurements, their squares and products."""
    from sklearn.datasets import load_diabetes
    from sklearn.preprocessing import PolynomialFeatures, StandardScaler

    data = load_diabetes()
    features = StandardScaler().fit_transform(PolynomialFeatures(2, include_bias=False).fit_transform(data.data))
    target = (data.target - data.target.mean()) / data.target.std()
    order = torch.randperm(len(target), generator=torch.Generator().manual_seed(0))
    X, y = torch.as_tensor(features), torch.as_tensor(target)
    half = len(order) // 2
    return Ridge(X[order[:half]], y[order[:half]], X[order[half:]], y[order[half:]])


def path(problem: Ridge, steps: int) -> list[torch.Tensor]:
    """Parameters theta along an outer descent by Adam on the exact gradient, from equal weights."""
    theta = torch.zeros(problem.n, dtype=torch.float64)
    optimizer = torch.optim.Adam([theta], lr=0.1)
    visited = [theta.clone()]
    for _ in range(steps):
        theta.grad = problem.exact_gradient(theta)
        optimizer.step()
        visited.append(theta.clone())
    return visited


def iterations(gradient: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, step_size: float, tol: float) -> int:
    """Count gradient steps until no component of x changes by more than tol of its size, as in ``Implicit``."""
    count, size = 0, x.abs()
    while True:
        moved = x - step_size * gradient(x)
        size = torch.maximum(PEAK_DECAY * size, moved.abs())
        if bool(((moved - x).abs() <= tol * size).all()):
            return count
        x, count = moved, count + 1


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    """Cosine of the angle between two directions."""
    return float(a @ b / (a.norm() * b.norm()))


def _weights(theta: torch.Tensor) -> torch.Tensor:
    return MAX_WEIGHT * torch.sigmoid(theta)
