"""Differentiable eigendecomposition: learning a matrix by its leading eigenvector, and eigenvalues that coincide.

    X = Y diag(lambda) Y',    dL/dX = Y (L * S) Y',  L_ij = 1 / (lambda_j - lambda_i), 0 where they coincide

The projector on the space of two eigenvectors is differentiable for any gap of their eigenvalues. Computed through the
single eigenvectors, its gradient has an error of about eps / gap.
"""

from __future__ import annotations

import math
import statistics
from typing import TYPE_CHECKING, Any

import torch

from convexlayer.gallery.result import Claim, Result
from convexlayer.gallery.style import legend_below, panels
from convexlayer.nodes import GradientDescent, Stop, eigen_decomposition, solve_bilevel

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SOURCE = "Gould 2026, slides: differentiable eigen decomposition, backward pass and experiment"

EPS = torch.finfo(torch.float64).eps
GAPS = [0.0, *(10.0**-k for k in range(16, 0, -1))]
"""Gaps of the two leading eigenvalues, whose spectrum is in [0, 1]."""


def _gradient_error(X: torch.Tensor, cotangent: torch.Tensor) -> float:
    """Largest difference from the gradient through torch's eigenvectors, made symmetric, with the same signs."""
    leaf = X.clone().requires_grad_()
    Y = eigen_decomposition(leaf)[1]
    (ours,) = torch.autograd.grad(Y, leaf, cotangent)
    theirs_Y = torch.linalg.eigh(leaf).eigenvectors
    signs = (Y.detach() * theirs_Y.detach()).sum(0).sign()
    (theirs,) = torch.autograd.grad(theirs_Y, leaf, cotangent * signs)
    return float((ours - 0.5 * (theirs + theirs.T)).abs().max())


def _projector_loss(X: torch.Tensor, C: torch.Tensor, *, by_torch: bool) -> torch.Tensor:
    """<C, Y Y'> for the two leading eigenvectors."""
    Y = torch.linalg.eigh(X).eigenvectors[:, -2:] if by_torch else eigen_decomposition(X, 2)[1]
    return (C * (Y @ Y.T)).sum()


def _projector_slope(X: torch.Tensor, C: torch.Tensor) -> torch.Tensor:
    """Gradient by the formula for projectors, which does not contain the gap within the pair."""
    values, Y = torch.linalg.eigh(X)
    inside, outside = Y[:, -2:], Y[:, :-2]
    weights = 1.0 / (values[-2:][None, :] - values[:-2][:, None])
    inner = outside.T @ (C + C.T) @ inside * weights
    half = outside @ inner @ inside.T
    return 0.5 * (half + half.T)


def _projector_error(X: torch.Tensor, C: torch.Tensor, *, by_torch: bool) -> float:
    """Relative error of the gradient; infinite if it is not finite."""
    leaf = X.clone().requires_grad_()
    exact = _projector_slope(X, C)
    (gradient,) = torch.autograd.grad(_projector_loss(leaf, C, by_torch=by_torch), leaf)
    error = float((0.5 * (gradient + gradient.T) - exact).norm() / exact.norm())
    return error if math.isfinite(error) else math.inf


def _errors_by_gap(C: torch.Tensor, bases: list[torch.Tensor]) -> dict[str, list[list[float]]]:
    """Errors of the projector's gradient, by method, for each of GAPS and each orthogonal basis."""
    errors: dict[str, list[list[float]]] = {"ours": [], "torch.linalg.eigh": []}
    for gap in GAPS:
        spectrum = torch.linspace(0.0, 1.0, len(C), dtype=torch.float64)
        spectrum[-2] = 1.0 - gap
        for name, by_torch in (("ours", False), ("torch.linalg.eigh", True)):
            errors[name].append([_projector_error(Q * spectrum @ Q.T, C, by_torch=by_torch) for Q in bases])
    return errors


