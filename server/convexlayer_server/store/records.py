"""What the store keeps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["Key", "StoredProblem", "Usage"]


@dataclass(frozen=True)
class StoredProblem:
    """A registered problem.

    Attributes:
        document: the normalised document as JSON.
        summary: what the engine said of it, plain JSON; it holds the ``id``.
        versions: of the packages that the summary depends on; another engine's may differ.
        size_bytes: what it takes in memory, about, where it was read from a store.
    """

    document: bytes
    summary: Mapping[str, Any]
    versions: str = ""
    size_bytes: int = 0

    @property
    def id(self) -> str:
        """The problem's id."""
        return str(self.summary["id"])


@dataclass(frozen=True, kw_only=True)
class Key:
    """A key that callers show. The token itself is kept nowhere.

    Attributes:
        id: what logs, problems and usage call it.
        name: for people.
        digest: SHA-256 of the token.
        created_s: when it was made, seconds since the epoch.
        revoked_s: when it was revoked; None while it is good.
        requests_per_minute: what it may send; None for what the settings say.
        seconds_per_day: what it may use of the engine; None for what the settings say.
    """

    id: str
    name: str
    digest: bytes
    created_s: float
    revoked_s: float | None = None
    requests_per_minute: int | None = None
    seconds_per_day: float | None = None


@dataclass(kw_only=True)
class Usage:
    """What a key used in one day.

    Attributes:
        requests: answered in any way.
        elements: that were solved or differentiated.
        seconds: of the engine.
    """

    requests: int = 0
    elements: int = 0
    seconds: float = 0.0

    def add(self, other: Usage) -> None:
        """Count in what another counted."""
        self.requests += other.requests
        self.elements += other.elements
        self.seconds += other.seconds
