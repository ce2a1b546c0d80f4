"""Learning a cost matrix through entropic optimal transport: unrolled and closed-form derivative.

    P(M) = argmin over P of <M, P> + <P, log P> / gamma,    P 1 = 1/m, P'1 = 1/n for M of shape (m, n)

Erratum: the experiment's slide gives the row sums as 1/n and the column sums as 1/m, which only square matrices
can have.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from convexlayer.gallery.measure import Cost, costs, saved_bytes
from convexlayer.gallery.node_variants import NODE_VARIANTS, SINKHORN_GAMMA
from convexlayer.gallery.result import Claim, Result
from convexlayer.gallery.style import image, legend_below, panels
from convexlayer.nodes import Stop, TorchOptimizer, optimal_transport, solve_bilevel

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SOURCE = "Gould 2026, slides: optimal transport, its gradient, experiment and results"


def run(
    *,
    n: int = 20,
    iterations: int = 300,
    unrolls: tuple[int, ...] = (5, 10, 20, 40, 80, 160),
    sizes: tuple[int, ...] = (8, 16, 32, 64, 128, 256),
    counts: tuple[int, ...] = (20, 100),
    repetitions: int = 9,
) -> Result:
    """Minimise |P(M) - P_target|^2 / 2 over M, where P_target is a blurred permutation of n points.

    The closed-form gradient is compared with unrolled ones by number of iterations, and its cost over ``sizes`` with
    that of ``counts`` unrolled iterations.
    """
    generator = torch.Generator().manual_seed(0)
    target = _target(n, generator)
    M = torch.rand(n, n, dtype=torch.float64, generator=generator)
    found = solve_bilevel(
        lambda P, M: 0.5 * n * n * (P - target).square().sum(),
        lambda M: optimal_transport(M, gamma=SINKHORN_GAMMA),
        [M],
        optimizer=TorchOptimizer(lambda parameters: torch.optim.Adam(parameters, lr=0.02)),
        stop=Stop(max_iter=iterations, target=1e-12),
        progress=False,
    )
    cotangent = torch.randn(n, n, dtype=torch.float64, generator=generator)
    cost = _costs(sizes, counts, repetitions)
    plan = found.solution.detach()
    distance = float((plan - target).norm() / target.norm())
    numbers: dict[str, Any] = {
        "target": target,
        "plan": plan,
        "relative_distance_of_the_plan": distance,
        "cost_by_size": {way: {size: vars(each) for size, each in by.items()} for way, by in cost.items()},
        "loss": found.history.value,
        "final_loss": found.value,
        "steps": found.history.steps,
        "unrolled_iterations": list(unrolls),
        **_gradients(M, cotangent, unrolls),
    }
    errors, memory = numbers["unrolled_gradient_error"], numbers["unrolled_saved_bytes"]
    ours, harder = numbers["saved_bytes"], numbers["saved_bytes_at_100_gamma"]
    last = {way: _total(by[sizes[-1]]) for way, by in cost.items()}
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
            f"loss {found.history.value[0]:.2f} to {found.value:.0e} in {found.history.steps} steps; the plan is then "
            f"within {100 * distance:.1g} % of the target",
            found.value < 1e-3 * found.history.value[0],
        ),
        Claim(
            "results, running time: option 2 against option 1 (the plot is not in the text)",
            f"at {sizes[-1]} by {sizes[-1]} by hand takes "
            + ", ".join(
                f"{last['by hand'] / last[f'{count} iterations']:.2f} of the time of {count} iterations unrolled"
                for count in counts
            )
            + ", both ways together; in this run, on this machine",
            last["by hand"] < last[f"{counts[-1]} iterations"],
        ),
    ]

    def draw(figure: Figure) -> None:
        wanted, learnt, loss, error, seconds, kibibytes = panels(figure, 3, 2, width=3.8, height=3.2)
        top = n * float(target.max())
        for axes, matrix, title in ((wanted, target, "target plan"), (learnt, plan, "learnt plan")):
            shown = axes.imshow(n * matrix.numpy(), vmin=0.0, vmax=top)
            axes.set(title=title, xlabel="column", ylabel="row")
            image(axes)
        figure.colorbar(shown, ax=[wanted, learnt], label="$n P$", shrink=0.8)
        loss.semilogy(found.history.value)
        loss.set(xlabel="step", ylabel=r"$\frac{1}{2} n^2 |P(M) - P_{target}|^2$", title="learning curve")
        error.loglog(unrolls, errors, "o-")
        error.set(xlabel="unrolled iterations", ylabel="relative error", title=f"gradient unrolled, $n = {n}$")
        _draw_costs(seconds, kibibytes, cost)

    return Result(numbers, claims, draw)


def _target(n: int, generator: torch.Generator) -> torch.Tensor:
    """Draw a blurred permutation: the plan of random costs of which one in each row and column is lower."""
    costs = torch.rand(n, n, dtype=torch.float64, generator=generator)
    costs[torch.arange(n), torch.randperm(n, generator=generator)] -= 0.5
    return optimal_transport(costs, gamma=SINKHORN_GAMMA)


def _gradients(M: torch.Tensor, cotangent: torch.Tensor, unrolls: tuple[int, ...]) -> dict[str, Any]:
    """Errors of the gradients relative to the closed form, and bytes saved for them."""
    variants = NODE_VARIANTS["transport"]
    leaf = M.clone().requires_grad_()

    def gradient(plan: torch.Tensor) -> torch.Tensor:
        return torch.autograd.grad(plan, leaf, cotangent)[0]

    by_hand = gradient(variants.by_hand(leaf))
    gradients = {"implicit": gradient(variants.implicit(leaf)(leaf))}
    gradients |= {str(count): gradient(variants.unrolled(count, leaf)) for count in unrolls}
    errors = {name: float((found - by_hand).norm() / by_hand.norm()) for name, found in gradients.items()}
    gamma = 100.0 * SINKHORN_GAMMA  # needs many more Sinkhorn iterations
    return {
        "implicit_error": errors["implicit"],
        "unrolled_gradient_error": [errors[str(count)] for count in unrolls],
        "unrolled_saved_bytes": [saved_bytes(partial(variants.unrolled, count, leaf)) for count in unrolls],
        "saved_bytes": saved_bytes(partial(variants.by_hand, leaf)),
        "saved_bytes_at_100_gamma": saved_bytes(lambda: optimal_transport(leaf, gamma=gamma)),
    }


def _total(cost: Cost) -> float:
    """Seconds of both passes."""
    return cost.forward_s + cost.backward_s


def _draw_costs(seconds: Axes, kibibytes: Axes, cost: dict[str, dict[int, Cost]]) -> None:
    """Draw time and memory against the size, for each variant."""
    for (way, by), style in zip(cost.items(), ("o-", "s--", "^:"), strict=False):
        seconds.loglog(list(by), [1e3 * _total(each) for each in by.values()], style, label=way)
        kibibytes.loglog(list(by), [each.saved_bytes / 1024 for each in by.values()], style, label=way)
    seconds.set(xlabel="$n$", ylabel="forward and backward, ms", title="running time")
    kibibytes.set(xlabel="$n$", ylabel="saved for backward, KiB", title="memory")
    sizes = list(next(iter(cost.values())))
    for axes in (seconds, kibibytes):
        axes.set_xticks(sizes, [str(each) for each in sizes])
        axes.set_xticks([], minor=True)
        legend_below(axes)


def _costs(sizes: tuple[int, ...], counts: tuple[int, ...], repetitions: int) -> dict[str, dict[int, Cost]]:
    """Measure costs by variant and size."""
    variants = NODE_VARIANTS["transport"]
    ways: dict[str, Callable[..., torch.Tensor]] = {"by hand": variants.by_hand}
    ways |= {f"{count} iterations": partial(variants.unrolled, count) for count in counts}
    leaves = {size: variants.inputs(size)[0].requires_grad_() for size in sizes}
    calls = {(way, n): (partial(call, leaf), (leaf,)) for way, call in ways.items() for n, leaf in leaves.items()}
    measured = costs(calls, repetitions=repetitions)
    return {way: {size: measured[way, size] for size in sizes} for way in ways}
