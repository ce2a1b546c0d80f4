"""Optimal transport and least squares against alternatives: times, gradient errors, saved bytes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch

from benchmarks.contestant import Call
from benchmarks.problem import Tensors
from benchmarks.timing import Plan, measure, once
from convexlayer.gallery.measure import saved_bytes
from convexlayer.nodes import least_squares, optimal_transport

__all__ = ["OURS", "SINKHORN_TOL", "UNROLLED", "by_differences", "compared", "growth", "squares", "transport"]

OURS = "convexlayer"

UNROLLED = "unrolled"
"""Prefix of the names of contestants whose iterations autograd differentiates."""

SINKHORN_TOL = 1e-8
"""Relative error of the row sums that all contestants reach."""

DIRECTIONS = 3
"""Number of directions in which gradients are compared with finite differences."""

STEP = 1e-6
"""Step of these differences, about the cube root of eps, which balances truncation and rounding."""

SEEDS = 3
"""Number of inputs drawn per case."""

DESCENT_STEPS = 300
"""Steps of gradient descent that bring the gradient of least squares to about 1e-8."""

GradientError = Callable[[Tensors], float]
"""Gradients -> their relative error."""


def _first(call: Call, theta: Tensors) -> torch.Tensor:
    return call(theta)[0]


def compared(
    name: str,
    draws: list[Tensors],
    calls: Mapping[str, Call],
    error_of: Callable[[Tensors, Tensors], GradientError],
    plan: Plan,
) -> dict[str, Any]:
    """Measure median times of interleaved calls, errors of their gradients, and saved bytes.

    Args:
        name: name of the case.
        draws: inputs.
        calls: contestants by name.
        error_of: (inputs, cotangents) -> error measure of gradients.
        plan: duration of the measurement.
    """
    theta = draws[0]
    generator = torch.Generator().manual_seed(100)  # not a seed of the draws, so that the loss is generic
    outputs = next(iter(calls.values()))(theta)
    cotangents = tuple(torch.randn(output.shape, generator=generator) for output in outputs)
    error = error_of(theta, cotangents)
    entries = {}
    for label, call in calls.items():
        _, _, _, gradients = once(call, theta, cotangents)
        entries[label] = {"gradient_error": error(gradients), "saved_bytes": saved_bytes(partial(_first, call, theta))}
    for label, times in measure(calls, draws, cotangents, plan).items():
        if times.error:
            raise RuntimeError(f"{label}: {times.error}")
        entries[label] |= dict(zip(("forward_s", "backward_s", "total_s"), times.medians(), strict=True))
    return {"name": name, "contestants": entries}


def by_autograd(exact: Call, theta: Tensors, cotangents: Tensors) -> GradientError:
    """Error of gradients relative to those of a call differentiated by autograd."""
    expected = _flat(torch.autograd.grad(exact(theta), theta, cotangents))
    return lambda gradients: float((_flat(gradients) - expected).norm() / expected.norm())


def by_differences(call: Call, theta: Tensors, cotangents: Tensors) -> GradientError:
    """Error of directional derivatives in random directions, relative to central differences of an exact call."""
    generator = torch.Generator().manual_seed(101)
    directions = [tuple(torch.randn(t.shape, generator=generator) for t in theta) for _ in range(DIRECTIONS)]

    def loss(direction: Tensors, step: float) -> torch.Tensor:
        moved = tuple(t + step * e for t, e in zip(theta, direction, strict=True))
        return sum(((v * y).sum() for v, y in zip(cotangents, call(moved), strict=True)), torch.zeros(()))

    with torch.no_grad():
        expected = torch.stack([(loss(e, STEP) - loss(e, -STEP)) / (2.0 * STEP) for e in directions])

    def error(gradients: Tensors) -> float:
        slopes = torch.stack([_flat(gradients) @ _flat(e) for e in directions])
        return float((slopes - expected).norm() / expected.norm())

    return error


def _flat(tensors: Tensors) -> torch.Tensor:
    return torch.cat([t.flatten() for t in tensors])


def _costs(n: int, seed: int) -> torch.Tensor:
    """Squared distances between two clouds of n points in space, scaled to at most 1."""
    generator = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(n, 3, generator=generator) for _ in range(2))
    costs = torch.cdist(x, y).square()
    return (costs / costs.max()).requires_grad_()


def _sinkhorn_log(M: torch.Tensor, gamma: float, iterations: int) -> torch.Tensor:
    """Sinkhorn iterations in the log domain, for uniform marginals."""
    K = -gamma * M
    f = g = torch.zeros(len(M))
    for _ in range(iterations):
        f, g = _sinkhorn_step(K, g)
    return torch.exp(K + f[:, None] + g)


def _sinkhorn_step(K: torch.Tensor, g: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """One Sinkhorn iteration."""
    log_sum = -math.log(len(K))
    f = log_sum - torch.logsumexp(K + g, 1)
    return f, log_sum - torch.logsumexp(K + f[:, None], 0)


def _sinkhorn(M: torch.Tensor, gamma: float, iterations: int) -> torch.Tensor:
    """Sinkhorn iterations on K = exp(-gamma M), the cheapest to unroll, if nothing underflows."""
    K = torch.exp(-gamma * M)
    b = torch.ones(len(M))
    for _ in range(iterations):
        a = 1.0 / len(M) / (K @ b)
        b = 1.0 / len(M) / (K.T @ a)
    return a[:, None] * K * b


def _iterations_needed(n: int, gamma: float) -> int:
    """Number of Sinkhorn iterations to the relative error SINKHORN_TOL of the row sums."""
    with torch.no_grad():
        K = -gamma * _costs(n, 0)
        f, g = _sinkhorn_step(K, torch.zeros(n))
        count = 1
        while float((n * torch.exp(K + f[:, None] + g).sum(1) - 1.0).abs().max()) > SINKHORN_TOL:
            f, g = _sinkhorn_step(K, g)
            count += 1
    return count


def _pot(n: int, gamma: float, iterations: int) -> dict[str, Call]:
    """Solvers of POT by name; empty if it is not installed."""
    try:
        import ot
    except ModuleNotFoundError:
        return {}
    uniform = torch.full((n,), 1.0 / n)

    def plan(theta: Tensors, method: str) -> Tensors:
        found = ot.sinkhorn(
            uniform, uniform, theta[0], 1.0 / gamma, method=method, stopThr=1e-10, numItermax=iterations
        )
        return (found,)

    return {f"POT {method}": partial(plan, method=method) for method in ("sinkhorn_log", "sinkhorn")}


def transport(n: int, gamma: float, plan: Plan) -> dict[str, Any]:
    """Measure the plan between two clouds of n points with uniform marginals."""
    count = _iterations_needed(n, gamma)
    calls: dict[str, Call] = {
        OURS: lambda theta: (optimal_transport(theta[0], gamma=gamma, tol=SINKHORN_TOL),),
        f"{UNROLLED}, log domain": lambda theta: (_sinkhorn_log(theta[0], gamma, count),),
        f"{UNROLLED}, scaling": lambda theta: (_sinkhorn(theta[0], gamma, count),),
        **_pot(n, gamma, 10 * count),
    }
    draws: list[Tensors] = [(_costs(n, seed),) for seed in range(SEEDS)]
    name = f"transport, n = {n}, gamma = {gamma:g} ({count} Sinkhorn iterations)"
    return compared(
        name, draws, calls, partial(by_autograd, lambda theta: (_sinkhorn_log(theta[0], gamma, 3 * count),)), plan
    )


def squares(n: int, plan: Plan) -> dict[str, Any]:
    """Measure least squares with 2n rows and n columns."""

    def by_qr(theta: Tensors) -> Tensors:
        Q, R = torch.linalg.qr(theta[0])
        return (torch.linalg.solve_triangular(R, (Q.T @ theta[1])[:, None], upper=True)[:, 0],)

    def by_normal_equations(theta: Tensors) -> Tensors:
        A, b = theta
        return (torch.cholesky_solve((A.T @ b)[:, None], torch.linalg.cholesky(A.T @ A))[:, 0],)

    def by_descent(theta: Tensors) -> Tensors:
        """Gradient descent with the asymptotically optimal step for normally distributed entries."""
        A, b = theta
        x, step = torch.zeros(n), 1.0 / (3.0 * n)  # 2 / (largest + smallest eigenvalue of A'A)
        for _ in range(DESCENT_STEPS):
            x = x - step * (A.T @ (A @ x - b))
        return (x,)

    calls: dict[str, Call] = {
        OURS: lambda theta: (least_squares(*theta),),
        "torch.linalg.lstsq": lambda theta: (torch.linalg.lstsq(theta[0], theta[1][:, None]).solution[:, 0],),
        "autograd of QR": by_qr,
        "autograd of normal equations": by_normal_equations,
        f"{UNROLLED}, gradient descent": by_descent,
    }
    draws: list[Tensors] = []
    for seed in range(SEEDS):
        generator = torch.Generator().manual_seed(seed)
        shapes = ((2 * n, n), (2 * n,))
        draws.append(tuple(torch.randn(shape, generator=generator).requires_grad_() for shape in shapes))
    return compared(f"least squares, {2 * n} by {n}", draws, calls, partial(by_autograd, by_normal_equations), plan)


def growth(n: int, *, quick: bool) -> dict[str, Any]:
    """Measure the bytes held by the graph of one plan: unrolled by iterations, ours by gamma."""
    M = _costs(n, 0)
    counts = (5, 10, 20) if quick else (5, 10, 20, 40, 80, 160)
    gammas = (1.0, 10.0, 50.0)
    unrolled = [saved_bytes(partial(_sinkhorn_log, M, 20.0, count)) for count in counts]
    ours = [saved_bytes(partial(optimal_transport, M, gamma=gamma)) for gamma in gammas]
    return {
        "n": n,
        "unrolled_iterations": counts,
        "unrolled_bytes": unrolled,
        "gammas": gammas,
        "sinkhorn_iterations": [_iterations_needed(n, gamma) for gamma in gammas],
        "bytes": ours,
    }
