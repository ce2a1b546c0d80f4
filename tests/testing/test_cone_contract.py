"""The cone contract catches faulty cones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from convexlayer.cones import AbstractCone, ConePoint, Eigenbasis, SecondOrder
from convexlayer.program import Array
from convexlayer.testing import ConeContract

RIGHT = SecondOrder(3)


class Changed(AbstractCone):
    """The second-order cone of size 3, with changes of the projection and of its derivative."""

    size = 3
    centre = RIGHT.centre
    recession_rows = RIGHT.recession_rows

    def __init__(
        self,
        projection: Callable[[Any, Any], Any] = lambda w, y: y,
        derivative: Callable[[Any], Any] = lambda basis: basis,
    ) -> None:
        self._projection, self._derivative = projection, derivative

    def at(self, w: Any) -> ConePoint[Eigenbasis]:
        point = RIGHT.at(w)
        return ConePoint(self._projection(w, point.projection), lambda: self._derivative(point.derive()))


def check(changed: AbstractCone, test: str) -> None:
    """Run one test of the contract."""

    class Contract(ConeContract):
        cone = changed

        def in_primal(self, s: Array) -> Any:
            return np.linalg.norm(s[..., 1:], axis=-1) <= s[..., 0]

        def in_dual(self, y: Array) -> Any:
            return self.in_primal(y)

    getattr(Contract(), test)()


def _in_place(w: Any, y: Any) -> Any:
    w += 1.0
    return y


def _detached(w: Any, y: Any) -> Any:
    return y.detach()


def _mixed(w: Any, y: Any) -> Any:
    return y + 0.0 * y.sum(0)


PROJECTIONS = [
    (lambda w, y: 1.001 * y, "test_projections_form_a_moreau_decomposition", "y's = 0: false at"),
    (lambda w, y: w, "test_projections_of_boundary_points_form_a_moreau_decomposition", "y is in K"),
    (lambda w, y: y + 1e-3, "test_projection_is_idempotent", "projection of a projection"),
    (lambda w, y: 2.0 * y, "test_projection_is_nonexpansive", "brings points closer: false at"),
    (lambda w, y: y + 1e-3, "test_projection_is_positively_homogeneous", "projection of t w"),
    (lambda w, y: 1.00001 * y, "test_derivative_matches_differences", "derivative at regular points"),
    (lambda w, y: 1.00001 * y, "test_derivative_reproduces_the_projection", "D w"),
    (_detached, "test_autograd_gives_the_derivative", "grad"),
    (_in_place, "test_arguments_are_not_modified", "w after the calls"),
    (_mixed, "test_nan_does_not_spread_to_other_points", "NaN in point 7"),
]


@pytest.mark.parametrize(("projection", "test", "message"), PROJECTIONS)
def test_a_wrong_projection_is_caught(projection: Callable[[Any, Any], Any], test: str, message: str) -> None:
    check(Changed(), test)
    with pytest.raises((AssertionError, RuntimeError), match=message):
        check(Changed(projection), test)


def _flat(basis: Eigenbasis) -> Eigenbasis:
    return replace(basis, d=0.5 + 0.0 * basis.d, complement=0.5 + 0.0 * basis.d)


DERIVATIVES = [
    (lambda basis: replace(basis, d=0.999 * basis.d), "test_eigenbasis", r"d \+ complement"),
    (lambda basis: replace(basis, Q=1.001 * basis.Q), "test_eigenbasis_of_boundary_points", "Q Q'"),
    (lambda basis: replace(basis, complement=-basis.complement), "test_points_of_extreme_scales", r"in \[0, 1\]"),
    (_flat, "test_derivative_at_the_origin", "eigenvalues at w = 0"),
    (lambda basis: replace(basis, margin=lambda: 1.0 + basis.margin()), "test_margin_is_zero_on_the_boundary", "at y"),
    (
        lambda basis: replace(basis, margin=lambda: 3.0 * basis.margin()),
        "test_derivative_is_constant_within_the_margin_of_a_flat_region",
        "eigenvalues within the margin",
    ),
]


@pytest.mark.parametrize(("derivative", "test", "message"), DERIVATIVES)
def test_a_wrong_derivative_is_caught(derivative: Callable[[Any], Any], test: str, message: str) -> None:
    check(Changed(), test)
    with pytest.raises(AssertionError, match=message):
        check(Changed(derivative=derivative), test)


def test_wrong_directions_are_caught() -> None:
    class Wrong(Changed):
        centre = np.array([1.0, 1.0, 0.0])
        recession_rows = np.array([True, True, False])

    with pytest.raises(AssertionError, match="points near the centre are in K: false at"):
        check(Wrong(), "test_centre_is_interior")
    with pytest.raises(AssertionError, match="when recession rows grow"):
        check(Wrong(), "test_elements_stay_in_the_cone_when_recession_rows_grow")
