"""Toy problem of Ochs et al. (2016), section 7, and the six gradient methods that the paper compares.

    minimise over theta  1/2 (x*(theta) - g)^2,
    x*(theta) = argmin over x >= 0 of lam/2 (theta x - b)^2 + 1/2 x^2 = max(0, lam theta b / (1 + lam theta^2))

The paper does not state lam, b and the theta* behind g; the values here are chosen to give figures of the same shape.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch

from convexlayer.nodes import (
    AbstractDerivative,
    FixedPointNode,
    ForwardBackward,
    Implicit,
    Neumann,
    OrthantEntropy,
    Unrolled,
    projected_gradient,
)

__all__ = ["METHODS", "STYLES", "energy", "gradient", "loss", "rate", "solution", "subdifferential"]

LAM, B, THETA_STAR = 2.0, 2.0, 1.0
"""lam, b and theta*; see above."""

MU = 0.01
"""Weight of the log barrier of the smoothed method."""

START = 1.0
"""First iterate of every method."""

STEP_SIZE = 0.4
"""Step size of all methods, below 1 / L = 1 / (1 + lam theta^2) for theta up to 0.86."""

STEP_SIZE_AT_0 = 1.0
"""Step size 1 / L at theta = 0, with which a projected step is exact; not of the barrier, whose curvature is larger."""

STYLES: dict[str, dict[str, Any]] = {
    "Smoothed-impl": {"color": "k"},
    "Proj.GD": {"color": "C0", "linewidth": 3.0, "alpha": 0.5},
    "Proj.GD2": {"color": "C0", "linestyle": "--"},
    "Bregman-FB": {"color": "C1", "linewidth": 3.0, "alpha": 0.5},
    "Bregman-FB2": {"color": "C1", "linestyle": "--"},
    "Bregman-FB-impl": {"color": "C2", "linestyle": ":", "linewidth": 2.0},
}
"""Line styles: a variant is a thin dashed line over the broad line of the method it approximates."""


def _smooth_gradient(x: torch.Tensor, theta: torch.Tensor) -> torch.Tensor:
    return LAM * theta * (theta * x - B) + x


def energy(x: torch.Tensor, theta: float) -> torch.Tensor:
    """Lower objective, for x >= 0."""
    return LAM / 2 * (theta * x - B).square() + 0.5 * x.square()


def solution(theta: torch.Tensor) -> torch.Tensor:
    """Lower solution in closed form."""
    return (LAM * theta * B / (1 + LAM * theta.square())).clamp(min=0.0)


def loss(x: torch.Tensor) -> torch.Tensor:
    """Upper objective."""
    return 0.5 * (x - solution(torch.tensor(THETA_STAR, dtype=x.dtype))).square()


def subdifferential(theta: float) -> tuple[float, float]:
    """Subdifferential of the upper objective, as an interval; its ends are equal where it is differentiable."""
    g = float(solution(torch.tensor(THETA_STAR, dtype=torch.float64)))
    if theta == 0.0:
        slope = LAM * B * (0.0 - g)
        return min(0.0, slope), max(0.0, slope)
    x = float(solution(torch.tensor(theta, dtype=torch.float64)))
    slope = LAM * B * (1 - LAM * theta**2) / (1 + LAM * theta**2) ** 2 * (x - g) if theta > 0 else 0.0
    return slope, slope


def rate(method: str, theta: float) -> float:
    """Convergence factor of the gradient per back-iteration for theta > 0: |dA/dx| at the solution.

    A is x - alpha f'(x) for Proj.GD and x exp(-alpha f'(x)) for Bregman-FB, with f'' = 1 + lam theta^2.
    """
    curvature = 1 + LAM * theta**2
    at = float(solution(torch.tensor(theta, dtype=torch.float64))) if method.startswith("Bregman") else 1.0
    return abs(1 - STEP_SIZE * at * curvature)


def _node(step: Callable[..., torch.Tensor], derivative: AbstractDerivative) -> Callable[[torch.Tensor], torch.Tensor]:
    start = torch.tensor(START, dtype=torch.float64)
    return FixedPointNode(step, (), [()], start=start, derivative=derivative, on_failure="keep", on_degenerate="report")


def _projected(step_size: float) -> ForwardBackward:
    return projected_gradient(_smooth_gradient, step_size, lambda y, _: y.clamp(min=0.0))


def _bregman(step_size: float) -> ForwardBackward:
    return ForwardBackward(_smooth_gradient, step_size, OrthantEntropy())


def _barrier(step_size: float) -> ForwardBackward:
    return ForwardBackward(lambda x, theta: _smooth_gradient(x, theta) - MU / x, step_size)


def _unrolled(forward: int, back: int) -> AbstractDerivative:
    return Unrolled(forward, back_iterations=back)


def _series(forward: int, back: int) -> AbstractDerivative:
    return Implicit(Neumann(back), tol=0.0, max_iter=forward)


def _implicit(forward: int, back: int) -> AbstractDerivative:
    return Implicit(tol=0.0, max_iter=forward)


METHODS = {
    # One gradient step on the smoothed objective is a fixed-point map whose eq. 11 is eq. 6: both divide by f''.
    "Smoothed-impl": (_barrier, _implicit),
    "Proj.GD": (_projected, _unrolled),
    "Proj.GD2": (_projected, _series),
    "Bregman-FB": (_bregman, _unrolled),
    "Bregman-FB2": (_bregman, _series),
    "Bregman-FB-impl": (_bregman, _implicit),
}
"""Method -> step by step size, and derivative by numbers of forward and back iterations."""


def gradient(method: str, theta: float, *, forward: int, back: int) -> tuple[float, float]:
    """Compute the iterate and the gradient of the upper objective by a method."""
    step, derivative = METHODS[method]
    if derivative is _unrolled:
        back = min(back, forward)
    elif derivative is _implicit:
        back = 0
    step_size = STEP_SIZE_AT_0 if theta == 0.0 and step is not _barrier else STEP_SIZE
    return _gradient(method, theta, forward, back, step_size)


@cache
def _gradient(method: str, theta: float, forward: int, back: int, step_size: float) -> tuple[float, float]:
    step, derivative = METHODS[method]
    leaf = torch.tensor(theta, dtype=torch.float64, requires_grad=True)
    x = _node(step(step_size), derivative(forward, back))(leaf)
    (slope,) = torch.autograd.grad(loss(x), leaf)
    return x.item(), slope.item()
