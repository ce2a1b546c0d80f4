"""Denoising with regularisers learnt on patches: total variation, and filters of a Markov random field."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import conv2d, pad

from convexlayer.gallery.measure import work
from convexlayer.gallery.result import Claim, Result
from convexlayer.gallery.style import image, legend_below, panels
from convexlayer.nodes import (
    ArgminNode,
    BilevelResult,
    ConjugateGradients,
    GradientDescent,
    NodeOptions,
    ScipyMinimize,
    Stop,
    solve_bilevel,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SOURCE = "Ochs, Ranftl, Brox and Pock 2016, section 2 (learning a model of image statistics)"

NOISE = 0.1
"""Standard deviation of the noise; grey values are in 0 to 1."""

FILTER, SCALE = 3, 20.0
"""Side of the filters in pixels, and the unit of their coefficients, which are then of size 1."""

TV, FIELD, WEIGHTS = "total variation", "random field", "random field, weights only"

Tensors = tuple[torch.Tensor, ...]
Denoiser = Callable[..., torch.Tensor]


@dataclass(frozen=True)
class Patches:
    """Grey patches (count, size, size) with values in 0 to 1, clean and noisy."""

    clean: torch.Tensor
    noisy: torch.Tensor


def patches(size: int, training: int, testing: int) -> tuple[Patches, Patches]:
    """Tiles of scikit-learn's two photographs: ``training`` and ``testing`` of each."""
    from sklearn.datasets import load_sample_images

    generator = torch.Generator().manual_seed(0)
    train, test = [], []
    for photograph in load_sample_images().images:
        grey = torch.tensor(photograph, dtype=torch.float64).mean(-1) / 255.0
        tiles = grey.unfold(0, size, size).unfold(1, size, size).flatten(0, 1)
        order = torch.randperm(len(tiles), generator=generator)
        train.append(tiles[order[:training]])
        test.append(tiles[order[training : training + testing]])

    def noised(parts: list[torch.Tensor]) -> Patches:
        clean = torch.cat(parts)
        return Patches(clean, clean + NOISE * torch.randn(clean.shape, dtype=clean.dtype, generator=generator))

    return noised(train), noised(test)


def total_variation(u: torch.Tensor, x: torch.Tensor, theta: torch.Tensor) -> torch.Tensor:
    """1/2 |u - x|^2 + weight sum sqrt(|grad u|^2 + smooth^2), u and x (count, size, size); theta has the logarithms."""
    weight, smooth = torch.exp(theta)
    down, right = pad(u[:, 1:] - u[:, :-1], (0, 0, 0, 1)), pad(u[..., 1:] - u[..., :-1], (0, 1))
    lengths = torch.sqrt(down.square() + right.square() + smooth.square())
    return 0.5 * (u - x).square().sum() + weight * lengths.sum()


def random_field(u: torch.Tensor, x: torch.Tensor, log_weights: torch.Tensor, filters: torch.Tensor) -> torch.Tensor:
    """1/2 |u - x|^2 + noise^2 sum_k weight_k sum log(1 + (f_k * u)^2), of u and x (count, size, size).

    The filters (k, k) are coefficients, in units of SCALE, in the cosine basis without its constant: they sum to zero.
    """
    kernels = SCALE * torch.einsum("kb,bij->kij", filters, cosines())
    responses = conv2d(u.unsqueeze(1), kernels.unsqueeze(1))
    energies = torch.log1p(responses.square()).sum((0, 2, 3))
    return 0.5 * (u - x).square().sum() + NOISE**2 * (torch.exp(log_weights) * energies).sum()


def cosines() -> torch.Tensor:
    """Orthonormal cosine basis of square filters without the constant, (FILTER^2 - 1, FILTER, FILTER)."""
    k = torch.arange(FILTER, dtype=torch.float64)
    rows = torch.cos(torch.pi / FILTER * torch.outer(k, k + 0.5))
    rows = rows / torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return torch.einsum("ai,bj->abij", rows, rows).flatten(0, 1)[1:]


