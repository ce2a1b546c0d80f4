"""The nonnegative and second-order cones in lanes against their formulas, and what all modules of the table provide."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import pytest

from convexlayer.interior_point.lanes.cones import nonnegative, second_order
from convexlayer.interior_point.lanes.cones.table import CONES, SYMMETRIC_CONES
from convexlayer.interior_point.lanes.kkt import REGULARISATION
from convexlayer.interior_point.lanes.layout import Block, Point, Scaling, places_of
from convexlayer.interior_point.lanes.plan import InteriorPointPlan
from convexlayer.linalg.ldl.lanes import unpack
from convexlayer.program import Cones, Pattern, Structure

LANES = (0.0,) * 8
CASES = {
    "nonnegative": (nonnegative, Cones(zero=1, nonnegative=4)),
    "dense": (second_order, Cones(zero=1, second_order=(1, 2, 4))),
    "expanded": (second_order, Cones(nonnegative=1, second_order=(7, 3, 5))),
}


class Product:
    """Blocks of one cone at a random interior point, in eight lanes, and calls of its kernels."""

    def __init__(self, cone: ModuleType, cones: Cones) -> None:
        self.cone, m = cone, cones.m
        structure = Structure(
            Pattern((1, 1), np.zeros(0, int), np.zeros(0, int)), Pattern((m, 1), np.arange(m), np.zeros(m, int)), cones
        )
        plan = InteriorPointPlan.of(structure)
        self.packed, self.layout = plan.packed, plan.layout
        number = CONES.index(cone)
        first, last = self.layout.first_block[number : number + 2]
        self.blocks = [
            Block._make([*self.layout.block_integers[k].tolist(), float(self.layout.exponents[k])])
            for k in range(first, last)
        ]
        self.first = self.blocks[0].start
        rng = np.random.default_rng(m)
        s, y = rng.normal(size=(2, m, 8))
        for block in self.blocks:
            for u in (s, y):
                rows = slice(block.start, block.start + block.size)
                if cone is nonnegative:
                    u[rows] = np.abs(u[rows]) + 0.1
                else:
                    u[block.start] = np.linalg.norm(u[rows][1:], axis=0) + rng.uniform(0.1, 1.0, 8)
        self.point, self.direction = self.pair(s, y), self.pair(*rng.normal(size=(2, m, 8)))
        packed = np.zeros((len(self.layout.packed_position), 8))
        self.scaling = Scaling(
            packed, np.zeros((self.layout.factor_rows, 8)), np.zeros((self.layout.scratch_rows, 8)), np.ones(8)
        )
        self.call("update_scaling", self.point, self.scaling)

    def pair(self, s: Any, y: Any) -> Point:
        return Point(np.zeros((1, 8)), s, y)

    def call(self, name: str, *arguments: Any) -> None:
        for block in self.blocks:
            getattr(self.cone, name)(LANES, block, *arguments)

    def multiply(self, x: Any) -> Any:
        out = np.zeros_like(x)
        self.call("multiply", self.scaling, x, out)
        return out[self.first :]

    def H(self) -> Any:
        """H in the rows of the cone, (V, rows, rows)."""
        m = len(self.point.s)
        units = [np.repeat(column[:, None], 8, axis=1) for column in np.eye(m)[self.first :]]
        return np.array([self.multiply(unit) for unit in units]).transpose(2, 1, 0)

    def identity(self) -> Any:
        e = np.zeros(len(self.point.s))
        for block in self.blocks:
            e[block.start : block.start + block.size] = 1.0 if self.cone is nonnegative else np.eye(block.size)[0]
        return e[self.first :]


@pytest.fixture(params=CASES)
def product(request: pytest.FixtureRequest) -> Product:
    return Product(*CASES[request.param])


def test_modules_have_the_functions_of_the_protocol() -> None:
    shared = {"combined_shift", "multiply", "set_central_point", "shapes", "shorten_step"}
    shared |= {"update_scaling", "write_scaling"}
    for cone in CONES:
        symmetric = {"add_identity", "margin"} if cone in SYMMETRIC_CONES else set()
        assert set(cone.__all__) - {"is_interior", "is_interior_dual"} == shared | symmetric


def test_blocks_have_the_rows_of_the_cone() -> None:
    cones = Cones(2, 3, (3, 6), (2, 3), 2, (0.3, 0.6))
    m = cones.m
    A = Pattern((m, 1), np.arange(m), np.zeros(m, int))
    layout = InteriorPointPlan.of(Structure(Pattern((1, 1), A.rows[:0], A.cols[:0]), A, cones)).layout
    assert np.diff(layout.first_block).tolist() == [1, 2, 2, 2, 2]
    assert layout.block_integers[:, 0].tolist() == [2, 5, 8, 14, 17, 23, 26, 29, 32]
    assert layout.uniform.tolist() == [5, 8, 14, 17, 23, 26, 29, 32, m]
    assert (layout.degree, layout.symmetric) == (3 + 2 + 5 + 4 * 3, False)
    assert layout.exponents[-2:].tolist() == [0.3, 0.6]


def test_H_takes_y_to_s(product: Product) -> None:
    np.testing.assert_allclose(product.multiply(product.point.y), product.point.s[product.first :], rtol=1e-12)
    assert np.all(np.linalg.eigvalsh(product.H()) > 0)


def test_the_entries_of_K_are_those_of_H(product: Product) -> None:
    plan, _ = unpack(product.packed)
    values = np.zeros((len(plan.row), 8))
    product.call("write_scaling", places_of(product.layout), product.scaling, values)
    N = len(plan.permutation)
    K = np.zeros((8, N, N))
    for j in range(N):
        entries = slice(plan.column_start[j], plan.column_start[j + 1])
        K[:, plan.row[entries], j] = K[:, j, plan.row[entries]] = values[entries].T
    inverse = np.argsort(plan.permutation)
    K = K[:, inverse][:, :, inverse]
    first, last = 1 + product.first, 1 + len(product.point.s)
    S = K[:, first:last, first:last]
    if last < N:  # eliminate the additional unknowns
        across = K[:, first:last, last:]
        S = S - across @ np.linalg.solve(K[:, last:, last:], across.transpose(0, 2, 1))
    H = product.H()
    expected = -H - REGULARISATION * np.eye(H.shape[1])
    np.testing.assert_allclose(S, expected, rtol=0, atol=1e-5 * np.max(np.abs(H)))


def test_margins_and_the_identity(product: Product) -> None:
    u, e = product.point.s.copy(), product.identity()
    for block in product.blocks:
        before = product.cone.margin(3, block, u)
        assert before > 0
        product.cone.add_identity(3, block, 0.75, u)
        np.testing.assert_allclose(product.cone.margin(3, block, u), before + 0.75, rtol=1e-12)
        product.cone.set_central_point(5, block, product.pair(product.point.s, product.point.y))
    np.testing.assert_allclose((u - product.point.s)[product.first :, 3], 0.75 * e, atol=1e-15)
    for rows in (product.point.s, product.point.y):
        np.testing.assert_array_equal(rows[product.first :, 5], e)


def test_the_step_reaches_the_boundary(product: Product) -> None:
    alpha = np.ones(8)
    product.call("shorten_step", product.scaling, product.point, product.direction, alpha)
    pairs = list(zip(product.point[1:], product.direction[1:], strict=True))
    for lane in range(8):
        inside, outside = (
            min(
                product.cone.margin(lane, block, u + factor * alpha[lane] * du)
                for block in product.blocks
                for u, du in pairs
            )
            for factor in (1 - 1e-7, 1 + 1e-7)
        )
        assert inside > 0
        assert outside < 0 or alpha[lane] == 1
    still = np.zeros_like(product.point.s)
    product.call("shorten_step", product.scaling, product.point, product.pair(still, still), alpha := np.full(8, 1.01))
    np.testing.assert_array_equal(alpha, 1.01)


def test_the_combined_shift_solves_the_complementarity_equation(product: Product) -> None:
    """W lambda = s, W^-1 H dy = W dy; lambda o W^-1 (shift) = lambda o lambda + (W^-1 ds) o (W dy) - target e."""
    target, shift = np.linspace(0.1, 0.8, 8), np.zeros_like(product.point.s)
    product.call("combined_shift", product.scaling, product.point, product.direction, target, shift)
    H, first = product.H(), product.first
    for lane in range(8):
        value, vector = np.linalg.eigh(H[lane])
        W, inverse = (vector * value**0.5) @ vector.T, (vector * value**-0.5) @ vector.T
        scaled = W @ product.point.y[first:, lane]
        ds, dy = inverse @ product.direction.s[first:, lane], W @ product.direction.y[first:, lane]
        left = product_of(product, scaled, inverse @ shift[first:, lane])
        right = product_of(product, scaled, scaled) + product_of(product, ds, dy) - target[lane] * product.identity()
        np.testing.assert_allclose(left, right, rtol=1e-9, atol=1e-9 * np.max(np.abs(right)))


def product_of(product: Product, u: Any, v: Any) -> Any:
    """The Jordan product, block by block."""
    if product.cone is nonnegative:
        return u * v
    out = np.empty_like(u)
    for block in product.blocks:
        rows = slice(block.start - product.first, block.start - product.first + block.size)
        a, b = u[rows], v[rows]
        out[rows] = np.concatenate([[a @ b], a[0] * b[1:] + b[0] * a[1:]])
    return out
