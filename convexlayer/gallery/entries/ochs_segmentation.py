"""Multi-label segmentation: a network trained through a global model, by the number of inner iterations.

    minimise over the network's weights  sum over pixels of log sum_k exp(u_k) - u_g  at the true label g,
    u = argmin <c, u> + |W D u|_1 over u in the simplex at every pixel, c the network's costs

Erratum: eq. 24 prints -g where it must read -u at label g.
"""

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
from convexlayer.gallery.style import image, legend_below

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

SOURCE = "Ochs, Ranftl, Brox and Pock 2016, section 8, figures 7 and 8 and table 1"

PARTS = ("test", "training")
MEASURES = ("accuracy", "IoU")

PAPER = {
    "FCN": {"test": {"accuracy": 92.40, "IoU": 82.65}, "training": {"accuracy": 97.54, "IoU": 92.21}},
    "FCN+Global": {"test": {"accuracy": 93.00, "IoU": 84.01}, "training": {"accuracy": 97.90, "IoU": 93.53}},
}
"""Table 1 of the paper, for a fully convolutional network on the Stanford Background dataset, %."""

EXAMPLES = 3
"""Test images in the figure."""

LABEL_COLOURS = ("#56B4E9", "#D55E00", "#009E73")


def run(
    *,
    size: int = 64,
    training: int = 24,
    testing: int = 40,
    pretraining: int = 300,
    steps: int = 40,
    inner: tuple[int, ...] = (5, 10, 20, 50, 100),
) -> Result:
    """Train a network alone; then continue alone, and through the global model with each number of inner iterations.

    The optimiser is Adam with one image per step and a rate of 1e-3, as in the paper. ``size``, the side in pixels, is
    a multiple of 4.
    """
    generator = torch.Generator().manual_seed(0)
    parts = {"training": scenes(training, size, generator), "test": scenes(testing, size, generator)}
    pretrained = Network(generator)
    train(pretrained, None, parts["training"], steps=pretraining, batch=4, rate=3e-3, seed=1)
    models = {"CNN": None, **{f"CNN+Global, {n} iterations": GlobalModel(size, n) for n in inner}}
    networks, found, seconds = {}, {}, {}
    for name, model in models.items():
        networks[name] = copy.deepcopy(pretrained)
        began = time.perf_counter()
        train(networks[name], model, parts["training"], steps=steps, batch=1, rate=1e-3, seed=2)
        seconds[name] = (time.perf_counter() - began) / steps
        found[name] = {part: _score(networks[name], model, data) for part, data in parts.items()}
    best = f"CNN+Global, {inner[-1]} iterations"
    losses = [found[name]["training"]["loss"] for name in models if name != "CNN"]
    alone, together = found["CNN"], found[best]
    table = {"CNN": alone, "CNN+Global": together}
    numbers = {
        "scores": found,
        "table_1": {name: {part: {m: row[part][m] for m in MEASURES} for part in PARTS} for name, row in table.items()},
        "table_1_of_the_paper": PAPER,
        "seconds_per_outer_iteration": seconds,
        "inner_iterations": inner,
    }
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
                f"table 1, {part}: the global model is better than the network alone, "
                + " and ".join(f"{PAPER['FCN'][part][m]} -> {PAPER['FCN+Global'][part][m]} % of {m}" for m in MEASURES)
                + " (Stanford Background)",
                " and ".join(f"{100 * alone[part][m]:.2f} -> {100 * together[part][m]:.2f} % of {m}" for m in MEASURES)
                + " (generated scenes)",
                all(together[part][m] > alone[part][m] for m in MEASURES),
            )
            for part in PARTS
        ),
    ]

    def draw(figure: Figure) -> None:
        figure.set_size_inches(13.5, 6.4)
        left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=[1.0, 1.05])[0]
        loss_axes, accurate, slow, rows = left.subplots(2, 2).flat
        _draw_scores(loss_axes, accurate, inner, found)
        slow.plot(inner, [seconds[name] for name in models if name != "CNN"], "o-")
        slow.set(ylabel="seconds an outer iteration", ylim=(0, None), title="CNN+Global: time")
        for axes in (loss_axes, accurate, slow):
            axes.set_xlabel("inner iterations")
        for axes in (loss_axes, accurate):
            legend_below(axes, 2, columnspacing=1.0, handlelength=1.6)
        _draw_table(rows, table)
        shown = parts["test"].images[:EXAMPLES]
        alone, through = (scores(networks[way], models[way], shown).detach().argmax(1) for way in ("CNN", best))
        truth = parts["test"].labels[:EXAMPLES]
        _draw_maps(right, {"image": shown.movedim(1, -1), "CNN": alone, "CNN+Global": through, "ground truth": truth})

    return Result(numbers, claims, draw)


