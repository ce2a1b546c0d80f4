"""Guiding neural collapse: a classifier that is always the simplex frame nearest to the class means."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from convexlayer.gallery.result import Claim, Result
from convexlayer.gallery.style import panels
from convexlayer.nodes import ArgminNode, NodeOptions, nearest_simplex_etf, orthogonal_procrustes, rotation_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SOURCE = "Gould 2026, slides: neural collapse, equiangular tight frames, guiding neural collapse, results (UFM-10)"


@dataclass
class _Curves:
    """One entry a step: cross-entropy, variability collapse, distance of classifier and centred means."""

    loss: list[float] = field(default_factory=list)
    nc1: list[float] = field(default_factory=list)
    nc3: list[float] = field(default_factory=list)


def _centred_means(H: torch.Tensor, K: int) -> torch.Tensor:
    means = H.unflatten(1, (K, -1)).mean(-1)
    return means - means.mean(1, keepdim=True)


def _train(K: int, d: int, each: int, steps: int, *, guided: bool) -> _Curves:
    """Gradient descent on the features H (d, K each) of the unconstrained features model, and on W unless guided."""
    generator = torch.Generator().manual_seed(0)
    H = torch.randn(d, K * each, dtype=torch.float64, generator=generator).requires_grad_()
    W = torch.randn(d, K, dtype=torch.float64, generator=generator).requires_grad_()
    labels = torch.arange(K).repeat_interleave(each)
    optimiser = torch.optim.SGD([H] if guided else [H, W], lr=5.0, momentum=0.9)
    curves = _Curves()
    for _ in range(steps):
        features = torch.nn.functional.normalize(H, dim=0)
        means = _centred_means(features, K)
        classifier = nearest_simplex_etf(means) if guided else torch.nn.functional.normalize(W, dim=0)
        loss = torch.nn.functional.cross_entropy(5.0 * features.T @ classifier, labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        with torch.no_grad():
            within = features - means[:, labels] - features.mean(1, keepdim=True)
            curves.loss.append(float(loss))
            curves.nc1.append(float(within.square().sum() / each / means.square().sum()))
            curves.nc3.append(float((classifier / classifier.norm() - means / means.norm()).norm()))
    return curves


def _procrustes_errors() -> tuple[float, float]:
    """Of a known rotation, and of its gradient against an implicit node on the rotation vector about the solution."""
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
    early = {name: (c.loss[quarter], c.nc1[quarter], c.nc3[quarter]) for name, c in curves.items()}
    numbers: dict[str, Any] = {
        "rotation_error": rotation_error,
        "rotation_gradient_error_to_implicit": gradient_error,
        "cross_entropy": {name: c.loss for name, c in curves.items()},
        "nc1": {name: c.nc1 for name, c in curves.items()},
        "nc3": {name: c.nc3 for name, c in curves.items()},
        "after_a_quarter": early,
    }
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
                f"{what} {guided:.1e} / {learnt:.1e}"
                for what, guided, learnt in zip(("loss", "NC1", "NC3"), early["guided"], early["learnt"], strict=True)
            ),
            all(guided < learnt for guided, learnt in zip(early["guided"], early["learnt"], strict=True)),
        ),
    ]

    def draw(figure: Figure) -> None:
        shown = {
            "loss": ("cross-entropy", "cross-entropy"),
            "nc1": ("variability collapse (NC1)", r"$\mathrm{tr}\,\Sigma_W / \mathrm{tr}\,\Sigma_B$"),
            "nc3": ("self-duality (NC3)", "distance of classifier and means"),
        }
        places = panels(figure, 3, height=3.2)
        for axes, (key, (title, label)) in zip(places, shown.items(), strict=True):
            for (name, c), style in zip(curves.items(), ("--", "-"), strict=True):
                axes.semilogy(getattr(c, key), style, label=f"{name} classifier")
            axes.set(xlabel="step", ylabel=label, title=title)
        figure.legend(*places[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)

    return Result(numbers, claims, draw)
