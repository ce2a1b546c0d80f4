"""Detached copies of CVXPY problems, the nodes of their expression trees, and values of their leaves."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import cvxpy as cp
from cvxpy.utilities.canonical import Canonical

from convexlayer.program import Array

__all__ = ["assign", "detached", "expressions"]


def detached(problem: cp.Problem) -> cp.Problem:
    """Copy a problem: same ids, no values, and no mutable state shared with the original.

    Variables and parameters of the copy have no values, because CVXPY canonicalises some atoms differently if their
    arguments have values; cached curvature and canonical forms are dropped, because they may depend on values. A
    CallbackParam becomes an ordinary Parameter. Symmetric, definite and diagonal attributes of stacks of matrices
    (ndim > 2) are dropped, because CVXPY 1.9.3 would keep the triangle of one matrix only.
    """
    memo: dict[int, Any] = {}
    nodes: dict[Any, bool] = {}  # whether values of a type are nodes: every attribute of every node is asked

    def clone(value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            parts = [clone(part) for part in value]
            return type(value)(parts) if type(value) in (list, tuple) else copy.copy(value)
        if isinstance(value, dict):
            return {key: clone(part) for key, part in value.items()}
        kind = type(value)
        if kind not in nodes:
            nodes[kind] = isinstance(value, Canonical)
        if not nodes[kind]:
            return value
        if isinstance(value, cp.Problem):
            return cp.Problem(clone(value.objective), [clone(constraint) for constraint in value.constraints])
        if id(value) not in memo:
            new = object.__new__(cp.Parameter if isinstance(value, cp.CallbackParam) else type(value))
            memo[id(value)] = new
            for key, part in vars(value).items():
                if not key.endswith("__cache__") and not key.startswith("_lazy"):
                    new.__dict__[key] = clone(part)
            if isinstance(value, cp.Parameter | cp.Variable):
                new._value = None
            if isinstance(value, cp.Parameter) and value.ndim > 2:
                new.attributes |= dict.fromkeys(("symmetric", "PSD", "NSD", "diag"), False)
        return memo[id(value)]

    copied: cp.Problem = clone(problem)
    return copied


def expressions(*roots: Any) -> Iterator[Any]:
    """Iterate over all nodes of the expression trees below ``roots``, roots included, each node once.

    The caller may replace the arguments of the current node before it advances the iterator.
    """
    seen: dict[int, Any] = {}  # also keeps replaced nodes alive, so that Python does not reuse their ids
    left = list(roots)
    while left:
        node = left.pop()
        if id(node) in seen:
            continue
        seen[id(node)] = node
        yield node
        left += [node.objective, *node.constraints] if isinstance(node, cp.Problem) else node.args


def assign(problem: cp.Problem, values: Mapping[int, Array]) -> None:
    """Assign values by id to the variables and parameters of a detached problem, including those nested in atoms."""
    named = [*problem.variables(), *problem.parameters()]
    hidden = [node for node in expressions(problem) if isinstance(node, cp.Variable | cp.Parameter)]
    for leaf in (*named, *hidden):
        if leaf.id in values:
            leaf.save_value(values[leaf.id])
