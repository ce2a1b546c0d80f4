"""Held-out problems that allocate resources, solved in batches."""

from __future__ import annotations

from typing import Any

import cvxpy as cp
import numpy as np

from benchmarks.problem import Problem

__all__ = [
    "chance_constrained",
    "gate_sizing",
    "kelly",
    "network_utility",
    "power_flow",
    "transport",
]


def kelly(bets: int, outcomes: int) -> Problem:
    """Kelly betting: the largest expected logarithm of wealth over equally likely outcomes, whose returns are given."""
    x, R = cp.Variable(bets), cp.Parameter((outcomes, bets))
    problem = cp.Problem(cp.Maximize(cp.sum(cp.log(R @ x)) / outcomes), [cp.sum(x) == 1, x >= 0])

    def draw(rng: np.random.Generator) -> list[Any]:
        return [np.exp(0.1 * rng.standard_normal(bets) + 0.6 * rng.standard_normal((outcomes, bets)))]

    return Problem(f"kelly_{bets}", problem, [R], [x], draw)


def gate_sizing(gates: int) -> Problem:
    """A geometric program: the least area of a chain of gates that drives a load within a mean delay."""
    size = cp.Variable(gates, pos=True)
    area, load, bound = cp.Parameter(gates, pos=True), cp.Parameter(pos=True), cp.Parameter(pos=True)
    stages = [size[i + 1] / size[i] for i in range(gates - 1)]
    delay = cp.sum(cp.hstack([*stages, load / size[gates - 1]])) / gates
    problem = cp.Problem(cp.Minimize(area @ size), [delay <= bound, size >= 1])

    def draw(rng: np.random.Generator) -> list[Any]:
        return [0.5 + rng.random(gates), 50 * (1 + rng.random()), 1.5 + 0.5 * rng.random()]

    return Problem(f"gate_sizing_{gates}", problem, [area, load, bound], [size], draw, gp=True)


def chance_constrained(n: int, constraints: int, factors: int = 3) -> Problem:
    """A linear program whose Gaussian rows hold with a given probability each: second-order cones."""
    x, c, b = cp.Variable(n), cp.Parameter(n), cp.Parameter(constraints)
    means, roots = cp.Parameter((constraints, n)), [cp.Parameter((factors, n)) for _ in range(constraints)]
    own = 0.2 * np.random.default_rng(0).uniform(0.5, 1.5, n)  # standard deviations that belong to no factor
    quantile = 1.645  # of a probability of 0.95
    rows = [
        means[i] @ x + quantile * cp.norm(cp.hstack([roots[i] @ x, cp.multiply(own, x)])) <= b[i]
        for i in range(constraints)
    ]
    problem = cp.Problem(cp.Maximize(c @ x), [*rows, x >= 0])

    def draw(rng: np.random.Generator) -> list[Any]:
        deviations = 0.1 * rng.standard_normal((constraints, factors, n))
        return [0.5 + rng.random(n), 0.5 + rng.random(constraints), 0.5 + rng.random((constraints, n)), *deviations]

    return Problem(f"chance_constrained_{n}", problem, [c, b, means, *roots], [x], draw)


def power_flow(buses: int) -> Problem:
    """Optimal power flow in a radial network by the second-order cone relaxation of the branch flow model.

    Branch i leads from the parent of bus i to bus i; the substation is the root. P, Q: flows into branches; current:
    squared; voltage: squared, 1 at the substation; generation at every bus (Farivar and Low 2013).
    """
    parents = [-1, *(np.random.default_rng(0).integers(i) for i in range(1, buses))]
    fixed = np.random.default_rng(1)
    r, x = 0.02 + 0.03 * fixed.random(buses), 0.02 + 0.03 * fixed.random(buses)
    P, Q, current, voltage, generation = (cp.Variable(buses) for _ in range(5))
    active, reactive, cost = cp.Parameter(buses), cp.Parameter(buses), cp.Parameter(buses, nonneg=True)
    children = np.array([[float(parents[j] == i) for j in range(buses)] for i in range(buses)])
    sent = children.T @ voltage + np.eye(buses)[0]  # the squared voltage at the parents
    constraints = [
        children @ P + active - generation + cp.multiply(r, current) == P,
        children @ Q + reactive + cp.multiply(x, current) == Q,
        voltage == sent - 2 * (cp.multiply(r, P) + cp.multiply(x, Q)) + cp.multiply(r**2 + x**2, current),
        cp.SOC(current + sent, cp.vstack([2 * P, 2 * Q, current - sent])),
        voltage >= 0.9,
        generation >= 0,
    ]
    spent = P[0] + 0.1 * cp.square(P[0]) + cost @ generation + 0.5 * cp.sum_squares(generation)
    problem = cp.Problem(cp.Minimize(spent), constraints)

    def draw(rng: np.random.Generator) -> list[Any]:
        loads = (0.5 + rng.random(buses)) / buses
        return [loads, 0.5 * loads * rng.random(buses), 0.9 + 0.4 * rng.random(buses)]

    return Problem(f"power_flow_{buses}", problem, [active, reactive, cost], [P, voltage, generation], draw)


def transport(n: int, scale: float = 0.2) -> Problem:
    """Optimal transport with an entropy; the last column sum follows from the others and is left out."""
    plan, cost, rows, columns = cp.Variable((n, n)), cp.Parameter((n, n)), cp.Parameter(n), cp.Parameter(n - 1)
    objective = cp.sum(cp.multiply(cost, plan)) - scale * cp.sum(cp.entr(plan))
    constraints = [cp.sum(plan, axis=1) == rows, cp.sum(plan, axis=0)[:-1] == columns]
    problem = cp.Problem(cp.Minimize(objective), constraints)

    def draw(rng: np.random.Generator) -> list[Any]:
        return [rng.random((n, n)), rng.dirichlet(np.full(n, 5.0)), rng.dirichlet(np.full(n, 5.0))[:-1]]

    return Problem(f"transport_{n}", problem, [cost, rows, columns], [plan], draw)


def network_utility(flows: int, links: int, exponent: float = 0.4) -> Problem:
    """Rates of flows that share links, of largest utility, a power of the rate: power cones."""
    rates, weights, routes = cp.Variable(flows), cp.Parameter(flows, nonneg=True), cp.Parameter((links, flows))
    capacities = cp.Parameter(links)
    utility = weights @ cp.power(rates, exponent, approx=False)
    problem = cp.Problem(cp.Maximize(utility), [routes @ rates <= capacities])

    def draw(rng: np.random.Generator) -> list[Any]:
        used = rng.random((links, flows)) * (rng.random((links, flows)) < 0.5)
        used[rng.integers(links, size=flows), np.arange(flows)] += 0.5  # every flow needs a link
        return [1 + rng.random(flows), used, 1 + rng.random(links)]

    unsupported = tuple((name, "diffcp has no power cones") for name in ("cvxpylayers", "cvxpylayers-clarabel"))
    parameters = [weights, routes, capacities]
    return Problem(f"network_utility_{flows}", problem, parameters, [rates], draw, unsupported=unsupported)
