"""Derivatives of batched tensors of torch's two vmaps.

``torch.vmap`` calls the vmap rule of an autograd.Function, which flattens the new axis into the rows (``flattened``).
The legacy vmap of ``torch.autograd`` (``is_grads_batched``, ``functional.jacobian(vectorize=True)``,
``gradcheck(check_batched_grad=True)``) has no rules: it passes its wrapped tensors, which have no storage, to the
function itself; ``unwrapped`` handles them in place of a rule.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch._C._functorch import is_functorch_wrapped_tensor, is_legacy_batchedtensor

__all__ = ["Tensors", "flattened", "is_transformed", "is_wrapped", "unwrapped"]

Tensors = tuple[torch.Tensor, ...]

LEVELS = range(1, 65)
"""The nesting levels of the legacy vmap: torch allows 64."""


def is_transformed(tensors: Iterable[torch.Tensor | None]) -> bool:
    """Whether torch.func has wrapped one of the tensors, so that an autograd.Function must be applied, not called."""
    for t in tensors:  # noqa: SIM110 (a generator would take longer than all of its tests)
        if t is not None and is_functorch_wrapped_tensor(t):
            return True
    return False


def is_wrapped(tensors: Iterable[torch.Tensor | None]) -> bool:
    """Whether the legacy vmap has wrapped one of the tensors."""
    for t in tensors:  # noqa: SIM110
        if t is not None and is_legacy_batchedtensor(t):
            return True
    return False


def flattened(
    function: Callable[..., Tensors], lanes: int, in_dims: tuple[Any, ...], inputs: tuple[Any, ...], rows: slice
) -> Tensors:
    """Evaluate a derivative for all lanes of a vmap at once; returns tensors (lanes, n, ...).

    Args:
        function: the derivative as a function of all inputs.
        lanes: length of the mapped axis.
        in_dims: position of the mapped axis in each input; None if the input is not mapped.
        inputs: inputs of the function; those in ``rows`` are flattened to (lanes * n, ...).
        rows: the inputs with one row per element; the first of them is ``element``, the index of each row's element.
    """
    element, dim = inputs[rows.start], in_dims[rows.start]
    n = element.shape[0] if dim is None else element.movedim(dim, 0).shape[1]

    def flat(t: torch.Tensor | None, dim: int | None) -> torch.Tensor | None:
        if t is None:
            return None
        wide = t.unsqueeze(0).expand(lanes, *t.shape) if dim is None else t.movedim(dim, 0)
        return wide.reshape(lanes * n, *wide.shape[2:])

    tensors = [flat(t, d) for t, d in zip(inputs[rows], in_dims[rows], strict=True)]
    outputs = function(*inputs[: rows.start], *tensors, *inputs[rows.stop :])
    return tuple(output.reshape(lanes, n, *output.shape[1:]) for output in outputs)


def unwrapped(function: Callable[..., Tensors], inputs: tuple[Any, ...], rows: slice) -> Tensors:
    """Evaluate a derivative of tensors wrapped by the legacy vmap; the outputs are wrapped at the same level.

    Args:
        function: the derivative as a function of unwrapped inputs.
        inputs: as for ``flattened``.
        rows: as for ``flattened``.
    """
    level = next(level for level in LEVELS if any(t is not None and _has(t, level) for t in inputs[rows]))
    lanes, fronted = 1, list(inputs)
    dims: list[int | None] = [None] * len(inputs)
    for i in range(*rows.indices(len(inputs))):
        if inputs[i] is not None and _has(inputs[i], level):
            fronted[i], dims[i] = torch._remove_batch_dim(inputs[i], level, 1, 0), 0
            lanes = fronted[i].shape[0]
    outputs = flattened(function, lanes, tuple(dims), tuple(fronted), rows)
    return tuple(torch._add_batch_dim(output, 0, level) for output in outputs)


def _has(tensor: torch.Tensor, level: int) -> bool:
    """Whether the legacy vmap has wrapped the tensor at this level.

    If it has not, ``_remove_batch_dim`` expands the tensor to the requested size, so the shape depends on that size.
    """
    if not is_legacy_batchedtensor(tensor):
        return False
    once, twice = (torch._remove_batch_dim(tensor, level, size, 0) for size in (1, 2))
    return once.shape == twice.shape
