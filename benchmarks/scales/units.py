"""Random regular programs over all cones, with scaled variables, rows and objective, which must not affect results."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from benchmarks.scales.plan import Plan
from benchmarks.scales.programs import (
    DATA,
    Programs,
    Units,
    assembled,
    block_heights,
    derivative,
    newton,
    parametric,
    pull,
    stacked,
    value_gradient,
)
from benchmarks.scales.queries import AbstractQuery, Forward, Reverse, Value, answer
from benchmarks.scales.table import Count, table
from convexlayer.cones import product_cone
from convexlayer.errors import SolverError
from convexlayer.layers.solution_map import SolutionMap
from convexlayer.program import Array, Cones

__all__ = ["FAMILIES", "RANGES", "SCALED_WITHIN_BLOCKS", "draw", "measure", "queries", "table", "units"]

RANGES = (0.0, 1.0, 2.0, 4.0, 6.0)
"""Default values of k; units lie in 10^-k..10^k."""

SOLVERS = ("auto", "clarabel")
"""Default solvers."""

FAMILIES = {
    "linear": Cones(zero=3, nonnegative=8),
    "second-order": Cones(second_order=(3, 4, 1, 2)),
    "semidefinite": Cones(psd=(3, 2)),
    "exponential": Cones(exponential=3),
    "power": Cones(power=(0.3, 0.5, 0.8)),
    "linear, second-order": Cones(zero=2, nonnegative=4, second_order=(3, 3)),
    "linear, exponential": Cones(zero=2, nonnegative=3, exponential=2),
    "exponential, semidefinite": Cones(zero=1, exponential=2, psd=(2,)),
    "all": Cones(zero=1, nonnegative=3, second_order=(3,), psd=(2,), exponential=1, power=(0.4,)),
}
"""Cones of the families by name: single kinds first, then products."""

SCALED_WITHIN_BLOCKS = {
    "semidefinite, rows scaled": Cones(psd=(3, 2)),
    "power, rows scaled": Cones(power=(0.3, 0.5, 0.8)),
}
"""Families whose rows within a block are scaled differently, by automorphisms of the cone: d_i d_j for a matrix,
(a, b, a^p b^(1 - p)) for a power cone."""

CONDITION = 1e4
"""Largest condition number of N, unscaled; draws above it are rejected."""

MARGIN = 0.1
"""Smallest strict complementarity margin of w."""


def measure(plan: Plan) -> Iterator[Count]:
    """One count per family, range and solver that supports the family."""
    chosen = {name: cones for name, cones in (FAMILIES | SCALED_WITHIN_BLOCKS).items() if plan.wants(name)}
    ranges = plan.ranges or RANGES
    draws = math.ceil(plan.draws / max(len(chosen) * len(ranges), 1))
    for name, cones in chosen.items():
        programs = draw(cones, draws, seed=plan.seed)
        compiled = parametric(programs, range(programs.x.shape[1]), duals=True)
        all_queries = queries(programs)
        for solver in plan.solvers or SOLVERS:
            try:
                solution_map = SolutionMap(compiled, solver=solver, options=plan.options)
            except SolverError:
                continue
            for k in ranges:
                yield _counted(Count("units", name, k, solver), solution_map, programs, all_queries, plan)


def _counted(
    count: Count, solution_map: SolutionMap, programs: Programs, all_queries: Sequence[AbstractQuery], plan: Plan
) -> Count:
    scales = units(programs, count.k, seed=plan.seed, within_blocks=count.family in SCALED_WITHIN_BLOCKS)
    for start in range(0, programs.batch, plan.batch):
        index = slice(start, start + plan.batch)
        part, here = programs.select(index), [query.select(index) for query in all_queries]
        outcome = answer(solution_map, part, scales.select(index), here, visible=range(part.x.shape[1]), duals=True)
        count.add(outcome, show=plan.show)
    return count


def units(programs: Programs, k: float, *, seed: int, within_blocks: bool = False) -> Units:
    """Random units in 10^-k..10^k of every variable, row of a linear cone, curved block, and the objective.

    Args:
        programs: the unscaled programs.
        k: see above.
        seed: seed of the units; those of an element do not depend on the other elements.
        within_blocks: whether to scale the rows within semidefinite and power blocks differently (see
            ``SCALED_WITHIN_BLOCKS``).
    """
    rng = np.random.default_rng([seed, round(10 * k), 7])
    (batch, n), cones = programs.x.shape, programs.cones
    heights = block_heights(cones)
    drawn = 10.0 ** rng.uniform(-k, k, size=(batch, n + len(heights) + 1))
    rows = np.repeat(drawn[:, n:-1], heights, axis=1)
    if within_blocks:
        more = np.random.default_rng([seed, round(10 * k), 8])
        rows = 10.0 ** np.concatenate([_row_orders(cones, more.uniform(-k, k, size=2 * cones.m)) for _ in range(batch)])
    return Units(drawn[:, :n], rows, drawn[:, -1])


def _row_orders(cones: Cones, orders: Array) -> Array:
    """Orders of magnitude (1, m) of the rows' units, computed from random ``orders``, of which some are unused."""
    parts, orders = [orders[: cones.zero + cones.nonnegative]], orders[cones.zero + cones.nonnegative :]
    for size in cones.second_order:
        parts, orders = [*parts, np.repeat(orders[:1], size)], orders[1:]
    for side in cones.psd:
        cols, rows = np.triu_indices(side)  # the lower triangle column by column
        parts, orders = [*parts, 0.5 * (orders[rows] + orders[cols])], orders[side:]
    for _ in range(cones.exponential):
        parts, orders = [*parts, np.repeat(orders[:1], 3)], orders[1:]
    for alpha in cones.power:
        a, b = orders[:2]
        parts, orders = [*parts, np.array([a, b, alpha * a + (1.0 - alpha) * b])], orders[2:]
    return np.concatenate(parts)[None]


