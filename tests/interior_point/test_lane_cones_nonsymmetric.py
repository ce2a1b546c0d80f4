"""Exponential and power cones in lanes against their barriers in high-precision arithmetic."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import mpmath as mp
import numpy as np
import pytest

from convexlayer.interior_point.lanes.cones import exponential, power
from convexlayer.interior_point.lanes.cones.nonsymmetric import MIN_STEP
from convexlayer.interior_point.lanes.layout import Block, Point, Scaling

DIGITS = 90
EPS = np.finfo(np.float64).eps
LANES = (0.0,) * 8


def precise(point: Any) -> list[Any]:
    return [mp.mpf(float(entry)) for entry in point]


@dataclass(frozen=True)
class Kernels:
    """The kernels of one cone with the exponent bound, and its dual barrier."""

    name: str
    exponent: float | None = None

    def call(self, function: str, where: Any, *rest: Any, packed: int = 0) -> None:
        exponent = self.exponent or 0.0
        block = Block(0, 3, 0, 0, packed, -1, -1, exponent)
        getattr(exponential if self.exponent is None else power, function)(where, block, *rest)

    def barrier(self, y1: Any, y2: Any, y3: Any) -> Any:
        if self.exponent is None:
            return -mp.log(y2 - y1 - y1 * mp.log(-y3 / y1)) - mp.log(-y1) - mp.log(y3)
        e = mp.mpf(self.exponent)
        phi = (y1 / e) ** (2 * e) * (y2 / (1 - e)) ** (2 - 2 * e)
        return -mp.log(phi - y3**2) - (1 - e) * mp.log(y1) - e * mp.log(y2)

    def contains(self, s: Any) -> bool:
        x, y, z = precise(s)
        if self.exponent is None:
            return bool(y > 0 and z > 0 and y * mp.exp(x / y) < z)
        return bool(x > 0 and y > 0 and x**self.exponent * y ** (1 - mp.mpf(self.exponent)) > abs(z))

    def contains_dual(self, y: Any) -> bool:
        u, v, w = precise(y)
        if self.exponent is None:
            return bool(u < 0 and w > 0 and -u * mp.exp(v / u) < mp.e * w)
        e = mp.mpf(self.exponent)
        return bool(u > 0 and v > 0 and (u / e) ** e * (v / (1 - e)) ** (1 - e) > abs(w))

    def gradient(self, y: Any) -> Any:
        y1, y2, y3 = y
        if self.exponent is None:
            slope = mp.log(-y3 / y1)
            psi = y2 - y1 - y1 * slope
            return mp.matrix([slope / psi - 1 / y1, -1 / psi, y1 / y3 / psi - 1 / y3])
        e = mp.mpf(self.exponent)
        phi = (y1 / e) ** (2 * e) * (y2 / (1 - e)) ** (2 - 2 * e)
        share = 2 * phi / (phi - y3**2)
        return mp.matrix([-(share * e + 1 - e) / y1, -(share * (1 - e) + e) / y2, 2 * y3 / (phi - y3**2)])

    def hessian(self, y: Any) -> Any:
        """The Hessian by finite differences of the gradient, in high precision."""
        H = mp.matrix(3)
        for j in range(3):
            h = abs(y[j]) * mp.mpf(10) ** (-DIGITS // 3)
            up, down = mp.matrix(y), mp.matrix(y)
            up[j], down[j] = y[j] + h, y[j] - h
            H[:, j] = (self.gradient(up) - self.gradient(down)) / (2 * h)
        return (H + H.T) / 2

    def shadow(self, s: Any, start: Any) -> Any:
        """The y with -grad f*(y) = s, by Newton's method on s'y + f*(y) from a nearby start."""
        y = mp.matrix(start)
        for _ in range(6):
            y = y - mp.lu_solve(self.hessian(y), mp.matrix(s) + self.gradient(y))
        return y

    def dual_point(self, place: Any, gap: float) -> list[Any]:
        """A point of K* at a relative distance of about ``gap`` from the boundary."""
        first, second, third = precise(np.exp(place[:3]))
        if self.exponent is None:
            slope = mp.log(second) * 2
            return [-first, first * (gap * third - 1 - slope), first * mp.exp(slope)]
        e = mp.mpf(self.exponent)
        largest = mp.sqrt(first ** (2 * e) * second ** (2 - 2 * e) / (1 + gap * third))
        return [first * e, second * (1 - e), float(np.sign(place[3])) * largest]

    def pairs(self, seed: int, mu: float, *, off_centre: float = 0.3) -> tuple[Any, Any, list[Any]]:
        """Points s and y (3, 8) with complementarity about mu, and the shadow iterates of s."""
        rng = np.random.default_rng(seed)
        s, y, shadows = np.empty((3, 8)), np.empty((3, 8)), []
        for lane in range(8):
            place = rng.normal(size=4)
            move = off_centre * rng.normal(size=4) * [mu**0.5, mu**0.5, 1.0, 0.0]
            near = mp.matrix(self.dual_point(place + move, mu))
            scale = mp.mpf(mu * np.exp(rng.normal()))
            s[:, lane] = [float(-scale * entry) for entry in self.gradient(near)]
            y[:, lane] = [float(entry) for entry in self.dual_point(place, mu)]
            shadows.append(near / scale)
        return s, y, shadows


CONES = [Kernels("exponential"), Kernels("power-0.07", 0.07), Kernels("power-0.6", 0.6)]


@pytest.fixture(autouse=True)
def _precision() -> Any:
    with mp.workdps(DIGITS):
        yield


@pytest.fixture(params=CONES, ids=lambda cone: cone.name)
def cone(request: pytest.FixtureRequest) -> Kernels:
    return request.param


def unpacked(H: Any) -> Any:
    """Symmetric matrices (V, 3, 3) from packed upper triangles (6, V)."""
    return H[[[0, 1, 3], [1, 2, 4], [3, 4, 5]]].transpose(2, 0, 1)


def point(s: Any, y: Any) -> Point:
    return Point(np.zeros((1, s.shape[1])), s, y)


def new_scaling() -> Scaling:
    return Scaling(np.full((8, 8), 7.0), np.zeros((0, 8)), np.zeros((0, 8)), np.ones(8))


def scaling(cone: Kernels, s: Any, y: Any) -> tuple[Any, Any]:
    found = new_scaling()
    cone.call("update_scaling", LANES, point(s, y), found, packed=1)
    assert np.all(found.packed[[0, 7]] == 7.0)
    return unpacked(found.packed[1:7]), found.ok


def doubles(matrix: Any) -> Any:
    return np.array([float(entry) for entry in matrix]).reshape(matrix.rows, matrix.cols)


def condition(s: Any, y: Any) -> Any:
    """Condition number of s'y: the factor by which rounding errors of s and y are amplified."""
    return np.linalg.norm(s, axis=0) * np.linalg.norm(y, axis=0) / np.sum(s * y, axis=0)


