"""Cost of a differentiable call: seconds of both passes, multiplications, and bytes held by its graph."""

from __future__ import annotations

import gc
import random
import statistics
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, final

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["Cost", "Work", "costs", "saved_bytes", "work"]

MIN_DURATION_S = 0.01
"""Shortest time of one measurement; shorter calls are repeated, so that the clock's resolution does not matter."""

Name = TypeVar("Name", bound=Hashable)


@dataclass(frozen=True)
class Cost:
    """Cost of a call and its gradient: median times over repetitions, and memory.

    Attributes:
        forward_s: seconds of the call.
        backward_s: seconds of the gradient.
        saved_bytes: bytes that the graph holds between the two, inputs included.
    """

    forward_s: float
    backward_s: float
    saved_bytes: int


def saved_bytes(function: Callable[[], torch.Tensor]) -> int:
    """Bytes of the distinct storages that the graph of a call holds; a deterministic number.

    Computed from the graph, because saved-tensor hooks are not allowed around torch.func.
    """
    waiting, seen = [function().grad_fn], set()
    sizes: dict[int, int] = {}
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        waiting += [following for following, _ in node.next_functions]
        for tensor in _saved(node):
            storage = tensor.untyped_storage()
            sizes[storage.data_ptr()] = storage.nbytes()
    return sum(sizes.values())


@dataclass(frozen=True)
class Work:
    """Work of torch in a call, including backward passes within it; deterministic.

    Attributes:
        multiplications: scalar multiplications in products of matrices and vectors.
        largest_tensor: number of entries of the largest output of an operation.
    """

    multiplications: int
    largest_tensor: int


def work(function: Callable[[], object]) -> Work:
    """Call a function and count its work."""
    with _Counter() as counter:
        function()
    return Work(counter.multiplications, counter.largest_tensor)


@final
class _Counter(TorchDispatchMode):
    """Count operations below autograd and torch.func, where a batch of vectors is a matrix."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.multiplications = self.largest_tensor = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if func.overloadpacket in {torch.ops.aten.mm, torch.ops.aten.bmm, torch.ops.aten.mv, torch.ops.aten.dot}:
            self.multiplications += output.numel() * args[0].shape[-1]
        sizes = (leaf.numel() for leaf in tree_leaves(output) if isinstance(leaf, torch.Tensor))
        self.largest_tensor = max(self.largest_tensor, *sizes, 0)
        return output


def _saved(node: Any) -> Iterator[torch.Tensor]:
    """Tensors saved by one node of the graph."""
    if isinstance(node, torch.autograd.function.BackwardCFunction):
        yield from (tensor for tensor in node.saved_tensors if tensor is not None)
        return
    for name in dir(node):
        if name.startswith("_saved_"):
            value = getattr(node, name)
            yield from (item for item in (value if isinstance(value, tuple) else (value,)) if torch.is_tensor(item))


def costs(
    calls: Mapping[Name, tuple[Callable[[], torch.Tensor], Sequence[torch.Tensor]]],
    *,
    repetitions: int,
    budget_s: float = 10.0,
) -> dict[Name, Cost]:
    """Measure calls and their gradients in interleaved rounds, so that a slow machine affects all of them alike.

    The first round is a warm-up; none starts after ``budget_s``. The order is random in each round, and short calls are
    repeated for ``MIN_DURATION_S``. Garbage is collected between rounds.

    Args:
        calls: name -> call, and the inputs that it is differentiated in.
        repetitions: number of rounds.
        budget_s: time after which no round starts, seconds.
    """
    forward: dict[Name, list[float]] = {name: [] for name in calls}
    backward: dict[Name, list[float]] = {name: [] for name in calls}
    order = random.Random(0)
    began = time.perf_counter()
    collecting = gc.isenabled()
    try:
        for number in range(repetitions + 1):
            gc.collect()
            gc.disable()
            for name in order.sample(list(calls), len(calls)):
                function, inputs = calls[name]
                until = time.perf_counter() + MIN_DURATION_S
                while True:
                    start = time.perf_counter()
                    output = function()
                    middle = time.perf_counter()
                    torch.autograd.grad(output, inputs, torch.ones_like(output))
                    end = time.perf_counter()
                    if number:
                        forward[name].append(middle - start)
                        backward[name].append(end - middle)
                    if end > until:
                        break
            if number and time.perf_counter() - began > budget_s:
                break
    finally:
        if collecting:
            gc.enable()
    return {
        name: Cost(statistics.median(forward[name]), statistics.median(backward[name]), saved_bytes(function))
        for name, (function, _) in calls.items()
    }
