"""Main loop of the batched interior-point method: predictor-corrector steps on the homogeneous embedding, in lanes.

    P x + A'y + q tau = 0,   A x + s - b tau = 0,   kappa + q'x + b'y + x'Px / tau = 0,
    s in K, y in K*, s'y = 0, tau kappa = 0, tau, kappa >= 0

A point with tau > 0 gives the solution (x, y, s) / tau; a point with tau = 0 gives a certificate of infeasibility or
unboundedness. Each lane holds one element. A lane that has finished loads the next element immediately, without waiting
for the other lanes. All arithmetic is lane by lane, so that an element's result does not depend on its neighbours.

Reference: Goulart and Chen, Clarabel: an interior-point solver for conic programs with quadratic objectives (2024).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from convexlayer.interior_point.lanes.crossover import (
    CROSSOVER_REFINEMENTS,
    accept_crossover,
    crossover_rhs,
    write_active_set,
)
from convexlayer.interior_point.lanes.elements import (
    Programs,
    Solutions,
    load_element,
    start_near_least_squares,
    write_ray,
    write_solution,
)
from convexlayer.interior_point.lanes.kkt import refine_further, solve_refined, update_products
from convexlayer.interior_point.lanes.layout import (
    Blocks,
    Data,
    Layout,
    Point,
    Products,
    Scaling,
    blocks_of,
    new_point,
    places_of,
)
from convexlayer.interior_point.lanes.product_cone import (
    combined_shift,
    multiply,
    new_scaling,
    set_central_point,
    shorten_step,
    update_scaling,
    write_scaling,
)
from convexlayer.interior_point.lanes.steps import (
    ALPHA,
    BY,
    KAPPA,
    MOVE,
    OBJECTIVE,
    QX,
    RESIDUAL_ROWS,
    SCALARS,
    SIGMA,
    SIGMA_MU,
    STEP_FRACTION,
    TAU,
    WORST,
    add_constant,
    advance,
    centring,
    residuals,
    step_scalars,
    tau_kappa_step,
)
from convexlayer.interior_point.lanes.termination import (
    INFEASIBLE,
    OPTIMAL,
    UNBOUNDED,
    UNDECIDED,
    Limits,
    termination_status,
)
from convexlayer.linalg.ldl.lanes import Indices, LaneMatrix, factorise, unpack
from convexlayer.program import Array, IndexArray
from convexlayer.runtime.cached_kernel import cached_kernel
from convexlayer.runtime.inner_function import inner_function
from convexlayer.runtime.simd import load, store

__all__ = ["solve_range"]

IDLE, LOADED, RUNNING, CROSSING = 0, 1, 2, 3
"""States of a lane: no element, element loaded but without a starting point, iterating, in the crossover step (see
``crossover``)."""

BEST_ITERATE_FACTOR = 1e3
"""The best iterate is stored, and returned, only if its residual is below this many times ``Limits.accepted``;
otherwise the last iterate is returned. This saves a copy in each of the first iterations."""

PROGRESS_RATIO = 0.5
"""An acceptable element goes on only while an iteration reduces its smallest residual below this fraction. Smaller
values stop earlier, larger ones spend iterations on the last digit."""


class Progress(NamedTuple):
    """What the loop knows of each lane.

    Attributes:
        element: index of its element in the batch.
        state: IDLE ... CROSSING.
        iterations: iterations of the element so far.
        least: smallest residual of the element so far.
        least_tau: tau of that iterate.
        crossing: 1 in the lanes in the crossover step, else 0, (1, V).
    """

    element: IndexArray
    state: IndexArray
    iterations: IndexArray
    least: Array
    least_tau: Array
    crossing: Array


class Work(NamedTuple):
    """Vectors of the linear systems.

    Attributes:
        rhs: right-hand side, (N, V).
        constant: solution of K (x2, y2) = (-q, b), (N, V).
        step: solution of the Newton step, (N, V).
        Hy: H times the dual part of a solution, (m, V).
        shift: shift of the Newton step, (m, V).
        factorise: scratch of ``factorise``, (N, V), zero.
        solve: scratch of ``solve_refined``, (3, N, V).
    """

    rhs: Array
    constant: Array
    step: Array
    Hy: Array
    shift: Array
    factorise: Array
    solve: Array


@cached_kernel
def solve_range(
    lanes: Any,
    layout_fields: tuple[Any, ...],
    plan: Indices,
    limit_fields: tuple[Any, ...],
    program_fields: tuple[Array, ...],
    solution_fields: tuple[Any, ...],
    first: int,
    last: int,
) -> None:
    """Solve the elements first ... last - 1 of a batch in V lanes.

    Structures come as plain tuples, which are several microseconds faster to pass from Python than named ones.

    Args:
        lanes: a tuple of V floats, whose length sets the number of lanes.
        layout_fields: the fields of the ``Layout`` of the structure.
        plan: symbolic factorisation of its KKT matrix (see ``Symbolic.packed``).
        limit_fields: the fields of ``Limits``.
        program_fields: the fields of ``Programs``.
        solution_fields: out, the fields of ``Solutions``.
        first: index of the first element.
        last: index after the last element.
    """
    layout, limits = Layout(*layout_fields), Limits(*limit_fields)
    programs, solutions = Programs(*program_fields), Solutions(*solution_fields)
    V, n, m, N = len(lanes), layout.n, programs.b.shape[1], len(layout.diagonal)
    data = Data(
        np.zeros((len(layout.P_row), V)), np.zeros((n, V)), np.zeros((len(layout.A_row), V)), np.zeros((m, V)),
        np.ones((n, V)), np.ones((m, V)), np.ones((3, V)),
    )  # fmt: skip
    blocks, places, K = blocks_of(layout), places_of(layout), _new_matrix(lanes, plan)
    work = Work(
        np.zeros((N, V)), np.zeros((N, V)), np.zeros((N, V)), np.zeros((m, V)), np.zeros((m, V)), np.zeros((N, V)),
        np.zeros((3, N, V)),
    )  # fmt: skip
    point, best = new_point(n, m, V), new_point(n, m, V)
    direction = Point(work.step[:n], np.zeros((m, V)), work.step[n : n + m])
    products = Products(np.zeros((n, V)), np.zeros((n, V)), np.zeros((m, V)), np.zeros((n, V)), np.zeros((n, V)))
    scaling = new_scaling(lanes, layout)
    scalars, measures = np.ones((SCALARS, V)), np.zeros((RESIDUAL_ROWS, V))
    progress = Progress(
        np.full(V, -1), np.full(V, IDLE), np.zeros(V, np.int64), np.full(V, np.inf), np.ones(V), np.zeros((1, V))
    )
    state = progress.state
    following = first
    while True:
        update_products(lanes, layout, data, point, products)
        residuals(lanes, layout, data, point, products, scalars, measures)
        anyone, running, anyone_crosses = False, False, False
        for v in range(V):
            if state[v] == RUNNING:
                _check(v, layout, limits, data, point, best, scalars, measures, progress, solutions)
            if state[v] == IDLE and following < last:
                load_element(v, layout, programs, following, data, K.values)
                _begin(v, blocks, layout.symmetric, following, point, products, scalars, progress)
                following += 1
            anyone = anyone or state[v] != IDLE
            running = running or state[v] == RUNNING
            progress.crossing[0, v] = 1.0 if state[v] == CROSSING else 0.0
            anyone_crosses = anyone_crosses or state[v] == CROSSING
        if not anyone:
            return

        # Factorise K and solve for (-q, b), which also gives the starting point of fresh lanes.
        update_scaling(lanes, blocks, point, scaling)
        write_scaling(lanes, blocks, places, scaling, K.values)
        for v in range(V):
            if state[v] == CROSSING:
                write_active_set(v, layout, best, K.values)
        factorise(lanes, K, work.factorise)
        for j in range(n):
            store(work.rhs, j, -load(lanes, data.q, j))
        for i in range(m):
            store(work.rhs, n + i, load(lanes, data.b, i))
        for v in range(V):
            if state[v] == CROSSING:
                crossover_rhs(v, layout, data, best, progress.least_tau[v], work.rhs)
        solve_refined(lanes, K, work.rhs, work.constant, work.solve)
        if anyone_crosses:
            refine_further(lanes, K, work.rhs, work.constant, work.solve, progress.crossing, CROSSOVER_REFINEMENTS)
            for v in range(V):
                if state[v] == CROSSING:
                    if accept_crossover(v, layout, data, best, work.constant):
                        write_solution(v, data, best, 1.0, progress.element[v], solutions)
                    state[v] = IDLE
        if running:
            _newton_step(lanes, layout, blocks, data, K, scaling, point, products, direction, scalars, work)
            for v in range(V):
                scalars[ALPHA, v] *= scaling.ok[v]
                scalars[MOVE, v] = 1.0 if state[v] == RUNNING else 0.0
                progress.iterations[v] += state[v] == RUNNING
            advance(lanes, scalars, direction, point)
        for v in range(V):
            if state[v] == LOADED:
                start_near_least_squares(v, blocks, work.constant, point)
                scalars[ALPHA, v], state[v] = 1.0, RUNNING


@inner_function
def _new_matrix(lanes: Any, packed: Indices) -> LaneMatrix:
    """Allocate V matrices of a plan, with their factors."""
    V = len(lanes)
    plan, _ = unpack(packed)
    return LaneMatrix(
        plan, np.zeros((len(plan.row), V)), np.zeros((len(plan.factor_row), V)), np.zeros((len(plan.permutation), V))
    )


@inner_function
def _newton_step(
    lanes: Any, layout: Layout, blocks: Blocks, data: Data, K: LaneMatrix, scaling: Scaling, point: Point,
    products: Products, direction: Point, scalars: Array, work: Work,
) -> None:  # fmt: skip
    """Compute the direction and the step length alpha: the predictor, then the step with centring and correction.

    ``direction`` has work.step as its x and y.
    """
    n, m = len(point.x), len(point.s)
    rhs, shift, Hy = work.rhs, work.shift, work.Hy
    multiply(lanes, blocks, scaling, work.constant[n : n + m], Hy)
    step_scalars(lanes, layout, data, point, products, work.constant, Hy, scalars)
    for i in range(blocks.zero, m):
        store(shift, i, load(lanes, point.s, i))
    for stage in range(2):
        remaining = 1.0 - load(lanes, scalars, SIGMA)
        tau = load(lanes, scalars, TAU)
        for j in range(n):
            r_x = load(lanes, products.Px, j) + load(lanes, products.Aty, j) + load(lanes, data.q, j) * tau
            store(rhs, j, -remaining * r_x)
        for i in range(m):
            r_y = load(lanes, products.Ax, i) + load(lanes, point.s, i) - load(lanes, data.b, i) * tau
            store(rhs, n + i, load(lanes, shift, i) - remaining * r_y)
        solve_refined(lanes, K, rhs, work.step, work.solve)
        add_constant(lanes, data, products, work.constant, scalars, work.step)
        multiply(lanes, blocks, scaling, direction.y, Hy)
        for i in range(blocks.zero, m):
            store(direction.s, i, -(load(lanes, Hy, i) + load(lanes, shift, i)))
        tau_kappa_step(lanes, scalars, 1.0 if stage == 0 else 1.0 / STEP_FRACTION)
        shorten_step(lanes, blocks, scaling, point, direction, scalars[ALPHA])
        if stage == 0:
            centring(lanes, scalars)
            combined_shift(lanes, blocks, scaling, point, direction, scalars[SIGMA_MU], shift)


@inner_function
def _check(
    v: int, layout: Layout, limits: Limits, data: Data, point: Point, best: Point, scalars: Array, measures: Array,
    progress: Progress, solutions: Solutions,
) -> None:  # fmt: skip
    """Keep lane v's iterate if it is the best so far, and write the results of its element if it has finished."""
    e, worst, least = progress.element[v], measures[WORST, v], progress.least
    improved = worst < PROGRESS_RATIO * least[v]
    if worst < least[v]:
        least[v], progress.least_tau[v] = worst, scalars[TAU, v]
        if worst < BEST_ITERATE_FACTOR * limits.accepted:
            _copy_lane(v, point, best)
    status = termination_status(v, limits, scalars, measures, least[v], improved, progress.iterations[v])
    if status == UNDECIDED:
        return
    solutions.status_code[e], solutions.iterations[e] = status, progress.iterations[v]
    if status == INFEASIBLE:
        write_ray(v, point.y, data.e, -measures[BY, v], solutions.y[e])
    elif status == UNBOUNDED:
        write_ray(v, point.x, data.d, -measures[QX, v] / data.scalars[OBJECTIVE, v], solutions.x[e])
    elif least[v] < BEST_ITERATE_FACTOR * limits.accepted:
        write_solution(v, data, best, progress.least_tau[v], e, solutions)
    else:
        write_solution(v, data, point, scalars[TAU, v], e, solutions)
    polyhedral = layout.orthant == len(point.s)
    progress.state[v] = CROSSING if status == OPTIMAL and polyhedral else IDLE


@inner_function
def _begin(
    v: int, blocks: Blocks, symmetric: bool, element: int, point: Point, products: Products, scalars: Array,
    progress: Progress,
) -> None:  # fmt: skip
    """Put lane v at the central point with an element. It runs from there if a cone is not symmetric."""
    progress.element[v], progress.state[v], progress.iterations[v], progress.least[v] = element, LOADED, 0, np.inf
    set_central_point(v, blocks, point)
    point.x[:, v] = 0.0
    scalars[TAU, v], scalars[KAPPA, v], scalars[ALPHA, v] = 1.0, 1.0, 1.0
    if not symmetric:
        progress.state[v] = RUNNING
        products.Px[:, v], products.Aty[:, v], products.Ax[:, v] = 0.0, 0.0, 0.0  # as at x = y = 0


@inner_function
def _copy_lane(v: int, source: Point, target: Point) -> None:
    for j in range(len(source.x)):
        target.x[j, v] = source.x[j, v]
    for i in range(len(source.s)):
        target.s[i, v], target.y[i, v] = source.s[i, v], source.y[i, v]
