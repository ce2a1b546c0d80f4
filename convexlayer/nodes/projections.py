"""Euclidean projections on the simplex, on norm balls and on their spheres.

    y = argmin |y - x|^2   subject to y in C

Each pullback is that of the active face, and the radius has a gradient too. On the boundary between two faces (x on the
sphere, for a ball) the pullback is that of one side. Spheres are not convex: inside, several points may be the nearest,
and one of them is taken, as said below.
"""

from __future__ import annotations

from typing import ClassVar, final

import torch

from convexlayer.errors import ProblemError
from convexlayer.nodes.batch import Tensors
from convexlayer.nodes.closed_form import ClosedForm, elements, like

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


def project_l1_ball(x: torch.Tensor, radius: Radius = 1.0) -> torch.Tensor:
    """The nearest point of {sum |y_i| <= radius}; arguments as in ``project_simplex``."""
    return _project(_L1_BALL, x, radius)


def project_l1_sphere(x: torch.Tensor, radius: Radius = 1.0) -> torch.Tensor:
    """The nearest point of {sum |y_i| = radius}; a zero of x inside moves up. Arguments as in ``project_simplex``."""
    return _project(_L1_SPHERE, x, radius)


def project_l2_ball(x: torch.Tensor, radius: Radius = 1.0) -> torch.Tensor:
    """The nearest point of {|y| <= radius}; arguments as in ``project_simplex``."""
    return _project(_L2_BALL, x, radius)


def project_l2_sphere(x: torch.Tensor, radius: Radius = 1.0) -> torch.Tensor:
    """The nearest point of {|y| = radius}; arguments as in ``project_simplex``.

    Raises:
        ProblemError: x = 0, from which all points of the sphere are equally far; or the radius is not positive.
    """
    return _project(_L2_SPHERE, x, radius)


def project_linf_ball(x: torch.Tensor, radius: Radius = 1.0) -> torch.Tensor:
    """The nearest point of {max |y_i| <= radius}; arguments as in ``project_simplex``."""
    return _project(_LINF_BALL, x, radius)


def project_linf_sphere(x: torch.Tensor, radius: Radius = 1.0) -> torch.Tensor:
    """The nearest point of {max |y_i| = radius}; inside, the first of the largest entries moves.

    Arguments as in ``project_simplex``.
    """
    return _project(_LINF_SPHERE, x, radius)


def _project(form: ClosedForm, x: torch.Tensor, radius: Radius) -> torch.Tensor:
    return form(x, like(radius, x))[0]


class _Projection(ClosedForm):
    """(x, radius) -> y, with what ``find`` keeps."""

    arguments: ClassVar = {"x": ("n",), "radius": ()}


def _check_radius(radius: torch.Tensor) -> None:
    if bool((radius <= 0).any()):
        raise ProblemError(f"radius: expected a positive one, got {float(radius.min()):.3g}{elements(radius <= 0)}")


def _signs(x: torch.Tensor) -> torch.Tensor:
    return torch.where(x < 0, -1.0, 1.0).to(x.dtype)


@final
class _Threshold(_Projection):
    """y = sign * max(sign x - tau, 0) with sum max(sign x - tau, 0) = radius; tau from one sort.

    On the support, k entries: dy = dx - sign dtau, dtau = (sum sign dx - dradius) / k.
    """

    def __init__(self, *, signed: bool, ball: bool) -> None:
        self._signed, self._ball = signed, ball

    def solve(self, *inputs: torch.Tensor) -> Tensors:
        x, radius = inputs
        _check_radius(radius)
        sign = _signs(x) if self._signed else torch.ones_like(x)
        size = sign * x
        ordered = size.sort(dim=-1, descending=True).values
        counts = torch.arange(1, x.shape[-1] + 1, dtype=x.dtype, device=x.device)
        taus = (ordered.cumsum(-1) - radius[..., None]) / counts
        last = (ordered > taus).sum(-1, keepdim=True) - 1
        tau = taus.gather(-1, last.clamp(min=0))
        inside = (size.sum(-1, keepdim=True) <= radius[..., None]) & self._ball
        y = torch.where(inside, x, sign * torch.clamp(size - tau, min=0))
        return y, torch.where(size > tau, sign, 0.0), inside

    def pullback(self, inputs: Tensors, solved: Tensors, cotangents: Tensors, wanted: tuple[bool, ...]) -> Tensors:
        _, support, inside = solved
        (v,) = cotangents
        mean = (support * v).sum(-1, keepdim=True) / support.abs().sum(-1, keepdim=True).clamp(min=1)
        dx = torch.where(inside, v, support.abs() * v - support * mean)
        return dx, torch.where(inside, 0.0, mean)[..., 0]


@final
class _Euclidean(_Projection):
    """y = radius x / |x|, for the ball where |x| > radius only."""

    def __init__(self, *, ball: bool) -> None:
        self._ball = ball

    def solve(self, *inputs: torch.Tensor) -> Tensors:
        x, radius = inputs
        _check_radius(radius)
        norm = torch.linalg.vector_norm(x, dim=-1)
        if not self._ball and bool((norm == 0).any()):
            raise ProblemError(
                f"x: expected a nonzero vector, got 0{elements(norm == 0)}, equally far from every point of the sphere"
            )
        inside = ((norm <= radius) & self._ball)[..., None]
        return torch.where(inside, x, (radius / norm)[..., None] * x), inside

    def pullback(self, inputs: Tensors, solved: Tensors, cotangents: Tensors, wanted: tuple[bool, ...]) -> Tensors:
        x, radius = inputs
        inside = solved[1]
        (v,) = cotangents
        outer = torch.where(inside, 1.0, x)  # for a second derivative at x = 0: no branch of a `where` may be NaN
        norm = torch.linalg.vector_norm(outer, dim=-1, keepdim=True)
        direction = outer / norm
        along = (direction * v).sum(-1, keepdim=True)
        dx = torch.where(inside, v, radius[..., None] / norm * (v - direction * along))
        return dx, torch.where(inside, 0.0, along)[..., 0]


@final
class _Box(_Projection):
    """y_i = clamp(x_i, -radius, radius); on the sphere, from inside, the largest entry goes to the radius alone."""

    def __init__(self, *, ball: bool) -> None:
        self._ball = ball

    def solve(self, *inputs: torch.Tensor) -> Tensors:
        x, radius = inputs
        _check_radius(radius)
        limit = radius[..., None]
        moved = x.abs() > limit
        if not self._ball:
            first = torch.zeros_like(moved).scatter(-1, x.abs().argmax(-1, keepdim=True), True)
            moved = torch.where(moved.any(-1, keepdim=True), moved, first)
        face = torch.where(moved, _signs(x), 0.0)
        return torch.where(moved, limit * face, x), face

    def pullback(self, inputs: Tensors, solved: Tensors, cotangents: Tensors, wanted: tuple[bool, ...]) -> Tensors:
        face = solved[1]
        (v,) = cotangents
        return torch.where(face == 0, v, 0.0), (face * v).sum(-1)


_SIMPLEX = _Threshold(signed=False, ball=False)
_L1_BALL = _Threshold(signed=True, ball=True)
_L1_SPHERE = _Threshold(signed=True, ball=False)
_L2_BALL = _Euclidean(ball=True)
_L2_SPHERE = _Euclidean(ball=False)
_LINF_BALL = _Box(ball=True)
_LINF_SPHERE = _Box(ball=False)
