"""Blind perspective-n-point: correspondences and pose by two nodes, features learnt from the pose loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from convexlayer.gallery.entries.ddn_pnp import angle_deg
from convexlayer.gallery.result import Claim, Result
from convexlayer.gallery.style import image, legend_below, panels
from convexlayer.nodes import optimal_transport, perspective_n_point, rotation_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SOURCE = "Gould 2026, slides: blind perspective-n-point network architecture and results"

GAMMA = 10.0
"""Inverse entropic regularisation of the matching: larger values match more sharply and converge more slowly."""


@dataclass(frozen=True)
class _Views:
    """Views of random scenes, with a descriptor at every point; image points are in another order.

    Attributes:
        X: points in space, (views, n, 3).
        x: points in the image, (views, n, 2).
        space: descriptors of the points in space, (views, n, k).
        image: descriptors of the points in the image, (views, n, k), related by an unknown linear map and noise.
        order: index of the point in space that each point in the image shows, (views, n).
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
    """Transport plan (views, n, n) between image and space, for distances of descriptors as costs."""
    costs = (views.image[:, :, None] - (views.space @ W)[:, None]).square().mean(-1)
    return optimal_transport(costs, gamma=GAMMA, tol=1e-9)


def _pose(
    P: torch.Tensor, views: _Views, start: tuple[torch.Tensor, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pose from all pairs, weighted by the plan."""
    count, n, _ = P.shape
    X = views.X[:, None].expand(count, n, n, 3).reshape(count, n * n, 3)
    x = views.x[:, :, None].expand(count, n, n, 2).reshape(count, n * n, 2)
    return perspective_n_point(X, x, n * P.reshape(count, n * n), start=start)


def run(*, views: int = 16, n: int = 10, k: int = 4, steps: int = 40, twist: float = 0.5) -> Result:
    """Learn the linear map between the descriptors from poses, without known matches.

    Learning starts from the identity, at a distance ``twist`` from the map.
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
        return error.mean(), angle_deg(R.detach(), batch.R), right

    with torch.no_grad():
        before, unlearnt, unmatched = evaluate(test, (identity, ahead))
    for _ in range(steps):
        loss, _, _ = evaluate(training, (training.R, training.t))  # started at the true pose, for its local minimum
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    with torch.no_grad():
        after, learnt, matched = evaluate(test, (identity, ahead))
    known = torch.nn.functional.one_hot(test.order, n).double() / n
    R, _ = _pose(known, test, (identity, ahead))
    angles = {"before": unlearnt, "after": learnt, "known matches": angle_deg(R, test.R)}
    first, last, bound = (float(each.median()) for each in angles.values())
    matches = float(unmatched), float(matched)
    numbers: dict[str, Any] = {
        "training_loss": losses,
        "test_loss": (float(before), float(after)),
        "test_angle_deg": angles,
        "test_median_angle_deg": (first, last),
        "test_right_matches": matches,
        "test_median_angle_deg_with_known_matches": bound,
    }
    claims = [
        Claim(
            "features, correspondences (transport) and pose (PnP) are learnt end to end from the pose",
            f"on new views: right matches {matches[0]:.0%} to {matches[1]:.0%}, median rotation error {first:.1f} "
            f"to {last:.2f} degrees ({bound:.2f} with known matches)",
            matches[1] > max(0.9, matches[0]) and last < 0.2 * first,
        )
    ]

    def draw(figure: Figure) -> None:
        curve, plan, pose = panels(figure, 3, height=3.6)
        curve.semilogy(losses)
        curve.set(xlabel="step", ylabel="pose loss", title="training views")
        with torch.no_grad():
            found = _correspondences(W, test)[0]
        shown = plan.imshow(n * found.numpy(), vmin=0.0, vmax=1.0)
        plan.plot(test.order[0], range(n), "o", color="C1", fillstyle="none", markersize=9, label="true match")
        plan.set(title="plan of a test view", xlabel="point in space", ylabel="point in the image")
        image(plan)
        plan.legend(loc="upper center", bbox_to_anchor=(0.5, 0.0), borderaxespad=2.6)
        figure.colorbar(shown, ax=plan, label="$n P$", shrink=0.8)
        share = [(k + 1) / views for k in range(views)]
        for (name, each), style in zip(angles.items(), ("^:", "o-", "s--"), strict=True):
            pose.plot(each.sort().values, share, style, label=name)
        pose.set(xscale="log", xlabel="rotation error, degrees", ylabel="share of the test views", ylim=(0, 1.03))
        pose.set_title("test views with at most this error")
        legend_below(pose, 3, columnspacing=1.0, handlelength=1.8)

    return Result(numbers, claims, draw)
