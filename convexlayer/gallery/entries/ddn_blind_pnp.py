"""Blind perspective-n-point: correspondences and pose by two nodes, features learnt from the pose loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from convexlayer.gallery.entries.ddn_pnp import angle_deg
from convexlayer.gallery.result import Claim, Result
from convexlayer.nodes import optimal_transport, perspective_n_point, rotation_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SOURCE = "Gould 2026, slides: blind perspective-n-point network architecture and results"

GAMMA = 10.0


@dataclass(frozen=True)
class _Views:
    """Views of random scenes, each with a descriptor at every point; the image's points are in another order.

    Attributes:
        X: points in space, (views, n, 3).
        x: points in the image, (views, n, 2).
        space: descriptors of the points in space, (views, n, k).
        image: descriptors of the points in the image, (views, n, k): others, by an unknown linear map and noise.
        order: the point in space that each point in the image shows, (views, n).
        R: rotations, (views, 3, 3).
        t: translations, (views, 3).
    """

    X: torch.Tensor
    x: torch.Tensor
    space: torch.Tensor
    image: torch.Tensor
    order: torch.Tensor
    R: torch.Tensor
    t: torch.Tensor

    @staticmethod
    def draw(views: int, n: int, k: int, twist: float, seed: int) -> _Views:
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(shape, dtype=torch.float64, generator=generator)

        turn = torch.randn(k, k, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
        mixing = torch.linalg.matrix_exp(twist * (turn - turn.T))
        X, space = normal(views, n, 3), normal(views, n, k)
        R = rotation_of(0.5 * normal(views, 3))
        t = torch.tensor([0.0, 0.0, 6.0], dtype=torch.float64) + 0.3 * normal(views, 3)
        Y = X @ R.mT + t[:, None]
        order = torch.stack([torch.randperm(n, generator=generator) for _ in range(views)])
        x = (Y[..., :2] / Y[..., 2:]).gather(1, order[..., None].expand(-1, -1, 2))
        image = (space @ mixing).gather(1, order[..., None].expand(-1, -1, k)) + 0.1 * normal(views, n, k)
        return _Views(X, x + 0.002 * normal(views, n, 2), space, image, order, R, t)


def _correspondences(W: torch.Tensor, views: _Views) -> torch.Tensor:
    """The transport plan (views, n, n) between image and space, from distances of descriptors."""
    costs = (views.image[:, :, None] - (views.space @ W)[:, None]).square().mean(-1)
    return optimal_transport(costs, gamma=GAMMA, tol=1e-9)


def _pose(
    P: torch.Tensor, views: _Views, start: tuple[torch.Tensor, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """The pose from all pairs, each with its share of the plan as its weight."""
    count, n, _ = P.shape
    X = views.X[:, None].expand(count, n, n, 3).reshape(count, n * n, 3)
    x = views.x[:, :, None].expand(count, n, n, 2).reshape(count, n * n, 2)
    return perspective_n_point(X, x, n * P.reshape(count, n * n), start=start)


def run(*, views: int = 16, n: int = 10, k: int = 4, steps: int = 40, twist: float = 0.5) -> Result:
    """Learn the linear map between the descriptors; the loss sees poses, never matches.

    The map is as far as ``twist`` from the identity, where learning starts.
    """
    training, test = _Views.draw(views, n, k, twist, seed=0), _Views.draw(views, n, k, twist, seed=1)
    W = torch.eye(k, dtype=torch.float64).requires_grad_()
    optimiser = torch.optim.Adam([W], lr=0.05)
    identity = torch.eye(3, dtype=torch.float64).expand(views, 3, 3)
    ahead = torch.tensor([0.0, 0.0, 6.0], dtype=torch.float64).expand(views, 3)
    losses: list[float] = []

    def evaluate(
        batch: _Views, start: tuple[torch.Tensor, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        P = _correspondences(W, batch)
        R, t = _pose(P, batch, start)
        error = (R - batch.R).square().sum((1, 2)) + (t - batch.t).square().sum(1)
        right = (P.argmax(2) == batch.order).double().mean()
        return error.mean(), angle_deg(R.detach(), batch.R).median(), right

    with torch.no_grad():
        before = [float(value) for value in evaluate(test, (identity, ahead))]
    for _ in range(steps):
        loss, _, _ = evaluate(training, (training.R, training.t))  # the minimum that belongs to the true pose
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    with torch.no_grad():
        after = [float(value) for value in evaluate(test, (identity, ahead))]
    known = torch.nn.functional.one_hot(test.order, n).double() / n
    R, _ = _pose(known, test, (identity, ahead))
    bound = float(angle_deg(R, test.R).median())
    numbers: dict[str, Any] = {
        "training_loss": losses,
        "test_loss": (before[0], after[0]),
        "test_median_angle_deg": (before[1], after[1]),
        "test_right_matches": (before[2], after[2]),
        "test_median_angle_deg_with_known_matches": bound,
    }
    claims = [
        Claim(
            "features, correspondences (transport) and pose (PnP) are learnt end to end from the pose",
            f"on new views: right matches {before[2]:.0%} to {after[2]:.0%}, median rotation error {before[1]:.1f} "
            f"to {after[1]:.2f} degrees ({bound:.2f} with known matches)",
            after[2] > max(0.9, before[2]) and after[1] < 0.2 * before[1],
        )
    ]

    def draw(figure: Figure) -> None:
        figure.set_size_inches(12, 4)
        loss_axes, plan, pose = figure.subplots(1, 3)
        loss_axes.semilogy(losses)
        loss_axes.set(xlabel="step", title="pose loss, training views")
        with torch.no_grad():
            shown = _correspondences(W, test)[0]
        plan.imshow(n * shown)
        plan.plot(test.order[0], range(n), "r.", markersize=4)
        plan.set(xlabel="point in space", ylabel="point in the image", title="plan of a test view (red: truth)")
        pose.bar(["before", "after", "known matches"], [before[1], after[1], bound], color=["C3", "C0", "C2"])
        pose.set(yscale="log", ylabel="degrees", title="median rotation error, test views")

    return Result(numbers, claims, draw)
