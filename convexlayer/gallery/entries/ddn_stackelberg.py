"""A Stackelberg game: the leader differentiates through the follower's best response.

    follower: q2(q1) = argmax over q of q P(q1 + q) - C_2(q),    leader: maximise q1 P(q1 + q2(q1)) - C_1(q1)

In Cournot's game both move simultaneously: each quantity is the best response to the other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from convexlayer.gallery.result import Claim, Result
from convexlayer.gallery.style import panels
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
    """A price for which the follower's response has no closed form."""
    return DEMAND * torch.exp(-0.1 * total)


def follower_profit(q: torch.Tensor, q1: torch.Tensor) -> torch.Tensor:
    """q P(q1 + q) - C_2(q)."""
    return q * price(q1 + q) - COST_FOLLOWER * q


def curved_follower_profit(q: torch.Tensor, q1: torch.Tensor) -> torch.Tensor:
    """Follower's profit with the curved price and a quadratic cost."""
    return q * curved_price(q1 + q) - COST_FOLLOWER * q - 0.1 * q**2


def leader_profit(q: torch.Tensor, q2: torch.Tensor) -> torch.Tensor:
    """q P(q + q2) - C_1(q)."""
    return q * price(q + q2) - COST_LEADER * q


def curved_leader_profit(q: torch.Tensor, q2: torch.Tensor) -> torch.Tensor:
    """Leader's profit with the curved price."""
    return q * curved_price(q + q2) - COST_LEADER * q


def run(*, iterations: int = 50, grid: int = 401) -> Result:
    """Solve two games by gradient descent on the leader's quantity, and check them by formula and by grid."""
    options = NodeOptions(start=torch.tensor(1.0, dtype=torch.float64))
    responses = {
        "linear": ArgmaxNode(follower_profit, (), [()], options=options),
        "curved": ArgmaxNode(curved_follower_profit, (), [()], options=options),
    }
    own = {
        "linear": ArgmaxNode(leader_profit, (), [()], options=options),
        "curved": ArgmaxNode(curved_leader_profit, (), [()], options=options),
    }
    payoffs = {"linear": leader_profit, "curved": curved_leader_profit}
    quantities = torch.linspace(0.1, 20.0, grid, dtype=torch.float64)
    found, best, profits, answers, cournot = {}, {}, {}, {}, {}
    for name, response in responses.items():

        def loss(q2: torch.Tensor, q1: torch.Tensor, name: str = name) -> torch.Tensor:
            return -payoffs[name](q1, q2)

        found[name] = solve_bilevel(
            loss,
            response,
            [torch.tensor(1.0, dtype=torch.float64)],
            optimizer=GradientDescent(),
            stop=Stop(max_iter=iterations, gradient_tol=1e-10),
            progress=False,
        )
        answers[name] = response(quantities).detach()
        profits[name] = -loss(answers[name], quantities)
        best[name] = float(quantities[profits[name].argmax()])
        cournot[name] = _simultaneous(own[name], response)
    # Linear price a - b q, costs c1 and c2: q1 = (a - 2 c1 + c2) / (2 b), and in Cournot's simultaneous game
    # (a - 2 c1 + c2) / (3 b).
    leader = (DEMAND - 2 * COST_LEADER + COST_FOLLOWER) / (2 * SLOPE)
    follower = (DEMAND - COST_FOLLOWER - SLOPE * leader) / (2 * SLOPE)
    both = (
        (DEMAND - 2 * COST_LEADER + COST_FOLLOWER) / (3 * SLOPE),
        (DEMAND - 2 * COST_FOLLOWER + COST_LEADER) / (3 * SLOPE),
    )
    q1, q2 = float(found["linear"].theta[0]), float(found["linear"].solution)
    gained = {
        name: float(payoffs[name](*(torch.tensor(q, dtype=torch.float64) for q in pair)))
        for name, pair in cournot.items()
    }
    numbers: dict[str, Any] = {
        "leader": q1,
        "follower": q2,
        "leader_error": abs(q1 - leader),
        "follower_error": abs(q2 - follower),
        "cournot": cournot,
        "cournot_error": max(abs(found - exact) for found, exact in zip(cournot["linear"], both, strict=True)),
        "leader_profits": {name: -result.value for name, result in found.items()},
        "cournot_profits": gained,
        "curved_leader": float(found["curved"].theta[0]),
        "curved_leader_by_grid": best["curved"],
        "steps": {name: result.history.steps for name, result in found.items()},
        "quantities": quantities,
        "responses": answers,
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
            "; ".join(
                f"{name} price: profit {-found[name].value:.3f} against {gained[name]:.3f} in the simultaneous game"
                for name in responses
            ),
            all(-found[name].value > gained[name] for name in responses) and numbers["cournot_error"] < 1e-9,
        ),
        Claim(
            "without a closed form the gradient comes by implicit differentiation",
            f"curved prices: q1 = {numbers['curved_leader']:.4f}, best of a grid {best['curved']:.4f} "
            f"(spacing {spacing:.4f})",
            abs(numbers["curved_leader"] - best["curved"]) <= spacing,
        ),
    ]

    def draw(figure: Figure) -> None:
        places = panels(figure, 4, width=3.2, height=2.9)
        for (plane, profit), name in zip((places[:2], places[2:]), responses, strict=True):
            reach = 10.0 if name == "linear" else 20.0
            shown = answers[name] >= 0.0  # beyond, the follower stays away
            leads = float(found[name].theta[0]), float(found[name].solution)
            axis = torch.linspace(0.0, reach, 101, dtype=torch.float64)
            level = payoffs[name](axis[None, :], axis[:, None])
            levels = sorted({gained[name], -found[name].value})
            plane.contour(axis, axis, level, levels=levels, colors="0.6", linewidths=0.9)
            plane.plot([], color="0.6", linewidth=0.9, label="leader's profit, levels")
            plane.plot(quantities[shown], answers[name][shown], label="follower's best response")
            others = torch.linspace(0.0, reach, 101, dtype=torch.float64)
            plane.plot(own[name](others).detach(), others, "--", color="C2", label="leader's best response")
            height = float(answers[name].max())
            plane.set(xlim=(0, reach), ylim=(0, 1.6 * height), xlabel="leader's quantity $q_1$")
            plane.set(ylabel="follower's quantity $q_2$", title=f"{name} price: quantities")
            profit.plot(quantities[shown], profits[name][shown])
            profit.set(
                xlabel="leader's quantity $q_1$",
                ylabel="leader's profit",
                title=f"{name} price: profit along $q_2(q_1)$",
            )
            profit.set(xlim=(0, reach), ylim=(0, 1.15 * -found[name].value))
            for axes, pair in ((plane, (leads[1], cournot[name][1])), (profit, (-found[name].value, gained[name]))):
                axes.plot(leads[0], pair[0], "o", color="C1", markersize=8, label="Stackelberg, found")
                axes.plot(cournot[name][0], pair[1], "s", color="k", markersize=7, label="Cournot")
        figure.legend(*places[0].get_legend_handles_labels(), loc="outside lower center", ncols=5)

    return Result(numbers, claims, draw)


def _simultaneous(leader: ArgmaxNode, follower: ArgmaxNode, rounds: int = 30) -> tuple[float, float]:
    """Cournot equilibrium by alternating best responses, which contract."""
    q2 = torch.tensor(1.0, dtype=torch.float64)
    for _ in range(rounds):
        q1 = leader(q2).detach()
        q2 = follower(q1).detach()
    return float(q1), float(q2)
