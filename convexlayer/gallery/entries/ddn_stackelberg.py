"""A Stackelberg game: the leader differentiates through the follower's best response."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from convexlayer.gallery.result import Claim, Result
from convexlayer.nodes import ArgmaxNode, GradientDescent, NodeOptions, Stop, solve_bilevel

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SOURCE = "Gould 2026, slides: bi-level optimisation, Stackelberg games"

DEMAND, SLOPE = 10.0, 1.0
COST_LEADER, COST_FOLLOWER = 1.0, 2.0


def price(total: torch.Tensor) -> torch.Tensor:
    """P(q1 + q2), linear."""
    return DEMAND - SLOPE * total


def curved_price(total: torch.Tensor) -> torch.Tensor:
    """A price without a closed form for the follower."""
    return DEMAND * torch.exp(-0.1 * total)


def follower_profit(q: torch.Tensor, q1: torch.Tensor) -> torch.Tensor:
    """q P(q1 + q) - C_2(q)."""
    return q * price(q1 + q) - COST_FOLLOWER * q


def curved_follower_profit(q: torch.Tensor, q1: torch.Tensor) -> torch.Tensor:
    """The same, where the price is curved and the cost quadratic."""
    return q * curved_price(q1 + q) - COST_FOLLOWER * q - 0.1 * q**2


def run(*, iterations: int = 50, grid: int = 401) -> Result:
    """Solve two games by gradient descent on the leader's quantity, and check them by formula and by grid."""
    options = NodeOptions(start=torch.tensor(1.0, dtype=torch.float64))
    responses = {
        "linear": ArgmaxNode(follower_profit, (), [()], options=options),
        "curved": ArgmaxNode(curved_follower_profit, (), [()], options=options),
    }
    prices = {"linear": price, "curved": curved_price}
    quantities = torch.linspace(0.1, 20.0, grid, dtype=torch.float64)
    found, best, profits = {}, {}, {}
    for name, response in responses.items():

        def loss(q2: torch.Tensor, q1: torch.Tensor, name: str = name) -> torch.Tensor:
            return -(q1 * prices[name](q1 + q2) - COST_LEADER * q1)

        found[name] = solve_bilevel(
            loss,
            response,
            [torch.tensor(1.0, dtype=torch.float64)],
            optimizer=GradientDescent(),
            stop=Stop(max_iter=iterations, gradient_tol=1e-10),
            progress=False,
        )
        profits[name] = -loss(response(quantities), quantities).detach()
        best[name] = float(quantities[profits[name].argmax()])
    # Linear price a - b q, costs c1 and c2: q1 = (a - 2 c1 + c2) / (2 b), and in Cournot's simultaneous game
    # (a - 2 c1 + c2) / (3 b).
    leader = (DEMAND - 2 * COST_LEADER + COST_FOLLOWER) / (2 * SLOPE)
    follower = (DEMAND - COST_FOLLOWER - SLOPE * leader) / (2 * SLOPE)
    cournot = (DEMAND - 2 * COST_LEADER + COST_FOLLOWER) / (3 * SLOPE)
    q1, q2 = float(found["linear"].theta[0]), float(found["linear"].solution)
    numbers: dict[str, Any] = {
        "leader": q1,
        "follower": q2,
        "leader_error": abs(q1 - leader),
        "follower_error": abs(q2 - follower),
        "leader_profit": -found["linear"].value,
        "cournot_profit": SLOPE * cournot**2,
        "curved_leader": float(found["curved"].theta[0]),
        "curved_leader_by_grid": best["curved"],
        "steps": {name: result.history.steps for name, result in found.items()},
        "quantities": quantities,
        "profits": profits,
    }
    spacing = float(quantities[1] - quantities[0])
    claims = [
        Claim(
            "the leader picks a quantity knowing that the follower will respond optimally",
            f"found q1 = {q1:.9f}, q2 = {q2:.9f}: {numbers['leader_error']:.0e} and {numbers['follower_error']:.0e} "
            f"from the formula, in {found['linear'].history.steps} steps",
            max(numbers["leader_error"], numbers["follower_error"]) < 1e-7,
        ),
        Claim(
            "the first mover gains",
            f"profit {numbers['leader_profit']:.3f} against {numbers['cournot_profit']:.3f} in the simultaneous game",
            numbers["leader_profit"] > numbers["cournot_profit"],
        ),
        Claim(
            "without a closed form the gradient comes by implicit differentiation",
            f"curved prices: q1 = {numbers['curved_leader']:.4f}, best of a grid {best['curved']:.4f} "
            f"(spacing {spacing:.4f})",
            abs(numbers["curved_leader"] - best["curved"]) <= spacing,
        ),
    ]

    def draw(figure: Figure) -> None:
        figure.set_size_inches(10, 4)
        for axes, name in zip(figure.subplots(1, 2), responses, strict=True):
            axes.plot(quantities, profits[name], label="profit with the follower's response")
            axes.plot(float(found[name].theta[0]), -found[name].value, "o", label="found")
            axes.set(xlabel="leader's quantity", ylabel="leader's profit", title=f"{name} price", ylim=(0, None))
            axes.legend()

    return Result(numbers, claims, draw)
