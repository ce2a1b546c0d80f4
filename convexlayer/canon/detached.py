"""A copy of a CVXPY problem that shares nothing with the original that CVXPY writes to."""

from __future__ import annotations

import copy
from typing import Any

import cvxpy as cp
from cvxpy.utilities.canonical import Canonical

__all__ = ["detached"]


def detached(problem: cp.Problem) -> cp.Problem:
    """A structural copy of a problem: same ids, no values, nothing shared that CVXPY writes to.

    Neither variables nor parameters have values, since some atoms are canonicalised differently where their arguments
    have some; and cached curvature and canonical forms are left behind, since they may have been computed from them. A
    parameter whose value is computed by a callback becomes one whose value is given.
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
        return memo[id(value)]

    copied: cp.Problem = clone(problem)
    return copied
