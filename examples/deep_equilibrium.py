"""Train a deep-equilibrium network on digits: a layer defined as the fixed point of a module with weights.

    z*(x) = tanh(W z* + U x + b)

The step is a torch.nn.Module, which becomes a submodule of the node; its weights get their gradients from the implicit
function theorem at z*, without storing iterates. The same network is then trained with unrolled iterations for
comparison.

The data are scikit-learn's digits: 1797 images of 8 x 8 pixels, a quarter of them for testing. The last batch of an
epoch is smaller than the others.

    python examples/deep_equilibrium.py [--epochs 5] [--no-progress]
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from itertools import pairwise

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split
from tqdm import tqdm

from convexlayer.nodes import AbstractDerivative, FixedPointNode, Implicit, Unrolled

HIDDEN, PIXELS, CLASSES, BATCH = 64, 64, 10, 64
"""Hidden units, pixels of a digit, classes, and images of a step."""

CONTRACTION = 0.9
"""Largest row sum of |W|, so that the step is a contraction."""


class Cell(nn.Module):
    """One step z -> tanh(W z + U x + b), a contraction in the maximum norm: row sums of |W| are at most 0.9."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(HIDDEN, HIDDEN, bias=False)
        self.outer = nn.Linear(PIXELS, HIDDEN)

    def forward(self, z: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Return the next z for one image x."""
        W = self.inner.weight
        W = CONTRACTION * W / W.abs().sum(1, keepdim=True).clamp(min=CONTRACTION)
        return torch.tanh(z @ W.mT + self.outer(x))


class Network(nn.Module):
    """Pixels -> fixed point -> classes."""

    def __init__(self, derivative: AbstractDerivative) -> None:
        super().__init__()
        self.equilibrium = FixedPointNode(Cell(), (HIDDEN,), [(PIXELS,)], derivative=derivative)
        self.head = nn.Linear(HIDDEN, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits of a batch of images."""
        logits: torch.Tensor = self.head(self.equilibrium(x))
        return logits


@dataclass(frozen=True)
class TrainingResult:
    """Result of a training run.

    Attributes:
        losses: mean training loss of each epoch.
        accuracy: share of test images that are classified correctly.
        step_ms: median time of a step, milliseconds.
    """

    losses: list[float]
    accuracy: float
    step_ms: float


def train(derivative: AbstractDerivative, epochs: int, *, progress: bool) -> TrainingResult:
    """Train a network; initial weights and batches do not depend on the derivative."""
    torch.manual_seed(0)
    digits = load_digits()
    images = torch.tensor(digits.data / 16.0, dtype=torch.float32)
    data = TensorDataset(images, torch.tensor(digits.target))
    training, testing = random_split(data, [0.75, 0.25])
    network = Network(derivative)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    losses, times = [], []
    for _ in range(epochs):
        total = 0.0
        loader = DataLoader(training, batch_size=BATCH, shuffle=True)
        for x, target in tqdm(loader, disable=not progress, leave=False):
            start = time.perf_counter()
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(network(x), target)
            loss.backward()
            optimizer.step()
            times.append(time.perf_counter() - start)
            total += loss.item() * len(x)
        losses.append(total / len(training))
    with torch.no_grad():
        x, target = testing[:]
        accuracy = float((network(x).argmax(1) == target).double().mean())
    return TrainingResult(losses, accuracy, 1e3 * sorted(times)[len(times) // 2])


def main() -> None:
    """Train with both derivatives and compare."""
    parser = argparse.ArgumentParser(description="Train a deep-equilibrium network on digits.")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--no-progress", action="store_true", help="show no progress bar")
    arguments = parser.parse_args()
    derivatives = {"implicit": Implicit(tol=1e-5), "unrolled, 40 steps": Unrolled(40)}
    results = {
        name: train(derivative, arguments.epochs, progress=not arguments.no_progress)
        for name, derivative in derivatives.items()
    }
    for name, result in results.items():
        losses = " ".join(f"{loss:.3f}" for loss in result.losses)
        print(
            f"{name:20s} test accuracy {100 * result.accuracy:.1f} %, {result.step_ms:.1f} ms a step, losses {losses}"
        )
    implicit, unrolled = results.values()
    difference = max(abs(a - b) for a, b in zip(implicit.losses, unrolled.losses, strict=True))
    decreasing = all(later < earlier for earlier, later in pairwise(implicit.losses))
    print(f"training losses differ by at most {difference:.1e}{'' if decreasing else ', and do not decrease'}")


if __name__ == "__main__":
    main()
