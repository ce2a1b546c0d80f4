"""What a worker needs, imported and used once: by the process that forks workers, so that each begins warm."""

from __future__ import annotations

import json
import logging
from typing import Any

import numpy as np

from convexlayer.runtime import kernel_cache

from ..settings import Settings
from . import worker
from .protocol import ComputeRequest
from .work import Work
from .workbench import Workbench

__all__ = ["worker"]

_LOG = logging.getLogger(__name__)

_DOCUMENTS: tuple[dict[str, Any], ...] = (
    {"minimize": "sum_squares(x - c)", "subject_to": ["x >= 0", "sum(x) == 1"]},
    {"minimize": "sum(exp(x)) + norm2(x - c)"},
)
"""One for each of the solvers that small problems go to."""

_SHAPES: dict[str, Any] = {
    "kind": "expression",
    "parameters": {"c": {"shape": [3]}},
    "variables": {"x": {"shape": [3]}},
}


def _warm_up() -> None:
    """Solve and differentiate: what is imported or set up at the first time is there then, in all that are forked."""
    bench, ones = Workbench(Settings()), np.ones(3)
    for number, document in enumerate(_DOCUMENTS):
        problem_id, text = str(number), json.dumps(_SHAPES | document).encode()
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
            done = bench.do(Work(problem_id=problem_id, document=text, request=request))
            if done.error is not None:
                _LOG.error("a worker could not be warmed up", exc_info=done.error)


kernel_cache.load()
_warm_up()
