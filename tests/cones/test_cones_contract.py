"""Properties of all cones, for NumPy arrays and torch tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from convexlayer.cones import AbstractCone, Eigenbasis
from convexlayer.program import Array

from .conftest import CASES, POINTS, Case

TINY = 1e-100


def _points(cone: AbstractCone, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=(POINTS, cone.size))


def _boundary_points(cone: AbstractCone) -> Array:
    """Points on the boundaries of K* and -K, with zeros and ties, including the origin."""
    rng = np.random.default_rng(3)
    w = rng.integers(-1, 2, size=(POINTS, cone.size)).astype(float)
    w[0] = 0.0
    w[1] = 1.0
    regular = _points(cone)
    y = cone.project_dual(regular)
    w[100:200] = y[100:200]
    w[200:] = (regular - y)[200:]
    return w


def dense(basis: Eigenbasis) -> Array:
    """D as a matrix."""
    d = np.asarray(basis.d)
    Q = np.eye(d.shape[-1]) if basis.Q is None else np.asarray(basis.Q)
    return (Q * d[..., None, :]) @ np.swapaxes(Q, -1, -2)


def _check_moreau(case: Case, w: Array, tolerance: float = 1e-12) -> None:
    y = case.cone.project_dual(w)
    s = y - w
    scale = np.linalg.norm(w, axis=-1)
    assert y.shape == w.shape
    assert np.all(case.near_dual(y, tolerance * scale + TINY))
    assert np.all(case.near_primal(s, tolerance * scale + TINY))
    assert np.all(np.abs(np.sum(y * s, axis=-1)) <= tolerance * scale**2)


def _check_basis(cone: AbstractCone, w: Array) -> None:
    basis = cone.derivative(w)
    assert basis.d.shape == basis.complement.shape == w.shape
    assert np.all((basis.d >= 0) & (basis.d <= 1) & (basis.complement >= 0))
    np.testing.assert_allclose(basis.d + basis.complement, 1.0, atol=4e-16, rtol=0)
    if basis.Q is not None:
        product = basis.Q @ np.swapaxes(basis.Q, -1, -2)
        np.testing.assert_allclose(product, np.broadcast_to(np.eye(cone.size), product.shape), atol=2e-14)


@pytest.mark.parametrize("points", [_points, _boundary_points])
def test_moreau_decomposition(case: Case, points: object) -> None:
    _check_moreau(case, points(case.cone))  # type: ignore[operator]


@pytest.mark.parametrize("points", [_points, _boundary_points])
def test_eigenbasis_is_orthogonal_with_eigenvalues_in_unit_interval(case: Case, points: object) -> None:
    _check_basis(case.cone, points(case.cone))  # type: ignore[operator]


@pytest.mark.parametrize("name", list(CASES))
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_projection_at_extreme_scales(name: str, seed: int) -> None:
    case = CASES[name]
    rng = np.random.default_rng(seed)
    shape = (POINTS, case.cone.size)
    w = rng.choice([-1.0, 1.0], shape) * 10.0 ** rng.uniform(-12, 12, shape)
    _check_moreau(case, w)
    _check_basis(case.cone, w)
    assert np.all(case.cone.margin(w) >= 0)


def test_projection_is_idempotent_and_nonexpansive(case: Case) -> None:
    w, other = _points(case.cone), _points(case.cone, 1)
    y = case.cone.project_dual(w)
    np.testing.assert_allclose(case.cone.project_dual(y), y, atol=1e-13)
    moved = np.linalg.norm(y - case.cone.project_dual(other), axis=-1)
    assert np.all(moved <= np.linalg.norm(w - other, axis=-1) * (1 + 1e-12))


def test_projection_is_positively_homogeneous(case: Case) -> None:
    w = _points(case.cone)
    np.testing.assert_allclose(case.cone.project_dual(1e9 * w), 1e9 * case.cone.project_dual(w), rtol=1e-12, atol=1e-4)
    np.testing.assert_allclose(dense(case.cone.derivative(1e9 * w)), dense(case.cone.derivative(w)), atol=1e-10)


def test_derivative_matches_fourth_order_differences(case: Case) -> None:
    cone, step = case.cone, 1e-4
    w = _points(cone)
    columns = []
    for e in np.eye(cone.size) * step:
        near = cone.project_dual(w + e) - cone.project_dual(w - e)
        far = cone.project_dual(w + 2 * e) - cone.project_dual(w - 2 * e)
        columns.append((8 * near - far) / (12 * step))
    basis = cone.derivative(w)
    # Near z = 0 the projection onto a power cone is smooth only on the scale of z.
    regular = (cone.margin(w) > 0.1) & (np.abs(w[:, -1]) > 0.1)
    assert np.count_nonzero(regular) > POINTS // 2
    np.testing.assert_allclose(np.stack(columns, axis=-1)[regular], dense(basis)[regular], atol=1e-8)


def test_derivative_reproduces_projection(case: Case) -> None:
    """Pi is positively homogeneous, so D w = Pi(w)."""
    w = _points(case.cone)
    product = (dense(case.cone.derivative(w)) @ w[..., None])[..., 0]
    np.testing.assert_allclose(product, case.cone.project_dual(w), atol=1e-13)


def test_derivative_at_origin_is_zero_unless_dual_is_free(case: Case) -> None:
    w = np.zeros((POINTS, case.cone.size))
    assert np.all(case.cone.derivative(w).d == (1.0 if np.isinf(case.cone.margin(w)[0]) else 0.0))


def test_margin_is_zero_on_the_boundary(case: Case) -> None:
    w = _points(case.cone)
    y = case.cone.project_dual(w)
    for boundary, other in ((y, y - w), (w - y, y)):
        moved = np.linalg.norm(other, axis=-1) > 1e-3
        margin = case.cone.margin(boundary)[moved]
        assert np.all((margin <= 1e-12) | np.isinf(margin))


def test_derivative_is_constant_within_the_margin_of_a_flat_region(case: Case) -> None:
    """Where D = 0 or D = I, it is constant in the open ball of the margin, and changes in some direction outside."""
    cone = case.cone
    w = _points(cone)
    rng = np.random.default_rng(2)
    flat = np.all(cone.derivative(w).d == cone.derivative(w).d[:, :1], axis=-1)
    margin = cone.margin(w)
    if np.any(np.isinf(margin)):
        return
    for _ in range(30):
        direction = rng.normal(size=w.shape)
        direction /= np.linalg.norm(direction, axis=-1, keepdims=True)
        inside = w + 0.999 * margin[:, None] * direction
        np.testing.assert_array_equal(cone.derivative(inside).d[flat], cone.derivative(w).d[flat])


def test_torch_equals_numpy(case: Case) -> None:
    for w in (_points(case.cone), _boundary_points(case.cone)):
        tensor: Any = torch.from_numpy(w)
        y, basis, margin = case.cone.project_dual(tensor), case.cone.derivative(tensor), case.cone.margin(tensor)
        assert y.dtype == basis.d.dtype == basis.complement.dtype == margin.dtype == torch.float64
        np.testing.assert_allclose(y.numpy(), case.cone.project_dual(w), atol=1e-13)
        np.testing.assert_allclose(margin.numpy(), case.cone.margin(w), atol=1e-13)
    tensor = torch.from_numpy(_points(case.cone))
    np.testing.assert_allclose(
        dense(case.cone.derivative(tensor)), dense(case.cone.derivative(tensor.numpy())), atol=1e-12
    )


def test_autograd_through_projection_gives_the_derivative(case: Case) -> None:
    w = _points(case.cone)
    cotangent = np.random.default_rng(4).normal(size=w.shape)
    tensor = torch.from_numpy(w).requires_grad_()
    (gradient,) = torch.autograd.grad(case.cone.project_dual(tensor), tensor, torch.from_numpy(cotangent))
    expected = (dense(case.cone.derivative(w)) @ cotangent[..., None])[..., 0]
    np.testing.assert_allclose(gradient.numpy(), expected, atol=1e-9)


def test_arguments_are_not_modified(case: Case) -> None:
    w = _points(case.cone)
    before = w.copy()
    case.cone.project_dual(w)
    case.cone.derivative(w)
    case.cone.margin(w)
    np.testing.assert_array_equal(w, before)


def test_nan_does_not_spread_to_other_blocks(case: Case) -> None:
    w = _points(case.cone)
    y = case.cone.project_dual(w)
    w[7] = np.nan
    bad = case.cone.project_dual(w)
    case.cone.derivative(w)
    assert np.all(np.isnan(bad[7]))
    np.testing.assert_array_equal(np.delete(bad, 7, axis=0), np.delete(y, 7, axis=0))


@pytest.mark.parametrize("name", list(CASES))
def test_an_element_stays_in_the_cone_when_growing_rows_increase(name: str) -> None:
    case = CASES[name]
    for w in (_points(case.cone), _boundary_points(case.cone)):
        s = case.cone.project_dual(w) - w
        more = np.abs(np.random.default_rng(4).normal(size=w.shape)) * case.cone.recession_rows
        assert case.cone.recession_rows.shape == (case.cone.size,)
        assert np.all(case.near_primal(s + more, 1e-12 * np.linalg.norm(w, axis=-1) + TINY))
