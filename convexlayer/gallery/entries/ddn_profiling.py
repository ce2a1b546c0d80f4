"""Closed-form, implicit and unrolled derivatives of seven nodes: gradient error, time and memory by size.

The implicit node is given by objective and constraints and starts at the solution, so its forward pass is that of the
closed form plus a check; the unrolled one takes the same number of iterations at every size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from convexlayer.gallery.measure import costs
from convexlayer.gallery.node_variants import NODE_VARIANTS
from convexlayer.gallery.result import Claim, Result
from convexlayer.gallery.style import panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SOURCE = "Gould 2026, slides: profiling (least squares), results in running time and memory (optimal transport)"

_Row = dict[str, Any]

WAYS = ("by hand", "implicit", "unrolled")

SIZES: dict[str, tuple[int, ...]] = {
    "least squares": (4, 8, 16, 32, 64, 128, 256),
    "eigenvector": (4, 8, 16, 32, 64, 128, 256),
    "transport": (4, 8, 16, 32, 64, 128),
    "pooling": (16, 64, 256, 1024, 4096, 16384),
    "simplex": (4, 8, 16, 32, 64, 128, 256),
    "procrustes": (2, 4, 8, 16, 32),
    "pnp": (8, 32, 128, 512, 2048, 8192),
}

SIZE_NAMES = {
    "least squares": "unknowns $n$, $2n$ rows",
    "eigenvector": "rows and columns $n$",
    "transport": "rows and columns $n$",
    "pooling": "points in $R^3$",
    "simplex": "entries $n$",
    "procrustes": "rows and columns $n$",
    "pnp": "points",
}

LARGEST_IMPLICIT = {"transport": 32, "procrustes": 16}
"""Largest size of the implicit node, whose dense matrices then have about a thousand unknowns."""

ITERATIONS = {
    "least squares": 300,
    "eigenvector": 60,
    "transport": 100,
    "pooling": 60,
    "simplex": 20,
    "procrustes": 40,
    "pnp": 8,
}
"""Numbers of iterations for which the unrolled gradient has a relative error below 1e-6."""


def _measured(name: str, sizes: Sequence[int], repetitions: int, budget_s: float) -> dict[str, dict[int, _Row]]:
    """Measure one node: cost, and gradient error relative to the closed form, by variant and size."""
    calls: dict[tuple[str, int], tuple[Callable[[], torch.Tensor], Sequence[torch.Tensor]]] = {}
    errors: dict[tuple[str, int], float] = {}
    variants = NODE_VARIANTS[name]
    for size in sizes:
        inputs = tuple(tensor.requires_grad_() for tensor in variants.inputs(size))
        ways: dict[str, Callable[[], torch.Tensor]] = {"by hand": partial(variants.by_hand, *inputs)}
        if size <= LARGEST_IMPLICIT.get(name, size):
            ways["implicit"] = partial(variants.implicit(*inputs), *inputs)
        ways["unrolled"] = partial(variants.unrolled, ITERATIONS[name], *inputs)
        output = ways["by hand"]()
        cotangent = torch.randn(output.shape, dtype=output.dtype, generator=torch.Generator().manual_seed(0))
        exact = _flat_gradient(output, inputs, cotangent)
        for way, call in ways.items():
            calls[way, size] = call, inputs
            errors[way, size] = float((_flat_gradient(call(), inputs, cotangent) - exact).norm() / exact.norm())
    measured = costs(calls, repetitions=repetitions, budget_s=budget_s)
    return {
        way: {
            size: {**vars(measured[way, size]), "gradient_error": errors[way, size]}
            for size in sizes
            if (way, size) in measured
        }
        for way in WAYS
    }


def _flat_gradient(output: torch.Tensor, inputs: Sequence[torch.Tensor], cotangent: torch.Tensor) -> torch.Tensor:
    return torch.cat([part.flatten() for part in torch.autograd.grad(output, inputs, cotangent)])


def run(*, sizes: int = 7, repetitions: int = 15, budget_s: float = 8.0) -> Result:
    """Measure every node at its first ``sizes`` sizes, in rounds that start within ``budget_s`` seconds per node."""
    measured = {name: _measured(name, SIZES[name][:sizes], repetitions, budget_s) for name in NODE_VARIANTS}

    def over(way: str, other: str, what: str) -> dict[str, dict[int, float]]:
        return {
            name: {size: row[what] / by[other][size][what] for size, row in by[way].items() if size in by[other]}
            for name, by in measured.items()
        }

    errors = {
        way: max(row["gradient_error"] for by in measured.values() for row in by[way].values()) for way in WAYS[1:]
    }
    memory = over("unrolled", "implicit", "saved_bytes")
    speed = {way: over(way, "by hand", "backward_s") for way in WAYS[1:]}
    least_memory, most_memory = _extremes(memory)
    slowest = {way: _extremes(ratios)[0] for way, ratios in speed.items()}
    numbers: dict[str, Any] = {
        "measured": measured,
        "iterations": ITERATIONS,
        "gradient_error": errors,
        "saved_bytes_unrolled_over_implicit": memory,
        "backward_over_by_hand": speed,
    }
    claims = [
        Claim(
            "unrolling and implicit differentiation give the same derivative",
            f"relative to the one by hand the implicit gradients differ by at most {errors['implicit']:.0e}, the "
            f"unrolled ones by {errors['unrolled']:.0e}, over all sizes",
            errors["implicit"] < 1e-6 and errors["unrolled"] < 1e-5,
        ),
        Claim(
            "unrolling is memory intensive, implicit differentiation stores no intermediate calculations",
            f"unrolled over implicit: {least_memory[0]:.1f} ({least_memory[1]}) to {most_memory[0]:.0f} times "
            f"({most_memory[1]})",
            least_memory[0] > 1.0,
        ),
        Claim(
            "hand-crafted backward code is the efficient extreme, unrolling the other",
            f"backward passes take at least {slowest['implicit'][0]:.1f} times as long implicitly "
            f"({slowest['implicit'][1]}), {slowest['unrolled'][0]:.1f} times unrolled ({slowest['unrolled'][1]}); in "
            "this run, on this machine",
            min(factor for factor, _ in slowest.values()) > 1.0,
        ),
    ]

    def draw(figure: Figure) -> None:
        count = len(measured)
        places = panels(figure, count, 3, width=2.15, height=2.2, sharex="col", sharey="row")
        rows = {
            "forward_s": ("forward, ms", 1e3),
            "backward_s": ("backward, ms", 1e3),
            "saved_bytes": ("saved, KiB", 2**-10),
        }
        for column, (name, by) in enumerate(measured.items()):
            for row, (what, (label, unit)) in enumerate(rows.items()):
                axes = places[row * count + column]
                for way, style in zip(WAYS, ("o-", "s--", "^:"), strict=True):
                    series = [unit * entry[what] for entry in by[way].values()]
                    axes.loglog(list(by[way]), series, style, label=way)
                if column == 0:
                    axes.set_ylabel(label)
            places[column].set_title(name)
            shown = list(by["by hand"])[::2]
            places[2 * count + column].set_xticks(shown, [str(size) for size in shown])
            places[2 * count + column].set_xticks([], minor=True)
            places[2 * count + column].set_xlabel(SIZE_NAMES[name])
        figure.legend(*places[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)

    return Result(numbers, claims, draw)


def _extremes(ratios: dict[str, dict[int, float]]) -> tuple[tuple[float, str], tuple[float, str]]:
    """Smallest and largest ratio, with node and size."""
    found = [(ratio, f"{name}, {size}") for name, by in ratios.items() for size, ratio in by.items()]
    return min(found), max(found)
