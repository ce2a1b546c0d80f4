"""What a server says of itself, and of what a key has used."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

from convexlayer_client.results import Answer

__all__ = ["Capabilities", "DayUsage", "Solver", "Usage"]


@final
@dataclass(frozen=True)
class Solver:
    """A solver of the server.

    Attributes:
        name: What to ask for.
        quadratic: Whether it takes quadratic objectives as they are.
        cones: The cones that it takes.
    """

    name: str
    quadratic: bool
    cones: tuple[str, ...]


@final
@dataclass(frozen=True, kw_only=True)
class Capabilities(Answer):
    """What a server can do.

    Attributes:
        versions: Of the library, and of CVXPY.
        solvers: Those that are installed there.
        functions: What documents may use.
        documents: Kinds of documents.
        keys_required: Whether it asks for keys.
        workers: Processes that compute.
        limits: What it takes, by the names of its settings; None is no limit.
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
    """What was used on one day (UTC).

    Attributes:
        day: As 2026-11-22.
        requests: Requests.
        elements: Elements that were solved or differentiated.
        seconds: Of the engine.
    """

    day: str
    requests: int
    elements: int
    seconds: float


@final
@dataclass(frozen=True, kw_only=True)
class Usage(Answer):
    """What a key has used.

    Attributes:
        key: Its id; None where the server asks for none.
        days: Those on which it was used, oldest first.
    """

    key: str | None
    days: tuple[DayUsage, ...]
