"""Small problems of the suite, solved in batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cvxpy as cp
import numpy as np
import torch

from benchmarks.problem import QP, Problem, QPForm, Tensors

__all__ = [
    "control",
    "correlation",
    "dense_qp",
    "entropy",
    "logistic",
    "no_equalities",
    "parametric_factor",
    "parametric_quad_form",
    "portfolio",
    "robotics",
    "simplex",
    "whole",
]

DATA = Path(__file__).parent / "data" / "mpc"


def whole(x: torch.Tensor) -> Tensors:
    """The outputs of a problem whose QP form has the same variable."""
    return (x,)


def no_equalities(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A and b without equalities, in n variables."""
    return torch.zeros(0, n, dtype=torch.float64), torch.zeros(0, dtype=torch.float64)


def _simplex_rows(n: int) -> dict[str, torch.Tensor]:
    """x >= 0, sum(x) = 1."""
    eye = torch.eye(n, dtype=torch.float64)
    ones = torch.ones(1, n, dtype=torch.float64)
    return {"G": -eye, "h": torch.zeros(n, dtype=torch.float64), "A": ones, "b": ones[:, 0]}


def simplex(n: int = 50) -> Problem:
    """Projection onto the probability simplex."""
    x, y = cp.Variable(n), cp.Parameter(n)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - y)), [x >= 0, cp.sum(x) == 1])
    rows, P = _simplex_rows(n), 2 * torch.eye(n, dtype=torch.float64)
    form = QPForm(lambda y: QP(P, -2 * y, **rows), whole, fixed_matrices=True)
    return Problem("simplex", problem, [y], [x], lambda rng: [rng.standard_normal(n)], form)


def dense_qp(n: int = 50, m: int = 50, p: int = 10) -> Problem:
    """A dense QP whose vectors and constraint matrices are all parameters."""
    L = np.random.default_rng(0).standard_normal((n, n)) / np.sqrt(n) + np.eye(n)
    x = cp.Variable(n)
    q, G, h, A, b = cp.Parameter(n), cp.Parameter((m, n)), cp.Parameter(m), cp.Parameter((p, n)), cp.Parameter(p)
    problem = cp.Problem(cp.Minimize(0.5 * cp.sum_squares(L @ x) + q @ x), [G @ x <= h, A @ x == b])

    def draw(rng: np.random.Generator) -> list[Any]:
        inside, G, A = rng.standard_normal(n), rng.standard_normal((m, n)), rng.standard_normal((p, n))
        return [rng.standard_normal(n), G, G @ inside + rng.random(m), A, A @ inside]

    P = torch.from_numpy(L.T @ L)
    return Problem(f"dense_qp_{n}", problem, [q, G, h, A, b], [x], draw, QPForm(lambda *theta: QP(P, *theta), whole))


def portfolio(n: int = 30, k: int = 5) -> Problem:
    """A long-only mean-variance portfolio with a factor model and a second-order cone bound on its concentration."""
    w, mu, F, bound = cp.Variable(n), cp.Parameter(n), cp.Parameter((k, n)), cp.Parameter(nonneg=True)
    utility = mu @ w - cp.sum_squares(F @ w) - cp.sum_squares(0.3 * w)
    problem = cp.Problem(cp.Maximize(utility), [cp.sum(w) == 1, w >= 0, cp.norm(w, 2) <= bound])

    def draw(rng: np.random.Generator) -> list[Any]:
        return [rng.standard_normal(n), rng.standard_normal((k, n)), 0.8]

    return Problem("portfolio", problem, [mu, F, bound], [w], draw)


def control(T: int = 20, states: int = 4, inputs: int = 2) -> Problem:
    """Linear-quadratic control with bounded inputs; dynamics and start are parameters."""
    X, U = cp.Variable((states, T + 1)), cp.Variable((inputs, T))
    A, B, start = cp.Parameter((states, states)), cp.Parameter((states, inputs)), cp.Parameter(states)
    dynamics = [X[:, t + 1] == A @ X[:, t] + B @ U[:, t] for t in range(T)]
    cost = cp.sum_squares(X) + 0.1 * cp.sum_squares(U)
    problem = cp.Problem(cp.Minimize(cost), [X[:, 0] == start, *dynamics, cp.abs(U) <= 1.0])

    def draw(rng: np.random.Generator) -> list[Any]:
        dynamics = np.eye(states) + 0.1 * rng.standard_normal((states, states))
        # Make the dynamics stable, so that every peer can solve all elements.
        dynamics /= max(1.0, np.max(np.abs(np.linalg.eigvals(dynamics))))
        return [dynamics, rng.standard_normal((states, inputs)), rng.standard_normal(states)]

    return Problem("control", problem, [A, B, start], [X, U], draw, _control_form(T, states, inputs))


def _control_form(T: int, states: int, inputs: int) -> QPForm:
    """The QP form of ``control``, with variables (states at all times, inputs at all times)."""
    nx, nu = states * (T + 1), inputs * T
    P = torch.diag(torch.cat([torch.full((nx,), 2.0), torch.full((nu,), 0.2)]).double())
    bounded = torch.cat([torch.zeros(nu, nx), torch.eye(nu)], dim=1).double()
    G, h = torch.cat([bounded, -bounded]), torch.ones(2 * nu, dtype=torch.float64)
    now, step = torch.eye(T + 1, dtype=torch.float64)[:-1], torch.eye(T, dtype=torch.float64)
    identity = torch.cat([torch.eye(nx), torch.zeros(nx, nu)], dim=1).double()

    def data(A: torch.Tensor, B: torch.Tensor, start: torch.Tensor) -> QP:
        batch = A.shape[0]
        moved = torch.einsum("ts,bij->btisj", now, A).reshape(batch, T * states, nx)
        driven = torch.einsum("ts,bij->btisj", step, B).reshape(batch, T * states, nu)
        rows = torch.nn.functional.pad(torch.cat([moved, driven], dim=2), (0, 0, states, 0))
        b = torch.nn.functional.pad(start, (0, T * states))
        return QP(P, torch.zeros(batch, nx + nu, dtype=torch.float64), G, h, identity - rows, b)

    def outputs(x: torch.Tensor) -> Tensors:
        batch = x.shape[0]
        return x[:, :nx].reshape(batch, T + 1, states).mT, x[:, nx:].reshape(batch, T, inputs).mT

    return QPForm(data, outputs)


