"""Layers over solution maps on a server, and in this process."""

from __future__ import annotations

from typing import Any

from convexlayer import ConvexLayer
from convexlayer_client import Client, RemoteSolutionMap
from tests.families import Family

TOLERANCE: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-9}
"""How far their numbers may differ."""


def remote(
    case: Family, client: Client, *, on_failure: str = "raise", on_degenerate: str = "warn", **keywords: Any
) -> ConvexLayer:
    """The layer of a family's remote solution map."""
    solution_map = RemoteSolutionMap(case.problem, case.parameters, case.outputs, client=client, gp=case.gp, **keywords)
    return ConvexLayer.from_solution_map(solution_map, on_failure=on_failure, on_degenerate=on_degenerate)


def local(case: Family, **keywords: Any) -> ConvexLayer:
    """The layer that computes in this process."""
    return ConvexLayer(case.problem, case.parameters, case.outputs, gp=case.gp, **keywords)
