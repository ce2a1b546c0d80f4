"""Rank pooling: features of frames learnt through the regression of time on the features."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import binary_cross_entropy_with_logits, softshrink

from convexlayer.gallery.result import Claim, Result
from convexlayer.gallery.style import legend_below, panels
from convexlayer.nodes import ArgminNode

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SOURCE = "Gould et al. 2016, section 1, and the work it names: Fernando and Gould 2016 (rank pooling in networks)"

C, EPSILON = 1.0, 0.1
"""Weight and width of the insensitive loss of support vector regression."""

CHANNELS, FEATURES = 6, 8
"""Numbers a frame, and learnt features of them."""

GROWTH = 1.2
"""Range of the logarithm of the signal's amplitude, from minus this to this or back."""

Pool = Callable[[torch.Tensor], torch.Tensor]


def smoothed(features: torch.Tensor) -> torch.Tensor:
    """v_t, the mean of the features (..., T, d) up to time t."""
    count = torch.arange(1, features.shape[-2] + 1, dtype=features.dtype)
    return features.cumsum(-2) / count.unsqueeze(-1)


def residuals(u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """e_t = sign(r) max(|r| - epsilon, 0) for r = t / T - u'v_t, with (..., d) and (..., T, d)."""
    times = torch.arange(1, v.shape[-2] + 1, dtype=v.dtype) / v.shape[-2]
    return softshrink(times - (v @ u.unsqueeze(-1)).squeeze(-1), EPSILON)


def objective(u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Support vector regression of time, 1/2 |u|^2 + C/2 sum max(|t / T - u'v_t| - epsilon, 0)^2, of one sequence."""
    return 0.5 * u.square().sum() + 0.5 * C * residuals(u, v).square().sum()


def pullback(u: torch.Tensor, v: torch.Tensor, cotangent: torch.Tensor) -> torch.Tensor:
    """Cotangent of v in closed form, for one sequence.

    H = I + C sum v_t v_t' over the times with e_t != 0,    w = H^-1 (cotangent of u):    C (e_t w - (v_t'w) u)
    """
    e = residuals(u, v)
    active = (e != 0).to(v)
    H = torch.eye(len(u), dtype=u.dtype) + C * v.T @ (active.unsqueeze(-1) * v)
    w = torch.linalg.solve(H, cotangent)
    return C * (torch.outer(e, w) - torch.outer(active * (v @ w), u))


@dataclass(frozen=True)
class _Sequences:
    """Frames (count, T, channels) and the class of each sequence, 0 or 1."""

    frames: torch.Tensor
    labels: torch.Tensor


def _sequences(count: int, frames: int, generator: torch.Generator) -> _Sequences:
    """Generate sequences: one channel is noise that grows in class 1 and decays in class 0, the others are trends.

    All channels are mixed. The classes differ in the order of frames only, which no linear feature detects.
    """
    labels = torch.arange(count) % 2
    time = torch.linspace(-1, 1, frames, dtype=torch.float64)
    size = torch.exp(GROWTH * (2 * labels - 1).unsqueeze(-1) * time)
    trends = _normal(count, 1, CHANNELS - 1, generator=generator) * time.unsqueeze(-1)
    x = _normal(count, frames, CHANNELS, generator=generator)
    x = torch.cat([size.unsqueeze(-1) * x[..., :1], trends + 0.5 * x[..., 1:]], -1)
    return _Sequences(x @ _mixing(), labels.double())


def _mixing() -> torch.Tensor:
    return torch.linalg.qr(_normal(CHANNELS, CHANNELS, generator=torch.Generator().manual_seed(5))).Q


def _train(pool: Pool, data: dict[str, _Sequences], steps: int, *, learn: bool) -> dict[str, Any]:
    """Train a logistic classifier of pooled features relu(x W) with Adam, and W if ``learn`` is set."""
    W = _normal(CHANNELS, FEATURES, generator=torch.Generator().manual_seed(1)) / CHANNELS**0.5
    W.requires_grad_(learn)
    a, b = torch.zeros(FEATURES, dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    optimizer = torch.optim.Adam([part.requires_grad_() for part in (a, b)] + [W] * learn, lr=0.05)

    def score(part: _Sequences) -> torch.Tensor:
        return pool(torch.relu(part.frames @ W)) @ a + b

    losses = []
    for _ in range(steps):
        loss = binary_cross_entropy_with_logits(score(data["training"]), data["training"].labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    with torch.no_grad():
        right = {name: (score(part) > 0) == (part.labels > 0) for name, part in data.items()}
    accuracy = {name: float(each.double().mean()) for name, each in right.items()}
    return {"loss": losses, "accuracy": accuracy}


def _gradient_errors(node: ArgminNode, part: _Sequences) -> dict[str, float]:
    """Errors of a random vector-Jacobian product of the node: against the closed form and central differences."""
    generator = torch.Generator().manual_seed(2)
    W = _normal(CHANNELS, FEATURES, generator=generator) / CHANNELS**0.5
    features = torch.relu(part.frames[0] @ W).requires_grad_()
    cotangent, direction = _normal(FEATURES, generator=generator), _normal(*features.shape, generator=generator)
    v = smoothed(features)
    u = node(v)
    of_v, of_features = torch.autograd.grad(u, [v, features], cotangent)
    closed = pullback(u.detach(), v.detach(), cotangent)
    step = 1e-5
    with torch.no_grad():
        ahead, behind = (node(smoothed(features + sign * step * direction)) for sign in (1.0, -1.0))
    slope = float(cotangent @ (ahead - behind)) / (2 * step)
    return {
        "closed_form": float((of_v - closed).abs().max()),
        "finite_differences": abs(float((of_features * direction).sum()) - slope) / abs(slope),
    }


def run(*, frames: int = 20, training: int = 200, testing: int = 1000, steps: int = 150) -> Result:
    """Check the gradient, and learn features for two classes of sequences that differ in the order of frames only."""
    node = ArgminNode(objective, (FEATURES,), [(-1, FEATURES)])
    generator = torch.Generator().manual_seed(0)
    data = {
        "training": _sequences(training, frames, generator),
        "test": _sequences(testing, frames, generator),
    }
    errors = _gradient_errors(node, data["test"])

    def ranked(features: torch.Tensor) -> torch.Tensor:
        return 3.0 * node(smoothed(features))

    def mean(features: torch.Tensor) -> torch.Tensor:
        return features.mean(-2)

    ways: dict[str, tuple[Pool, bool]] = {
        "rank pooling, learnt features": (ranked, True),
        "rank pooling, fixed features": (ranked, False),
        "mean, learnt features": (mean, True),
    }
    found = {way: _train(pool, data, steps, learn=learn) for way, (pool, learn) in ways.items()}
    test = [100 * found[way]["accuracy"]["test"] for way in ways]
    numbers = {"gradient_error": errors, "trained": found}
    claims = [
        Claim(
            "the gradient of the pooled vector is that of lemma 3.2, with the inverse of I + C sum v_t v_t' over the "
            "frames outside the tube",
            f"the node's agrees with the closed form to {errors['closed_form']:.0e}, and to "
            f"{errors['finite_differences']:.0e} with central differences",
            errors["closed_form"] < 1e-10 and errors["finite_differences"] < 1e-6,
        ),
        Claim(
            "features learnt through rank pooling classify sequences better than rank pooling of fixed ones",
            f"test accuracy {test[0]:.1f} % against {test[1]:.1f} % (generated sequences)",
            test[0] > test[1],
        ),
        Claim(
            "rank pooling sees the order of the frames, which an average cannot",
            f"the mean of learnt features reaches {test[2]:.1f} % where the classes differ in their order alone",
            test[2] < min(test[:2]),
        ),
    ]

    def draw(figure: Figure) -> None:
        signal, losses, accuracies = panels(figure, 3, height=3.5)
        hidden = (data["test"].frames[:2] @ _mixing().T)[..., 0]
        for label, marker in ((0, "o-"), (1, "s--")):
            signal.plot(range(1, frames + 1), hidden[label], marker, color=f"C{4 + label}", label=f"class {label}")
        signal.set(xlabel="frame", ylabel="hidden channel", title="one sequence of each class")
        signal.locator_params(integer=True)
        for (way, result), style in zip(found.items(), ("-", "--", ":"), strict=True):
            losses.plot(result["loss"], style, label=way)
        losses.set(xlabel="step", ylabel="logistic loss", title="training", ylim=(0, None))
        bars = accuracies.bar(
            [way.removesuffix(" features").replace(" pooling", "") for way in ways], test, color=["C0", "C1", "C2"]
        )
        accuracies.bar_label(bars, fmt="%.1f", fontsize=9)
        accuracies.axhline(50, color="k", linestyle=":", label="chance")
        accuracies.grid(visible=False, axis="x")
        accuracies.set(xlabel="pooling, features", ylabel="test accuracy, %", title="classification", ylim=(0, 100))
        legend_below(signal)
        legend_below(losses, 1)
        legend_below(accuracies)

    return Result(numbers, claims, draw)


def _normal(*shape: int, generator: torch.Generator) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=generator)
