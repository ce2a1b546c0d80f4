"""Euclidean projections on the simplex, on norm balls and on their spheres.

    y = argmin |y - x|^2   subject to y in C

The pullback is that of the active face, for the radius too. On the boundary between two faces (for a ball, x on the
sphere) it is that of one side. Spheres are not convex: for x inside, several points may be nearest, of which each
function takes the one stated.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any, ClassVar, final

import torch

from convexlayer.arguments import REAL, check_kind
from convexlayer.errors import ProblemError
from convexlayer.nodes.autodiff.batch import Tensors
from convexlayer.nodes.closed_form.base import ClosedForm, closed_form_function, describe_elements, minimum

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


@closed_form_function
def project_simplex(x: torch.Tensor, radius: Radius = 1.0) -> torch.Tensor:
    """Project onto {y >= 0, sum(y) = radius}: y = max(x - tau, 0), with the tau for which the sum is the radius.

    Args:
        x: (..., n).
        radius: positive, a number or (...).

    Returns:
        y, (..., n).

    Raises:
        ShapeError: shapes do not fit.
        ProblemError: the radius is not positive.
    """
    return _project(_SIMPLEX, x, radius)


@closed_form_function
def project_l1_ball(x: torch.Tensor, radius: Radius = 1.0) -> torch.Tensor:
    """Project onto {sum |y_i| <= radius}; arguments as in ``project_simplex``."""
    return _project(_L1_BALL, x, radius)


@closed_form_function
def project_l1_sphere(x: torch.Tensor, radius: Radius = 1.0) -> torch.Tensor:
    """Project onto {sum |y_i| = radius}; zeros of an x inside become positive. Arguments as in ``project_simplex``."""
    return _project(_L1_SPHERE, x, radius)


@closed_form_function
def project_l2_ball(x: torch.Tensor, radius: Radius = 1.0) -> torch.Tensor:
    """Project onto {|y| <= radius}; arguments as in ``project_simplex``."""
    return _project(_L2_BALL, x, radius)


@closed_form_function
def project_l2_sphere(x: torch.Tensor, radius: Radius = 1.0) -> torch.Tensor:
    """Project onto {|y| = radius}; arguments as in ``project_simplex``.

    Raises:
        ProblemError: x = 0, which is equally far from all points of the sphere; or the radius is not positive.
    """
    return _project(_L2_SPHERE, x, radius)


@closed_form_function
def project_linf_ball(x: torch.Tensor, radius: Radius = 1.0) -> torch.Tensor:
    """Project onto {max |y_i| <= radius}; arguments as in ``project_simplex``."""
    return _project(_LINF_BALL, x, radius)


@closed_form_function
def project_linf_sphere(x: torch.Tensor, radius: Radius = 1.0) -> torch.Tensor:
    """Project onto {max |y_i| = radius}; for an x inside, the first of its largest entries moves.

    Arguments as in ``project_simplex``.
    """
    return _project(_LINF_SPHERE, x, radius)


def _project(form: _Projection, x: torch.Tensor, radius: Radius) -> torch.Tensor:
    return form(x, radius)[0] if isinstance(radius, torch.Tensor) else _AtConstantRadius(form, radius)(x)[0]


class _Projection(ClosedForm):
    """(x, radius) -> y, and intermediate results that identify the active face."""

    arguments: ClassVar = {"x": ("n",), "radius": ()}

    @abstractmethod
    def project(self, x: torch.Tensor, radius: Radius) -> Tensors:
        """Compute the results of ``solve`` for a radius (..., 1) or a number."""

    @abstractmethod
    def face_pullback(self, x: torch.Tensor, radius: Radius, solved: Tensors, v: torch.Tensor) -> Tensors:
        """Pull v (..., n) back along the active face to cotangents (..., n) of x and (..., 1) of the radius."""

    @final
    def solve(self, *inputs: torch.Tensor) -> Tensors:
        x, radius = inputs
        if minimum(radius) <= 0:
            raise ProblemError(
                f"radius: expected a positive one, got {minimum(radius):.3g}{describe_elements(radius <= 0)}"
            )
        return self.project(x, radius[..., None])

    @final
    def pullback(self, inputs: Tensors, solved: Tensors, cotangents: Tensors, wanted: tuple[bool, ...]) -> Tensors:
        x, radius = inputs
        dx, dradius = self.face_pullback(x, radius[..., None], solved, cotangents[0])
        return dx, dradius[..., 0]


@final
class _AtConstantRadius(ClosedForm):
    """A projection with a constant radius."""

    arguments: ClassVar = {"x": ("n",)}

    def __init__(self, form: _Projection, radius: float) -> None:
        check_kind("radius", radius, REAL, "a tensor or a number")
        if not 0.0 < radius < math.inf:
            raise ProblemError(f"radius: expected a positive, finite one, got {radius:.3g}")
        self._form, self._radius = form, radius

    def solve(self, *inputs: torch.Tensor) -> Tensors:
        return self._form.project(inputs[0], self._radius)

    def pullback(self, inputs: Tensors, solved: Tensors, cotangents: Tensors, wanted: tuple[bool, ...]) -> Tensors:
        return self._form.face_pullback(inputs[0], self._radius, solved, cotangents[0])[:1]


def _with_signs(size: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Nonnegative sizes with the signs of x, + where x is +0 or -0."""
    return torch.copysign(size, x + 0.0)


