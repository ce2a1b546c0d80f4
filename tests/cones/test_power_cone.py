"""The power cone against high-precision arithmetic, extreme exponents, and the limit z = 0."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest

from convexlayer.cones import Power
from convexlayer.cones.power import _exact_depth
from convexlayer.errors import ProblemError
from convexlayer.program import Array

from .membership import check_depth, power

ALPHAS = (0.001, 0.02, 0.3, 0.5, 0.77, 0.99, 0.999)


@pytest.fixture(autouse=True)
def _many_digits() -> object:
    with mpmath.workdps(120):
        yield


def _pair(alpha: float, log_ratio: float, size_y: float, size_s: float) -> tuple[Array, list[mpmath.mpf]]:
    """(w, y) for y and s with these norms on the rays with s1 / s2 = exp(log_ratio), and w = y - s, rounded."""
    alpha, ratio = mpmath.mpf(alpha), mpmath.exp(log_ratio)
    s = [ratio, mpmath.mpf(1), -(ratio**alpha)]
    y = [alpha * -s[2] / s[0], (1 - alpha) * -s[2] / s[1], mpmath.mpf(1)]
    y = [size_y * e / mpmath.norm(y) for e in y]
    s = [size_s * e / mpmath.norm(s) for e in s]
    return np.array([float(a - b) for a, b in zip(y, s, strict=True)]), y


def _exact(alpha: float, w: Array, y: list[mpmath.mpf]) -> tuple[float, float]:
    """delta and 1 - delta of w, by a root in high precision that starts from an approximate y."""
    alpha, z = mpmath.mpf(alpha), abs(mpmath.mpf(float(w[2])))
    v = [-mpmath.mpf(float(e)) for e in w[:2]]

    def sides(x: mpmath.mpf) -> tuple[list[mpmath.mpf], mpmath.mpf, mpmath.mpf]:
        r, g = z / (1 + mpmath.exp(-x)), z / (1 + mpmath.exp(x))
        products = (alpha * r * g, (1 - alpha) * r * g)
        return [(e + mpmath.sqrt(e**2 + 4 * p)) / 2 for e, p in zip(v, products, strict=True)], r, g

    def residual(x: mpmath.mpf) -> mpmath.mpf:
        s, r, _ = sides(x)
        return mpmath.log(r) - alpha * mpmath.log(s[0]) - (1 - alpha) * mpmath.log(s[1])

    start = mpmath.log(z / abs(y[2]) - 1)
    s, r, g = sides(mpmath.findroot(residual, (start, start + mpmath.mpf("1e-9")), tol=1e-100, maxsteps=200))
    y_square = (s[0] - v[0]) ** 2 + (s[1] - v[1]) ** 2 + g**2
    s_square = s[0] ** 2 + s[1] ** 2 + r**2
    ratio = s[0] ** 2 * s[1] ** 2 * y_square / (alpha * (1 - alpha) * g**3 * r * s_square)
    return float(1 / (1 + ratio)), float(ratio / (1 + ratio))


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("log_ratio", [-27.0, -3.0, 0.0, 1.0, 25.0])
def test_projection_of_constructed_points(alpha: float, log_ratio: float) -> None:
    cone = Power([alpha])
    for size_y in (1e-9, 1.0, 1e11):
        for size_s in (1e-12, 1.0, 1e6):
            w, y = _pair(alpha, log_ratio, size_y, size_s)
            expected = np.array([[float(e) for e in y]])
            atol = 1e-14 * float(np.linalg.norm(w))
            np.testing.assert_allclose(cone.project_dual(w[None]), expected, atol=atol, rtol=0)
            flipped = w * [1.0, 1.0, -1.0]
            np.testing.assert_array_equal(
                cone.project_dual(flipped[None]), cone.project_dual(w[None]) * [1.0, 1.0, -1.0]
            )


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("log_ratio", [-6.0, -1.0, 0.0, 2.0, 5.0])
def test_eigenvalue_and_its_complement_have_full_relative_precision(alpha: float, log_ratio: float) -> None:
    w, y = _pair(alpha, log_ratio, 1.0, 2.0)
    delta, complement = _exact(alpha, w, y)
    basis = Power([alpha]).derivative(w[None])
    np.testing.assert_allclose(basis.d[0, 2], delta, rtol=1e-11)
    np.testing.assert_allclose(basis.complement[0, 2], complement, rtol=1e-11)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_extreme_exponents_and_scales(alpha: float) -> None:
    rng = np.random.default_rng(0)
    w = rng.choice([-1.0, 1.0], (500, 3)) * 10.0 ** rng.uniform(-12, 12, (500, 3))
    case = power(np.full(500, alpha))
    y = case.cone.project_dual(w)
    scale = np.linalg.norm(w, axis=-1)
    assert np.all(case.near_dual(y, 1e-14 * scale))
    assert np.all(case.near_primal(y - w, 1e-14 * scale))
    assert np.all(np.abs(np.sum(y * (y - w), axis=-1)) <= 1e-14 * scale**2)


@pytest.mark.parametrize(
    ("w", "y", "d"),
    [
        ([2.0, 3.0, 0.0], [2.0, 3.0, 0.0], 1.0),
        ([-2.0, -3.0, 0.0], [0.0, 0.0, 0.0], 0.0),
        ([0.0, 0.0, 0.0], [0.0, 0.0, 0.0], 0.0),
    ],
)
def test_flat_regions_with_zero_third_component(w: list[float], y: list[float], d: float) -> None:
    cone = Power([0.3])
    np.testing.assert_array_equal(cone.project_dual(np.array([w])), [y])
    np.testing.assert_array_equal(cone.derivative(np.array([w])).d, np.full((1, 3), d))


@pytest.mark.parametrize(("alpha", "expected"), [(0.3, 1.0), (0.5, 6.0 / (2.0 + 6.0)), (0.7, 0.0)])
def test_derivative_at_zero_third_component_is_the_limit(alpha: float, expected: float) -> None:
    """At v = (2, -3, 0) and alpha = 1/2:   s3 / v3 = v1 / (v1 + 2 abs(v2))."""
    cone = Power([alpha])
    w = np.array([[-2.0, 3.0, 0.0]])
    np.testing.assert_array_equal(cone.project_dual(w), [[0.0, 3.0, 0.0]])
    basis = cone.derivative(w)
    D = (basis.Q * basis.d[..., None, :]) @ np.swapaxes(basis.Q, -1, -2)
    np.testing.assert_allclose(D, [np.diag([0.0, 1.0, expected])], atol=1e-14)


def test_margin_of_interior_points_is_the_distance_to_the_boundary_if_small() -> None:
    """Against a dense sample of the boundary."""
    alpha = 0.3
    tau = np.linspace(-15.0, 15.0, 6001)
    rays_s = np.stack((np.exp((1 - alpha) * tau), np.exp(-alpha * tau), np.ones_like(tau)), axis=-1)
    rays_y = rays_s * [alpha, 1 - alpha, 1.0]
    for w, rays in (((1.0, 2.0, 0.1), rays_y), ((-1.0, -2.0, 0.7), rays_s), ((-5.0, -0.1, 0.01), rays_s)):
        sign = 1.0 if rays is rays_y else -1.0

        def margin(x: Array, sign: float = sign) -> Array:
            return np.asarray(Power([alpha]).margin(sign * x[None])[0])

        check_depth(margin, np.abs(np.array(w)), rays)


def test_the_ball_around_the_centre_is_in_both_cones() -> None:
    """The ball that bounds the depth of points far from the boundary, for every exponent."""
    alpha = np.concatenate([np.geomspace(1e-12, 0.5, 200), 1.0 - np.geomspace(1e-12, 0.5, 200)])
    centre = np.tile(np.sqrt([0.5, 0.5, 0.0]), (400, 1))
    for dual in (True, False):
        exact = _exact_depth(np, centre, np.full(400, dual), np.stack((alpha, 1.0 - alpha), axis=-1))
        assert np.min(exact) >= 0.49


def test_margin_of_curved_points_is_the_distance_to_the_regions() -> None:
    w, _ = _pair(0.4, 1.0, 2.0, 0.5)
    np.testing.assert_allclose(Power([0.4]).margin(w[None])[0], 0.5, rtol=1e-12)


@pytest.mark.parametrize("alpha", [0.0, 1.0, -0.5, np.nan])
def test_exponent_outside_the_unit_interval_raises(alpha: float) -> None:
    with pytest.raises(ProblemError, match="strictly between 0 and 1"):
        Power([0.5, alpha])
