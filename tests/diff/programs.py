"""Random nondegenerate programs over dense matrices, directions in their data and solutions, and finite differences.

The number of variables is chosen such that K is nonsingular for almost every draw.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from benchmarks.scales.programs import derivative as dense_derivative
from convexlayer.cones import product_cone
from convexlayer.diff import AbstractDifferentiator, KKTSystem, SolutionCotangent, SolutionTangent, exact_differentiator
from convexlayer.diff.base import whole_program
from convexlayer.linalg import AbstractBackend
from convexlayer.program import Array, ConeProgram, Cones, Pattern, ProgramCotangent, Structure
from convexlayer.testing.programs import Known, constructed, solution_at, stack

CONES = {
    "zero": Cones(zero=3),
    "nonnegative": Cones(nonnegative=7),
    "second_order": Cones(second_order=(1, 2, 3, 9, 3)),
    "psd": Cones(psd=(3, 4, 3)),
    "exponential": Cones(exponential=4),
    "power": Cones(power=(0.5, 0.15, 0.8, 0.35)),
    "product": Cones(2, 4, (1, 2, 3, 9, 3), (3, 4), 3, (0.5, 0.15, 0.8)),
}

MARGIN = 0.1
"""Smallest distance of w from a jump of the projection's derivative."""

REACH = 3e-4
"""Step of finite differences in (x, w): well below MARGIN, and well above rounding errors."""

CONDITION = 1e5
"""Largest condition number of the Newton matrix; worse draws are rejected as degenerate."""


Solve = Callable[[ConeProgram], tuple[Array, Array, Array]]
"""Maps programs to solutions (x, y, s)."""