def test_central_point_is_its_own_shadow(cone: Kernels) -> None:
    s, y = np.zeros((3, 2)), np.zeros((3, 2))
    cone.call("set_central_point", 1, point(s, y))
    assert np.all(s[:, 0] == 0)
    assert np.array_equal(s, y)
    centre = tuple(precise(y[:, 1]))
    gradient = [mp.diff(cone.barrier, centre, tuple(int(i == j) for j in range(3))) for i in range(3)]
    np.testing.assert_allclose(
        [float(entry) for entry in cone.gradient(centre)], [float(g) for g in gradient], atol=1e-14
    )
    np.testing.assert_allclose(s[:, 1], [-float(entry) for entry in gradient], atol=1e-14)


@pytest.mark.parametrize("mu", [1.0, 1e-3])
def test_scaling_maps_y_to_s_and_the_shadow_of_s_to_the_shadow_of_y(cone: Kernels, mu: float) -> None:
    s, y, shadows = cone.pairs(2, mu)
    H, ok = scaling(cone, s, y)
    assert np.all(ok == 1.0)
    for lane in range(8):
        precise_s, precise_y = mp.matrix(precise(s[:, lane])), mp.matrix(precise(y[:, lane]))
        shadow_s, G = -cone.gradient(precise_y), cone.hessian(precise_y)
        shadow_y = cone.shadow(precise_s, shadows[lane])
        product = (precise_s.T * precise_y)[0]
        delta_s, delta_y = precise_s - product / 3 * shadow_s, precise_y - product / 3 * shadow_y
        # BFGS update of mu G, first with (s, y), then with the shadow iterates.
        expected = product / 3 * G
        for left, right in ((precise_s, precise_y), (delta_s, delta_y)):
            image = expected * right
            expected = expected - image * image.T / (right.T * image)[0] + left * left.T / (right.T * left)[0]
        factor = mp.inverse(mp.cholesky(expected))
        error = factor * (mp.matrix(H[lane].tolist()) - expected) * factor.T
        assert mp.mnorm(error, "f") < 100 * EPS / mu**2
        assert mp.norm(expected * precise_y - precise_s) < 1e-30
        assert mp.norm(expected * shadow_y - shadow_s) < 1e-30 * mp.norm(shadow_s)
        assert np.linalg.eigvalsh(H[lane])[0] > 0


