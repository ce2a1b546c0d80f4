"""The requirements of a cone, as a class of tests to subclass."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from convexlayer.cones import AbstractCone, Eigenbasis
from convexlayer.program import Array
from convexlayer.testing.expectations import expect, expect_all, expect_close, expect_equal

__all__ = ["ConeContract"]

TINY = 1e-100
"""Distance from a cone that is allowed at points that are zero."""

ACCURACY = 1e-12
"""Allowed distances from a cone, and inner products, relative to the size of w and its square."""

DIFFERENCE_STEP = 1e-4
"""Step of the fourth-order differences at points of order 1: rounding and truncation errors are then about 1e-11."""

REGULAR = 0.1
"""Margin from which the derivative is compared with differences."""

EXTREME_DRAWS = 15
"""Draws of points whose entries range over 24 orders of magnitude."""


class ConeContract(ABC):
    """The tests of a cone. Subclass it in a test module, and pytest runs them.

        class TestHalfLine(ConeContract):
            cone = Nonnegative()

            def in_primal(self, s):
                return np.all(s >= 0, axis=-1)

            in_dual = in_primal

    The membership tests should not use the cone's own code: they are what its projections are compared with.

    Attributes:
        cone: the cone, for points of shape (``points``, ``cone.size``).
        points: number of points of each draw.
    """

    cone: ClassVar[AbstractCone]
    points: ClassVar[int] = 300

    @abstractmethod
    def in_primal(self, s: Array) -> NDArray[np.bool_]:
        """Whether s (points, size) is in K, (points,)."""

    @abstractmethod
    def in_dual(self, y: Array) -> NDArray[np.bool_]:
        """Whether y (points, size) is in the dual cone K*, (points,)."""

    def is_smooth_near(self, w: Array) -> NDArray[np.bool_]:
        """Whether the projection is smooth on the scale of w, (points,), where the margin does not tell.

        Other points are left out of the comparison with differences.
        """
        return np.ones(len(w), dtype=bool)

    # --- the projection ----------------------------------------------------------------------------------------------

    def test_projections_form_a_moreau_decomposition(self) -> None:
        """y = Pi_{K*}(w) is in K*, s = y - w is in K, and y's = 0."""
        self._check_moreau(self._random(0))

    def test_projections_of_boundary_points_form_a_moreau_decomposition(self) -> None:
        """The same on the boundaries of K* and -K, with zeros and ties."""
        self._check_moreau(self._boundary())

    def test_points_of_extreme_scales(self) -> None:
        """Projection, derivative and margin where entries range from 1e-12 to 1e12."""
        for seed in range(EXTREME_DRAWS):
            rng = np.random.default_rng(seed)
            shape = (self.points, self.cone.size)
            w = rng.choice([-1.0, 1.0], shape) * 10.0 ** rng.uniform(-12, 12, shape)
            self._check_moreau(w)
            self._check_basis(w)
            expect(np.all(self.cone.margin(w) >= 0), "margin: expected nonnegative numbers")

    def test_projection_is_idempotent(self) -> None:
        """Pi(Pi(w)) = Pi(w)."""
        y = self.cone.project_dual(self._random(0))
        expect_close(self.cone.project_dual(y), y, "projection of a projection", rtol=1e-7, atol=1e-13)

    def test_projection_is_nonexpansive(self) -> None:
        """norm(Pi(v) - Pi(w)) <= norm(v - w)."""
        w, other = self._random(0), self._random(1)
        moved = np.linalg.norm(self.cone.project_dual(w) - self.cone.project_dual(other), axis=-1)
        expect_all(moved <= np.linalg.norm(w - other, axis=-1) * (1 + 1e-12), "the projection brings points closer")

    def test_projection_is_positively_homogeneous(self) -> None:
        """Pi(t w) = t Pi(w) and D(t w) = D(w) for t > 0."""
        w, t = self._random(0), 1e9
        large, small = (self.cone.project_dual(v) for v in (t * w, w))
        expect_close(large, t * small, "projection of t w", rtol=1e-12, atol=1e-4)
        expect_close(self._D(t * w), self._D(w), "derivative at t w", rtol=1e-7, atol=1e-10)

    # --- its derivative ----------------------------------------------------------------------------------------------

    def test_eigenbasis(self) -> None:
        """Q is orthogonal, d in [0, 1], and ``complement`` is 1 - d."""
        self._check_basis(self._random(0))

    def test_eigenbasis_of_boundary_points(self) -> None:
        """The same on the boundaries of K* and -K, with zeros and ties."""
        self._check_basis(self._boundary())

    def test_derivative_matches_differences(self) -> None:
        """Central differences of fourth order, where the margin is large."""
        cone, step, w = self.cone, DIFFERENCE_STEP, self._random(0)
        columns = []
        for e in np.eye(cone.size) * step:
            near = cone.project_dual(w + e) - cone.project_dual(w - e)
            far = cone.project_dual(w + 2 * e) - cone.project_dual(w - 2 * e)
            columns.append((8 * near - far) / (12 * step))
        regular = (cone.margin(w) > REGULAR) & self.is_smooth_near(w)
        count = np.count_nonzero(regular)
        expect(count > self.points // 2, f"points with a margin above {REGULAR}: expected half of them, got {count}")
        numeric = np.stack(columns, axis=-1)
        expect_close(self._D(w)[regular], numeric[regular], "derivative at regular points", rtol=1e-7, atol=1e-8)

    def test_derivative_reproduces_the_projection(self) -> None:
        """D w = Pi(w), because Pi is positively homogeneous."""
        w = self._random(0)
        product = (self._D(w) @ w[..., None])[..., 0]
        expect_close(product, self.cone.project_dual(w), "D w", rtol=1e-7, atol=1e-13)

    def test_derivative_at_the_origin(self) -> None:
        """It is 0, or the identity if the dual cone is the whole space."""
        w = np.zeros((self.points, self.cone.size))
        free = np.isinf(self.cone.margin(w)[0])
        expect_close(self.cone.derivative(w).d, np.full(w.shape, float(free)), "eigenvalues at w = 0")

    def test_autograd_gives_the_derivative(self) -> None:
        """The projection of a torch tensor can be differentiated by autograd."""
        w = self._random(0)
        cotangent = np.random.default_rng(4).normal(size=w.shape)
        tensor = torch.from_numpy(w).requires_grad_()
        (gradient,) = torch.autograd.grad(self.cone.project_dual(tensor), tensor, torch.from_numpy(cotangent))
        expected = (self._D(w) @ cotangent[..., None])[..., 0]
        expect_close(gradient.numpy(), expected, "gradient through the projection", rtol=1e-7, atol=1e-9)

    # --- its margin --------------------------------------------------------------------------------------------------

    def test_margin_is_zero_on_the_boundary(self) -> None:
        """At y and -s, unless they are interior."""
        w = self._random(0)
        y = self.cone.project_dual(w)
        for name, boundary, other in (("y", y, y - w), ("-s", w - y, y)):
            moved = np.linalg.norm(other, axis=-1) > 1e-3
            margin = self.cone.margin(boundary)[moved]
            expect_all((margin <= ACCURACY) | np.isinf(margin), f"the margin at {name} is 0")

    def test_derivative_is_constant_within_the_margin_of_a_flat_region(self) -> None:
        """Where D = 0 or D = I, it is so in the open ball of the margin."""
        w, rng = self._random(0), np.random.default_rng(2)
        d, margin = self.cone.derivative(w).d, self.cone.margin(w)
        if np.any(np.isinf(margin)):
            return
        flat = np.all(d == d[:, :1], axis=-1)
        for _ in range(30):
            direction = rng.normal(size=w.shape)
            direction /= np.linalg.norm(direction, axis=-1, keepdims=True)
            inside = w + 0.999 * margin[:, None] * direction
            expect_close(self.cone.derivative(inside).d[flat], d[flat], "eigenvalues within the margin")

    # --- other properties --------------------------------------------------------------------------------------------

    def test_centre_is_interior(self) -> None:
        """Small balls around ``centre`` are in K and K*; the zero cone, which has no interior, has centre 0."""
        centre = self.cone.centre
        expect_equal(centre.shape, (self.cone.size,), "shape of centre")
        if centre.any():
            near = centre + 1e-3 * np.linalg.norm(centre) * _unit(self._random(0))
            expect_all(self.in_primal(near), "points near the centre are in K")
            expect_all(self.in_dual(near), "points near the centre are in K*")

    def test_elements_stay_in_the_cone_when_recession_rows_grow(self) -> None:
        """Adding to the rows of ``recession_rows`` stays in K."""
        rows = self.cone.recession_rows
        expect_equal(rows.shape, (self.cone.size,), "shape of recession_rows")
        for w in (self._random(0), self._boundary()):
            s = self.cone.project_dual(w) - w
            more = np.abs(np.random.default_rng(4).normal(size=w.shape)) * rows
            distance = ACCURACY * np.linalg.norm(w, axis=-1) + TINY
            expect_all(self.near_primal(s + more, distance), "s stays in K when recession rows grow")

    def test_torch_equals_numpy(self) -> None:
        """On tensors, the results are float64 tensors with the same values."""
        for w in (self._random(0), self._boundary()):
            tensor = torch.from_numpy(w)
            y, basis, margin = self.cone.project_dual(tensor), self.cone.derivative(tensor), self.cone.margin(tensor)
            dtypes = {y.dtype, basis.d.dtype, basis.complement.dtype, margin.dtype}
            expect_equal(dtypes, {torch.float64}, "dtypes of results on tensors")
            expect_close(y.numpy(), self.cone.project_dual(w), "projection on tensors", rtol=1e-7, atol=1e-13)
            expect_close(margin.numpy(), self.cone.margin(w), "margin on tensors", rtol=1e-7, atol=1e-13)
        w = self._random(0)
        expect_close(self._D(torch.from_numpy(w)), self._D(w), "derivative on tensors", rtol=1e-7, atol=1e-12)

    def test_arguments_are_not_modified(self) -> None:
        """Neither by the projection nor by the derivative nor by the margin."""
        w = self._random(0)
        before = w.copy()
        for method in (self.cone.project_dual, self.cone.derivative, self.cone.margin):
            method(w)
        expect_close(w, before, "w after the calls")

    def test_nan_does_not_spread_to_other_points(self) -> None:
        """NaN in one point gives NaN there, and nothing raises."""
        w = self._random(0)
        y = self.cone.project_dual(w)
        w[7] = np.nan
        bad = self.cone.project_dual(w)
        self.cone.derivative(w)
        y[7] = np.nan
        expect_close(bad, y, "projection with NaN in point 7")

    # --- how they are made -------------------------------------------------------------------------------------------

    def near_primal(self, s: Array, distance: Array) -> NDArray[np.bool_]:
        """Whether s (points, size) is in K after a step of length distance (points,) along the centre."""
        return self.in_primal(s + distance[:, None] * _unit(self.cone.centre))

    def near_dual(self, y: Array, distance: Array) -> NDArray[np.bool_]:
        """Whether y (points, size) is in K* after a step of length distance (points,) along the centre."""
        return self.in_dual(y + distance[:, None] * _unit(self.cone.centre))

    def _random(self, seed: int) -> Array:
        return np.random.default_rng(seed).normal(size=(self.points, self.cone.size))

    def _boundary(self) -> Array:
        """Points on the boundaries of K* and -K, with zeros and ties, including the origin."""
        rng, third = np.random.default_rng(3), self.points // 3
        w = rng.integers(-1, 2, size=(self.points, self.cone.size)).astype(float)
        w[0], w[1] = 0.0, 1.0
        regular = self._random(0)
        y = self.cone.project_dual(regular)
        w[third : 2 * third] = y[third : 2 * third]
        w[2 * third :] = (regular - y)[2 * third :]
        return w

    def _D(self, w: Any) -> Array:
        """The derivative at w as matrices, (points, size, size)."""
        basis: Eigenbasis = self.cone.derivative(w)
        d = np.asarray(basis.d)
        Q = np.eye(d.shape[-1]) if basis.Q is None else np.asarray(basis.Q)
        return np.asarray((Q * d[..., None, :]) @ np.swapaxes(Q, -1, -2))

    def _check_moreau(self, w: Array) -> None:
        y = self.cone.project_dual(w)
        expect_equal(y.shape, w.shape, "shape of the projection")
        s, size = y - w, np.linalg.norm(w, axis=-1)
        expect_all(self.near_dual(y, ACCURACY * size + TINY), "the projection y is in K*")
        expect_all(self.near_primal(s, ACCURACY * size + TINY), "the slack s = y - w is in K")
        expect_all(np.abs(np.sum(y * s, axis=-1)) <= ACCURACY * size**2, "y's = 0")

    def _check_basis(self, w: Array) -> None:
        basis = self.cone.derivative(w)
        d, complement = basis.d, basis.complement
        expect_equal((d.shape, complement.shape), (w.shape, w.shape), "shapes of d and complement")
        expect_all(np.all((d >= 0) & (d <= 1) & (complement >= 0), axis=-1), "eigenvalues are in [0, 1]")
        expect_close(d + complement, np.ones_like(d), "d + complement", atol=4e-16)
        if basis.Q is not None:
            product = basis.Q @ np.swapaxes(basis.Q, -1, -2)
            expect_close(product, np.broadcast_to(np.eye(self.cone.size), product.shape), "Q Q'", atol=2e-14)


def _unit(v: Array) -> Array:
    """Vectors of length 1, or 0 where v is 0."""
    length = np.linalg.norm(v, axis=-1, keepdims=True)
    return np.asarray(v / np.where(length > 0, length, 1.0))
