"""Second-order and semidefinite cones against textbook formulas."""

from __future__ import annotations

import numpy as np
import pytest

from convexlayer.cones import Eigenbasis, PositiveSemidefinite, SecondOrder, symmetric_vectors
from convexlayer.program import Array

from .membership import matrices, triangles


def _dense(basis: Eigenbasis) -> Array:
    return (basis.Q * basis.d[..., None, :]) @ np.swapaxes(basis.Q, -1, -2)


@pytest.mark.parametrize("size", [2, 3, 10])
def test_second_order_derivative_is_the_textbook_matrix(size: int) -> None:
    """D = ((1, h'), (h, (1 + t / n) I - t / n h h')) / 2."""
    rng = np.random.default_rng(0)
    u = rng.normal(size=(50, size - 1))
    norm = np.linalg.norm(u, axis=-1)
    t = rng.uniform(-0.99, 0.99, 50) * norm
    basis = SecondOrder(size).derivative(np.concatenate((t[:, None], u), axis=-1))
    for i in range(50):
        h = u[i] / norm[i]
        lower = (1 + t[i] / norm[i]) * np.eye(size - 1) - t[i] / norm[i] * np.outer(h, h)
        expected = 0.5 * np.block([[np.ones((1, 1)), h[None]], [h[:, None], lower]])
        np.testing.assert_allclose(_dense(basis)[i], expected, atol=1e-14)


@pytest.mark.parametrize(
    ("w", "y", "d", "margin"),
    [
        ([2.0, 0.0, 0.0], [2.0, 0.0, 0.0], [1, 1, 1], np.sqrt(2.0)),
        ([-2.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0, 0, 0], np.sqrt(2.0)),
        ([0.0, 3.0, 4.0], [2.5, 1.5, 2.0], [1, 0, 0.5], 5.0 / np.sqrt(2.0)),
        ([5.0, 3.0, 4.0], [5.0, 3.0, 4.0], [1, 1, 1], 0.0),
        ([-5.0, 3.0, 4.0], [0.0, 0.0, 0.0], [0, 0, 0], 0.0),
        ([0.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0, 0, 0], 0.0),
        ([0.0, -1.0, 0.0], [0.5, -0.5, 0.0], [1, 0, 0.5], np.sqrt(0.5)),
    ],
)
def test_second_order_regions(w: list[float], y: list[float], d: list[float], margin: float) -> None:
    cone, point = SecondOrder(3), np.array(w)
    np.testing.assert_allclose(cone.project_dual(point), y, atol=1e-15)
    np.testing.assert_allclose(cone.derivative(point).d, d, atol=1e-15)
    np.testing.assert_allclose(cone.margin(point), margin, atol=1e-15)


def test_second_order_complement_near_one() -> None:
    gap = 1e-15
    basis = SecondOrder(3).derivative(np.array([1.0 - gap, 1.0, 0.0]))
    np.testing.assert_allclose(basis.complement[2], 0.5 * (1.0 - (1.0 - gap)), rtol=1e-15)


def test_second_order_cone_of_size_one_is_the_half_line() -> None:
    cone, w = SecondOrder(1), np.array([[-2.0], [0.0], [3.0]])
    np.testing.assert_array_equal(cone.project_dual(w), [[0.0], [0.0], [3.0]])
    np.testing.assert_array_equal(cone.derivative(w).d, [[0.0], [0.0], [1.0]])
    np.testing.assert_array_equal(cone.margin(w), [2.0, 0.0, 3.0])


