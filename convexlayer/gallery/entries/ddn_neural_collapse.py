"""Neural collapse in a network, with a learnt classifier, a fixed frame, and the frame nearest to the class means."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import cross_entropy, normalize

from convexlayer.gallery.neural_collapse import TrainingCurves, class_means, collapse_measures, draw_training_curves
from convexlayer.gallery.result import Claim, Result
from convexlayer.nodes import nearest_simplex_etf

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SOURCE = "Gould 2026, slides: neural collapse, guiding neural collapse"

K, HIDDEN, FEATURES = 10, 64, 16
"""Classes, units of both hidden layers, and features."""

TEMPERATURE = 10.0
"""Factor of the logits: features and class vectors have unit length, so logits lie in [-10, 10]."""

LEARNT, FIXED, GUIDED, CONSTANT = "learnt", "fixed frame", "nearest frame", "nearest frame, as a constant"

SHORT = {"nc1": "NC1", "nc2_norms": "NC2 (norms)", "nc2_angles": "NC2 (angles)", "nc3": "NC3", "nc4": "NC4"}


@dataclass(frozen=True)
class _Digits:
    """Images (count, 64) and their classes (count,)."""

    images: torch.Tensor
    labels: torch.Tensor


def _digits(training: int) -> tuple[_Digits, _Digits]:
    """Load scikit-learn's digits: ``training`` images for training, the others for testing."""
    from sklearn.datasets import load_digits

    data = load_digits()
    images, labels = torch.as_tensor(data.data) / 16.0, torch.as_tensor(data.target)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    train, test = (_Digits(images[rows], labels[rows]) for rows in (order[:training], order[training:]))
    return train, test


def _train(way: str, train: _Digits, test: _Digits, epochs: int, seed: int) -> tuple[TrainingCurves, float]:
    """Train by full-batch gradient descent; returns the training curves and the final test accuracy.

    Features are the normalised outputs of two hidden layers; the classifier has columns of norm 1 and no offset.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(rows: int, columns: int) -> torch.Tensor:
        return torch.randn(rows, columns, dtype=torch.float64, generator=generator)

    sizes = (train.images.shape[1], HIDDEN, HIDDEN, FEATURES)
    layers = [(normal(n, m) * (2.0 / n) ** 0.5).requires_grad_() for n, m in pairwise(sizes)]
    learnt, frame = normal(FEATURES, K).requires_grad_(), nearest_simplex_etf(normal(FEATURES, K))

    def features(images: torch.Tensor) -> torch.Tensor:
        first, second, last = layers
        return normalize(torch.relu(torch.relu(images @ first) @ second) @ last).T

    def classifier(h: torch.Tensor) -> torch.Tensor:
        if way == LEARNT:
            return normalize(learnt, dim=0)
        if way == FIXED:
            return frame
        means = class_means(h, train.labels, K)
        nearest = nearest_simplex_etf(means - means.mean(1, keepdim=True))
        return nearest if way == GUIDED else nearest.detach()

    optimizer = torch.optim.SGD([*layers, *[learnt] * (way == LEARNT)], lr=0.1, momentum=0.9, weight_decay=5e-4)
    curve: TrainingCurves = defaultdict(list)
    for _ in range(epochs):
        h = features(train.images)
        W = classifier(h)
        loss = cross_entropy(TEMPERATURE * h.T @ W, train.labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        for key, value in {"loss": loss.item(), **collapse_measures(h.detach(), train.labels, W.detach())}.items():
            curve[key].append(value)
    with torch.no_grad():
        chosen = (features(test.images).T @ classifier(features(train.images))).argmax(1)
    return curve, float((chosen == test.labels).double().mean())


def run(*, training: int = 500, epochs: int = 300, seeds: int = 5) -> Result:
    """Train a small network on digits with each classifier; numbers are medians over the seeds."""
    train, test = _digits(training)
    curves: dict[str, TrainingCurves] = {}
    accuracy: dict[str, float] = {}
    for way in (LEARNT, FIXED, GUIDED, CONSTANT):
        runs = [_train(way, train, test, epochs, seed) for seed in range(seeds)]
        curves[way] = {
            key: [median(values) for values in zip(*(curve[key] for curve, _ in runs), strict=True)]
            for key in runs[0][0]
        }
        accuracy[way] = median(score for _, score in runs)
    last = {way: {key: values[-1] for key, values in curve.items()} for way, curve in curves.items()}
    agreed = {way: _first_below(curve["nc4"], 0.01) for way, curve in curves.items()}
    numbers = {"curves": curves, "last": last, "test_accuracy": accuracy, "nc4_below_1_percent_after": agreed}
    early = epochs // 10
    begun = {key: curves[LEARNT][key][early - 1] for key in SHORT}
    claims = [
        Claim(
            "NC1 to NC4: features, their means and the classifier collapse as training goes on",
            f"learnt classifier, epoch {early} -> {epochs}: "
            + ", ".join(f"{what} {begun[key]:.2g} -> {last[LEARNT][key]:.2g}" for key, what in SHORT.items()),
            all(last[LEARNT][key] < begun[key] for key in SHORT),
        ),
        Claim(
            "the classifier that is the simplex frame nearest to the class means speeds up collapse",
            f"as a constant of each epoch, against a learnt one after {epochs}: {_against(last, CONSTANT)}; a fixed "
            f"frame: {_against(last, FIXED)}",
            all(last[CONSTANT][key] < last[LEARNT][key] for key in ("loss", "nc1", "nc3")),
        ),
        Claim(
            "and its derivative takes part, as that of a declarative node",
            f"in this network it slows collapse: {_against(last, GUIDED)}",
            all(last[GUIDED][key] < last[CONSTANT][key] for key in ("loss", "nc1", "nc3")),
        ),
        Claim(
            "NC4: the classifier selects the class whose mean is closest",
            "for more than 99 % of the images after "
            + ", ".join(f"{count:g} ({way})" for way, count in agreed.items())
            + " epochs; test accuracy "
            + ", ".join(f"{100 * score:.1f}" for score in accuracy.values())
            + " %",
            max(agreed.values()) < epochs,
        ),
    ]

    def draw(figure: Figure) -> None:
        draw_training_curves(figure, curves, "epoch")

    return Result(numbers, claims, draw)


def _first_below(values: list[float], level: float) -> float:
    """Number of epochs after which all values are below the level; infinite if the last is not."""
    above = [number for number, value in enumerate(values, 1) if value >= level]
    if not above:
        return 0.0
    return float("inf") if above[-1] == len(values) else float(above[-1])


def _against(last: dict[str, dict[str, float]], way: str) -> str:
    measures = (("loss", "loss"), ("NC1", "nc1"), ("NC3", "nc3"))
    return ", ".join(f"{what} {last[way][key]:.2g} / {last[LEARNT][key]:.2g}" for what, key in measures)
