"""The capabilities of a server, and the usage of a key."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

from convexlayer_client.results import ApiResult

__all__ = ["Capabilities", "DayUsage", "Solver", "Usage"]


@final
@dataclass(frozen=True)
class Solver:
    """A solver of the server.

    Attributes:
        name: Name of the solver.
        quadratic: Whether it accepts quadratic objectives.
        cones: The cones that it accepts.
    """

    name: str
    quadratic: bool
    cones: tuple[str, ...]


@final
@dataclass(frozen=True, kw_only=True)
class Capabilities(ApiResult):
    """The capabilities of a server.

    Attributes:
        versions: Versions of the library and of CVXPY.
        solvers: Installed solvers.
        functions: Functions that expressions in documents may call.
        documents: Supported kinds of documents.
        keys_required: Whether requests need a key.
        workers: Number of worker processes.
        limits: Limits, by the names of the settings; None is no limit.
    """

    versions: Mapping[str, str]
    solvers: tuple[Solver, ...]
    functions: tuple[str, ...]
    documents: tuple[str, ...]
    keys_required: bool
    workers: int
    limits: Mapping[str, float | None]


@final
@dataclass(frozen=True, kw_only=True)
class DayUsage:
    """Usage on one day (UTC).

    Attributes:
        day: As 2026-11-22.
        requests: Number of requests.
        elements: Number of elements solved or differentiated.
        seconds: Compute seconds.
    """

    day: str
    requests: int
    elements: int
    seconds: float


@final
@dataclass(frozen=True, kw_only=True)
class Usage(ApiResult):
    """Usage of a key.

    Attributes:
        key: ID of the key; None if the server has no keys.
        days: Usage on each day with any, oldest first.
    """

    key: str | None
    days: tuple[DayUsage, ...]
