"""The header ``Prefer`` (RFC 7240)."""

from __future__ import annotations

__all__ = ["respond_async"]


def respond_async(prefer: str) -> bool:
    """Whether an answer before the work is done is preferred."""
    return any(preference.partition(";")[0].strip().lower() == "respond-async" for preference in prefer.split(","))
