"""The product cone: every block gives the same result as alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from convexlayer.cones import (
    KroneckerBasis,
    Nonnegative,
    PositiveSemidefinite,
    Power,
    ProductCone,
    RankTwo,
    SecondOrder,
    Zero,
)
from convexlayer.cones.product import KRONECKER_FROM
from convexlayer.errors import ShapeError
from convexlayer.program import Array, Cones

CONES = Cones(
    zero=2,
    nonnegative=3,
    second_order=(3, 3, 1, 9, 3),
    psd=(3, 3, 1),
    exponential=2,
    power=(0.2, 0.7, 0.5),
)
BATCH = 4


@pytest.fixture
def w() -> Array:
    """A batch of points."""
    return np.random.default_rng(0).normal(size=(BATCH, CONES.m))


def test_groups_cover_all_rows_in_order() -> None:
    groups = ProductCone(CONES).groups
    layout = [(type(group.cone), group.start, group.blocks, group.size) for group in groups]
    assert layout[:6] == [
        (Zero, 0, 2, 1),
        (Nonnegative, 2, 3, 1),
        (SecondOrder, 5, 2, 3),
        (SecondOrder, 11, 1, 1),
        (SecondOrder, 12, 1, 9),
        (SecondOrder, 21, 1, 3),
    ]
    assert layout[6:8] == [(PositiveSemidefinite, 24, 2, 6), (PositiveSemidefinite, 36, 1, 1)]
    assert [(start, blocks) for _, start, blocks, _ in layout[8:]] == [(37, 2), (43, 3)]
    assert CONES.m == 52


def test_each_block_equals_the_block_alone(w: Array) -> None:
    product = ProductCone(CONES)
    v = np.random.default_rng(1).normal(size=w.shape)
    y, moved, margin = product.project_dual(w), product.derivative(w).apply(v), product.margin(w)
    least = np.full(BATCH, np.inf)
    for group in product.groups:
        for block in range(group.blocks):
            cone = Power(group.cone.alpha[block : block + 1]) if isinstance(group.cone, Power) else group.cone
            start = group.start + block * group.size
            rows = slice(start, start + group.size)
            alone = w[:, None, rows]
            np.testing.assert_allclose(y[:, rows], cone.project_dual(alone)[:, 0], atol=1e-15)
            np.testing.assert_allclose(moved[:, rows], cone.derivative(alone).apply(v[:, None, rows])[:, 0], atol=1e-14)
            least = np.minimum(least, cone.margin(alone)[:, 0])
    np.testing.assert_allclose(margin, least, atol=1e-13)


def test_element_of_a_batch_equals_the_element_alone(w: Array) -> None:
    product = ProductCone(CONES)
    for i in range(BATCH):
        np.testing.assert_allclose(product.project_dual(w[i : i + 1])[0], product.project_dual(w)[i], atol=1e-14)
        np.testing.assert_allclose(product.margin(w[i : i + 1])[0], product.margin(w)[i], atol=1e-14)


def test_margins_of_derivative_and_point_agree(w: Array) -> None:
    product = ProductCone(CONES)
    margins = product.derivative(w).margins
    assert len(margins) == len(product.groups)
    np.testing.assert_array_equal(np.min(np.stack(margins), axis=0), product.margin(w))


def test_derivative_is_the_directional_derivative_of_the_projection(w: Array) -> None:
    product, step = ProductCone(CONES), 1e-6
    v = np.random.default_rng(1).normal(size=w.shape)
    regular = product.margin(w) > 1e-4
    assert np.any(regular)
    difference = (product.project_dual(w + step * v) - product.project_dual(w - step * v)) / (2 * step)
    np.testing.assert_allclose(difference[regular], product.derivative(w).apply(v)[regular], atol=1e-7)


def test_large_second_order_blocks_have_no_eigenbasis(w: Array) -> None:
    pieces = ProductCone(CONES).derivative(w).pieces
    assert [isinstance(piece, RankTwo) for piece in pieces[2:6]] == [False, False, True, False]


def test_large_semidefinite_blocks_have_no_eigenbasis() -> None:
    """Each block gives the same result as alone, also for torch tensors."""
    cones = Cones(nonnegative=2, psd=(3, KRONECKER_FROM - 1, KRONECKER_FROM, KRONECKER_FROM, 40))
    product, rng = ProductCone(cones), np.random.default_rng(0)
    w, v = rng.normal(size=(2, cones.m)), rng.normal(size=(2, cones.m))
    derivative = product.derivative(w)
    forms = [isinstance(piece, KroneckerBasis) for piece in derivative.pieces]
    assert forms == [False, False, False, True, True]
    assert [group.kronecker for group in product.groups] == forms
    for group in product.groups[1:]:
        expected = group.cone.derivative(group.split(w)).apply(group.split(v)).reshape(2, -1)
        np.testing.assert_allclose(derivative.apply(v)[:, group.rows], expected, atol=1e-12)
    tensors: Any = torch.from_numpy(w), torch.from_numpy(v)
    np.testing.assert_allclose(product.derivative(tensors[0]).apply(tensors[1]), derivative.apply(v), atol=1e-12)
    np.testing.assert_allclose(product.margin(tensors[0]), product.margin(w), atol=1e-13)


def test_torch_equals_numpy(w: Array) -> None:
    product = ProductCone(CONES)
    tensor: Any = torch.from_numpy(w)
    np.testing.assert_allclose(product.project_dual(tensor), product.project_dual(w), atol=1e-14)
    np.testing.assert_allclose(product.margin(tensor), product.margin(w), atol=1e-13)
    np.testing.assert_allclose(product.derivative(tensor).apply(tensor), product.derivative(w).apply(w), atol=1e-13)


def test_no_rows() -> None:
    product, empty = ProductCone(Cones()), np.zeros((3, 0))
    assert product.project_dual(empty).shape == (3, 0)
    assert product.derivative(empty).apply(empty).shape == (3, 0)
    np.testing.assert_array_equal(product.margin(empty), np.full(3, np.inf))


def test_empty_batch() -> None:
    product, empty = ProductCone(CONES), np.zeros((0, CONES.m))
    assert product.project_dual(empty).shape == product.derivative(empty).apply(empty).shape == (0, CONES.m)
    assert product.margin(empty).shape == (0,)


def test_free_duals_have_an_infinite_margin() -> None:
    product, w = ProductCone(Cones(zero=2)), np.array([[-1.0, 0.0]])
    np.testing.assert_array_equal(product.project_dual(w), w)
    np.testing.assert_array_equal(product.derivative(w).apply(w), w)
    np.testing.assert_array_equal(product.margin(w), [np.inf])


@pytest.mark.parametrize("shape", [(CONES.m,), (2, CONES.m + 1), (1, 2, CONES.m)])
def test_wrong_shape_raises(shape: tuple[int, ...]) -> None:
    product = ProductCone(CONES)
    for call in (product.project_dual, product.derivative, product.margin):
        with pytest.raises(ShapeError, match="expected w of shape"):
            call(np.zeros(shape))
