"""Learning a cost matrix through entropic optimal transport: one derivative, unrolled and by hand."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from convexlayer.gallery.measure import saved_bytes
from convexlayer.gallery.result import Claim, Result
from convexlayer.gallery.trios import SINKHORN_GAMMA, TRIOS
from convexlayer.nodes import Stop, TorchOptimizer, optimal_transport, solve_bilevel

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SOURCE = "Gould 2026, slides: optimal transport, its gradient, experiment and results"


def run(*, n: int = 20, iterations: int = 300, unrolls: tuple[int, ...] = (5, 10, 20, 40, 80, 160)) -> Result:
    """Minimise |P(M) - P_target|^2 / 2 over M, where P_target is a blurred permutation of n points."""
    generator = torch.Generator().manual_seed(0)
    target_cost = torch.rand(n, n, dtype=torch.float64, generator=generator)
    target_cost[torch.arange(n), torch.randperm(n, generator=generator)] -= 0.5
    target = optimal_transport(target_cost, gamma=SINKHORN_GAMMA)
    M = torch.rand(n, n, dtype=torch.float64, generator=generator)
    found = solve_bilevel(
        lambda P, M: 0.5 * n * n * (P - target).square().sum(),
        lambda M: optimal_transport(M, gamma=SINKHORN_GAMMA),
        [M],
        optimizer=TorchOptimizer(lambda parameters: torch.optim.Adam(parameters, lr=0.02)),
        stop=Stop(max_iter=iterations, target=1e-12),
        progress=False,
    )

    trio = TRIOS["transport"]
    leaf = M.clone().requires_grad_()
    cotangent = torch.randn(n, n, dtype=torch.float64, generator=generator)
    (by_hand,) = torch.autograd.grad(trio.by_hand(leaf), leaf, cotangent)
    (implicit,) = torch.autograd.grad(trio.implicit(leaf)(leaf), leaf, cotangent)
    errors, memory = [], []
    for count in unrolls:
        (unrolled,) = torch.autograd.grad(trio.unrolled(count, leaf), leaf, cotangent)
        errors.append(float((unrolled - by_hand).norm() / by_hand.norm()))
        memory.append(saved_bytes(partial(trio.unrolled, count, leaf)))
    ours = saved_bytes(partial(trio.by_hand, leaf))
    gamma = 100.0 * SINKHORN_GAMMA  # needs very many more Sinkhorn iterations
    harder = saved_bytes(lambda: optimal_transport(leaf, gamma=gamma))
    numbers: dict[str, Any] = {
        "loss": found.history.value,
        "final_loss": found.value,
        "steps": found.history.steps,
        "implicit_error": float((implicit - by_hand).norm() / by_hand.norm()),
        "unrolled_iterations": list(unrolls),
        "unrolled_gradient_error": errors,
        "unrolled_saved_bytes": memory,
        "saved_bytes": ours,
        "saved_bytes_at_100_gamma": harder,
    }
    growth = (memory[-1] - memory[0]) / (unrolls[-1] - unrolls[0]) / (8 * n * n)
    claims = [
        Claim(
            "option 2, the implicit result, gives the gradient of option 1, the unrolled Sinkhorn algorithm",
            f"they differ by {errors[-1]:.0e} after {unrolls[-1]} iterations, {errors[0]:.0e} after {unrolls[0]}; by "
            f"hand and by the generic node by {numbers['implicit_error']:.0e}",
            errors[-1] < 1e-9 and numbers["implicit_error"] < 1e-8,
        ),
        Claim(
            "results, memory usage: unrolling grows with the iterations",
            f"by {growth:.1f} matrices an iteration; by hand {ours / (8 * n * n):.1f} matrices, whatever gamma",
            growth > 1.0 and ours == harder,
        ),
        Claim(
            "experiment: M is learnt from a target plan",
            f"loss {found.history.value[0]:.2f} to {found.value:.0e} in {found.history.steps} steps",
            found.value < 1e-3 * found.history.value[0],
        ),
    ]

    def draw(figure: Figure) -> None:
        figure.set_size_inches(12, 4)
        loss, error, size = figure.subplots(1, 3)
        loss.semilogy(found.history.value)
        loss.set(xlabel="step", ylabel="n^2 |P(M) - target|^2 / 2", title=f"learning M, {n} by {n}")
        error.loglog(unrolls, errors, "o-")
        error.set(xlabel="unrolled iterations", ylabel="relative error of the gradient", title="unrolled against exact")
        size.loglog(unrolls, [value / 1024 for value in memory], "o-", label="unrolled")
        size.axhline(ours / 1024, color="C1", label="by hand")
        size.set(xlabel="unrolled iterations", ylabel="KiB saved for backward", title="memory")
        size.legend()

    return Result(numbers, claims, draw)
