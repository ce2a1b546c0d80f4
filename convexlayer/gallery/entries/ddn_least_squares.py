"""A bilevel problem over differentiable least squares, with the QR factor kept for the backward pass.

    x = argmin |A x - b|^2,    dL/dA = r w' - (A w) x',  dL/db = A w,  w = (A'A)^-1 dL/dx,  r = b - A x

Erratum: one of the two formulas for dL/dA on the slides is the transpose of the other; this one is right.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from convexlayer.gallery.measure import saved_bytes
from convexlayer.gallery.result import Claim, Result
from convexlayer.gallery.style import legend_below, panels
from convexlayer.nodes import GradientDescent, Stop, least_squares, solve_bilevel

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SOURCE = "Gould 2026, slides: differentiable least squares, backward pass and example"


def _printed_gradient(A: torch.Tensor, b: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The two forms of dL/dA on the slides: that of the formula and that of the code."""
    x = least_squares(A, b)
    w = torch.linalg.solve(A.T @ A, v)
    r = b - A @ x
    return torch.outer(w, r) - torch.outer(x, A @ w), torch.outer(r, w) - torch.outer(A @ w, x)


def _by_normal_equations(A: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """(A'A)^-1 A'b, for autograd."""
    return torch.linalg.solve(A.T @ A, A.T @ b)


def _single_errors(m: int, n: int, condition: float, draws: int) -> dict[str, float]:
    """Median relative errors of dL/dA in float32 at a condition number, against the closed form in float64."""
    errors: dict[str, list[float]] = {"QR, by hand": [], "normal equations": []}
    for seed in range(draws):
        generator = torch.Generator().manual_seed(seed)
        U, _, V = torch.linalg.svd(torch.randn(m, n, dtype=torch.float64, generator=generator), full_matrices=False)
        A = U * torch.logspace(0, -math.log10(condition), n, dtype=torch.float64) @ V
        b, v = (torch.randn(shape, dtype=torch.float64, generator=generator) for shape in (m, n))
        A = A.float().double()  # the same matrix in both precisions
        exact = _gradient(least_squares, A, b.float().double(), v)
        for name, solve in zip(errors, (least_squares, _by_normal_equations), strict=True):
            found = _gradient(solve, A.float(), b.float(), v.float()).double()
            errors[name].append(float((found - exact).norm() / exact.norm()))
    return {name: statistics.median(series) for name, series in errors.items()}


def _gradient(
    solve: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], A: torch.Tensor, b: torch.Tensor, v: torch.Tensor
) -> torch.Tensor:
    leaf = A.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(solve(leaf, b), leaf, v)
    return gradient


def run(
    *,
    m: int = 10,
    n: int = 5,
    iterations: int = 300,
    conditions: tuple[float, ...] = (1e0, 1e1, 1e2, 1e3, 1e4, 1e5),
    draws: int = 21,
) -> Result:
    """Minimise |x(A) - target|^2 / 2 over A, x(A) = argmin |A x - b|^2; then differentiate ill-conditioned problems."""
    generator = torch.Generator().manual_seed(0)
    A, b, target = (torch.randn(shape, dtype=torch.float64, generator=generator) for shape in ((m, n), (m,), (n,)))
    v = torch.randn(n, dtype=torch.float64, generator=generator)
    leaf = A.clone().requires_grad_()
    (ours,) = torch.autograd.grad(least_squares(leaf, b), leaf, v)
    (theirs,) = torch.autograd.grad(torch.linalg.lstsq(leaf, b[:, None]).solution[:, 0], leaf, v)
    formula, code = _printed_gradient(A, b, v)
    found = solve_bilevel(
        lambda x, A: 0.5 * (x - target).square().sum(),
        lambda A: least_squares(A, b),
        [A],
        optimizer=GradientDescent(),
        stop=Stop(max_iter=iterations, target=1e-18),
        progress=False,
    )
    size = saved_bytes(lambda: least_squares(leaf, b))
    eps, at = torch.finfo(torch.float32).eps, conditions[-2]
    single = {condition: _single_errors(m, n, condition, draws) for condition in conditions}
    numbers: dict[str, Any] = {
        "float32_gradient_error_by_condition": single,
        "loss": found.history.value,
        "steps": found.history.steps,
        "final_loss": found.value,
        "gradient_error_to_lstsq": float((ours - theirs).abs().max()),
        "gradient_error_of_the_code": float((ours - code).abs().max()),
        "formula_is_the_transpose_error": float((ours - formula.T).abs().max()),
        "saved_bytes": size,
        "saved_bytes_of_A_b_w_x_R": 8 * (m * n + 2 * m + n + n * n),
    }
    claims = [
        Claim(
            "dL/dA is r w' - (A w) x' (the formula slide gives its transpose)",
            f"differs from autograd through lstsq by {numbers['gradient_error_to_lstsq']:.0e}, from the slide's code "
            f"by {numbers['gradient_error_of_the_code']:.0e}",
            max(numbers["gradient_error_to_lstsq"], numbers["gradient_error_of_the_code"]) < 1e-10,
        ),
        Claim(
            "(A'A)^-1 is used in both passes: factor once, cache R",
            f"{size} bytes are kept: those of A, b, the weights, x and R",
            size <= numbers["saved_bytes_of_A_b_w_x_R"],
        ),
        Claim(
            "the bilevel example is solved by gradient descent",
            f"loss {found.history.value[0]:.2f} to {found.value:.0e} in {found.history.steps} steps",
            found.value < 1e-12,
        ),
        Claim(
            "(not in the slides) R, unlike A'A, does not square the condition number",
            f"in float32, at a condition number of {at:g}, gradients are off by {single[at]['QR, by hand']:.0e} by QR, "
            f"by {single[at]['normal equations']:.0e} by the normal equations",
            all(by["QR, by hand"] < 10 * eps * c for c, by in single.items())
            and single[at]["normal equations"] > 100 * single[at]["QR, by hand"],
        ),
    ]

    def draw(figure: Figure) -> None:
        loss, accuracy = panels(figure, 2, height=3.6)
        loss.semilogy(found.history.value)
        loss.set(xlabel="step", ylabel=r"$\frac{1}{2} |x(A) - x_{target}|^2$", title=f"learning $A$, {m} by {n}")
        for name, style in (("QR, by hand", "o-"), ("normal equations", "s--")):
            accuracy.loglog(conditions, [by[name] for by in single.values()], style, label=name)
        accuracy.loglog(conditions, [eps * c for c in conditions], "k:", label=r"$\varepsilon \kappa$")
        accuracy.loglog(
            conditions, [eps * c**2 for c in conditions], "-.", color="0.5", label=r"$\varepsilon \kappa^2$"
        )
        accuracy.set(xlabel=r"condition number $\kappa$ of $A$", ylabel="relative error of $dL/dA$", ylim=(3e-8, 10))
        accuracy.set_title(f"float32, median of {draws}")
        legend_below(accuracy)

    return Result(numbers, claims, draw)
