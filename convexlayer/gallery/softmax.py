"""Most likely feature vector of a soft-max classifier, and its Jacobians in closed form.

    l_i(x) = exp(a_i'x + b_i) / sum_j exp(a_j'x + b_j)
    g_i(A, b) = argmax log l_i(x) over x in R^n, in a slice or in a ball

Reference: Gould et al. 2016, sections 3.3, 4.4 and 5.
"""

from __future__ import annotations

import torch

__all__ = ["in_ball", "log_likelihood", "negative", "on_slice", "parameter_gradients"]


def log_likelihood(x: torch.Tensor, A: torch.Tensor, b: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """log l_i(x), eq. 26; ``weights`` (m,) is one at i and zero elsewhere. A is (m, n), b (m,), x (n,)."""
    scores = A @ x + b
    return weights @ scores - torch.logsumexp(scores, 0)


def negative(x: torch.Tensor, A: torch.Tensor, b: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """-log l_i(x), the objective."""
    return -log_likelihood(x, A, b, weights)


def on_slice(x: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
    """1'x - 1, zero on the slice of eq. 73."""
    return x.sum().reshape(1) - 1.0


def in_ball(x: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
    """|x|^2 - 1, at most zero in the ball of eq. 77."""
    return x.square().sum().reshape(1) - 1.0


def parameter_gradients(
    x: torch.Tensor,
    A: torch.Tensor,
    b: torch.Tensor,
    weights: torch.Tensor,
    inverse: torch.Tensor,
    *,
    drop: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Jacobians of g_i by eq. 31 and 32.

        dg / da_jk = -M ([i = j] e_k - l_j x_k (a_j - abar) - l_j e_k),    dg / db_j = l_j M (a_j - abar)

    Args:
        x: the solution, (n,).
        A: (m, n).
        b: (m,).
        weights: one at i, zero elsewhere.
        inverse: M (n, n): the inverse of the Hessian H, its restriction to the slice, or (H + phi_YY / t)^-1.
        drop: omit the terms with a_i - abar, as eq. 33, 34, 74, 75, 78 and 79 do; they vanish in R^n and on the slice,
            but not in the ball.

    Returns:
        (n, m, n) for A and (n, m) for b.
    """
    likelihood = torch.softmax(A @ x + b, 0)
    away = A - likelihood @ A
    if drop:
        away = (1.0 - weights).unsqueeze(-1) * away
    n = len(x)
    mixed = torch.einsum("j,kn->njk", weights - likelihood, torch.eye(n, dtype=x.dtype))
    mixed = mixed - torch.einsum("j,k,jn->njk", likelihood, x, away)
    return -torch.einsum("pn,njk->pjk", inverse, mixed), torch.einsum("pn,j,jn->pj", inverse, likelihood, away)
