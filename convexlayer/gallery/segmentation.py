"""Multi-label segmentation with a global model behind a small network: Ochs et al. (2016), section 8.

    u(c) = argmin over u, u[:, pixel] in the simplex, of <c, u> + |W D u|_1,        eq. 22,

by the ergodic primal-dual algorithm with entropies (examples 6 and 7), as a function of the costs c that the network
gives. Scenes are generated: a sky, ground below a wavy horizon, and objects that stand on it, in colours that overlap.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from convexlayer.nodes import BoxEntropy, FixedPointNode, PrimalDual, SimplexEntropy, Unrolled

__all__ = [
    "LABELS",
    "Batch",
    "GlobalModel",
    "Network",
    "accuracy",
    "differences",
    "differences_adjoint",
    "intersection_over_union",
    "loss",
    "scenes",
    "scores",
    "train",
]

LABELS = ("sky", "vertical", "horizontal")
COLOURS = torch.tensor([[0.55, 0.65, 0.80], [0.60, 0.50, 0.50], [0.45, 0.55, 0.40]])
NOISE = 0.22
SMOOTHNESS = 0.6  # of the boundary length, before contrast
CONTRAST = 6.0


@dataclass(frozen=True)
class Batch:
    """Images (batch, 3, size, size) and their labels (batch, size, size)."""

    images: torch.Tensor
    labels: torch.Tensor

    def minibatches(self, size: int, generator: torch.Generator) -> Iterator[Batch]:
        """Random parts of the batch, without end."""
        while True:
            rows = torch.randint(len(self.images), (size,), generator=generator)
            yield Batch(self.images[rows], self.labels[rows])


def scenes(count: int, size: int, generator: torch.Generator) -> Batch:
    """Scenes with their true segmentation."""
    rows, columns = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    labels = torch.zeros(count, size, size, dtype=torch.int64)
    for label in labels:
        height, swing, phase = torch.rand(3, generator=generator).tolist()
        horizon = size * (0.45 + 0.2 * height + 0.06 * swing * torch.sin(columns / size * 6.0 + 6.0 * phase))
        label[rows >= horizon] = LABELS.index("horizontal")
        for _ in range(3):
            place, width, top = torch.rand(3, generator=generator).tolist()
            within = (columns - place * size).abs() < size * (0.05 + 0.09 * width)
            foot = horizon + 0.1 * size
            label[within & (rows < foot) & (rows > horizon - size * (0.15 + 0.3 * top))] = LABELS.index("vertical")
    shade = 1 + 0.15 * torch.randn(count, 1, 1, 1, generator=generator)
    noise = NOISE * torch.randn(count, 3, size, size, generator=generator)
    return Batch(shade * COLOURS[labels].movedim(-1, 1) + noise, labels)


class Network(torch.nn.Module):
    """Costs (batch, labels, size, size) of each label at each pixel, from its near surroundings."""

    def __init__(self, generator: torch.Generator, channels: int = 8) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Conv2d(3, channels, 3, padding=1),
            torch.nn.ReLU(),
            torch.nn.Conv2d(channels, len(LABELS), 3, padding=1),
        )
        self.scale = torch.nn.Parameter(torch.tensor(1.0))  # the paper's multiplicative scaling before the global model
        with torch.no_grad():
            for parameter in self.layers.parameters():
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """The costs."""
        costs: torch.Tensor = -self.scale * self.layers(images)
        return costs


class GlobalModel:
    """The segmentation model, as a layer: costs and images -> u (batch, labels, size, size).

    Args:
        size: pixels a side.
        iterations: of the primal-dual algorithm.
    """

    def __init__(self, size: int, iterations: int) -> None:
        pixels, edges = (len(LABELS), size, size), (2, len(LABELS), size, size)
        step = 8.0**-0.5  # |W D|^2 <= 8, as W <= 1
        self._algorithm = PrimalDual(
            gradient=lambda u, costs, weights: costs,
            product=lambda u, costs, weights: weights * differences(u),
            adjoint=lambda p, costs, weights: differences_adjoint(weights * p),
            tau=step,
            sigma=step,
            primal_shape=pixels,
            dual_shape=edges,
            primal=SimplexEntropy(dim=0),
            dual=BoxEntropy(),
        )
        start = self._algorithm.pack(torch.full(pixels, 1 / len(LABELS)), torch.zeros(edges))
        self._node = FixedPointNode(
            self._algorithm,
            self._algorithm.shape,
            [pixels, (2, 1, size, size)],
            start=start,
            derivative=Unrolled(iterations, average=True),
        )

    def __call__(self, costs: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
        """The relaxed segmentation."""
        grey = images.mean(1, keepdim=True)
        weights = SMOOTHNESS * torch.exp(-CONTRAST * torch.func.vmap(differences)(grey).square())
        u, _ = self._algorithm.unpack(self._node(costs, weights))
        return u


def loss(scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Softmax loss a pixel, eq. 24."""
    return torch.nn.functional.cross_entropy(scores, labels)


def accuracy(scores: torch.Tensor, labels: torch.Tensor) -> float:
    """Share of the pixels whose largest score is that of their label."""
    return float((scores.argmax(1) == labels).double().mean())


def intersection_over_union(scores: torch.Tensor, labels: torch.Tensor) -> float:
    """Pixels that have a label both in truth and by score, over those that have it in either; the mean over labels."""
    chosen = scores.argmax(1)
    shares = [((chosen == k) & (labels == k)).sum() / ((chosen == k) | (labels == k)).sum() for k in range(len(LABELS))]
    return float(torch.stack(shares).mean())


def train(
    network: Network, model: GlobalModel | None, data: Batch, *, steps: int, batch: int, rate: float, seed: int
) -> None:
    """Adam on the softmax loss of the network alone, or of the global model behind it."""
    optimizer = torch.optim.Adam(network.parameters(), lr=rate)
    minibatches = data.minibatches(batch, torch.Generator().manual_seed(seed))
    for _, part in zip(range(steps), minibatches, strict=False):
        optimizer.zero_grad()
        loss(scores(network, model, part.images), part.labels).backward()
        optimizer.step()


def scores(network: Network, model: GlobalModel | None, images: torch.Tensor) -> torch.Tensor:
    """What the labels are chosen by: the network's negative costs, or the global model's u."""
    costs = network(images)
    return -costs if model is None else model(costs, images)


def differences(u: torch.Tensor) -> torch.Tensor:
    """Forward differences (2, labels, size, size) of u (labels, size, size), zero at the far edges."""
    down = torch.nn.functional.pad(u[:, 1:] - u[:, :-1], (0, 0, 0, 1))
    right = torch.nn.functional.pad(u[:, :, 1:] - u[:, :, :-1], (0, 1))
    return torch.stack([down, right])


def differences_adjoint(p: torch.Tensor) -> torch.Tensor:
    """The adjoint of the differences, minus a divergence."""
    down, right = p[0, :, :-1], p[1, :, :, :-1]
    pad = torch.nn.functional.pad
    return pad(down, (0, 0, 1, 0)) - pad(down, (0, 0, 0, 1)) + pad(right, (1, 0)) - pad(right, (0, 1))
