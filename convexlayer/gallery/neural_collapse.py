"""Measures of neural collapse: how features and classifier converge during training.

With the centred class means m_k as columns of M (d, K) and the classifier's columns W (d, K):

    NC1   mean |h_i - mean of its class|^2 / mean |m_k|^2                                variability within the classes
    NC2   deviation of |m_k| over their mean;    mean |cos(m_j, m_k) + 1 / (K - 1)| over j != k     simplex frame
    NC3   |W / |W| - M / |M||                                                            self-duality
    NC4   share of the features whose class by W is not that of the nearest class mean   nearest class centre

All tend to zero. References: Papyan, Han and Donoho, Prevalence of neural collapse during the terminal phase of deep
learning training, 2020. Gould 2026, slides: neural collapse.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from convexlayer.gallery.style import panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["TrainingCurves", "class_means", "collapse_measures", "draw_training_curves"]

TrainingCurves = dict[str, list[float]]
"""Cross-entropy and the measures by name, with one number per step."""

LABELS = {
    "loss": ("cross-entropy", "mean loss"),
    "nc1": ("NC1: variability within the classes", "variance, within over between"),
    "nc2_norms": ("NC2: norms of the class means", "relative deviation"),
    "nc2_angles": ("NC2: angles against a simplex frame", "mean deviation of the cosines"),
    "nc3": ("NC3: classifier against class means", "distance, both of norm 1"),
    "nc4": ("NC4: classifier against nearest mean", "share of features that differ"),
}
"""Title and y label of each panel."""


def class_means(features: torch.Tensor, labels: torch.Tensor, K: int) -> torch.Tensor:
    """Class means (d, K) of features (d, count)."""
    member = torch.nn.functional.one_hot(labels, K).to(features)
    return features @ member / member.sum(0)


def collapse_measures(features: torch.Tensor, labels: torch.Tensor, classifier: torch.Tensor) -> dict[str, float]:
    """Compute the measures of features (d, count) with labels (count,) and a classifier (d, K) without offset."""
    K = classifier.shape[1]
    means = class_means(features, labels, K)
    centred = means - means.mean(1, keepdim=True)
    sizes = torch.linalg.vector_norm(centred, dim=0)
    cosines = (centred / sizes).T @ (centred / sizes)
    between_classes = cosines[~torch.eye(K, dtype=torch.bool)]
    chosen = (features.T @ classifier).argmax(1)
    nearest = torch.cdist(features.T, means.T).argmin(1)
    return {
        "nc1": float((features - means[:, labels]).square().sum(0).mean() / sizes.square().mean()),
        "nc2_norms": float(sizes.std(correction=0) / sizes.mean()),
        "nc2_angles": float((between_classes + 1.0 / (K - 1)).abs().mean()),
        "nc3": float((classifier / classifier.norm() - centred / centred.norm()).norm()),
        "nc4": float((chosen != nearest).double().mean()),
    }


def draw_training_curves(figure: Figure, curves: Mapping[str, TrainingCurves], step: str) -> None:
    """Draw a panel for the cross-entropy and for each measure, with a line per training run."""
    places = panels(figure, 3, 2)
    for axes, (key, (title, quantity)) in zip(places, LABELS.items(), strict=True):
        for (name, curve), style in zip(curves.items(), ("-", "--", ":", "-."), strict=False):
            axes.plot(curve[key], style, label=name)
        axes.set(xlabel=step, ylabel=quantity, title=title, yscale="linear" if key == "nc4" else "log")
    figure.legend(*places[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(curves))
