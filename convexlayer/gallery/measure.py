"""What a differentiable call costs: seconds both ways, multiplications, the bytes that its graph holds."""

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

SHORT_S = 0.01

Name = TypeVar("Name", bound=Hashable)


@dataclass(frozen=True)
class Cost:
    """Medians over repetitions, and the memory, which is the same in each.

    Attributes:
        forward_s: seconds of the call.
        backward_s: seconds of the gradient.
        saved_bytes: what the graph holds between the two, the inputs included.
    """

    forward_s: float
    backward_s: float
    saved_bytes: int


def saved_bytes(function: Callable[[], torch.Tensor]) -> int:
    """Bytes of the distinct storages that a call's graph holds: a number that no clock disturbs.

    Read off the graph, because saved-tensor hooks are not allowed around torch.func.
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
    """What torch did in a call, and in a backward pass within it; no clock disturbs it.

    Attributes:
        multiplications: in products of matrices and vectors.
        largest_tensor: the most entries of a tensor that an operation gave.
    """

    multiplications: int
    largest_tensor: int


def work(function: Callable[[], object]) -> Work:
    """Call it and count."""
    with _Counter() as counter:
        function()
    return Work(counter.multiplications, counter.largest_tensor)


@final
class _Counter(TorchDispatchMode):
    """Counts below autograd and torch.func, where a batch of vectors is a matrix."""

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
    """Tensors that one node of the graph has saved."""
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
    """Measure calls and their gradients, each in its inputs, in turn: what slows the machine slows all of them alike.

    One round is to warm up; no other begins beyond the budget. The order is drawn anew in each, so that no call always
    follows the same one, and short calls are repeated for ``SHORT_S``. Garbage is collected between rounds.
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
                until = time.perf_counter() + SHORT_S
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
