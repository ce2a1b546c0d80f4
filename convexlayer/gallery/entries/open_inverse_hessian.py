"""Open question: which approximations of the inverse Hessian still give a descent direction?"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from convexlayer.gallery.result import Claim, Result
from convexlayer.gallery.ridge import Ridge, cosine, diabetes, path
from convexlayer.gallery.style import legend_below, panels
from convexlayer.nodes import (
    ArgminNode,
    ConjugateGradients,
    Diagonal,
    GradientDescent,
    Implicit,
    Neumann,
    NodeOptions,
    Stop,
    solve_bilevel,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SOURCE = "Gould et al. 2016, section 6, second question and the remark on diagonal approximations"

Lower = Callable[[torch.Tensor], torch.Tensor]


def run(
    *, terms: tuple[int, ...] = (1, 3, 10, 30, 100), products: tuple[int, ...] = (1, 3, 10, 20), steps: int = 20
) -> Result:
    """Compare directions at the start, in the middle and late in an outer descent, and descend with each of them."""
    problem = diabetes()
    visited = path(problem, 50)
    places = {"start": visited[0], "after 10 steps": visited[10], "after 50 steps": visited[50]}
    ways: dict[str, Lower] = {
        "diagonal": _by_gradient_descent(problem, Implicit(Diagonal(), tol=torch.inf, max_iter=0)),
        **{
            f"series, {k} terms": _by_gradient_descent(problem, Implicit(Neumann(k), tol=torch.inf, max_iter=0))
            for k in terms
        },
        **{f"conjugate gradients, {k}": _by_newton(problem, k) for k in products},
    }
    cosines = {
        way: {
            name: cosine(_gradient(problem, lower, theta), problem.exact_gradient(theta))
            for name, theta in places.items()
        }
        for way, lower in ways.items()
    }
    descents = {
        way: solve_bilevel(
            problem.upper,
            lower,
            [visited[0]],
            optimizer=GradientDescent(),
            stop=Stop(max_iter=steps),
            progress=False,
        ).history.value
        for way, lower in {"exact": problem.solution, **ways}.items()
    }
    gained = {
        way: (values[0] - values[-1]) / (descents["exact"][0] - descents["exact"][-1])
        for way, values in descents.items()
    }
    numbers = {"cosine_with_the_gradient": cosines, "objective": descents, "share_of_the_exact_descent": gained}
    worst = {way: min(by.values()) for way, by in cosines.items()}
    one, most = f"series, {terms[0]} terms", f"series, {terms[-1]} terms"
    few = f"conjugate gradients, {products[1]}"
    claims = [
        Claim(
            "a diagonal approximation of the Hessian still gives a descent direction",
            f"its cosine with the gradient is {worst['diagonal']:.2f} at worst, and {steps} steps with it gain "
            f"{100 * gained['diagonal']:.0f} % of what the gradient does",
            worst["diagonal"] > 0,
        ),
        Claim(
            "it is unclear how a descent direction could be found without first computing the true gradient",
            f"by the first terms of a series: {worst[one]:.2f} at worst with {terms[0]}, which needs no product with "
            f"the Hessian, {worst[most]:.3f} with {terms[-1]}",
            worst[one] > 0 and worst[most] > worst[one],
        ),
        Claim(
            "(not in the paper) a few conjugate gradients are the better approximation",
            f"{worst[few]:.3f} with {products[1]} products, and {100 * gained[few]:.0f} % of the descent",
            worst[few] > worst["diagonal"] and worst[few] > worst[f"series, {terms[1]} terms"],
        ),
    ]

    def draw(figure: Figure) -> None:
        by_terms, by_products, curve = panels(figure, 3, height=3.7)
        for axes, counts, way, label in (
            (by_terms, terms, "series, {} terms", "terms of the series"),
            (by_products, products, "conjugate gradients, {}", "products with the Hessian"),
        ):
            for name, style in zip(places, ("o-", "s--", "^:"), strict=True):
                axes.plot(counts, [cosines[way.format(k)][name] for k in counts], style, label=name)
            axes.axhline(worst["diagonal"], color="k", linestyle=(0, (1, 1)), label="diagonal, worst")
            axes.set(xscale="log", xlabel=label, ylabel="cosine with the gradient", ylim=(0, 1.03))
            axes.set_xticks(counts, [str(k) for k in counts])
            axes.set_xticks([], minor=True)
            legend_below(axes)
        by_terms.set_title("truncated Neumann series")
        by_products.set_title("conjugate gradients, stopped early")
        for way, style in zip(("exact", "diagonal", one, most, few), ("k-", "--", "-.", ":", "-"), strict=True):
            curve.plot(descents[way], style, label=way.replace(" 1 terms", " 1 term"))
        curve.set(xlabel="outer step", ylabel="upper objective", title="descent with a line search")
        legend_below(curve, columnspacing=1.0)

    return Result(numbers, claims, draw)


def _gradient(problem: Ridge, lower: Lower, theta: torch.Tensor) -> torch.Tensor:
    leaf = theta.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(problem.upper(lower(leaf), leaf), leaf)
    return gradient


def _by_gradient_descent(problem: Ridge, derivative: Implicit) -> Lower:
    """Exact solution, with the derivative of a fixed point of gradient descent."""
    node = problem.node(derivative)
    return lambda theta: node(theta, warm_start=problem.solution(theta.detach()))


def _by_newton(problem: Ridge, products: int) -> Lower:
    options = NodeOptions(linear=ConjugateGradients(max_iter=products), on_degenerate="report")
    node = ArgminNode(problem.lower, (problem.n,), [(problem.n,)], options=options)
    return lambda theta: node(theta, warm_start=problem.solution(theta.detach()))
