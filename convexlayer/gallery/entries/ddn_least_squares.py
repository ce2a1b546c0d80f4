"""A bilevel problem over differentiable least squares, with the QR factor kept for the backward pass."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from convexlayer.gallery.measure import saved_bytes
from convexlayer.gallery.result import Claim, Result
from convexlayer.nodes import GradientDescent, Stop, least_squares, solve_bilevel

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SOURCE = "Gould 2026, slides: differentiable least squares, backward pass and example"


def _printed_gradient(A: torch.Tensor, b: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The slides' two forms for dL/dA: that of the formula read as dL/dA, and that of the code."""
    x = least_squares(A, b)
    w = torch.linalg.solve(A.T @ A, v)
    r = b - A @ x
    return torch.outer(w, r) - torch.outer(x, A @ w), torch.outer(r, w) - torch.outer(A @ w, x)


def run(*, m: int = 10, n: int = 5, iterations: int = 300) -> Result:
    """Minimise |x(A) - target|^2 / 2 over A, x(A) = argmin |A x - b|^2."""
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
    numbers: dict[str, Any] = {
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
    ]

    def draw(figure: Figure) -> None:
        figure.set_size_inches(6, 4)
        axes = figure.subplots()
        axes.semilogy(found.history.value)
        axes.set(xlabel="step", ylabel="|x(A) - target|^2 / 2", title=f"learning A, {m} by {n}")

    return Result(numbers, claims, draw)
