"""Differentiable eigendecomposition: learning a matrix by its leading eigenvector, and eigenvalues that coincide."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from convexlayer.gallery.result import Claim, Result
from convexlayer.nodes import GradientDescent, Stop, eigen_decomposition, solve_bilevel

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SOURCE = "Gould 2026, slides: differentiable eigen decomposition, backward pass and experiment"


def _projector_loss(X: torch.Tensor, C: torch.Tensor, *, by_torch: bool) -> torch.Tensor:
    """<C, Y Y'> for the two leading eigenvectors."""
    Y = torch.linalg.eigh(X).eigenvectors[:, -2:] if by_torch else eigen_decomposition(X, 2)[1]
    return (C * (Y @ Y.T)).sum()


def _projector_slope(X: torch.Tensor, C: torch.Tensor) -> torch.Tensor:
    """The gradient by the formula for projectors, which knows no gap within the pair."""
    values, Y = torch.linalg.eigh(X)
    inside, outside = Y[:, -2:], Y[:, :-2]
    weights = 1.0 / (values[-2:][None, :] - values[:-2][:, None])
    inner = outside.T @ (C + C.T) @ inside * weights
    half = outside @ inner @ inside.T
    return 0.5 * (half + half.T)


def run(*, m: int = 5, iterations: int = 400) -> Result:
    """Rotate the leading eigenvector of X to a target, then close the gap of the two leading eigenvalues."""
    generator = torch.Generator().manual_seed(0)
    X, C = (torch.randn(m, m, dtype=torch.float64, generator=generator) for _ in range(2))
    X = 0.5 * (X + X.T)
    target = torch.nn.functional.normalize(torch.randn(m, dtype=torch.float64, generator=generator), dim=0)
    leaf = X.clone().requires_grad_()
    cotangent = torch.randn(m, m, dtype=torch.float64, generator=generator)
    Y = eigen_decomposition(leaf)[1]
    (ours,) = torch.autograd.grad(Y, leaf, cotangent)
    theirs_Y = torch.linalg.eigh(leaf).eigenvectors
    signs = (Y.detach() * theirs_Y.detach()).sum(0).sign()
    (theirs,) = torch.autograd.grad(theirs_Y, leaf, cotangent * signs)
    gradient_error = float((ours - 0.5 * (theirs + theirs.T)).abs().max())

    found = solve_bilevel(
        lambda y, X: 1.0 - (y @ target).square(),
        lambda X: eigen_decomposition(X, 1)[1][:, 0],
        [X],
        optimizer=GradientDescent(),
        stop=Stop(max_iter=iterations, target=1e-14),
        progress=False,
    )

    Q = torch.linalg.qr(cotangent).Q
    gaps = [0.0, *(10.0**-k for k in range(16, 0, -1))]
    errors: dict[str, list[float]] = {"ours": [], "torch.linalg.eigh": []}
    for gap in gaps:
        spectrum = torch.linspace(0.0, 1.0, m, dtype=torch.float64)
        spectrum[-2] = 1.0 - gap
        X0 = (Q * spectrum @ Q.T).requires_grad_()
        exact = _projector_slope(X0.detach(), C)
        for name, by_torch in (("ours", False), ("torch.linalg.eigh", True)):
            (gradient,) = torch.autograd.grad(_projector_loss(X0, C, by_torch=by_torch), X0)
            error = float((0.5 * (gradient + gradient.T) - exact).norm() / exact.norm())
            errors[name].append(error)
    worst = {name: max(value if value == value else torch.inf for value in series) for name, series in errors.items()}
    numbers: dict[str, Any] = {
        "gradient_error_to_torch": gradient_error,
        "loss": found.history.value,
        "final_loss": found.value,
        "steps": found.history.steps,
        "gaps": gaps,
        "projector_gradient_error": errors,
        "projector_gradient_worst": worst,
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
            f"then the projector on a repeated eigenspace keeps its derivative: worst error over all gaps "
            f"{worst['ours']:.0e}, through torch.linalg.eigh {worst['torch.linalg.eigh']:.0e}",
            worst["ours"] < 1e-2,
        ),
    ]

    def draw(figure: Figure) -> None:
        figure.set_size_inches(10, 4)
        loss, gap_axes = figure.subplots(1, 2)
        loss.semilogy(found.history.value)
        loss.set(xlabel="step", ylabel="1 - (y'target)^2", title="learning a leading eigenvector")
        shown = [max(gap, 1e-17) for gap in gaps]
        for name, series in errors.items():
            gap_axes.loglog(shown, [max(value, 1e-17) for value in series], "o-", label=name)
        gap_axes.set(
            xlabel="gap of the two leading eigenvalues (left: 0)",
            ylabel="relative error",
            title="gradient of their projector",
        )
        gap_axes.legend()

    return Result(numbers, claims, draw)
