"""Multi-label segmentation with a variational model after a small network: Ochs et al. (2016), section 8.

    u(c) = argmin over u, u[:, pixel] in the simplex, of <c, u> + |W D u|_1,        eq. 22,

by the ergodic primal-dual algorithm with entropies (examples 6 and 7), as a function of the network's costs c. Scenes
are generated: a sky with clouds, and below a wavy horizon a road, houses and trees. Colours do not determine the
labels: clouds look like white walls, windows like sky, trees like grass, roads like grey walls.
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
NOISE = 0.06
"""Standard deviation of the noise of a pixel, whose values are 0 to 1."""

SMOOTHNESS = 0.6
"""Weight of the boundary length where the image is constant."""

CONTRAST = 20.0
"""Decay of that weight with the squared difference of neighbouring pixels."""


@dataclass(frozen=True)
class Batch:
    """Images (batch, 3, size, size) and their labels (batch, size, size)."""

    images: torch.Tensor
    labels: torch.Tensor

    def minibatches(self, size: int, generator: torch.Generator) -> Iterator[Batch]:
        """Yield random minibatches indefinitely."""
        while True:
            rows = torch.randint(len(self.images), (size,), generator=generator)
            yield Batch(self.images[rows], self.labels[rows])


def scenes(count: int, size: int, generator: torch.Generator) -> Batch:
    """Generate scenes with their true segmentation."""
    painted = [_Scene(size, generator).paint() for _ in range(count)]
    images, labels = (torch.stack(part) for part in zip(*painted, strict=True))
    shade = 1.0 + 0.1 * torch.randn(count, 1, 1, 1, generator=generator)
    return Batch((shade * images + NOISE * torch.randn(images.shape, generator=generator)).clamp(0.0, 1.0), labels)


class _Scene:
    """One scene, painted back to front; positions and sizes are relative to the image side, with y downwards."""

    def __init__(self, size: int, generator: torch.Generator) -> None:
        self._generator = generator
        middles = (torch.arange(size) + 0.5) / size
        self._y, self._x = torch.meshgrid(middles, middles, indexing="ij")
        self._image = torch.zeros(3, size, size)
        self._label = torch.zeros(size, size, dtype=torch.int64)

    def paint(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the image (3, size, size) without noise, and its labels (size, size)."""
        draw = self._draw
        top = torch.tensor([0.35, 0.55, 0.85])[:, None, None]
        self._image = top + self._y * torch.tensor([0.6, 0.45, 0.15])[:, None, None]
        for _ in range(3):
            self._ellipse(draw(0, 1), draw(0.05, 0.35), draw(0.1, 0.2), draw(0.03, 0.06), (0.93, 0.93, 0.95), "sky")
        horizon = draw(0.45, 0.6) + draw(0, 0.05) * torch.sin(6.0 * self._x + draw(0, 6))
        grass = (draw(0.25, 0.45), draw(0.5, 0.6), draw(0.2, 0.3))
        self._fill(self._y > horizon, grass, "horizontal")
        below = ((self._y - horizon) / (1.0 - horizon)).clamp(min=0.0)
        middle = draw(0.3, 0.7) + draw(-0.3, 0.3) * below
        road = (self._x - middle).abs() < 0.02 + draw(0.1, 0.25) * below
        self._fill(road & (self._y > horizon), (0.6, 0.58, 0.57), "horizontal")
        for _ in range(2):
            self._house(draw(0.0, 1.0), float(horizon.mean()) + draw(0.05, 0.2))
        for _ in range(2):
            self._tree(draw(0.0, 1.0), float(horizon.mean()) + draw(0.05, 0.3), grass)
        return self._image, self._label

    def _draw(self, low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=self._generator))

    def _fill(self, where: torch.Tensor, colour: tuple[float, float, float], label: str) -> None:
        self._image = torch.where(where, torch.tensor(colour)[:, None, None], self._image)
        self._label[where] = LABELS.index(label)

    def _ellipse(
        self, x: float, y: float, width: float, height: float, colour: tuple[float, float, float], label: str
    ) -> None:
        self._fill(((self._x - x) / width).square() + ((self._y - y) / height).square() < 1.0, colour, label)

    def _house(self, x: float, foot: float) -> None:
        half, height = self._draw(0.08, 0.16), self._draw(0.15, 0.25)
        walls = ((0.9, 0.88, 0.85), (0.62, 0.6, 0.6), (0.75, 0.55, 0.4))
        aside, above = (self._x - x).abs(), foot - self._y
        self._fill((aside < half) & (above > 0) & (above < height), walls[int(self._draw(0, 3))], "vertical")
        roof = (above >= height) & (aside < 1.2 * half * (1.0 - (above - height) / (0.8 * half)))
        self._fill(roof, (0.5, 0.25, 0.2), "vertical")
        for side in (-0.5, 0.5):
            pane = ((self._x - x - side * half).abs() < 0.25 * half) & ((above - 0.6 * height).abs() < 0.18 * height)
            self._fill(pane, (0.5, 0.65, 0.85), "vertical")
        self._fill((aside < 0.15 * half) & (above > 0) & (above < 0.35 * height), (0.35, 0.22, 0.15), "vertical")

    def _tree(self, x: float, foot: float, green: tuple[float, float, float]) -> None:
        height, crown = self._draw(0.1, 0.18), self._draw(0.07, 0.12)
        trunk = ((self._x - x).abs() < 0.015) & (self._y < foot) & (self._y > foot - height)
        self._fill(trunk, (0.35, 0.22, 0.15), "vertical")
        darker = (0.85 * green[0], 0.85 * green[1], 0.85 * green[2])
        self._ellipse(x, foot - height - 0.8 * crown, crown, 1.2 * crown, darker, "vertical")


