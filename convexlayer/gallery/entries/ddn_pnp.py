"""Weighted perspective-n-point: a pose loss learns low weights for wrong matches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from convexlayer.gallery.node_variants import NODE_VARIANTS
from convexlayer.gallery.result import Claim, Result
from convexlayer.gallery.style import legend_below, panels
from convexlayer.nodes import perspective_n_point, rotation_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SOURCE = "Gould 2026, slides: application to blind perspective-n-point, its pose node"


def _scene(points: int, outliers: int, noise: float) -> tuple[torch.Tensor, ...]:
    """Generate points in space and in the image, the first of which are wrong matches, and the pose."""
    generator = torch.Generator().manual_seed(1)
    X = torch.randn(points, 3, dtype=torch.float64, generator=generator)
    R = rotation_of(torch.tensor([0.4, -0.8, 0.3], dtype=torch.float64))
    t = torch.tensor([0.2, -0.1, 6.0], dtype=torch.float64)
    Y = X @ R.T + t
    x = Y[:, :2] / Y[:, 2:] + noise * torch.randn(points, 2, dtype=torch.float64, generator=generator)
    x[:outliers] += 0.15 * torch.randn(outliers, 2, dtype=torch.float64, generator=generator)
    return X, x, R, t


def angle_deg(R: torch.Tensor, S: torch.Tensor) -> torch.Tensor:
    """Angle between two rotations, degrees, by |R - S|_F = 2 sqrt(2) sin(angle / 2), accurate for small angles."""
    half = torch.linalg.matrix_norm(R - S) / (2.0 * 2.0**0.5)
    return torch.rad2deg(2.0 * torch.asin(half.clamp(max=1.0)))


def _gradient_error() -> float:
    """Relative difference of the gradients by hand and by the generic node, at 12 points."""
    variants = NODE_VARIANTS["pnp"]
    inputs = tuple(tensor.requires_grad_() for tensor in variants.inputs(12))
    pose = variants.by_hand(*inputs)
    cotangent = torch.randn(pose.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ours = torch.autograd.grad(pose, inputs, cotangent)
    theirs = torch.autograd.grad(variants.implicit(*inputs)(*inputs), inputs, cotangent)
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(ours, theirs, strict=True))


def run(*, points: int = 24, outliers: int = 4, noise: float = 0.002, steps: int = 120) -> Result:
    """Learn the logarithms of the weights of one view from its known pose."""
    X, x, R, t = _scene(points, outliers, noise)
    logits = torch.zeros(points, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.Adam([logits], lr=0.3)
    losses, angles = [], []
    for _ in range(steps):
        found_R, found_t = perspective_n_point(X, x, points * logits.softmax(0))
        loss = (found_R - R).square().sum() + ((found_t - t) / t.norm()).square().sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
        angles.append(float(angle_deg(found_R.detach(), R)))
    weights = points * logits.detach().softmax(0)
    exact_R, exact_t = perspective_n_point(*_scene(points, 0, 0.0)[:2])
    exact = max(float((exact_R - R).abs().max()), float((exact_t - t).abs().max()))
    gradient_error = _gradient_error()
    numbers: dict[str, Any] = {
        "error_without_noise": exact,
        "gradient_error_to_implicit": gradient_error,
        "loss": losses,
        "angle_deg": angles,
        "weights": weights,
        "mean_weight_of_outliers": float(weights[:outliers].mean()),
        "mean_weight_of_inliers": float(weights[outliers:].mean()),
    }
    claims = [
        Claim(
            "with correspondences the camera pose is easy",
            f"without noise it is found to {exact:.0e}",
            exact < 1e-9,
        ),
        Claim(
            "the pose node has a derivative in points, images and weights",
            f"by hand and by the generic node agree to {gradient_error:.0e}",
            gradient_error < 1e-7,
        ),
        Claim(
            "weights can be learnt from the pose",
            f"rotation error {angles[0]:.2f} to {angles[-1]:.4f} degrees; mean weight of wrong matches "
            f"{numbers['mean_weight_of_outliers']:.3f}, of right ones {numbers['mean_weight_of_inliers']:.3f}",
            angles[-1] < 0.05 * angles[0]
            and numbers["mean_weight_of_outliers"] < 0.5 * numbers["mean_weight_of_inliers"],
        ),
    ]

    def draw(figure: Figure) -> None:
        view, angle, bars = panels(figure, 3, height=3.6)
        Y = X @ R.T + t
        true = Y[:, :2] / Y[:, 2:]
        right = torch.arange(points) >= outliers
        for which, marker, colour, label in ((right, "o", "C0", "right match"), (~right, "s", "C1", "wrong match")):
            for a, b in zip(true[which], x[which], strict=True):
                view.plot(*torch.stack([a, b]).T, color=colour, linewidth=0.8)
            view.plot(*x[which].T, marker, color=colour, label=label)
        view.plot(*true.T, "k.", markersize=3, label="projected by the true pose")
        view.set(
            xlabel="horizontal, focal lengths",
            ylabel="vertical, focal lengths",
            title="image",
            aspect="equal",
            adjustable="datalim",
        )
        angle.semilogy(angles)
        angle.set(xlabel="step", ylabel="rotation error, degrees", title="learning curve")
        places = torch.arange(points)
        for which, marker, colour, label in ((right, "o", "C0", "right match"), (~right, "s", "C1", "wrong match")):
            bars.vlines(places[which], 0.0, weights[which], color=colour)
            bars.plot(places[which], weights[which], marker, color=colour, label=label)
        bars.axhline(1.0, color="k", linestyle=":", label="before learning")
        bars.set(xlabel="point", ylabel="weight", title="learnt weights", ylim=(0, None))
        for axes in (view, bars):
            legend_below(axes)

    return Result(numbers, claims, draw)
