"""Small positive semidefinite blocks in lanes against NumPy's dense linear algebra."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from convexlayer.interior_point.lanes import layout
from convexlayer.interior_point.lanes.cones import psd
from convexlayer.interior_point.lanes.layout import Point, Scaling
from convexlayer.program import Cones

LANES = (0.0,) * 8
ORDERS = [1, 2, 3, 5, 8, 12]


def svec(X: Any) -> Any:
    """Scaled lower triangles by columns, (..., k, k) -> (rows, ...)."""
    k = X.shape[-1]
    cols, rows = np.triu_indices(k)
    return np.moveaxis(X[..., rows, cols] * np.where(rows == cols, 1.0, np.sqrt(2.0)), -1, 0).copy()


def mat(x: Any, k: int) -> Any:
    """The inverse of ``svec``, (rows, ...) -> (..., k, k)."""
    cols, rows = np.triu_indices(k)
    X = np.empty((*x.shape[1:], k, k))
    X[..., rows, cols] = X[..., cols, rows] = np.moveaxis(x, 0, -1) / np.where(rows == cols, 1.0, np.sqrt(2.0))
    return X


def definite(rng: np.random.Generator, k: int, spread: float = 1.0) -> Any:
    """Positive definite matrices (8, k, k) with eigenvalues from spread to 1."""
    Q = np.linalg.qr(rng.normal(size=(8, k, k)))[0]
    return (Q * np.geomspace(1.0, spread, k)) @ Q.transpose(0, 2, 1)


def directions(rng: np.random.Generator, k: int) -> Any:
    X = rng.normal(size=(8, k, k))
    return X + X.transpose(0, 2, 1)


def block_of(k: int, factor: int = 0, packed: int = 0) -> layout.Block:
    return layout.Block(2, k * (k + 1) // 2, k, factor, packed, -1, -1, 0.0)


class Block:
    """One block of order k, starting in row 2 of all points, and calls of its kernels."""

    def __init__(self, k: int, s: Any, y: Any) -> None:
        self.k = k
        self.block = block_of(k, factor=1, packed=1)
        self.rows = k * (k + 1) // 2
        self.point = self.placed(s, y)
        (shape,) = psd.shapes(Cones(psd=(k,)))
        self.scaling = Scaling(
            packed=np.full((self.rows * (self.rows + 1) // 2 + 2, 8), 7.0),
            factors=np.full((shape.factor_rows + 1, 8), np.nan),
            work=np.full((shape.scratch_rows, 8), np.nan),
            ok=np.ones(8),
        )

    def placed(self, s: Any, y: Any) -> Point:
        zeros = np.zeros((2, s.shape[1]))
        return Point(np.zeros((1, s.shape[1])), np.vstack((zeros, s)), np.vstack((zeros, y)))

    def scale(self) -> tuple[Any, Any]:
        """(H as full matrices (V, rows, rows), ok)."""
        psd.update_scaling(LANES, self.block, self.point, self.scaling)
        packed = self.scaling.packed
        assert np.all(packed[[0, -1]] == 7.0)
        H = np.empty((8, self.rows, self.rows))
        cols, rows = np.tril_indices(self.rows)
        H[:, rows, cols] = H[:, cols, rows] = packed[1:-1].T
        return H, self.scaling.ok

    def multiply(self, v: Any) -> Any:
        out = np.zeros_like(self.point.s)
        psd.multiply(LANES, self.block, self.scaling, self.placed(v, v).s, out)
        return out[2:]

    def shift(self, ds: Any, dy: Any, sigma_mu: Any) -> Any:
        out, direction = np.zeros_like(self.point.s), self.placed(ds, dy)
        psd.combined_shift(LANES, self.block, self.scaling, self.point, direction, sigma_mu, out)
        return out[2:]

    def step(self, ds: Any, dy: Any) -> Any:
        alpha = np.ones(8)
        psd.shorten_step(LANES, self.block, self.scaling, self.point, self.placed(ds, dy), alpha)
        return alpha


@pytest.mark.parametrize("k", ORDERS)
def test_identity_and_margin(k: int) -> None:
    s, y = np.zeros((k * (k + 1) // 2 + 2, 8)), np.zeros((k * (k + 1) // 2 + 2, 8))
    psd.set_central_point(3, block_of(k), Point(s, s, y))
    np.testing.assert_array_equal(mat(s[2:], k)[3], np.eye(k))
    np.testing.assert_array_equal(s, y)
    assert np.all(s[:, [0, 1, 2, 4, 5, 6, 7]] == 0)
    X = directions(np.random.default_rng(k), k)
    X[1] = np.diag(np.arange(k) // 3 - 1.0)
    X[2] = 0.0
    X[3] = 5e-9 * np.ones((k, k))
    s[2:] = svec(X)
    for lane in range(8):
        least, size = np.linalg.eigvalsh(X[lane])[0], np.linalg.norm(X[lane])
        assert -2e-9 * size <= psd.margin(lane, block_of(k), s) - least <= 1e-14 * size
    psd.add_identity(4, block_of(k), 0.75, s)
    np.testing.assert_allclose(mat(s[2:], k)[4], X[4] + 0.75 * np.eye(k), atol=1e-15)
    np.testing.assert_allclose(mat(s[2:], k)[5], X[5], atol=1e-15)


@pytest.mark.parametrize("k", ORDERS)
def test_scaling_is_the_nesterov_todd_scaling(k: int) -> None:
    rng = np.random.default_rng(k)
    S, Y = definite(rng, k, 1e-2), definite(rng, k, 1e-2)
    block = Block(k, svec(S), svec(Y))
    H, ok = block.scale()
    assert np.all(ok == 1.0)
    for lane in range(8):
        value, vector = np.linalg.eigh(Y[lane])
        root, inverse = (vector * value**0.5) @ vector.T, (vector * value**-0.5) @ vector.T
        value, vector = np.linalg.eigh(root @ S[lane] @ root)
        W = inverse @ (vector * value**0.5) @ vector.T @ inverse
        for column, E in zip(H[lane].T, mat(np.eye(block.rows), k), strict=True):
            np.testing.assert_allclose(column, svec(W @ E @ W), atol=1e-11 * np.max(np.abs(H[lane])))
    v = rng.normal(size=(block.rows, 8))
    np.testing.assert_allclose(block.multiply(v), np.einsum("vij,jv->iv", H, v), atol=1e-11 * np.max(np.abs(H)))


@pytest.mark.parametrize("k", [1, 3, 8])
@pytest.mark.parametrize("mu", [1e-6, 1e-12])
@pytest.mark.parametrize("size", [1e-8, 1.0, 1e8])
def test_scaling_near_the_boundary(k: int, mu: float, size: float) -> None:
    rng = np.random.default_rng(k)
    Q = np.linalg.qr(rng.normal(size=(8, k, k)))[0]
    large = np.where(np.arange(k) < (k + 1) // 2, 1.0, mu)
    S = (Q * (large * size)) @ Q.transpose(0, 2, 1)
    Y = (Q * (mu / large * rng.uniform(0.5, 2, size=(8, 1, k)))) @ Q.transpose(0, 2, 1)
    block = Block(k, svec(S), svec(Y))
    H, ok = block.scale()
    assert np.all(ok == 1.0)
    image = np.einsum("vij,jv->iv", H, svec(Y))
    # norm(H) is about size / mu, and the vector that it multiplies about 1.
    np.testing.assert_allclose(image, svec(S), rtol=0, atol=1e-13 * size / mu)
    np.testing.assert_allclose(block.multiply(svec(Y)), svec(S), rtol=0, atol=1e-13 * size / mu)
    lam = np.sort(block.scaling.factors[-k:].T, axis=1)
    exact = np.sort(np.sqrt(np.linalg.eigvalsh(S) * np.linalg.eigvalsh(Y)[:, ::-1]), axis=1)
    np.testing.assert_allclose(lam, exact, rtol=1e-3 if mu < 1e-9 else 1e-7)


@pytest.mark.parametrize("k", ORDERS)
def test_combined_shift_solves_the_lyapunov_equation(k: int) -> None:
    rng = np.random.default_rng(k)
    S, Y = definite(rng, k, 0.1), definite(rng, k, 0.1)
    block = Block(k, svec(S), svec(Y))
    block.scale()
    dS, dY, sigma_mu = directions(rng, k), directions(rng, k), rng.uniform(size=8)
    shift = mat(block.shift(svec(dS), svec(dY), sigma_mu), k)
    for lane in range(8):
        # With the symmetric square root V of W, lambda = V Y V is a full matrix and Z solves a Lyapunov equation.
        left = np.linalg.cholesky(Y[lane])
        value, vector = np.linalg.eigh(left.T @ S[lane] @ left)
        point = np.linalg.inv(left.T) @ (vector * value**0.5) @ vector.T @ np.linalg.inv(left)
        value, vector = np.linalg.eigh(point)
        V, inverse = (vector * value**0.5) @ vector.T, (vector * value**-0.5) @ vector.T
        lam, s, y = V @ Y[lane] @ V, inverse @ dS[lane] @ inverse, V @ dY[lane] @ V
        target = lam @ lam + (s @ y + y @ s) / 2 - sigma_mu[lane] * np.eye(k)
        eye = np.eye(k)
        Z = np.linalg.solve(np.kron(lam, eye) + np.kron(eye, lam), 2 * target.ravel()).reshape(k, k)
        np.testing.assert_allclose(shift[lane], V @ Z @ V, atol=1e-11 * np.max(np.abs(shift[lane])))


@pytest.mark.parametrize("k", ORDERS)
def test_step_reaches_the_boundary(k: int) -> None:
    rng = np.random.default_rng(k)
    S, Y, dS, dY = definite(rng, k, 0.1), definite(rng, k, 0.1), directions(rng, k), directions(rng, k)
    dS[0], dY[0] = S[0], Y[0]
    dS[1], dY[1] = -4 * S[1], 0 * Y[1]
    dS[2], dY[2] = 0 * S[2], -0.5 * Y[2]
    dS[3, 0, 0] = np.nan
    block = Block(k, svec(S), svec(Y))
    block.scale()
    alpha = block.step(svec(dS), svec(dY))
    np.testing.assert_allclose(alpha[:4], [1, 0.25, 1, 0], rtol=1e-8)
    for lane in range(4, 8):
        inside, outside = (
            min(np.linalg.eigvalsh(X[lane] + factor * alpha[lane] * dX[lane])[0] for X, dX in ((S, dS), (Y, dY)))
            for factor in (1 - 1e-7, 1 + 1e-7)
        )
        assert inside > 0
        assert outside < 0 or alpha[lane] == 1


def test_indefinite_blocks_are_reported() -> None:
    rng = np.random.default_rng(0)
    S, Y = definite(rng, 3), definite(rng, 3)
    S[1] -= 1.5 * np.eye(3)
    Y[4, 0, 0] = np.nan
    Y[6] = 0.0
    S[7] *= np.inf
    _, ok = Block(3, svec(S), svec(Y)).scale()
    np.testing.assert_array_equal(ok == 0.0, np.isin(np.arange(8), [1, 4, 6, 7]))


@pytest.mark.parametrize("garbage", [np.nan, np.inf, -1e300, 0.0])
def test_a_lane_does_not_depend_on_its_neighbours(garbage: float) -> None:
    k, rng = 5, np.random.default_rng(1)
    s, y = svec(definite(rng, k, 1e-3)), svec(definite(rng, k, 1e-3))
    ds, dy, sigma_mu = svec(directions(rng, k)), svec(directions(rng, k)), rng.uniform(size=8)

    def results() -> list[Any]:
        block = Block(k, s, y)
        H, ok = block.scale()
        alpha = block.step(ds, dy)
        shift = block.shift(ds, dy, sigma_mu)
        return [H.transpose(1, 2, 0), ok, alpha, shift, block.multiply(ds)]

    clean = results()
    for rows in (s, y, ds, dy):
        rows[:, [0, 3, 5]] = garbage
    others = np.array([1, 2, 4, 6, 7])
    for before, after in zip(clean, results(), strict=True):
        np.testing.assert_array_equal(before[..., others], after[..., others])
