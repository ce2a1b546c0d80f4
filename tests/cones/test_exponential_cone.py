"""The exponential cone against high-precision arithmetic, its face region and its margin."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest

from convexlayer.cones import Exponential
from convexlayer.cones.exponential import _exact_depth
from convexlayer.program import Array

from .membership import check_depth

CONE = Exponential()
RHOS = (-700.0, -250.0, -40.0, -5.0, -1.0, -1e-9, 0.0, 0.3, 0.5, 1.0, 2.0, 8.0, 45.0, 300.0, 700.0)


@pytest.fixture(autouse=True)
def _many_digits() -> object:
    with mpmath.workdps(700):
        yield


def _pair(rho: float, size_y: float, size_s: float) -> tuple[Array, list[mpmath.mpf]]:
    """(w, y) for y and s with these norms on the rays of rho, and w = y - s, rounded."""
    rho = mpmath.mpf(rho)
    y = [mpmath.mpf(-1), rho - 1, mpmath.exp(-rho)]
    s = [rho, mpmath.mpf(1), mpmath.exp(rho)]
    y = [size_y * e / mpmath.norm(y) for e in y]
    s = [size_s * e / mpmath.norm(s) for e in s]
    return np.array([float(a - b) for a, b in zip(y, s, strict=True)]), y


def _exact(w: Array, rho: float) -> tuple[Array, float, float]:
    """Projection, delta and 1 - delta of w, by a root in high precision that starts from rho."""
    v1, v2, v3 = (-mpmath.mpf(float(e)) for e in w)

    def factors(rho: mpmath.mpf) -> tuple[mpmath.mpf, mpmath.mpf]:
        square = rho**2 - rho + 1
        return (v1 - rho * v2) / square, (v2 - (1 - rho) * v1) / square

    def residual(rho: mpmath.mpf) -> mpmath.mpf:
        a, b = factors(rho)
        return (b * mpmath.exp(rho) - a * mpmath.exp(-rho) - v3) * mpmath.exp(-abs(rho))

    rho = mpmath.findroot(residual, (mpmath.mpf(rho), mpmath.mpf(rho) + mpmath.mpf("1e-9")), tol=1e-300, maxsteps=200)
    a, b = factors(rho)
    assert a > 0
    assert b > 0
    y = [-a, a * (rho - 1), a * mpmath.exp(-rho)]
    s = [b * rho, b, b * mpmath.exp(rho)]
    ratio = s[1] * s[2] ** 2 * mpmath.norm(y) ** 2 / (a**3 * mpmath.norm(s) ** 2)
    return np.array([float(e) for e in y]), float(1 / (1 + ratio)), float(ratio / (1 + ratio))


@pytest.mark.parametrize("rho", RHOS)
def test_projection_of_constructed_points(rho: float) -> None:
    for size_y in (1e-9, 1.0, 1e11):
        for size_s in (1e-12, 1.0, 1e6):
            w, y = _pair(rho, size_y, size_s)
            expected = np.array([float(e) for e in y])
            atol = 1e-15 * float(np.linalg.norm(w))
            np.testing.assert_allclose(CONE.project_dual(w), expected, atol=atol, rtol=1e-15)


@pytest.mark.parametrize("rho", [-30.0, -12.0, -3.0, -0.5, 0.0, 0.4, 0.6, 1.0, 2.5, 10.0, 30.0])
def test_eigenvalue_and_its_complement_have_full_relative_precision(rho: float) -> None:
    w, _ = _pair(rho, 1.0, 2.0)
    y, delta, complement = _exact(w, rho)
    np.testing.assert_allclose(CONE.project_dual(w), y, atol=1e-15)
    basis = CONE.derivative(w)
    np.testing.assert_allclose(basis.d[2], delta, rtol=1e-12)
    np.testing.assert_allclose(basis.complement[2], complement, rtol=1e-12)


def test_complement_far_below_machine_epsilon() -> None:
    w = np.array([-1e-3, 0.1, -1.0])
    _, delta, complement = _exact(w, 101.0)
    assert 0 < complement < 1e-30
    basis = CONE.derivative(w)
    assert basis.d[2] == delta == 1.0
    np.testing.assert_allclose(basis.complement[2], complement, rtol=1e-12)


@pytest.mark.parametrize(
    ("w", "y", "d", "margin"),
    [
        ([2.0, 3.0, 0.5], [0.0, 3.0, 0.5], [0, 1, 1], 0.5),
        ([2.0, 3.0, -0.5], [0.0, 3.0, 0.0], [0, 1, 0], 0.5),
        ([1.0, 3.0, -5.0], [0.0, 3.0, 0.0], [0, 1, 0], 1.0),
        ([4.0, 3.0, 9.0], [0.0, 3.0, 9.0], [0, 1, 1], 3.0),
        ([4.0, 3.0, 0.0], [0.0, 3.0, 0.0], [0, 1, 0], 0.0),
        ([0.0, 3.0, 1.0], [0.0, 3.0, 1.0], [0, 1, 1], 0.0),
        ([4.0, 0.0, 1.0], [0.0, 0.0, 1.0], [0, 0, 1], 0.0),
        ([0.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0, 0, 0], 0.0),
        ([1e-120, 1.0, 1.0], [0.0, 1.0, 1.0], [0, 1, 1], 1e-120),
    ],
)
def test_face_region(w: list[float], y: list[float], d: list[int], margin: float) -> None:
    point = np.array(w)
    np.testing.assert_array_equal(CONE.project_dual(point), y)
    np.testing.assert_array_equal(CONE.derivative(point).d, d)
    assert CONE.margin(point[None])[0] == margin


def test_derivative_jumps_across_the_sides_of_the_face_region() -> None:
    for point in ([0.0, 3.0, 1.0], [0.0, 3.0, -1.0], [3.0, 0.0, 1.0], [3.0, 0.0, -1.0], [3.0, 3.0, 0.0]):
        axis = point.index(0.0)
        matrices = []
        for shift in (-1e-9, 1e-9):
            w = np.array(point)
            w[axis] = shift
            basis = CONE.derivative(w)
            matrices.append((basis.Q * basis.d) @ basis.Q.T)
            assert CONE.margin(w[None])[0] <= 1.001e-9
        assert np.linalg.norm(matrices[0] - matrices[1]) > 0.5


def test_margin_of_interior_points_is_the_distance_to_the_boundary_if_small() -> None:
    """Against a dense sample of the boundary."""
    rho = np.linspace(-12.0, 12.0, 4001)
    angle, zero = np.linspace(0.0, np.pi / 2, 4001), np.zeros(4001)
    face_y = np.stack((zero, np.cos(angle), np.sin(angle)), axis=-1)
    face_s = np.stack((-np.cos(angle), zero, np.sin(angle)), axis=-1)
    rays_y = np.concatenate((np.stack((-np.ones_like(rho), rho - 1.0, np.exp(-rho)), axis=-1), face_y))
    rays_s = np.concatenate((np.stack((rho, np.ones_like(rho), np.exp(rho)), axis=-1), face_s))
    for w, rays in (((-1.0, 0.5, 2.0), rays_y), ((-0.2, 3.0, 0.4), rays_y), ((1.0, -0.5, -2.0), rays_s)):
        sign = 1.0 if rays is rays_y else -1.0

        def margin(x: Array, sign: float = sign) -> Array:
            return np.asarray(CONE.margin(sign * x[None])[0])

        check_depth(margin, sign * np.array(w), rays)


def test_the_ball_around_the_centre_is_in_both_cones() -> None:
    """The ball that bounds the depth of points far from the boundary."""
    centre = np.array([[-1.0, 1.0, 1.0]]) / np.sqrt(3.0)
    for dual in (True, False):
        assert _exact_depth(np, centre, np.array([dual]))[0] >= 0.26


def test_margin_of_curved_points_is_the_distance_to_the_regions() -> None:
    w, _ = _pair(0.7, 2.0, 0.5)
    np.testing.assert_allclose(CONE.margin(w[None])[0], 0.5, rtol=1e-12)