@final
class _SoftThreshold(_Projection):
    """y = sign * max(sign x - tau, 0) with sum max(sign x - tau, 0) = radius, for the simplex and the l1 norm.

    For the k largest entries as support, tau is their mean less radius / k; the largest over k is the right one (Held,
    Wolfe and Crowder 1974). On the support: dy = dx - sign dtau, dtau = (sum sign dx - dradius) / k.
    """

    def __init__(self, *, signed: bool, ball: bool) -> None:
        self._signed, self._ball = signed, ball

    def project(self, x: torch.Tensor, radius: Radius) -> Tensors:
        size = x.abs() if self._signed else x
        ordered = size.sort(dim=-1, descending=True).values
        largest = ordered[..., :1]
        counts = torch.arange(1, x.shape[-1] + 1, dtype=x.dtype, device=x.device)
        # Relative to the largest entry, beside which the radius may be below rounding.
        tau = (((ordered - largest).cumsum(-1) - radius) / counts).amax(-1, keepdim=True)
        if not self._ball:
            y = torch.relu(size - largest - tau)
            return (_with_signs(y, x) if self._signed else y,)
        tau = torch.relu(largest + tau)
        return _with_signs(torch.relu(size - tau), x), tau.sign()

    def face_pullback(self, x: torch.Tensor, radius: Radius, solved: Tensors, v: torch.Tensor) -> Tensors:
        sign = solved[0].detach().sign()
        moving = sign.square()
        mean = (sign * v).sum(-1, keepdim=True) / moving.sum(-1, keepdim=True).clamp(min=1)
        if self._ball:
            outside = solved[1]
            mean, moving = outside * mean, torch.maximum(moving, 1.0 - outside)
        return torch.addcmul(moving * v, sign, mean, value=-1), mean


@final
class _L2(_Projection):
    """y = radius x / |x|; for the ball only where |x| > radius."""

    def __init__(self, *, ball: bool) -> None:
        self._ball = ball

    def project(self, x: torch.Tensor, radius: Radius) -> Tensors:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        if self._ball:
            larger = norm.clamp(min=radius)
            return radius / larger * x, (larger - radius).sign()
        if minimum(norm) == 0:
            raise ProblemError(
                f"x: expected a nonzero vector, got 0{describe_elements(norm[..., 0] == 0)}, equally far from every "
                "point of the sphere"
            )
        return (radius / norm * x,)

    def face_pullback(self, x: torch.Tensor, radius: Radius, solved: Tensors, v: torch.Tensor) -> Tensors:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        if self._ball:
            norm = norm.clamp(min=radius)
        direction = x / norm
        along = (direction * v).sum(-1, keepdim=True)
        if self._ball:
            along = solved[1] * along
        return radius / norm * torch.addcmul(v, direction, along, value=-1), along


@final
class _LInf(_Projection):
    """y_i = clamp(x_i, -radius, radius); for the sphere and x inside, only the largest entry moves, to the radius."""

    def __init__(self, *, ball: bool) -> None:
        self._ball = ball

    def project(self, x: torch.Tensor, radius: Radius) -> Tensors:
        if not self._ball:  # project from a point at which the first of the largest entries exceeds the radius
            size, index = x.abs().max(-1, keepdim=True)
            x = x.scatter(-1, index, _with_signs(size + 2.0 * radius, x.gather(-1, index)))
        limit: Any = radius  # torch types clamp for two numbers or two tensors
        y = x.clamp(-limit, limit)
        return y, (x - y).sign()

    def face_pullback(self, x: torch.Tensor, radius: Radius, solved: Tensors, v: torch.Tensor) -> Tensors:
        face = solved[1]
        across = face * v
        return torch.addcmul(v, face, across, value=-1), across.sum(-1, keepdim=True)


_SIMPLEX = _SoftThreshold(signed=False, ball=False)
_L1_BALL = _SoftThreshold(signed=True, ball=True)
_L1_SPHERE = _SoftThreshold(signed=True, ball=False)
_L2_BALL = _L2(ball=True)
_L2_SPHERE = _L2(ball=False)
_LINF_BALL = _LInf(ball=True)
_LINF_SPHERE = _LInf(ball=False)
