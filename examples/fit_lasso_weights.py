"""Learn the penalty of a lasso, one weight per feature, by gradient descent through its solution.

    beta*(weights) = argmin over beta of  ||X beta - y||^2 / n + weights' |beta|        on the training part
    minimise over weights                 mean squared error of beta*(weights)          on the validation part

A single weight for all features is usually chosen on a grid. With one weight per feature the grid would have 64
dimensions. The layer provides d beta* / d weights instead, and Adam descends from the best single weight.

The data are scikit-learn's diabetes patients (442, ten measurements each), with all squares and products as features.
The same loop runs twice: with the layer in this process, and with a layer whose solves and derivatives are computed by
a server. Both must give the same learning curve.

    python examples/fit_lasso_weights.py [--steps 100] [--output examples/output] [--no-progress]
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sysconfig
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import cvxpy as cp
import numpy as np
import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_diabetes
from sklearn.preprocessing import PolynomialFeatures
from tqdm import tqdm

from convexlayer import ConvexLayer
from convexlayer_client import RemoteSolutionMap

Layer = Callable[[torch.Tensor], tuple[torch.Tensor, ...]]
SERVER_START_S = 60.0
"""Seconds that the server may take to start."""

CURVE_TOL = 1e-6
"""Largest difference of the two learning curves: solves to 1e-8 differ by that, over a hundred steps."""

USED = 1e-6
"""Smallest coefficient that counts as nonzero."""


@dataclass(frozen=True)
class Part:
    """A subset of the patients.

    Attributes:
        X: features (patients, features), with mean 0 and variance 1 over the training part.
        y: disease progression after one year (patients,), scaled in the same way.
    """

    X: torch.Tensor
    y: torch.Tensor

    def loss(self, beta: torch.Tensor) -> torch.Tensor:
        """Mean squared error of coefficients (..., features), relative to the variance of the training targets."""
        return (beta @ self.X.T - self.y).square().mean(dim=-1)


@dataclass(frozen=True)
class Fit:
    """Result of one run: losses before each step and after the last, and the final weights and coefficients."""

    validation: tuple[float, ...]
    test: tuple[float, ...]
    weights: torch.Tensor
    beta: torch.Tensor
    seconds_per_step: float


def load_parts() -> tuple[Part, Part, Part]:
    """Load the training (150 patients), validation (146) and test parts (146), the same in every run."""
    data = load_diabetes()
    products = PolynomialFeatures(degree=2, include_bias=False)
    features, progression = products.fit_transform(data.data), data.target
    # Sex takes two values, so its square is a copy of it. With copies of equal weight the solution would not be unique
    # and have no derivative, as the layer would report.
    features = features[:, products.get_feature_names_out(data.feature_names) != "sex^2"]
    order = np.random.default_rng(0).permutation(len(progression))
    train, validation, test = order[:150], order[150:296], order[296:]
    # The scale comes from the training part only: the other parts stand for unseen patients.
    X = (features - features[train].mean(axis=0)) / features[train].std(axis=0)
    y = (progression - progression[train].mean()) / progression[train].std()
    parts = [Part(torch.as_tensor(X[rows]), torch.as_tensor(y[rows])) for rows in (train, validation, test)]
    return parts[0], parts[1], parts[2]


def lasso(train: Part) -> tuple[cp.Problem, cp.Parameter, cp.Variable]:
    """Build the convex problem; the training data are constants. Returns problem, parameter and variable."""
    patients, features = train.X.shape
    beta = cp.Variable(features, name="beta")
    weights = cp.Parameter(features, nonneg=True, name="weights")
    misfit = cp.sum_squares(train.X.numpy() @ beta - train.y.numpy()) / patients
    return cp.Problem(cp.Minimize(misfit + weights @ cp.abs(beta))), weights, beta


def best_single_weight(layer: Layer, validation: Part, features: int) -> torch.Tensor:
    """Select the best of 25 common weights, without derivatives; the grid is solved as one batch."""
    grid = torch.logspace(-3, 0, 25, dtype=torch.float64)
    with torch.no_grad():
        (betas,) = layer(grid[:, None].expand(-1, features))  # (25, features)
    return grid[validation.loss(betas).argmin()].repeat(features)


def fit(layer: Layer, start: torch.Tensor, validation: Part, test: Part, *, steps: int, label: str, quiet: bool) -> Fit:
    """Minimise the validation loss by Adam on the logarithms of the weights, which keeps the weights positive."""
    log_weights = start.log().requires_grad_()
    optimizer = torch.optim.Adam([log_weights], lr=0.05)
    losses: list[tuple[float, float]] = []
    began = time.perf_counter()
    progress = tqdm(range(steps + 1), desc=f"{label:>6}", unit="step", disable=quiet)
    for step in progress:
        weights = log_weights.exp()
        (beta,) = layer(weights)
        loss = validation.loss(beta)
        losses.append((loss.item(), test.loss(beta).item()))
        progress.set_postfix(validation=f"{loss.item():.4f}")
        if step < steps:  # the last pass only evaluates the loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    seconds_per_step = (time.perf_counter() - began) / len(losses)
    on_validation, on_test = zip(*losses, strict=True)
    return Fit(on_validation, on_test, weights.detach(), beta.detach(), seconds_per_step)


@contextmanager
def running_server(log: Path) -> Iterator[str]:
    """Run a server on a free local port, and stop it on exit; yields its address."""
    command = [str(Path(sysconfig.get_path("scripts")) / "convexlayer"), "serve", "--port", "0"]
    with log.open("w") as sink:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=sink, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + SERVER_START_S
        while not (announced := re.search(r"listening on (http://\S+)\n", log.read_text())):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the server did not start; it wrote:\n{log.read_text()}")
            time.sleep(0.05)
        yield announced[1]
    finally:
        process.terminate()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def report(label: str, result: Fit) -> None:
    """Print the losses before and after, the number of features used, and the time per step."""
    chosen = int((result.beta.abs() > USED).sum())
    print(
        f"{label}\n"
        f"  validation loss  {result.validation[0]:.4f} -> {result.validation[-1]:.4f}"
        f"     test loss  {result.test[0]:.4f} -> {result.test[-1]:.4f}\n"
        f"  features used    {chosen} of {len(result.beta)}"
        f"             pace  {1e3 * result.seconds_per_step:.1f} ms a step"
    )


def draw(local: Fit, remote: Fit, path: Path) -> None:
    """Draw the learning curves, and coefficients against weights."""
    figure = Figure(figsize=(11, 4), layout="constrained")
    curves, penalties = figure.subplots(1, 2)
    curves.plot(local.validation, label="validation, layer in this process")
    curves.plot(remote.validation, "--", label="validation, layer on a server")
    curves.plot(local.test, color="grey", label="test")
    curves.set(xlabel="step", ylabel="mean squared error / variance", title="Loss")
    curves.legend()
    used = local.beta.abs() > USED
    penalties.scatter(local.weights[used], local.beta[used], label="used")
    penalties.scatter(local.weights[~used], local.beta[~used], marker="x", color="grey", label="left out")
    penalties.set(xscale="log", xlabel="weight", ylabel="coefficient", title="Features after the last step")
    penalties.legend()
    figure.savefig(path, dpi=150)


def main() -> None:
    """Fit with the local layer and with the remote one, compare, and draw."""
    parser = argparse.ArgumentParser(description="Learn the weights of a lasso through the gradient of its solution.")
    parser.add_argument("--steps", type=int, default=100, help="steps of Adam (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "output", help="folder of the figure")
    parser.add_argument("--no-progress", action="store_true", help="no progress bars")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)

    train, validation, test = load_parts()
    problem, weights, beta = lasso(train)

    layer = ConvexLayer(problem, [weights], [beta])
    start = best_single_weight(layer, validation, features=weights.size)

    def run(layer: Layer, label: str) -> Fit:
        return fit(layer, start, validation, test, steps=arguments.steps, label=label, quiet=arguments.no_progress)

    local = run(layer, "local")
    with running_server(arguments.output / "server.log") as url:
        remote = run(ConvexLayer.from_solution_map(RemoteSolutionMap(problem, [weights], [beta], url=url)), "remote")

    print(f"\nStart: the best single weight, {start[0].item():.4f}, for all {weights.size} features.")
    report("Layer in this process", local)
    report("Layer on a server", remote)
    difference = float(np.max(np.abs(np.subtract(local.validation, remote.validation))))
    print(f"The two curves differ by at most {difference:.1e}.")
    draw(local, remote, arguments.output / "fit_lasso_weights.png")
    print(f"Figure: {arguments.output / 'fit_lasso_weights.png'}")
    if difference > CURVE_TOL:
        raise SystemExit(f"local and remote gradients disagree: the curves may differ by at most {CURVE_TOL:.0e}")
    if local.validation[-1] >= local.validation[0]:
        raise SystemExit("the validation loss did not fall")


if __name__ == "__main__":
    main()
