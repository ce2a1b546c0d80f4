"""Random programs that are infeasible, unbounded or solvable by construction, over all cones, in any units."""

from __future__ import annotations

import numpy as np

from convexlayer.cones import product_cone
from convexlayer.program import Array, ConeProgram, Cones
from convexlayer.rays import block_of_rows
from convexlayer.testing.programs import dense_program

BATCH = 8

KINDS = {
    "linear": Cones(zero=3, nonnegative=25),
    "second_order": Cones(zero=2, nonnegative=10, second_order=(1, 3, 4, 9)),
    "psd": Cones(zero=2, nonnegative=5, psd=(1, 2, 5)),
    "exponential": Cones(zero=2, nonnegative=5, exponential=4),
    "power": Cones(nonnegative=5, power=(0.2, 0.5, 0.9)),
    "product": Cones(zero=2, nonnegative=6, second_order=(5,), psd=(3,), exponential=2, power=(0.3,)),
}


def infeasible(rng: np.random.Generator, cones: Cones, *, n: int = 8, spread: float = 0.0) -> ConeProgram:
    """Build programs with a ray y in K*, A'y = 0, b'y < 0; rows, blocks and columns are scaled by up to 10^spread."""
    m = cones.m
    y = product_cone(cones).project_dual(rng.standard_normal((BATCH, m)))
    A = _without(rng.standard_normal((BATCH, m, n)), y)
    b = _falling(rng.standard_normal((BATCH, m)), y)
    P, q = _quadratic(rng, n, n), rng.standard_normal((BATCH, n))
    return _in_units(rng, cones, P, q, A, b, spread)


def unbounded(rng: np.random.Generator, cones: Cones, *, n: int = 8, spread: float = 0.0) -> ConeProgram:
    """Build feasible programs with a ray Px = 0, -Ax in K, q'x < 0."""
    m = cones.m
    x, s = rng.standard_normal((BATCH, n)), _in_cone(rng, cones)
    A = rng.standard_normal((BATCH, m, n))
    A = A - _outer(np.einsum("bij,bj->bi", A, x) + s, x) / np.sum(x * x, axis=1)[:, None, None]
    b = np.einsum("bij,bj->bi", A, rng.standard_normal((BATCH, n))) + _in_cone(rng, cones)
    F = _without(rng.standard_normal((BATCH, n, n - 3)), x)
    return _in_units(rng, cones, F @ F.swapaxes(1, 2), _falling(rng.standard_normal((BATCH, n)), x), A, b, spread)


def solvable(
    rng: np.random.Generator, cones: Cones, *, n: int = 8, spread: float = 0.0, tight: bool = False, rank: int = 0
) -> ConeProgram:
    """Build primal and dual feasible programs, with s = 0 if ``tight``, and with the given rank of A."""
    m = cones.m
    A = rng.standard_normal((BATCH, m, n))
    if rank:
        A = rng.standard_normal((BATCH, m, rank)) @ rng.standard_normal((BATCH, rank, n))
    b = np.einsum("bij,bj->bi", A, rng.standard_normal((BATCH, n))) + (0.0 if tight else _in_cone(rng, cones))
    y = product_cone(cones).project_dual(rng.standard_normal((BATCH, m)))
    return _in_units(rng, cones, _quadratic(rng, n, 3), -np.einsum("bij,bi->bj", A, y), A, b, spread)


def _in_units(
    rng: np.random.Generator, cones: Cones, P: Array, q: Array, A: Array, b: Array, spread: float
) -> ConeProgram:
    blocks = block_of_rows(cones)
    e = (10.0 ** rng.uniform(-spread, spread, blocks[-1] + 1))[blocks]
    d = 10.0 ** rng.uniform(-spread, spread, q.shape[1])
    program = dense_program(cones, d[:, None] * P * d, q * d, e[:, None] * A * d, b * e)
    return program.with_objective_divided(program.objective_scale())


def _in_cone(rng: np.random.Generator, cones: Cones) -> Array:
    w = rng.standard_normal((BATCH, cones.m))
    return product_cone(cones).project_dual(w) - w


def _quadratic(rng: np.random.Generator, n: int, rank: int) -> Array:
    F = rng.standard_normal((BATCH, n, rank))
    return F @ F.swapaxes(1, 2)


def _outer(left: Array, right: Array) -> Array:
    return left[:, :, None] * right[:, None, :]


def _without(matrix: Array, v: Array) -> Array:
    """Project matrices (B, length, columns) such that v'M = 0."""
    return matrix - _outer(v, np.einsum("bi,bij->bj", v, matrix)) / np.sum(v * v, axis=1)[:, None, None]


def _falling(w: Array, v: Array) -> Array:
    """Flip vectors w such that w'v < 0."""
    product = np.sum(w * v, axis=1)
    return w - v * ((np.abs(product) + product) / np.sum(v * v, axis=1))[:, None]
