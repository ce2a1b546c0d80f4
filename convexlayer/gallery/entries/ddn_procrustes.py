"""Guided neural collapse: the classifier is the simplex frame nearest to the class means."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

import torch

from convexlayer.gallery.neural_collapse import TrainingCurves, class_means, collapse_measures, draw_training_curves
from convexlayer.gallery.result import Claim, Result
from convexlayer.nodes import ArgminNode, NodeOptions, nearest_simplex_etf, orthogonal_procrustes, rotation_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SOURCE = "Gould 2026, slides: neural collapse, equiangular tight frames, guiding neural collapse, results (UFM-10)"


def _train(K: int, d: int, each: int, steps: int, *, guided: bool) -> TrainingCurves:
    """Gradient descent on the features H (d, K * each) of the unconstrained features model, and on W unless guided."""
    generator = torch.Generator().manual_seed(0)
    H = torch.randn(d, K * each, dtype=torch.float64, generator=generator).requires_grad_()
    W = torch.randn(d, K, dtype=torch.float64, generator=generator).requires_grad_()
    labels = torch.arange(K).repeat_interleave(each)
    optimiser = torch.optim.SGD([H] if guided else [H, W], lr=5.0, momentum=0.9)
    curve: TrainingCurves = defaultdict(list)
    for _ in range(steps):
        features = torch.nn.functional.normalize(H, dim=0)
        means = class_means(features, labels, K)
        centred = means - means.mean(1, keepdim=True)
        classifier = nearest_simplex_etf(centred) if guided else torch.nn.functional.normalize(W, dim=0)
        loss = torch.nn.functional.cross_entropy(5.0 * features.T @ classifier, labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        for key, value in {
            "loss": loss.item(),
            **collapse_measures(features.detach(), labels, classifier.detach()),
        }.items():
            curve[key].append(value)
    return curve


def _procrustes_errors() -> tuple[float, float]:
    """Errors of a known rotation, and of its gradient against an implicit node in the rotation vector."""
    generator = torch.Generator().manual_seed(0)
    B = torch.randn(3, 12, dtype=torch.float64, generator=generator)
    R = rotation_of(torch.tensor([0.3, -1.0, 0.5], dtype=torch.float64))
    noise = torch.randn(3, 12, dtype=torch.float64, generator=generator)
    error = float((orthogonal_procrustes(R @ B, B, rotation=True) - R).abs().max())
    A = (R @ B + 0.1 * noise).requires_grad_()
    U = orthogonal_procrustes(A, B, rotation=True)
    options = NodeOptions(start=torch.zeros(3, dtype=torch.float64))
    node = ArgminNode(
        lambda omega, A, U: (A - rotation_of(omega) @ U @ B).square().sum(), (3,), [(3, 12), (3, 3)], options=options
    )
    V = rotation_of(node(A, U.detach())) @ U.detach()
    cotangent = torch.randn(3, 3, dtype=torch.float64, generator=generator)
    (ours,), (theirs,) = (torch.autograd.grad(result, A, cotangent) for result in (U, V))
    return error, float((ours - theirs).abs().max())


def run(*, K: int = 10, d: int = 16, each: int = 10, steps: int = 150) -> Result:
    """Train features of K classes with a learnt classifier and with a guided one."""
    rotation_error, gradient_error = _procrustes_errors()
    curves = {name: _train(K, d, each, steps, guided=guided) for name, guided in (("learnt", False), ("guided", True))}
    quarter = steps // 4
    early = {name: {key: values[quarter] for key, values in curve.items()} for name, curve in curves.items()}
    numbers: dict[str, Any] = {
        "rotation_error": rotation_error,
        "rotation_gradient_error_to_implicit": gradient_error,
        "curves": curves,
        "after_a_quarter": early,
    }
    last = {key: values[-1] for key, values in curves["guided"].items()}
    claims = [
        Claim(
            "minimising |A - U B| over orthogonal U is differentiable",
            f"a known rotation is found to {rotation_error:.0e}; gradient by hand and implicit agree to "
            f"{gradient_error:.0e}",
            max(rotation_error, gradient_error) < 1e-9,
        ),
        Claim(
            "projecting the class means onto the nearest simplex ETF speeds up collapse (cross-entropy, NC1, NC3)",
            "after a quarter of the steps, guided against learnt: "
            + ", ".join(
                f"{what} {early['guided'][key]:.1e} / {early['learnt'][key]:.1e}"
                for what, key in (("loss", "loss"), ("NC1", "nc1"), ("NC3", "nc3"))
            ),
            all(early["guided"][key] < early["learnt"][key] for key in ("loss", "nc1", "nc3")),
        ),
        Claim(
            "the means become a simplex frame (NC2), and the classifier selects the nearest of them (NC4)",
            f"in the end, guided: norms {last['nc2_norms']:.0e} and angles {last['nc2_angles']:.0e} from a frame's, "
            f"{100 * last['nc4']:.0f} % of the features classified otherwise",
            max(last["nc2_norms"], last["nc2_angles"]) < 0.1 and last["nc4"] == 0.0,
        ),
    ]

    def draw(figure: Figure) -> None:
        draw_training_curves(figure, {f"{name} classifier": curve for name, curve in curves.items()}, "step")

    return Result(numbers, claims, draw)
