"""Splitting algorithms as differentiable steps, torch functions of the iterate and the parameters.

    forward-backward    min f(x) + g(x)               prox step of g after a gradient step of f
    primal-dual         min f(u) + g(u) + h(K u)      alternating proximal steps of g and of the conjugate of h

Each is a step for a ``FixedPointNode``, which differentiates it unrolled in reverse (algorithms 1 to 3 of Ochs et al.
2016, whose printed recursions have errors that autograd does not), in forward mode, truncated, or at the fixed point;
for images use ``Implicit(GMRES())``, which needs products only.

The dual solution is often not unique: for total variation, wherever a flat region contains a cycle of pixels, since
circulations around it change nothing. I - dA/dx is then singular. A loss in the primal solution, which is unique, still
gives a consistent system, and GMRES computes its derivative (``Dense`` does too, with the status ``degenerate``). A
loss in the dual variables gives an inconsistent one, which the linear residual shows. Where a dual variable is at its
bound without strict complementarity the step has a kink, with the status ``degenerate``; the solution has a kink only
if no circulation can move the variable off its bound.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod
from typing import final

import torch

from convexlayer.errors import ProblemError
from convexlayer.nodes.autodiff.batch import Shape
from convexlayer.nodes.fixed_point.bregman import AbstractBregman, Euclidean

__all__ = ["ForwardBackward", "PrimalDual", "projected_gradient"]

Map = Callable[..., torch.Tensor]
"""(x, *theta) -> tensor."""

Prox = Callable[..., torch.Tensor]
"""(y, step size, *theta) -> argmin over x of (step size) g(x; theta) + psi(x) - <y, x>."""


@final
@dataclass(frozen=True)
class ForwardBackward:
    """Forward-backward splitting with a Bregman distance, eq. 12 of Ochs et al. 2016.

        x+ = prox_(alpha g)(grad psi(x) - alpha grad f(x; theta); theta)

    Attributes:
        gradient: (x, *theta) -> gradient of f, such as ``torch.func.grad(f)``; includes a linear part of g.
        step_size: alpha, at most 1 over the Lipschitz constant of the gradient (below 2 for the Euclidean distance).
        distance: Bregman distance. Without ``prox``, g is the indicator of its domain.
        prox: proximal map of g, if g is more than that indicator.
    """

    gradient: Map
    step_size: float
    distance: AbstractBregman = field(default_factory=Euclidean)
    prox: Prox | None = None

    def __post_init__(self) -> None:
        """Validate.

        Raises:
            ProblemError: the step size is not positive.
        """
        _require_positive("step_size", self.step_size)

    def __call__(self, x: torch.Tensor, *theta: torch.Tensor) -> torch.Tensor:
        """One step."""
        slope = self.step_size * self.gradient(x, *theta)
        return _backward(self.distance, self.prox, x, slope, self.step_size, theta)


def projected_gradient(gradient: Map, step_size: float, projection: Map) -> ForwardBackward:
    """Projected gradient descent, x+ = projection(x - alpha grad f(x; theta), *theta); eq. 19.

    The projection need only be Lipschitz: where it has no derivative, autograd takes an element of the generalised
    Jacobian, and the chain rule gives a weak derivative (section 4.4).

    Args:
        gradient: (x, *theta) -> gradient of f.
        step_size: alpha.
        projection: (y, *theta) -> nearest point of the set.
    """

    def prox(y: torch.Tensor, _: float, *theta: torch.Tensor) -> torch.Tensor:
        return projection(y, *theta)

    return ForwardBackward(gradient, step_size, Euclidean(), prox)


@final
@dataclass(frozen=True)
class PrimalDual:
    """The primal-dual algorithm with Bregman distances, eq. 13.

        min over u, max over p of <K u, p> + f(u) + g(u) - h*(p)

        u+ = prox_(tau g)(grad psi_u(u) - tau (grad f(u) + K'p))
        p+ = prox_(sigma h*)(grad psi_p(p) + sigma K (2 u+ - u))

    with (1 / tau - L_f) / sigma >= |K|^2. The iterate is one vector (u, p), converted by ``pack`` and ``unpack``.

    Attributes:
        gradient: (u, *theta) -> gradient of f; includes a linear part of g.
        product: (u, *theta) -> K u.
        adjoint: (p, *theta) -> K'p.
        tau: primal step size.
        sigma: dual step size.
        primal_shape: shape of u.
        dual_shape: shape of p.
        primal: Bregman distance of u. Without ``prox``, g is the indicator of its domain.
        dual: Bregman distance of p. Without ``dual_prox``, h* is the indicator of its domain.
        prox: proximal map of g.
        dual_prox: proximal map of h*.
    """

    gradient: Map
    product: Map
    adjoint: Map
    tau: float
    sigma: float
    primal_shape: Shape
    dual_shape: Shape
    primal: AbstractBregman = field(default_factory=Euclidean)
    dual: AbstractBregman = field(default_factory=Euclidean)
    prox: Prox | None = None
    dual_prox: Prox | None = None

    def __post_init__(self) -> None:
        """Validate.

        Raises:
            ProblemError: a step size is not positive.
        """
        _require_positive("tau", self.tau)
        _require_positive("sigma", self.sigma)

    @property
    def shape(self) -> Shape:
        """Shape of the packed iterate."""
        return (prod(self.primal_shape) + prod(self.dual_shape),)

    def pack(self, u: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
        """Pack u (..., *primal_shape) and p (..., *dual_shape) into an iterate (..., n)."""
        leading = u.shape[: u.ndim - len(self.primal_shape)]
        return torch.cat([u.reshape(*leading, -1), p.reshape(*leading, -1)], -1)

    def unpack(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Unpack an iterate (..., n) into u (..., *primal_shape) and p (..., *dual_shape)."""
        size, leading = prod(self.primal_shape), x.shape[:-1]
        u, p = x[..., :size], x[..., size:]
        return u.reshape(*leading, *self.primal_shape), p.reshape(*leading, *self.dual_shape)

    def __call__(self, x: torch.Tensor, *theta: torch.Tensor) -> torch.Tensor:
        """One step."""
        u, p = self.unpack(x)
        descent = self.tau * (self.gradient(u, *theta) + self.adjoint(p, *theta))
        u_next = _backward(self.primal, self.prox, u, descent, self.tau, theta)
        ascent = self.sigma * self.product(2 * u_next - u, *theta)
        p_next = _backward(self.dual, self.dual_prox, p, -ascent, self.sigma, theta)
        return self.pack(u_next, p_next)


def _backward(
    distance: AbstractBregman,
    prox: Prox | None,
    x: torch.Tensor,
    slope: torch.Tensor,
    step_size: float,
    theta: tuple[torch.Tensor, ...],
) -> torch.Tensor:
    """Take the proximal step from x for the linear term <slope, x>."""
    if prox is None:
        return distance.move(x, slope)
    return prox(distance.gradient(x) - slope, step_size, *theta)


def _require_positive(name: str, step_size: float) -> None:
    if not step_size > 0:
        raise ProblemError(f"{name} must be positive, got {step_size}")
