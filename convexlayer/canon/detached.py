"""A copy of a CVXPY problem that shares nothing with the original that CVXPY writes to."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import cvxpy as cp
from cvxpy.utilities.canonical import Canonical

from convexlayer.program import Array

__all__ = ["assign", "detached", "expressions"]


def detached(problem: cp.Problem) -> cp.Problem:
    """A structural copy of a problem: same ids, no values, nothing shared that CVXPY writes to.

    Neither variables nor parameters have values, since some atoms are canonicalised differently where their arguments
    have some; and cached curvature and canonical forms are left behind, since they may have been computed from them. A
    parameter whose value is computed by a callback becomes one whose value is given. Stacks of matrices that are
    symmetric, definite or diagonal are none to CVXPY 1.9.3, which would take the triangle of one matrix of them.
    """
    memo: dict[int, Any] = {}

    def clone(value: Any) -> Any:
        if isinstance(value, cp.Problem):
            return cp.Problem(clone(value.objective), [clone(constraint) for constraint in value.constraints])
        if isinstance(value, list | tuple):
            parts = [clone(part) for part in value]
            return type(value)(parts) if type(value) in (list, tuple) else copy.copy(value)
        if isinstance(value, dict):
            return {key: clone(part) for key, part in value.items()}
        if not isinstance(value, Canonical):
            return value
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
    """Everything below objectives, constraints, expressions or problems, themselves included, each once.

    Whoever is given one may change its arguments before the next is asked for.
    """
    seen: dict[int, Any] = {}  # which also keeps what is replaced alive, so that no id is used twice
    left = list(roots)
    while left:
        node = left.pop()
        if id(node) in seen:
            continue
        seen[id(node)] = node
        yield node
        left += [node.objective, *node.constraints] if isinstance(node, cp.Problem) else node.args


def assign(problem: cp.Problem, values: Mapping[int, Array]) -> None:
    """Give variables and parameters of a detached problem the values of their ids, those that atoms hide included."""
    named = [*problem.variables(), *problem.parameters()]
    hidden = [node for node in expressions(problem) if isinstance(node, cp.Variable | cp.Parameter)]
    for leaf in (*named, *hidden):
        if leaf.id in values:
            leaf.save_value(values[leaf.id])
