"""Records of the store."""

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
        summary: its summary as plain JSON, including the ``id``.
        versions: versions of the packages that determine the summary.
        size_bytes: approximate bytes in memory, if it was read from a store.
    """

    document: bytes
    summary: Mapping[str, Any]
    versions: str = ""
    size_bytes: int = 0

    @property
    def id(self) -> str:
        """ID of the problem."""
        return str(self.summary["id"])


@dataclass(frozen=True, kw_only=True)
class Key:
    """An API key. Its token is not stored.

    Attributes:
        id: ID in logs, problems and usage.
        name: name of its owner, for the list of keys.
        digest: SHA-256 of the token.
        created_s: time of its creation, in seconds since the epoch.
        revoked_s: time of its revocation; None while it is valid.
        requests_per_minute: its limit; None for that of the settings.
        seconds_per_day: its limit of compute seconds; None for that of the settings.
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
    """Usage of a key on one day.

    Attributes:
        requests: requests, whatever their status.
        elements: elements solved or differentiated.
        seconds: compute seconds.
    """

    requests: int = 0
    elements: int = 0
    seconds: float = 0.0

    def add(self, other: Usage) -> None:
        """Add another usage."""
        self.requests += other.requests
        self.elements += other.elements
        self.seconds += other.seconds
