"""What a differentiable call costs: seconds both ways, multiplications, the bytes that its graph holds."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["Cost", "Work", "cost", "saved_bytes", "work"]


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
        yield from node.saved_tensors
        return
    for name in dir(node):
        if name.startswith("_saved_"):
            value = getattr(node, name)
            yield from (item for item in (value if isinstance(value, tuple) else (value,)) if torch.is_tensor(item))


def cost(
    function: Callable[[], torch.Tensor], inputs: Sequence[torch.Tensor], *, repetitions: int, budget_s: float = 2.0
) -> Cost:
    """Measure a call and its gradient in the inputs, after one to warm up; no repetition begins beyond the budget."""
    forward, backward = [], []
    began = time.perf_counter()
    for number in range(repetitions + 1):
        start = time.perf_counter()
        output = function()
        middle = time.perf_counter()
        torch.autograd.grad(output, inputs, torch.ones_like(output))
        if number:
            forward.append(middle - start)
            backward.append(time.perf_counter() - middle)
            if time.perf_counter() - began > budget_s:
                break
    return Cost(statistics.median(forward), statistics.median(backward), saved_bytes(function))