class Network(torch.nn.Module):
    """Network for the costs (batch, labels, size, size) of each label at each pixel; the size is a multiple of 4.

    As the small network of the paper: four convolutions, the first two followed by max-pooling of stride two, a 1 x 1
    convolution, and a transposed convolution of stride 4. Its labels are therefore coarse.
    """

    def __init__(self, generator: torch.Generator, channels: int = 12) -> None:
        super().__init__()
        wide = 2 * channels
        pool, activation = torch.nn.MaxPool2d(3, stride=2, padding=1), torch.nn.ReLU()
        self.layers = torch.nn.Sequential(
            *(torch.nn.Conv2d(3, channels, 3, padding=1), activation, pool),
            *(torch.nn.Conv2d(channels, wide, 3, padding=1), activation, pool),
            *(torch.nn.Conv2d(wide, wide, 3, padding=1), activation),
            *(torch.nn.Conv2d(wide, wide, 3, padding=1), activation),
            *(torch.nn.Conv2d(wide, wide, 1), activation),
            torch.nn.ConvTranspose2d(wide, len(LABELS), 4, stride=4),
        )
        self.scale = torch.nn.Parameter(torch.tensor(1.0))  # the paper's multiplicative scaling before the global model
        with torch.no_grad():
            for parameter in self.layers.parameters():
                fan = parameter[0].numel() if parameter.ndim > 1 else 1
                deviation = (2.0 / fan) ** 0.5 if parameter.ndim > 1 else 0.0  # He et al. 2015
                parameter.copy_(deviation * torch.randn(parameter.shape, generator=generator))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Compute the costs."""
        costs: torch.Tensor = -self.scale * self.layers(images - 0.5)
        return costs


class GlobalModel:
    """Variational segmentation model as a layer: costs and images -> u (batch, labels, size, size).

    Args:
        size: image side, pixels.
        iterations: number of primal-dual iterations.
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
        """Compute the relaxed segmentation."""
        changes = torch.func.vmap(differences)(images).square().sum(2, keepdim=True)
        weights = SMOOTHNESS * torch.exp(-CONTRAST * changes)
        u, _ = self._algorithm.unpack(self._node(costs, weights))
        return u


def loss(scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Softmax loss per pixel, eq. 24: log sum_k exp(u_k) - u_g at label g (the paper prints -g)."""
    return torch.nn.functional.cross_entropy(scores, labels)


def accuracy(scores: torch.Tensor, labels: torch.Tensor) -> float:
    """Share of pixels whose largest score is that of their label."""
    return float((scores.argmax(1) == labels).double().mean())


def intersection_over_union(scores: torch.Tensor, labels: torch.Tensor) -> float:
    """Mean over labels of the intersection over union of true and predicted pixels."""
    chosen = scores.argmax(1)
    shares = [((chosen == k) & (labels == k)).sum() / ((chosen == k) | (labels == k)).sum() for k in range(len(LABELS))]
    return float(torch.stack(shares).mean())


def train(
    network: Network, model: GlobalModel | None, data: Batch, *, steps: int, batch: int, rate: float, seed: int
) -> None:
    """Train with Adam on the softmax loss of the network alone, or of the global model after it."""
    optimizer = torch.optim.Adam(network.parameters(), lr=rate)
    minibatches = data.minibatches(batch, torch.Generator().manual_seed(seed))
    for _, part in zip(range(steps), minibatches, strict=False):
        optimizer.zero_grad()
        loss(scores(network, model, part.images), part.labels).backward()
        optimizer.step()


def scores(network: Network, model: GlobalModel | None, images: torch.Tensor) -> torch.Tensor:
    """Scores of the labels: the negative costs of the network, or u of the global model."""
    costs = network(images)
    return -costs if model is None else model(costs, images)


def differences(u: torch.Tensor) -> torch.Tensor:
    """Forward differences (2, labels, size, size) of u (labels, size, size), zero at the far edges."""
    down = torch.nn.functional.pad(u[:, 1:] - u[:, :-1], (0, 0, 0, 1))
    right = torch.nn.functional.pad(u[:, :, 1:] - u[:, :, :-1], (0, 1))
    return torch.stack([down, right])


def differences_adjoint(p: torch.Tensor) -> torch.Tensor:
    """Adjoint of ``differences``: a negative divergence."""
    down, right = p[0, :, :-1], p[1, :, :, :-1]
    pad = torch.nn.functional.pad
    return pad(down, (0, 0, 1, 0)) - pad(down, (0, 0, 0, 1)) + pad(right, (1, 0)) - pad(right, (0, 1))