@pytest.mark.parametrize("order", [1, 2, 3, 5, 30])
def test_semidefinite_derivative_is_the_divided_difference(order: int) -> None:
    """D[H] = V (W * (V'HV)) V', with W_ij the first divided difference of max(., 0) (Loewner)."""
    rng = np.random.default_rng(order)
    w, h = rng.normal(size=(2, 3, order * (order + 1) // 2))
    values, V = np.linalg.eigh(matrices(w, order))
    plus = np.maximum(values, 0.0)
    cone = PositiveSemidefinite(order)
    expected = triangles(V @ (plus[..., None] * np.swapaxes(V, -1, -2)))
    np.testing.assert_allclose(cone.project_dual(w), expected, atol=1e-12)
    i, j = values[..., :, None], values[..., None, :]
    with np.errstate(invalid="ignore"):
        W = np.where(i == j, i > 0, (plus[..., :, None] - plus[..., None, :]) / (i - j))
    rotated = W * (np.swapaxes(V, -1, -2) @ matrices(h, order) @ V)
    product = (_dense(cone.derivative(w)) @ h[..., None])[..., 0]
    np.testing.assert_allclose(product, triangles(V @ rotated @ np.swapaxes(V, -1, -2)), atol=1e-12)
    np.testing.assert_allclose(cone.margin(w), np.min(np.abs(values), axis=-1), rtol=1e-10)


def test_semidefinite_repeated_eigenvalues() -> None:
    rng = np.random.default_rng(0)
    V, _ = np.linalg.qr(rng.normal(size=(4, 4)))
    w = triangles(V @ np.diag([2.0, 2.0, -1.0, -1.0]) @ V.T)
    D = _dense(PositiveSemidefinite(4).derivative(w))
    P = V[:, :2] @ V[:, :2].T
    R = np.eye(4) - P
    H = rng.normal(size=(4, 4))
    H = H + H.T
    expected = P @ H @ P + 2.0 / 3.0 * (P @ H @ R + R @ H @ P)
    np.testing.assert_allclose(D @ triangles(H), triangles(expected), atol=1e-13)


def test_semidefinite_multiple_of_identity() -> None:
    cone, w = PositiveSemidefinite(3), triangles(np.eye(3))
    np.testing.assert_allclose(_dense(cone.derivative(w)), np.eye(6), atol=1e-14)
    np.testing.assert_array_equal(cone.derivative(-w).d, np.zeros(6))
    np.testing.assert_allclose(cone.project_dual(w), w, atol=1e-15)


def test_semidefinite_row_order_is_the_lower_triangle_by_columns() -> None:
    """Only (2, 0), the third row, is set: its eigenvalues are +-1 and the projection fills (0, 0), (2, 0), (2, 2)."""
    w = np.array([0.0, 0.0, np.sqrt(2.0), 0.0, 0.0, 0.0])
    expected = [0.5, 0.0, np.sqrt(0.5), 0.0, 0.0, 0.5]
    np.testing.assert_allclose(PositiveSemidefinite(3).project_dual(w), expected, atol=1e-15)


@pytest.mark.parametrize("order", [1, 2, 7, 30])
def test_kronecker_basis_equals_eigenbasis(order: int) -> None:
    """Same projection, eigenvalues, margin and products for the semidefinite cone, without forming Q."""
    cone, rng = PositiveSemidefinite(order), np.random.default_rng(order)
    w, v = rng.normal(size=(2, 3, cone.size)), rng.normal(size=(2, 3, cone.size))
    w[1, 2] = -cone.project_dual(w[1, 2]) - triangles(np.eye(order))  # D = 0
    point = cone.kronecker_at(w)
    basis, form = cone.derivative(w), point.derive()
    np.testing.assert_allclose(point.projection, cone.project_dual(w), atol=1e-13)
    np.testing.assert_allclose(form.apply(v), basis.apply(v), atol=1e-12)
    np.testing.assert_allclose(form.d + form.complement, 1.0, atol=4e-16)
    np.testing.assert_allclose(form.margin(), basis.margin(), atol=1e-13)
    np.testing.assert_allclose(form.combine(form.coordinates(v)), v, atol=1e-13)
    np.testing.assert_allclose(np.sum(form.coordinates(v) ** 2, axis=-1), np.sum(v**2, axis=-1), rtol=1e-13)


def test_coordinates_of_the_kronecker_basis_match_its_eigenvalues() -> None:
    cone, rng = PositiveSemidefinite(5), np.random.default_rng(0)
    form = cone.kronecker_at(rng.normal(size=cone.size)).derive()
    for entry in range(cone.size):
        unit = np.eye(cone.size)[entry]
        direction = form.combine(unit)
        np.testing.assert_allclose(form.apply(direction), form.d[entry] * direction, atol=1e-14)


def test_symmetric_vectors_are_scaled_triangles() -> None:
    v = np.random.default_rng(0).normal(size=(4, 15))
    svec = symmetric_vectors(5)
    np.testing.assert_allclose(svec.matrix(v), matrices(v, 5), atol=1e-15)
    np.testing.assert_allclose(svec.vector(svec.matrix(v)), triangles(matrices(v, 5)), atol=1e-15)


def test_a_large_nonfinite_block_does_not_affect_the_others() -> None:
    cone, w = PositiveSemidefinite(30), np.random.default_rng(0).normal(size=(2, 465))
    w[0, 3] = np.inf
    point = cone.kronecker_at(w)
    assert np.all(np.isnan(point.projection[0]))
    np.testing.assert_allclose(point.projection[1], cone.project_dual(w[1]), atol=1e-13)
    form = point.derive()
    assert np.all(np.isnan(form.d[0]))
    assert np.all(np.isfinite(form.d[1]))
