"""A Stackelberg game: the leader differentiates through the follower's best response.

    follower: q2(q1) = argmax over q of q P(q1 + q) - C_2(q),    leader: maximise q1 P(q1 + q2(q1)) - C_1(q1)

In Cournot's game both move simultaneously: each quantity is the best response to the other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from convexlayer.gallery.result import Claim, Result
from convexlayer.gallery.style import panels
from convexlayer.nodes import ArgmaxNode, BilevelResult, GradientDescent, NodeOptions, Stop, solve_bilevel

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SOURCE = "Gould 2026, slides: bi-level optimisation, Stackelberg games"

DEMAND, SLOPE = 10.0, 1.0
COST_LEADER, COST_FOLLOWER = 1.0, 2.0
"""The games' data: the price at quantity 0 and its slope, and the costs per unit."""

DECAY = 0.1
"""Relative decrease of the curved price per unit."""

FOLLOWER_CURVATURE = 0.1
"""Quadratic cost of the follower in the curved game, per squared unit."""

ROUNDS = 30
"""Rounds of best responses; in the linear game each divides the error by 4, so that 1e-18 of it remains."""

Profit = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def price(total: torch.Tensor) -> torch.Tensor:
    """P(q1 + q2), linear."""
    return DEMAND - SLOPE * total


def curved_price(total: torch.Tensor) -> torch.Tensor:
    """A price for which the follower's response has no closed form."""
    return DEMAND * torch.exp(-DECAY * total)


def follower_profit(q: torch.Tensor, q1: torch.Tensor) -> torch.Tensor:
    """q P(q1 + q) - C_2(q)."""
    return q * price(q1 + q) - COST_FOLLOWER * q


def curved_follower_profit(q: torch.Tensor, q1: torch.Tensor) -> torch.Tensor:
    """Follower's profit with the curved price and a quadratic cost."""
    return q * curved_price(q1 + q) - COST_FOLLOWER * q - FOLLOWER_CURVATURE * q**2


def leader_profit(q: torch.Tensor, q2: torch.Tensor) -> torch.Tensor:
    """q P(q + q2) - C_1(q)."""
    return q * price(q + q2) - COST_LEADER * q


def curved_leader_profit(q: torch.Tensor, q2: torch.Tensor) -> torch.Tensor:
    """Leader's profit with the curved price."""
    return q * curved_price(q + q2) - COST_LEADER * q


@dataclass(frozen=True)
class Game:
    """Profits of the players, each a function of the own quantity and of the other's.

    Attributes:
        leader: profit of the leader.
        follower: profit of the follower.
        reach: largest quantity in the figure.
    """

    leader: Profit
    follower: Profit
    reach: float

    def response(self, profit: Profit) -> ArgmaxNode:
        """Best response of the player with this profit, as a function of the other's quantity."""
        return ArgmaxNode(profit, (), [()], options=NodeOptions(start=torch.tensor(1.0, dtype=torch.float64)))


GAMES = {
    "linear": Game(leader_profit, follower_profit, 10.0),
    "curved": Game(curved_leader_profit, curved_follower_profit, 20.0),
}


@dataclass(frozen=True)
class Outcome:
    """Equilibria of a game.

    Attributes:
        stackelberg: the leader's problem, solved by gradient descent.
        responses: best responses of the follower to a grid of the leader's quantities.
        profits: profits of the leader on the grid.
        cournot: quantities of both in the simultaneous game.
        cournot_profit: profit of the leader there.
    """

    stackelberg: BilevelResult
    responses: torch.Tensor
    profits: torch.Tensor
    cournot: tuple[float, float]
    cournot_profit: float


def play(game: Game, quantities: torch.Tensor, iterations: int) -> Outcome:
    """Solve a game with and without a leader, and tabulate its profits over the leader's quantities."""
    response = game.response(game.follower)
    stackelberg = solve_bilevel(
        lambda q2, q1: -game.leader(q1, q2),
        response,
        [torch.tensor(1.0, dtype=torch.float64)],
        optimizer=GradientDescent(),
        stop=Stop(max_iter=iterations, gradient_tol=1e-10),
        progress=False,
    )
    responses = response(quantities).detach()
    cournot = _simultaneous(game.response(game.leader), response)
    gained = float(game.leader(*(torch.tensor(q, dtype=torch.float64) for q in cournot)))
    return Outcome(stackelberg, responses, game.leader(quantities, responses), cournot, gained)


