"""Multi-label segmentation: a network trained through a global model, by the number of inner iterations."""

from __future__ import annotations

import copy
import time
from itertools import pairwise
from typing import TYPE_CHECKING

import torch

from convexlayer.gallery.result import Claim, Result
from convexlayer.gallery.segmentation import (
    LABELS,
    Batch,
    GlobalModel,
    Network,
    accuracy,
    intersection_over_union,
    loss,
    scenes,
    scores,
    train,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SOURCE = "Ochs, Ranftl, Brox and Pock 2016, section 8, figures 7 and 8 and table 1"


def run(
    *,
    size: int = 24,
    training: int = 9,
    testing: int = 40,
    pretraining: int = 400,
    steps: int = 60,
    inner: tuple[int, ...] = (5, 10, 20, 50, 100),
) -> Result:
    """Train a network alone; then go on alone, and through the global model with each number of inner iterations."""
    generator = torch.Generator().manual_seed(0)
    parts = {"training": scenes(training, size, generator), "test": scenes(testing, size, generator)}
    pretrained = Network(generator)
    train(pretrained, None, parts["training"], steps=pretraining, batch=4, rate=1e-2, seed=1)
    models = {"CNN": None, **{f"CNN+Global, {n} iterations": GlobalModel(size, n) for n in inner}}
    networks, found, seconds = {}, {}, {}
    for name, model in models.items():
        networks[name] = copy.deepcopy(pretrained)
        began = time.perf_counter()
        train(networks[name], model, parts["training"], steps=steps, batch=4, rate=1e-2, seed=2)
        seconds[name] = (time.perf_counter() - began) / steps
        found[name] = {part: _score(networks[name], model, data) for part, data in parts.items()}
    best = f"CNN+Global, {inner[-1]} iterations"
    losses = [found[name]["training"]["loss"] for name in models if name != "CNN"]
    alone, together = found["CNN"], found[best]
    numbers = {"scores": found, "seconds_per_outer_iteration": seconds, "inner_iterations": inner}
    claims = [
        Claim(
            "figure 7: a higher number of inner iterations clearly leads to lower training error",
            f"the loss falls from {losses[0]:.4f} with {inner[0]} to {losses[-1]:.4f} with {inner[-1]}, with each more",
            all(after < before for before, after in pairwise(losses)),
        ),
        Claim(
            "figure 7: and to a higher per-pixel accuracy",
            f"from {_percent(found, inner[0])} to {_percent(found, inner[-1])} % in training",
            _percent(found, inner[-1]) > _percent(found, inner[0]),
        ),
        *(
            Claim(
                f"table 1, {part}: the global model is better than the network alone, {paper[0]} -> {paper[1]} % of "
                f"accuracy and {paper[2]} -> {paper[3]} % of IoU (Stanford Background)",
                f"{100 * alone[part]['accuracy']:.2f} -> {100 * together[part]['accuracy']:.2f} % and "
                f"{100 * alone[part]['iou']:.2f} -> {100 * together[part]['iou']:.2f} % (generated scenes)",
                together[part]["accuracy"] > alone[part]["accuracy"] and together[part]["iou"] > alone[part]["iou"],
            )
            for part, paper in (
                ("test", ("92.40", "93.00", "82.65", "84.01")),
                ("training", ("97.54", "97.90", "92.21", "93.53")),
            )
        ),
    ]

    def draw(figure: Figure) -> None:
        figure.set_size_inches(13, 9)
        axes = figure.subplots(3, 4)
        curves = {
            "average loss a pixel, training": losses,
            "accuracy, training": [found[name]["training"]["accuracy"] for name in models if name != "CNN"],
            "accuracy, test": [found[name]["test"]["accuracy"] for name in models if name != "CNN"],
            "seconds an outer iteration": [seconds[name] for name in models if name != "CNN"],
        }
        for axis, (title, series) in zip(axes[0], curves.items(), strict=True):
            axis.plot(inner, series, "o-")
            axis.set(title=title, xlabel="inner iterations")
            if title.startswith("accuracy"):
                axis.axhline(found["CNN"][title.partition(", ")[2]]["accuracy"], color="k", linestyle=":", label="CNN")
                axis.legend()
        for row, axis_row in enumerate(axes[1:]):
            image = parts["test"].images[row]
            maps = [scores(networks[name], models[name], image[None]).detach().argmax(1)[0] for name in ("CNN", best)]
            axis_row[0].imshow(image.movedim(0, -1).clamp(0, 1))
            for axis, labels in zip(axis_row[1:], [*maps, parts["test"].labels[row]], strict=True):
                axis.imshow(labels, vmin=0, vmax=len(LABELS) - 1, interpolation="nearest")
            for axis, title in zip(axis_row, ("image", "CNN", "CNN+Global", "ground truth"), strict=True):
                axis.set(title=title, xticks=[], yticks=[])

    return Result(numbers, claims, draw)


def _score(network: Network, model: GlobalModel | None, data: Batch) -> dict[str, float]:
    with torch.no_grad():
        given = scores(network, model, data.images)
    return {
        "loss": float(loss(given, data.labels)),
        "accuracy": accuracy(given, data.labels),
        "iou": intersection_over_union(given, data.labels),
    }


def _percent(found: dict[str, dict[str, dict[str, float]]], iterations: int) -> float:
    return round(100 * found[f"CNN+Global, {iterations} iterations"]["training"]["accuracy"], 2)
