"""``torch.compiler.disable`` without its import of torch._dynamo, which takes about as long as that of torch."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import ParamSpec, TypeVar

__all__ = ["outside_graphs"]

P = ParamSpec("P")
R = TypeVar("R")


def outside_graphs(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a function that runs outside of the graphs of torch.compile, which break there.

    As long as nothing has imported torch._dynamo, nothing is compiled, and the function is called as it is.
    """
    disabled: Callable[P, R] | None = None

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        nonlocal disabled
        if disabled is None:
            if "torch._dynamo" not in sys.modules:
                return function(*args, **kwargs)
            import torch

            disabled = torch.compiler.disable(function)
        return disabled(*args, **kwargs)

    setattr(call, "_torchdynamo_disable", True)  # noqa: B010 (unknown to mypy): the tracer does not enter this function
    return call