@pytest.mark.parametrize("mu", [1e-6, 1e-9, 1e-12])
@pytest.mark.parametrize("size", [1e-8, 1.0, 1e8])
def test_scaling_near_the_boundary(cone: Kernels, mu: float, size: float) -> None:
    s, y, _ = cone.pairs(3, mu)
    H, ok = scaling(cone, size * s, y)
    H /= size
    assert np.all(ok == 1.0)
    rounding = EPS * condition(s, y)
    for lane in range(8):
        n, along = s[:, lane] / np.linalg.norm(s[:, lane]), np.cross(s[:, lane], y[:, lane])
        along /= np.linalg.norm(along)
        expected = s[:, lane] @ s[:, lane] / (s[:, lane] @ y[:, lane])
        assert n @ H[lane] @ n > 0.9 * expected
        assert along @ H[lane] @ along > 0
        spread = np.max(np.abs(H[lane])) * np.linalg.norm(y[:, lane])
        assert np.linalg.norm(H[lane] @ y[:, lane] - s[:, lane]) < 10 * EPS * spread + 10 * rounding[
            lane
        ] * np.linalg.norm(s[:, lane])


def test_scaling_on_the_central_path_is_the_hessian(cone: Kernels) -> None:
    s, y, _ = cone.pairs(4, 1.0, off_centre=0.0)
    H, ok = scaling(cone, s, y)
    assert np.all(ok == 1.0)
    for lane in range(8):
        mu = s[:, lane] @ y[:, lane] / 3
        expected = mu * doubles(cone.hessian(precise(y[:, lane])))
        np.testing.assert_allclose(H[lane], expected, rtol=1e-7, atol=1e-7 * np.max(np.abs(expected)))


def test_points_outside_the_cone_are_reported(cone: Kernels) -> None:
    s, y, _ = cone.pairs(5, 1.0)
    s[:, 2] *= -1
    y[:, 5] = np.nan
    _, ok = scaling(cone, s, y)
    assert np.array_equal(ok == 0.0, np.isin(np.arange(8), [2, 5]))


def shifted(cone: Kernels, s: Any, y: Any, ds: Any, dy: Any, sigma_mu: Any) -> Any:
    shift = np.zeros_like(s)
    cone.call("combined_shift", LANES, new_scaling(), point(s, y), point(ds, dy), sigma_mu, shift)
    return shift