def denoiser(energy: Denoiser, theta: Tensors, data: Patches, tol: float = 1e-4, polish: int = 0) -> Denoiser:
    """Node theta -> minimum of an energy near the noisy patches, all one element, by Hessian-vector products."""
    options = NodeOptions(
        start=lambda x, *theta: x,
        linear=ConjugateGradients(tol=tol),
        polish=polish,
        tol=1e-2,
        on_degenerate="report",
    )
    shape = tuple(data.noisy.shape)
    solver = ScipyMinimize(options={"ftol": 0.0, "gtol": tol, "maxiter": 400})
    node = ArgminNode(energy, shape, [shape, *(tuple(part.shape) for part in theta)], solver=solver, options=options)
    return partial(node, data.noisy)


def psnr(u: torch.Tensor, clean: torch.Tensor) -> torch.Tensor:
    """Peak signal-to-noise ratio, dB, mean over patches."""
    return -10.0 * torch.log10((u - clean).square().mean((-1, -2))).mean()


def run(*, size: int = 64, training: int = 4, testing: int = 8, steps: int = 12) -> Result:
    """Learn two parameters of total variation, the weights of a random field, and its weights and filters."""
    train, test = patches(size, training, testing)
    k = FILTER**2 - 1
    log_weights = torch.full((k,), -2.0, dtype=torch.float64)
    filters = torch.eye(k, dtype=torch.float64)

    def weighted(u: torch.Tensor, x: torch.Tensor, log_weights: torch.Tensor) -> torch.Tensor:
        return random_field(u, x, log_weights, filters)

    tasks: dict[str, tuple[Denoiser, Tensors]] = {
        TV: (total_variation, (torch.tensor([-4.0, -3.0], dtype=torch.float64),)),
        WEIGHTS: (weighted, (log_weights,)),
        FIELD: (random_field, (log_weights, filters)),
    }
    results = {way: _learn(denoiser(*task, train), task[1], train, steps) for way, task in tasks.items()}
    with torch.no_grad():
        tested = {way: denoiser(*task, test) for way, task in tasks.items()}
        untrained = {way: denoise(*tasks[way][1]) for way, denoise in tested.items()}
        denoised = {way: denoise(*results[way].theta) for way, denoise in tested.items()}
    before = {way: float(psnr(u, test.clean)) for way, u in untrained.items()}
    after = {way: float(psnr(u, test.clean)) for way, u in denoised.items()}
    noisy = float(psnr(test.noisy, test.clean))
    learning = {way: [-value for value in result.history.value] for way, result in results.items()}
    error = max(_gradient_error(*task) for task in tasks.values())
    largest = work(lambda: _gradient(denoiser(*tasks[FIELD], train), train, tasks[FIELD][1])).largest_tensor
    numbers = {
        "psnr": {"noisy": noisy, "before": before, "after": after},
        "training_psnr": learning,
        "lower_solves": {way: result.history.evaluations for way, result in results.items()},
        "theta": {way: result.theta for way, result in results.items()},
        "gradient_error": error,
        "largest_tensor": largest,
    }
    claims = [
        Claim(
            "the parameters of a regulariser can be learnt by the derivative of the minimum",
            f"gradients agree to {error:.0e} with central differences; no tensor has more than {largest:,} entries, "
            f"where the Hessian of one patch of {size} x {size} would have {size**4:,}",
            error < 1e-5 and largest < size**4,
        ),
        *(
            Claim(
                f"learning improves denoising: {way}",
                f"{noisy:.2f} dB with noise, {before[way]:.2f} -> {after[way]:.2f} dB on patches not learnt from",
                after[way] > before[way] > noisy,
            )
            for way in tasks
        ),
        Claim(
            "(not in the paper) filters are worth learning, and not their weights alone",
            f"{after[FIELD]:.2f} dB with filters learnt, {after[WEIGHTS]:.2f} with their weights alone, after {steps} "
            f"steps; total variation, with two numbers, {after[TV]:.2f}",
            after[FIELD] > after[WEIGHTS],
        ),
    ]

    def draw(figure: Figure) -> None:
        places = panels(figure, 4, 2, width=3.2)
        shown = int(test.clean.std((-1, -2)).argmax())
        images = {"clean": test.clean, "noisy": test.noisy, TV: denoised[TV], FIELD: denoised[FIELD]}
        for axes, (name, u) in zip(places, images.items(), strict=False):
            quality = "" if name == "clean" else f", {float(psnr(u[shown], test.clean[shown])):.1f} dB"
            _draw_patch(axes, u[shown], name + quality)
        curve, bars, *kernels = places[4:]
        for (way, values), style in zip(learning.items(), ("o-", "s--", "^:"), strict=True):
            curve.plot(results[way].history.evaluations, values, style, label=way)
        curve.set(xlabel="lower solves", ylabel="PSNR in training, dB")
        legend_below(curve, 1)
        at = torch.arange(len(tasks)).numpy()
        for shift, (label, scores) in zip((-0.2, 0.2), (("before", before), ("learnt", after)), strict=True):
            drawn = bars.bar(at + shift, list(scores.values()), 0.4, label=label)
            bars.bar_label(drawn, fmt="%.1f", fontsize=8)
        bars.axhline(noisy, color="k", linestyle=":", label="noisy")
        bars.set_xticks(at, [way.replace(" ", "\n") for way in tasks])
        bars.set(xlabel="regulariser", ylabel="PSNR in test, dB", ylim=(noisy - 2, max(after.values()) + 2))
        bars.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)
        _draw_filters(kernels[0], filters, "filters, before")
        _draw_filters(kernels[1], results[FIELD].theta[1], "filters, learnt")

    return Result(numbers, claims, draw)


