"""Euclidean projections on the simplex, on norm balls and on their spheres.

    y = argmin |y - x|^2   subject to y in C

Each pullback is that of the active face, and the radius has a gradient too. On the boundary between two faces (x on the
sphere, for a ball) the pullback is that of one side. Spheres are not convex: inside, several points may be the nearest,
and one of them is taken, as said below.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any, ClassVar, final

import torch

from convexlayer.errors import ProblemError
from convexlayer.nodes.autodiff.batch import Tensors
from convexlayer.nodes.closed_form.base import ClosedForm, elements, entry, least

__all__ = [
    "project_l1_ball",
    "project_l1_sphere",
    "project_l2_ball",
    "project_l2_sphere",
    "project_linf_ball",
    "project_linf_sphere",
    "project_simplex",
]

Radius = torch.Tensor | float


@entry
def project_simplex(x: torch.Tensor, radius: Radius = 1.0) -> torch.Tensor:
    """The nearest point of {y >= 0, sum(y) = radius}: y = max(x - tau, 0).

    Args:
        x: (..., n).
        radius: positive, a number or (...).

    Returns:
        y, (..., n).

    Raises:
        ProblemError: the radius is not positive.
    """
    return _project(_SIMPLEX, x, radius)


@entry
def project_l1_ball(x: torch.Tensor, radius: Radius = 1.0) -> torch.Tensor:
    """The nearest point of {sum |y_i| <= radius}; arguments as in ``project_simplex``."""
    return _project(_L1_BALL, x, radius)


@entry
def project_l1_sphere(x: torch.Tensor, radius: Radius = 1.0) -> torch.Tensor:
    """The nearest point of {sum |y_i| = radius}; a zero of x inside moves up. Arguments as in ``project_simplex``."""
    return _project(_L1_SPHERE, x, radius)


@entry
def project_l2_ball(x: torch.Tensor, radius: Radius = 1.0) -> torch.Tensor:
    """The nearest point of {|y| <= radius}; arguments as in ``project_simplex``."""
    return _project(_L2_BALL, x, radius)


@entry
def project_l2_sphere(x: torch.Tensor, radius: Radius = 1.0) -> torch.Tensor:
    """The nearest point of {|y| = radius}; arguments as in ``project_simplex``.

    Raises:
        ProblemError: x = 0, from which all points of the sphere are equally far; or the radius is not positive.
    """
    return _project(_L2_SPHERE, x, radius)


@entry
def project_linf_ball(x: torch.Tensor, radius: Radius = 1.0) -> torch.Tensor:
    """The nearest point of {max |y_i| <= radius}; arguments as in ``project_simplex``."""
    return _project(_LINF_BALL, x, radius)


@entry
def project_linf_sphere(x: torch.Tensor, radius: Radius = 1.0) -> torch.Tensor:
    """The nearest point of {max |y_i| = radius}; inside, the first of the largest entries moves.

    Arguments as in ``project_simplex``.
    """
    return _project(_LINF_SPHERE, x, radius)


def _project(form: _Projection, x: torch.Tensor, radius: Radius) -> torch.Tensor:
    return form(x, radius)[0] if isinstance(radius, torch.Tensor) else _AtNumber(form, radius)(x)[0]


class _Projection(ClosedForm):
    """(x, radius) -> y, with what the pullback needs of the active face."""

    arguments: ClassVar = {"x": ("n",), "radius": ()}

    @abstractmethod
    def find(self, x: torch.Tensor, radius: Radius) -> Tensors:
        """What ``solve`` gives, for a radius (..., 1) or a number."""

    @abstractmethod
    def slide(self, x: torch.Tensor, radius: Radius, solved: Tensors, v: torch.Tensor) -> Tensors:
        """The cotangents (..., n) of x and (..., 1) of the radius."""

    @final
    def solve(self, *inputs: torch.Tensor) -> Tensors:
        x, radius = inputs
        if least(radius) <= 0:
            raise ProblemError(f"radius: expected a positive one, got {least(radius):.3g}{elements(radius <= 0)}")
        return self.find(x, radius[..., None])

    @final
    def pullback(self, inputs: Tensors, solved: Tensors, cotangents: Tensors, wanted: tuple[bool, ...]) -> Tensors:
        x, radius = inputs
        dx, dradius = self.slide(x, radius[..., None], solved, cotangents[0])
        return dx, dradius[..., 0]


@final
class _AtNumber(ClosedForm):
    """A projection at a radius that is a number, which needs no gradient."""

    arguments: ClassVar = {"x": ("n",)}

    def __init__(self, form: _Projection, radius: float) -> None:
        if not 0.0 < radius < math.inf:
            raise ProblemError(f"radius: expected a positive, finite one, got {radius:.3g}")
        self._form, self._radius = form, radius

    def solve(self, *inputs: torch.Tensor) -> Tensors:
        return self._form.find(inputs[0], self._radius)

    def pullback(self, inputs: Tensors, solved: Tensors, cotangents: Tensors, wanted: tuple[bool, ...]) -> Tensors:
        return self._form.slide(inputs[0], self._radius, solved, cotangents[0])[:1]


def _with_signs(size: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Nonnegative sizes with the signs of x, + where x is zero of either sign."""
    return torch.copysign(size, x + 0.0)