@pytest.mark.parametrize("mu", [1.0, 1e-3, 1e-8])
def test_combined_shift_matches_the_third_derivative(cone: Kernels, mu: float) -> None:
    s, y, _ = cone.pairs(6, mu)
    rng = np.random.default_rng(7)
    ds, dy = 0.3 * s * rng.uniform(-1, 1, size=(3, 8)), 0.3 * y * rng.uniform(-1, 1, size=(3, 8))
    sigma_mu = mu * np.linspace(0, 1, 8)
    shift = shifted(cone, s, y, ds, dy, sigma_mu)
    for lane in range(8):
        at, direction = mp.matrix(precise(y[:, lane])), mp.matrix(precise(dy[:, lane]))
        u = mp.lu_solve(cone.hessian(at), mp.matrix(precise(ds[:, lane])))
        h = mp.mpf(10) ** -20 * min(1.0, mu)
        third = (cone.hessian(at + h * direction) - cone.hessian(at - h * direction)) * u / (2 * h)
        expected = mp.matrix(precise(s[:, lane])) + mp.mpf(sigma_mu[lane]) * cone.gradient(at) - third / 2
        largest = max(abs(entry) for entry in expected)
        for i in range(3):
            assert abs(shift[i, lane] - expected[i]) < 1000 * EPS / mu * largest


def shortened(cone: Kernels, s: Any, y: Any, ds: Any, dy: Any, alpha: Any) -> Any:
    alpha = alpha.copy()
    cone.call("shorten_step", LANES, new_scaling(), point(s, y), point(ds, dy), alpha)
    return alpha


def test_line_search_backtracks_by_0_8_until_the_point_is_interior(cone: Kernels) -> None:
    rng = np.random.default_rng(8)
    taken = []
    for seed in range(4):
        s, y, _ = cone.pairs(seed, 0.1)
        ds, dy = rng.normal(size=(3, 8)), rng.normal(size=(3, 8))
        ds, dy = ds * np.linalg.norm(s, axis=0), dy * np.linalg.norm(y, axis=0)
        start = np.linspace(0.3, 1.0, 8)
        alpha = shortened(cone, s, y, ds, dy, start)
        for lane in range(8):
            steps = [start[lane] * 0.8**k for k in range(60)]
            expected = next(
                step
                for step in steps
                if cone.contains(s[:, lane] + step * ds[:, lane])
                and cone.contains_dual(y[:, lane] + step * dy[:, lane])
            )
            np.testing.assert_allclose(alpha[lane], expected, rtol=1e-12)
            taken.append(expected)
    assert MIN_STEP < min(taken) < 0.2 < 0.5 < max(taken)


def test_a_step_below_the_floor_is_zero(cone: Kernels) -> None:
    s, y, _ = cone.pairs(9, 1.0)
    ds = np.zeros((3, 8))
    ds[:, :4] = -10.0 / MIN_STEP * s[:, :4]
    alpha = shortened(cone, s, y, ds, np.zeros((3, 8)), np.ones(8))
    assert np.array_equal(alpha, [0, 0, 0, 0, 1, 1, 1, 1])


def test_a_step_is_at_most_one(cone: Kernels) -> None:
    s, y, _ = cone.pairs(9, 1.0)
    still, start = np.zeros((3, 8)), np.linspace(0.9, 1.1, 8)
    assert np.array_equal(shortened(cone, s, y, still, still, start), np.minimum(start, 1))


@pytest.mark.parametrize("cone", CONES[:2], ids=lambda cone: cone.name)
@pytest.mark.parametrize("garbage", [np.nan, np.inf, -1e300, 0.0])
def test_a_lane_does_not_depend_on_its_neighbours(cone: Kernels, garbage: float) -> None:
    rng = np.random.default_rng(13)
    s, y, _ = cone.pairs(14, 1e-2)
    ds, dy = s * rng.uniform(-2, 2, size=(3, 8)), y * rng.uniform(-2, 2, size=(3, 8))
    sigma_mu = rng.uniform(size=8)

    def results() -> tuple[Any, ...]:
        H, ok = scaling(cone, s, y)
        shift, alpha = shifted(cone, s, y, ds, dy, sigma_mu), shortened(cone, s, y, ds, dy, np.ones(8))
        return H.transpose(1, 2, 0), ok, shift, alpha

    clean = results()
    spoilt = [1, 4, 7]
    for rows in (s, y, ds, dy):
        rows[:, spoilt] = garbage
    others = np.setdiff1d(np.arange(8), spoilt)
    with np.errstate(all="raise"):
        dirty = results()
    for before, after in zip(clean, dirty, strict=True):
        assert np.array_equal(before[..., others], after[..., others])