def _draw_patch(axes: Axes, patch: torch.Tensor, title: str) -> None:
    """Draw one patch in grey."""
    image(axes)
    axes.imshow(patch.numpy(), cmap="gray", vmin=0, vmax=1)
    axes.set(title=title)


def _draw_filters(axes: Axes, coefficients: torch.Tensor, title: str) -> None:
    """Draw filters, given in the cosine basis, as images in two rows."""
    padded = pad(torch.einsum("kb,bij->kij", coefficients, cosines()), (0, 1, 0, 1), value=torch.nan)
    tiled = padded.reshape(2, -1, FILTER + 1, FILTER + 1).permute(0, 2, 1, 3).flatten(0, 1).flatten(1)
    largest = float(tiled.nan_to_num().abs().max())
    image(axes)
    axes.imshow(tiled[:-1, :-1].detach().numpy(), cmap="PuOr", vmin=-largest, vmax=largest)
    axes.set(title=f"{title} (-{largest:.1f} to {largest:.1f})")


def _learn(denoise: Denoiser, start: Tensors, data: Patches, steps: int) -> BilevelResult:
    """Minimise the negative mean PSNR by gradient descent, which steps back where the lower solver fails."""
    return solve_bilevel(
        lambda u, *_: -psnr(u, data.clean),
        denoise,
        start,
        optimizer=GradientDescent(step_size=0.1),
        stop=Stop(max_iter=steps, progress_tol=1e-5),
        progress=False,
    )


def _gradient(denoise: Denoiser, data: Patches, theta: Tensors) -> Tensors:
    """Gradient of the PSNR in the parameters."""
    leaves = tuple(part.detach().clone().requires_grad_() for part in theta)
    return torch.autograd.grad(psnr(denoise(*leaves), data.clean), leaves)


def _gradient_error(energy: Denoiser, theta: Tensors) -> float:
    """Relative error of a directional derivative against central differences, on two small patches."""
    data, _ = patches(12, 1, 1)
    denoise = denoiser(energy, theta, data, tol=1e-9, polish=3)
    generator = torch.Generator().manual_seed(1)
    direction = [torch.randn(part.shape, dtype=part.dtype, generator=generator) for part in theta]
    slope = sum(float((p * d).sum()) for p, d in zip(_gradient(denoise, data, theta), direction, strict=True))
    step = 1e-4

    def moved(length: float) -> float:
        return float(psnr(denoise(*(p + length * d for p, d in zip(theta, direction, strict=True))), data.clean))

    return abs(slope - (moved(step) - moved(-step)) / (2 * step)) / abs(slope)
