"""Convexlayer as a contestant, and a lower bound of the time: an autograd function that does nothing."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.contestant import ACCURACY, Call, Contestant, Setting
from benchmarks.problem import Problem, Tensors
from convexlayer import ConvexLayer

__all__ = ["EMPTY", "OURS", "layer"]


def layer(problem: Problem, **keywords: Any) -> ConvexLayer:
    """The layer of a problem, by the public constructor, with default arguments except tol and on_degenerate."""
    arguments: dict[str, Any] = {"options": {"tol": ACCURACY}, "on_degenerate": "report", "gp": problem.gp, **keywords}
    return ConvexLayer(problem.problem, problem.parameters, problem.variables, **arguments)


def _build(setting: Setting) -> Call:
    solve = layer(setting.problem)

    def call(theta: Tensors) -> Tensors:
        return solve(*theta)

    return call


class _Nothing(torch.autograd.Function):
    """theta -> outputs of the right shapes, and back, without computing anything."""

    @staticmethod
    def forward(ctx: Any, outputs: Tensors, *theta: torch.Tensor) -> Tensors:
        ctx.save_for_backward(*theta)
        return outputs

    @staticmethod
    def backward(ctx: Any, *cotangents: torch.Tensor) -> tuple[Any, ...]:
        return None, *ctx.saved_tensors


def _build_nothing(setting: Setting) -> Call:
    def call(theta: Tensors) -> Tensors:
        outputs = tuple(torch.zeros(setting.batch, *v.shape, dtype=torch.float64) for v in setting.problem.variables)
        apply: Any = _Nothing.apply  # untyped in torch
        returned: Tensors = apply(outputs, *theta)
        return returned

    return call


def _any(problem: Problem) -> None:
    return None


OURS = Contestant("convexlayer", ("convexlayer",), _any, _build)
EMPTY = Contestant("empty", ("torch",), _any, _build_nothing)
