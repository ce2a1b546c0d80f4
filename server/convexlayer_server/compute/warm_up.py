"""Preloaded by the fork server: imports and uses once what a worker needs, so that each starts warm."""

from __future__ import annotations

import json
import logging
from typing import Any

import numpy as np

from convexlayer.runtime import kernel_cache

from ..settings import Settings
from . import worker
from .executor import Executor
from .protocol import ComputeRequest
from .worker_messages import WorkItem

__all__ = ["worker"]

_LOG = logging.getLogger(__name__)

_DOCUMENTS: tuple[dict[str, Any], ...] = (
    {"minimize": "sum_squares(x - c)", "subject_to": ["x >= 0", "sum(x) == 1"]},
    {"minimize": "sum(exp(x)) + norm2(x - c)"},
)
"""One document for each solver that ``auto`` chooses for small problems."""

_DECLARATIONS: dict[str, Any] = {
    "kind": "expression",
    "parameters": {"c": {"shape": [3]}},
    "variables": {"x": {"shape": [3]}},
}


def _warm_up() -> None:
    """Solve and differentiate, to trigger lazy imports and set-up; forked workers inherit the result."""
    executor, ones = Executor(Settings()), np.ones(3)
    for number, document in enumerate(_DOCUMENTS):
        problem_id, text = str(number), json.dumps(_DECLARATIONS | document).encode()
        solve = ComputeRequest(request_id="solve", problem_id=problem_id, operation="solve", parameters={"c": ones})
        vjp = ComputeRequest(
            request_id="vjp",
            problem_id=problem_id,
            operation="vjp",
            parameters={"c": ones},
            directions={"x": ones},
            wrt=("c",),
        )
        for request in (solve, vjp):
            result = executor.execute(WorkItem(problem_id=problem_id, document=text, request=request))
            if result.error is not None:
                _LOG.error("the fork server could not warm up", exc_info=result.error)


kernel_cache.load()
_warm_up()