def run(*, iterations: int = 50, grid: int = 401) -> Result:
    """Solve two games by gradient descent on the leader's quantity, and check them by formula and by grid."""
    quantities = torch.linspace(0.1, 20.0, grid, dtype=torch.float64)
    outcomes = {name: play(game, quantities, iterations) for name, game in GAMES.items()}
    linear, curved = outcomes["linear"], outcomes["curved"]
    # Linear price a - b q, costs c1 and c2: q1 = (a - 2 c1 + c2) / (2 b), and in Cournot's simultaneous game
    # (a - 2 c1 + c2) / (3 b).
    leader = (DEMAND - 2 * COST_LEADER + COST_FOLLOWER) / (2 * SLOPE)
    follower = (DEMAND - COST_FOLLOWER - SLOPE * leader) / (2 * SLOPE)
    both = (
        (DEMAND - 2 * COST_LEADER + COST_FOLLOWER) / (3 * SLOPE),
        (DEMAND - 2 * COST_FOLLOWER + COST_LEADER) / (3 * SLOPE),
    )
    q1, q2 = float(linear.stackelberg.theta[0]), float(linear.stackelberg.solution)
    numbers: dict[str, Any] = {
        "leader": q1,
        "follower": q2,
        "leader_error": abs(q1 - leader),
        "follower_error": abs(q2 - follower),
        "cournot": {name: outcome.cournot for name, outcome in outcomes.items()},
        "cournot_error": max(abs(found - exact) for found, exact in zip(linear.cournot, both, strict=True)),
        "leader_profits": {name: -outcome.stackelberg.value for name, outcome in outcomes.items()},
        "cournot_profits": {name: outcome.cournot_profit for name, outcome in outcomes.items()},
        "curved_leader": float(curved.stackelberg.theta[0]),
        "curved_leader_by_grid": float(quantities[curved.profits.argmax()]),
        "steps": {name: outcome.stackelberg.history.steps for name, outcome in outcomes.items()},
        "quantities": quantities,
        "responses": {name: outcome.responses for name, outcome in outcomes.items()},
        "profits": {name: outcome.profits for name, outcome in outcomes.items()},
    }
    spacing = float(quantities[1] - quantities[0])
    claims = [
        Claim(
            "the leader picks a quantity knowing that the follower will respond optimally",
            f"found q1 = {q1:.9f}, q2 = {q2:.9f}: {numbers['leader_error']:.0e} and {numbers['follower_error']:.0e} "
            f"from the formula, in {linear.stackelberg.history.steps} steps",
            max(numbers["leader_error"], numbers["follower_error"]) < 1e-7,
        ),
        Claim(
            "the first mover gains",
            "; ".join(
                f"{name} price: profit {-outcome.stackelberg.value:.3f} against {outcome.cournot_profit:.3f} in the "
                "simultaneous game"
                for name, outcome in outcomes.items()
            ),
            all(-outcome.stackelberg.value > outcome.cournot_profit for outcome in outcomes.values())
            and numbers["cournot_error"] < 1e-9,
        ),
        Claim(
            "without a closed form the gradient comes by implicit differentiation",
            f"curved prices: q1 = {numbers['curved_leader']:.4f}, best of a grid "
            f"{numbers['curved_leader_by_grid']:.4f} (spacing {spacing:.4f})",
            abs(numbers["curved_leader"] - numbers["curved_leader_by_grid"]) <= spacing,
        ),
    ]

    def draw(figure: Figure) -> None:
        places = panels(figure, 4, width=3.2, height=2.9)
        for plane, profit, name in zip(places[::2], places[1::2], GAMES, strict=True):
            _draw_game(plane, profit, name, quantities, outcomes[name])
        figure.legend(*places[0].get_legend_handles_labels(), loc="outside lower center", ncols=5)

    return Result(numbers, claims, draw)


def _simultaneous(leader: ArgmaxNode, follower: ArgmaxNode) -> tuple[float, float]:
    """Cournot equilibrium by alternating best responses, which contract."""
    q2 = torch.tensor(1.0, dtype=torch.float64)
    for _ in range(ROUNDS):
        q1 = leader(q2).detach()
        q2 = follower(q1).detach()
    return float(q1), float(q2)


def _draw_game(plane: Axes, profit: Axes, name: str, quantities: torch.Tensor, outcome: Outcome) -> None:
    """Draw the best responses with the leader's level lines, and the leader's profit along the follower's response."""
    game = GAMES[name]
    shown = outcome.responses >= 0.0  # beyond, the follower stays away
    most = -outcome.stackelberg.value
    leads = float(outcome.stackelberg.theta[0]), float(outcome.stackelberg.solution)
    axis = torch.linspace(0.0, game.reach, 101, dtype=torch.float64)
    level = game.leader(axis[None, :], axis[:, None])
    plane.contour(axis, axis, level, levels=sorted({outcome.cournot_profit, most}), colors="0.6", linewidths=0.9)
    plane.plot([], color="0.6", linewidth=0.9, label="leader's profit, levels")
    plane.plot(quantities[shown], outcome.responses[shown], label="follower's best response")
    plane.plot(game.response(game.leader)(axis).detach(), axis, "--", color="C2", label="leader's best response")
    plane.set(xlim=(0, game.reach), ylim=(0, 1.6 * float(outcome.responses.max())), xlabel="leader's quantity $q_1$")
    plane.set(ylabel="follower's quantity $q_2$", title=f"{name} price: quantities")
    profit.plot(quantities[shown], outcome.profits[shown])
    profit.set(
        xlabel="leader's quantity $q_1$",
        ylabel="leader's profit",
        title=f"{name} price: profit along $q_2(q_1)$",
    )
    profit.set(xlim=(0, game.reach), ylim=(0, 1.15 * most))
    for axes, pair in ((plane, (leads[1], outcome.cournot[1])), (profit, (most, outcome.cournot_profit))):
        axes.plot(leads[0], pair[0], "o", color="C1", markersize=8, label="Stackelberg, found")
        axes.plot(outcome.cournot[0], pair[1], "s", color="k", markersize=7, label="Cournot")