def draw(rng: np.random.Generator, cones: Cones, *, quadratic: bool) -> Known | None:
    """Draw a program over these cones with a strictly complementary solution; None if the draw is degenerate.

    Without a quadratic objective, the number of variables is what the active constraints and their curvature determine.
    """
    active = curved = 0
    while active + curved == 0:
        w = strict_point(rng, cones)
        d = np.linalg.eigvalsh(dense_derivative(cones, w)[0])
        active, curved = int(np.sum(d > 1.0 - 1e-12)), int(np.sum((d > 1e-12) & (d < 1.0 - 1e-12)))
    n = active + 2 if quadratic else active + curved // 2
    P = np.zeros((n, n))
    if quadratic:
        rank = n if curved == 0 else max(n - active - curved // 2, 1)
        F = rng.normal(size=(rank, n))
        P = F.T @ F / n + (0.2 * np.eye(n) if rank == n else 0.0)
    A = rng.normal(size=(cones.m, n)) * (rng.uniform(size=(cones.m, n)) < 0.85)
    x = rng.normal(size=n)
    drawn = assemble(P, A, x, w[0], cones)
    regular = np.linalg.cond(newton_matrix(drawn.program, drawn.w)[0]) < CONDITION
    return drawn if regular else None


def assemble(P: Array, A: Array, x: Array, w: Array, cones: Cones) -> Known:
    """Build the program with dense P (n, n) and A (m, n) whose solution is at x and w; entries are the nonzeros."""
    structure = Structure(pattern(P), pattern(A), cones)
    P_values, A_values = P[structure.P.rows, structure.P.cols], A[structure.A.rows, structure.A.cols]
    return constructed(structure, P_values[None], A_values[None], x[None], w[None])


def pattern(M: Array) -> Pattern:
    """Sparsity pattern of the nonzeros of a matrix."""
    cols, rows = np.nonzero(M.T)
    return Pattern(M.shape, rows, cols)


def batch_of(draws: list[Known]) -> Known:
    """Stack draws of equal structure to one batch."""
    points = (np.concatenate([getattr(drawn.solution, name) for drawn in draws]) for name in "xys")
    return Known(stack(*(drawn.program for drawn in draws)), solution_at(*points))


def strict_point(rng: np.random.Generator, cones: Cones, candidates: int = 60) -> Array:
    """Draw w (1, m) at least MARGIN from every jump of D; half of the blocks are on the boundary of the cone."""
    cone = product_cone(cones)
    points = rng.normal(size=(candidates, 3, cones.m)) * rng.choice([0.7, 1.5], size=(candidates, 1, 1))
    projected = cone.project_dual(points.reshape(-1, cones.m)).reshape(points.shape)
    regime = np.arange(candidates) % 4
    interior, zero = np.sum(projected, axis=1), np.sum(points - projected, axis=1)
    w = np.select([(regime == 0)[:, None], (regime == 1)[:, None]], [interior, zero], points[:, 0])
    chosen = np.zeros((1, cones.m))
    for group in cone.groups:
        blocks = group.split(w)
        strict = group.cone.margin(blocks) >= MARGIN
        for block in range(group.blocks):
            pick = rng.choice(np.flatnonzero(strict[:, block]))
            start = group.start + block * group.size
            chosen[0, start : start + group.size] = blocks[pick, block]
    return chosen


def newton_matrix(program: ConeProgram, w: Array) -> Array:
    """The derivative (B, n + m, n + m) of the optimality conditions (Px + q + A'y, Ax + s - b) in (x, w)."""
    structure = program.structure
    n, m = structure.n, structure.m
    D = dense_derivative(structure.cones, w)
    A = structure.A.dense(program.A)
    out = np.zeros((len(w), n + m, n + m))
    out[:, :n, :n] = structure.P.dense(program.P)
    out[:, :n, n:] = np.swapaxes(A, 1, 2) @ D
    out[:, n:, :n] = A
    out[:, n:, n:] = D - np.eye(m)
    return out


def solve_near(program: ConeProgram, x: Array, w: Array, *, steps: int = 12) -> tuple[Array, Array, Array]:
    """Solutions (x, y, s) of programs (B, ...) near x (n,), w (m,): Newton on the optimality conditions in (x, w)."""
    cone, P, A = product_cone(program.structure.cones), program.structure.P, program.structure.A
    x, w = (np.broadcast_to(v, (program.batch, v.shape[-1])) for v in (x, w))
    for _ in range(steps):
        y = cone.project_dual(w)
        dual = P.matvec(program.P, x) + program.q + A.rmatvec(program.A, y)
        primal = A.matvec(program.A, x) + y - w - program.b
        residual = np.concatenate([dual, primal], axis=1)
        step = np.linalg.solve(newton_matrix(program, w), residual[..., None])[..., 0]
        x, w = x - step[:, : x.shape[1]], w - step[:, x.shape[1] :]
        if np.max(np.abs(step), initial=0.0) < 1e-13:
            break
    y = cone.project_dual(w)
    return x, y, y - w


def flat_data(program: ConeProgram) -> Array:
    """(P, q, A, b) of program tangents, one row per element."""
    return np.concatenate([program.P, program.q, program.A, program.b], axis=1)


def flat_cotangent(cotangent: ProgramCotangent, structure: Structure) -> Array:
    """(P, q, A, b) of program cotangents on the patterns of a structure, one row per element."""
    return whole_program(structure)(cotangent)


def flat_point(tangent: SolutionTangent | SolutionCotangent) -> Array:
    """(x, y, s) of solution tangents or cotangents, one row per element."""
    return np.concatenate([tangent.x, tangent.y, tangent.s], axis=1)


def data_tangents(rng: np.random.Generator, structure: Structure, count: int) -> ConeProgram:
    """Draw tangents: ``count`` in each of P, q, A and b alone (if not empty), and ``count`` in all of them."""
    sizes = (structure.P.nnz, structure.n, structure.A.nnz, structure.m)
    P, q, A, b = _alone_and_together(rng, sizes, count)
    return ConeProgram(structure, P + P[:, structure.P.transposed_positions], q, np.zeros(len(q)), A, b)


def ones(drawn: Known, x: float = 1.0, y: float = 1.0, s: float = 1.0) -> SolutionCotangent:
    """Cotangent of a weighted sum of sum(x), sum(y) and sum(s)."""
    points = ((x, drawn.solution.x), (y, drawn.solution.y), (s, drawn.solution.s))
    return SolutionCotangent(*(np.full_like(value, weight) for weight, value in points))


def at(drawn: Known, backend: AbstractBackend | None = None) -> AbstractDifferentiator:
    """The exact derivative at a draw."""
    return exact_differentiator(KKTSystem(drawn.program.structure, backend), drawn.program, drawn.solution)


def point_cotangents(rng: np.random.Generator, structure: Structure, count: int) -> SolutionCotangent:
    """Draw cotangents: ``count`` on each of x, y and s alone, and ``count`` on all of them."""
    return SolutionCotangent(*_alone_and_together(rng, (structure.n, structure.m, structure.m), count))


def _alone_and_together(rng: np.random.Generator, sizes: tuple[int, ...], count: int) -> list[Array]:
    """Draw rows of these sizes: ``count`` per nonempty part with the other parts zero, and ``count`` of all parts."""
    kinds = [*(part for part, size in enumerate(sizes) if size), None]
    return [
        np.concatenate([rng.normal(size=(count, size)) * (kind in (part, None)) for kind in kinds])
        for part, size in enumerate(sizes)
    ]


def move(program: ConeProgram, tangent: ConeProgram, step: Array) -> ConeProgram:
    """Move programs along tangents by steps (B, 1)."""
    return replace(
        program,
        P=program.P + step * tangent.P,
        q=program.q + step * tangent.q,
        A=program.A + step * tangent.A,
        b=program.b + step * tangent.b,
    )


def differences(
    drawn: Known, tangent: ConeProgram, solve: Solve | None = None, reach: float = REACH
) -> SolutionTangent:
    """Derivatives of (x, y, s) along tangents (B, ...): central differences, Richardson-extrapolated to fourth order.

    The larger step of each direction moves (x, w) by about ``reach``. Perturbed programs are solved by ``solve``,
    by default with Newton's method from the solution.
    """

    def newton(program: ConeProgram) -> tuple[Array, Array, Array]:
        return solve_near(program, drawn.solution.x[0], drawn.w[0])

    copies = drawn.repeat(tangent.batch).program

    def central(find: Solve, step: Array) -> SolutionTangent:
        there, back = (find(move(copies, tangent, sign * step)) for sign in (1.0, -1.0))
        return SolutionTangent(*((p - m) / (2.0 * step) for p, m in zip(there, back, strict=True)))

    speed = np.max(np.abs(flat_point(central(newton, np.full((tangent.batch, 1), 1e-7)))), axis=1, keepdims=True)
    step = reach / np.maximum(speed, 1e-2)
    coarse, fine = central(solve or newton, step), central(solve or newton, 0.5 * step)
    return SolutionTangent(
        *((4.0 * f - c) / 3.0 for f, c in ((fine.x, coarse.x), (fine.y, coarse.y), (fine.s, coarse.s)))
    )