def run(*, m: int = 5, iterations: int = 400, draws: int = 25) -> Result:
    """Rotate the leading eigenvector of X to a target; then differentiate for decreasing gaps of the leading two.

    Each gap has ``draws`` matrices in random bases.
    """
    generator = torch.Generator().manual_seed(0)
    X, C = (torch.randn(m, m, dtype=torch.float64, generator=generator) for _ in range(2))
    X = 0.5 * (X + X.T)
    target = torch.nn.functional.normalize(torch.randn(m, dtype=torch.float64, generator=generator), dim=0)
    gradient_error = _gradient_error(X, torch.randn(m, m, dtype=torch.float64, generator=generator))
    found = solve_bilevel(
        lambda y, X: 1.0 - (y @ target).square(),
        lambda X: eigen_decomposition(X, 1)[1][:, 0],
        [X],
        optimizer=GradientDescent(),
        stop=Stop(max_iter=iterations, target=1e-14),
        progress=False,
    )
    bases = [torch.linalg.qr(torch.randn(m, m, dtype=torch.float64, generator=generator)).Q for _ in range(draws)]
    errors = _errors_by_gap(C, bases)
    medians = {name: [statistics.median(row) for row in rows] for name, rows in errors.items()}
    largest = {name: [max(row) for row in rows] for name, rows in errors.items()}
    worst = {name: max(row) for name, row in largest.items()}
    worst_finite = max(error for row in errors["torch.linalg.eigh"] for error in row if error < torch.inf)
    lost = sum(error == torch.inf for row in errors["torch.linalg.eigh"] for error in row)
    within = max(row * gap / EPS for row, gap in zip(largest["ours"], GAPS, strict=True))
    numbers: dict[str, Any] = {
        "gradient_error_to_torch": gradient_error,
        "loss": found.history.value,
        "final_loss": found.value,
        "steps": found.history.steps,
        "gaps": GAPS,
        "projector_gradient_median_error": medians,
        "projector_gradient_largest_error": largest,
        "projector_gradient_worst": worst,
        "projector_gradients_of_torch_that_are_not_finite": lost,
        "largest_error_times_gap_over_eps": within,
    }
    claims = [
        Claim(
            "dL/dX is the symmetric part of Y (L * Y'V) Y', with 1/(lambda_j - lambda_i) (the formula slide has the "
            "other sign, its code this one)",
            f"differs from torch.linalg.eigh's own by {gradient_error:.0e}",
            gradient_error < 1e-10,
        ),
        Claim(
            "the leading eigenvector can be learnt end to end",
            f"1 - (y'target)^2: {found.history.value[0]:.2f} to {found.value:.0e} in {found.history.steps} steps",
            found.value < 1e-10,
        ),
        Claim(
            "1/(lambda_i - lambda_j) is replaced by 0 where eigenvalues coincide",
            f"then the projector on a repeated eigenspace keeps its derivative: at gap 0 the error is at most "
            f"{largest['ours'][0]:.0e} over {draws} matrices, at any gap at most {worst['ours']:.0e} and "
            f"{within:.1f} eps / gap; through torch.linalg.eigh it reaches {worst_finite:.0e}, "
            f"and {lost} of {draws * len(GAPS)} gradients are not finite",
            largest["ours"][0] < 1e-12 and worst["ours"] < 1e-2 < worst["torch.linalg.eigh"] and within < 100.0,
        ),
    ]

    def draw(figure: Figure) -> None:
        loss, *both = panels(figure, 3, height=3.5)
        loss.semilogy(found.history.value)
        loss.set(xlabel="step", ylabel="$1 - (y'y_{target})^2$", title="learning a leading eigenvector")
        for axes, name in zip(both, errors, strict=True):
            _draw_errors(axes, {f"largest of {draws}": largest[name], f"median of {draws}": medians[name]})
            axes.set_title(f"gradient of their projector, {name}")

    return Result(numbers, claims, draw)


def _draw_errors(axes: Axes, by_label: dict[str, list[float]]) -> None:
    """Draw errors against the gap, with a cross where the first series is infinite."""
    places = [1e-18, *GAPS[1:]]  # the leftmost is zero
    axes.loglog(places[1:], [EPS / gap for gap in places[1:]], "k--", label=r"$\varepsilon$ / gap")
    for (label, series), style in zip(by_label.items(), ("o-", "s-"), strict=True):
        finite = [max(value, 1e-17) if value < torch.inf else torch.nan for value in series]
        axes.loglog(places, finite, style, label=label)
    first = next(iter(by_label.values()))
    infinite = [place for place, value in zip(places, first, strict=True) if value == torch.inf]
    axes.plot(infinite, [1e2] * len(infinite), "x", color="k", label="some not finite" if infinite else None)
    axes.set(xlabel="gap of the two leading eigenvalues", ylabel="relative error", ylim=(3e-18, 1e3))
    axes.set_xticks([1e-18, *(10.0**-k for k in range(15, 0, -3))])
    axes.set_xticklabels(["0", *(f"$10^{{-{k}}}$" for k in range(15, 0, -3))])
    axes.set_xticks([], minor=True)
    legend_below(axes)