def _draw_scores(
    loss_axes: Axes, accurate: Axes, inner: tuple[int, ...], found: dict[str, dict[str, dict[str, float]]]
) -> None:
    """Draw loss and accuracy by the number of inner iterations, and the accuracy of the network alone."""
    through = [by_part for name, by_part in found.items() if name != "CNN"]
    for part, style, colour in (("training", "o-", "C0"), ("test", "s--", "C1")):
        loss_axes.plot(inner, [each[part]["loss"] for each in through], style, color=colour, label=part)
        series = [100 * each[part]["accuracy"] for each in through]
        accurate.plot(inner, series, style, color=colour, label=f"Global, {part}")
        accurate.axhline(100 * found["CNN"][part]["accuracy"], color=colour, linestyle=":", label=f"CNN, {part}")
    loss_axes.set(ylabel="softmax loss a pixel", title="CNN+Global: loss")
    accurate.set(ylabel="pixel accuracy, %", title="accuracy")


def _draw_maps(figure: SubFigure, columns: dict[str, torch.Tensor]) -> None:
    """Draw images (EXAMPLES, height, width, 3) and label maps (EXAMPLES, height, width) in columns with titles."""
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch

    for row, places in enumerate(figure.subplots(EXAMPLES, len(columns))):
        for axes, (title, column) in zip(places, columns.items(), strict=True):
            axes.imshow(column[row].numpy(), cmap=ListedColormap(LABEL_COLOURS), vmin=0, vmax=len(LABELS) - 1)
            axes.set_title(title if row == 0 else None)
            image(axes)
    handles = [Patch(color=colour, label=label) for colour, label in zip(LABEL_COLOURS, LABELS, strict=True)]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(LABELS))


def _draw_table(axes: Axes, table: dict[str, dict[str, dict[str, float]]]) -> None:
    """Table 1: ours in the first two rows, the paper's below."""
    axes.set_axis_off()
    axes.set_title("table 1, % (the paper: Stanford Background)")
    rows = [[name, *(f"{100 * row[part][m]:.2f}" for part in PARTS for m in MEASURES)] for name, row in table.items()]
    rows += [[f"{name}, paper", *(f"{row[p][m]:.2f}" for p in PARTS for m in MEASURES)] for name, row in PAPER.items()]
    heads = ["", *(f"{part}\n{'Acc' if m == 'accuracy' else 'IoU'}" for part in PARTS for m in MEASURES)]
    drawn = axes.table([heads, *rows], loc="center", edges="horizontal", colWidths=[0.44, 0.18, 0.18, 0.22, 0.22])
    drawn.auto_set_font_size(False)
    drawn.set_fontsize(9)
    for (row, _), cell in drawn.get_celld().items():
        cell.set_height(0.22 if row == 0 else 0.12)
        cell.set_linewidth(0.6)
        cell.PAD = 0.03


def _score(network: Network, model: GlobalModel | None, data: Batch) -> dict[str, float]:
    with torch.no_grad():
        given = scores(network, model, data.images)
    return {
        "loss": float(loss(given, data.labels)),
        "accuracy": accuracy(given, data.labels),
        "IoU": intersection_over_union(given, data.labels),
    }


def _percent(found: dict[str, dict[str, dict[str, float]]], iterations: int) -> float:
    return round(100 * found[f"CNN+Global, {iterations} iterations"]["training"]["accuracy"], 2)