def draw(cones: Cones, batch: int, *, seed: int) -> Programs:
    """Draw strictly complementary, well conditioned programs; P has full rank in half of them."""
    rng = np.random.default_rng([seed, cones.m, *map(ord, sorted(cones.kinds)[0])])
    n, found = cones.m + 1, list[Programs]()
    while len(found) < batch:
        rank = n if len(found) % 2 else max(n - int(rng.integers(1, 4)), 1)
        F = rng.normal(size=(rank, n))
        P = F.T @ F / n + (0.2 * np.eye(n) if rank == n else 0.0)
        A = rng.normal(size=(cones.m, n))
        one = assembled(P[None], A[None], rng.normal(size=(1, n)), strict_point(rng, cones)[None], cones)
        if np.linalg.cond(newton(one, derivative(cones, one.w))[0]) < CONDITION:
            found.append(one)
    return stacked(found)


def strict_point(rng: np.random.Generator, cones: Cones) -> Array:
    """A random w (m,) with margin of at least MARGIN: half of the blocks on the boundary, others interior or zero."""
    cone, candidates = product_cone(cones), 60
    points = rng.normal(size=(candidates, 3, cones.m)) * rng.choice([0.7, 1.5], size=(candidates, 1, 1))
    projected = cone.project_dual(points.reshape(-1, cones.m)).reshape(points.shape)
    regime = np.arange(candidates) % 4
    interior, zero = np.sum(projected, axis=1), np.sum(points - projected, axis=1)
    w = np.select([(regime == 0)[:, None], (regime == 1)[:, None]], [interior, zero], points[:, 0])
    chosen = np.zeros(cones.m)
    for group in cone.groups:
        blocks = group.split(w)
        strict = group.cone.margin(blocks) >= MARGIN
        for block in range(group.blocks):
            start = group.start + block * group.size
            chosen[start : start + group.size] = blocks[rng.choice(np.flatnonzero(strict[:, block])), block]
    return chosen


def queries(programs: Programs) -> list[AbstractQuery]:
    """Queries of the gradients of every x_i and y_j and of the optimal value in all data, and a tangent of all data."""
    n, m = programs.x.shape[1], programs.w.shape[1]
    D = derivative(programs.cones, programs.w)
    N = np.swapaxes(newton(programs, D), 1, 2)
    found, rows = list[AbstractQuery](), list[Array]()
    for position in range(n + m):
        weight = np.zeros((programs.batch, n + m))
        weight[:, position] = 1.0
        on_w = np.einsum("bij,bj->bi", D, weight[:, n:])  # dy = D dw, and D is symmetric
        v = np.linalg.solve(N, np.concatenate([weight[:, :n], on_w], axis=1)[..., None])[..., 0]
        rows.append(np.concatenate(pull(programs, v), axis=1))
        found.append(Reverse(DATA, weight, rows[-1]))
    rng = np.random.default_rng(programs.batch)
    tangents = [rng.normal(size=value.shape) for value in programs.theta()]
    moved = np.einsum("ibj,bj->bi", np.array(rows), np.concatenate(tangents, axis=1))
    return [*found, Value(DATA, np.concatenate(value_gradient(programs), axis=1)), Forward(list(tangents), moved)]