def correlation(n: int = 8) -> Problem:
    """The nearest correlation matrix."""
    X, C = cp.Variable((n, n), symmetric=True), cp.Parameter((n, n))
    problem = cp.Problem(cp.Minimize(cp.sum_squares(X - C)), [X >> 0, cp.diag(X) == 1])

    def draw(rng: np.random.Generator) -> list[Any]:
        noise = rng.uniform(-1.0, 1.0, (n, n))
        noise = 0.5 * (noise + noise.T)
        return [noise - np.diag(np.diag(noise)) + np.eye(n)]

    return Problem("correlation", problem, [C], [X], draw)


def entropy(n: int = 20, m: int = 5) -> Problem:
    """Maximum-entropy distribution with a linear cost and linear inequalities."""
    x, c, A, b = cp.Variable(n), cp.Parameter(n), cp.Parameter((m, n)), cp.Parameter(m)
    problem = cp.Problem(cp.Maximize(cp.sum(cp.entr(x)) - c @ x), [cp.sum(x) == 1, A @ x <= b])

    def draw(rng: np.random.Generator) -> list[Any]:
        A = rng.standard_normal((m, n))
        return [rng.standard_normal(n), A, A @ rng.dirichlet(np.ones(n)) + 0.1 * rng.random(m)]

    return Problem("entropy", problem, [c, A, b], [x], draw)


def logistic(samples: int = 20, features: int = 5) -> Problem:
    """Logistic regression with a ridge penalty; the rows of X are features times minus the label."""
    w, X, ridge = cp.Variable(features), cp.Parameter((samples, features)), cp.Parameter(nonneg=True)
    problem = cp.Problem(cp.Minimize(cp.sum(cp.logistic(X @ w)) + ridge * cp.sum_squares(w)))

    def draw(rng: np.random.Generator) -> list[Any]:
        return [rng.standard_normal((samples, features)), 0.1 + rng.random()]

    return Problem("logistic", problem, [X, ridge], [w], draw)


def robotics(name: str) -> Problem:
    """Model predictive control QPs of a robot: thirty instances, drawn with replacement; q and h are parameters."""
    with np.load(DATA / f"{name}_batch.npz", allow_pickle=False) as file:
        P, qs, G, hs = (np.array(file[key]) for key in ("P", "q", "G", "h"))
    P, G = P[0], G[0]  # the same in all elements
    m, n = G.shape
    x, q, h = cp.Variable(n), cp.Parameter(n), cp.Parameter(m)
    problem = cp.Problem(cp.Minimize(0.5 * cp.quad_form(x, cp.psd_wrap(P)) + q @ x), [G @ x <= h])

    def draw(rng: np.random.Generator) -> list[Any]:
        element = rng.integers(len(qs))
        return [qs[element], hs[element]]

    fixed, rows, (A, b) = torch.from_numpy(P), torch.from_numpy(G), no_equalities(n)
    form = QPForm(lambda q, h: QP(fixed, q, rows, h, A, b), whole, fixed_matrices=True)
    return Problem(name, problem, [q, h], [x], draw, form)


def parametric_factor(n: int = 20) -> Problem:
    """sum_squares(L @ x) on the simplex, with a parameter L, so that presolve cannot eliminate CVXPY's L @ x."""
    x, L, q = cp.Variable(n), cp.Parameter((n, n)), cp.Parameter(n)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(L @ x) + q @ x), [cp.sum(x) == 1, x >= 0])
    rows = _simplex_rows(n)

    def draw(rng: np.random.Generator) -> list[Any]:
        return [rng.standard_normal((n, n)) / np.sqrt(n) + np.eye(n), rng.standard_normal(n)]

    form = QPForm(lambda L, q: QP(2 * L.mT @ L, q, **rows), whole)
    return Problem("parametric_factor", problem, [L, q], [x], draw, form)


def parametric_quad_form(n: int = 20) -> Problem:
    """quad_form(x, P) on the simplex, with a parameter P."""
    x, P, q = cp.Variable(n), cp.Parameter((n, n), PSD=True), cp.Parameter(n)
    problem = cp.Problem(cp.Minimize(cp.quad_form(x, P) + q @ x), [cp.sum(x) == 1, x >= 0])
    rows = _simplex_rows(n)

    def draw(rng: np.random.Generator) -> list[Any]:
        L = rng.standard_normal((n, n)) / np.sqrt(n) + np.eye(n)
        return [L.T @ L, rng.standard_normal(n)]

    form = QPForm(lambda P, q: QP(2 * P, q, **rows), whole)
    reason = "diffcp does not support quadratic objectives, so that P would appear in a constraint"
    refusals = tuple((name, reason) for name in ("cvxpylayers", "cvxpylayers-clarabel"))
    return Problem("parametric_quad_form", problem, [P, q], [x], draw, form, refusals)