@final
class _Threshold(_Projection):
    """y = sign * max(sign x - tau, 0) with sum max(sign x - tau, 0) = radius; tau from one sort.

    With the k largest entries as support, tau would be their mean less radius / k; it is the largest of these numbers.
    On the support: dy = dx - sign dtau, dtau = (sum sign dx - dradius) / k.
    """

    def __init__(self, *, signed: bool, ball: bool) -> None:
        self._signed, self._ball = signed, ball

    def find(self, x: torch.Tensor, radius: Radius) -> Tensors:
        size = x.abs() if self._signed else x
        ordered = size.sort(dim=-1, descending=True).values
        largest = ordered[..., :1]
        counts = torch.arange(1, x.shape[-1] + 1, dtype=x.dtype, device=x.device)
        # Against the largest entry, beside which a radius may be less than rounding.
        tau = (((ordered - largest).cumsum(-1) - radius) / counts).amax(-1, keepdim=True)
        if not self._ball:
            y = torch.relu(size - largest - tau)
            return (_with_signs(y, x) if self._signed else y,)
        tau = torch.relu(largest + tau)
        return _with_signs(torch.relu(size - tau), x), tau.sign()

    def slide(self, x: torch.Tensor, radius: Radius, solved: Tensors, v: torch.Tensor) -> Tensors:
        sign = solved[0].detach().sign()
        moving = sign.square()
        mean = (sign * v).sum(-1, keepdim=True) / moving.sum(-1, keepdim=True).clamp(min=1)
        if self._ball:
            outside = solved[1]
            mean, moving = outside * mean, torch.maximum(moving, 1.0 - outside)
        return torch.addcmul(moving * v, sign, mean, value=-1), mean


@final
class _Euclidean(_Projection):
    """y = radius x / |x|, for the ball where |x| > radius only."""

    def __init__(self, *, ball: bool) -> None:
        self._ball = ball

    def find(self, x: torch.Tensor, radius: Radius) -> Tensors:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        if self._ball:
            larger = norm.clamp(min=radius)
            return radius / larger * x, (larger - radius).sign()
        if least(norm) == 0:
            raise ProblemError(
                f"x: expected a nonzero vector, got 0{elements(norm[..., 0] == 0)}, equally far from every point of "
                "the sphere"
            )
        return (radius / norm * x,)

    def slide(self, x: torch.Tensor, radius: Radius, solved: Tensors, v: torch.Tensor) -> Tensors:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        if self._ball:
            norm = norm.clamp(min=radius)
        direction = x / norm
        along = (direction * v).sum(-1, keepdim=True)
        if self._ball:
            along = solved[1] * along
        return radius / norm * torch.addcmul(v, direction, along, value=-1), along


@final
class _Box(_Projection):
    """y_i = clamp(x_i, -radius, radius); on the sphere, from inside, the largest entry goes to the radius alone."""

    def __init__(self, *, ball: bool) -> None:
        self._ball = ball

    def find(self, x: torch.Tensor, radius: Radius) -> Tensors:
        if not self._ball:  # as from where the first of the largest entries is beyond the radius
            size, index = x.abs().max(-1, keepdim=True)
            x = x.scatter(-1, index, _with_signs(size + 2.0 * radius, x.gather(-1, index)))
        limit: Any = radius  # torch's types know two numbers and two tensors, not two of either
        y = x.clamp(-limit, limit)
        return y, (x - y).sign()

    def slide(self, x: torch.Tensor, radius: Radius, solved: Tensors, v: torch.Tensor) -> Tensors:
        face = solved[1]
        across = face * v
        return torch.addcmul(v, face, across, value=-1), across.sum(-1, keepdim=True)


_SIMPLEX = _Threshold(signed=False, ball=False)
_L1_BALL = _Threshold(signed=True, ball=True)
_L1_SPHERE = _Threshold(signed=True, ball=False)
_L2_BALL = _Euclidean(ball=True)
_L2_SPHERE = _Euclidean(ball=False)
_LINF_BALL = _Box(ball=True)
_LINF_SPHERE = _Box(ball=False)
