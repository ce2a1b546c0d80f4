"""The header ``Prefer`` (RFC 7240)."""

from __future__ import annotations

from typing import Annotated

from fastapi import Header

__all__ = ["Preferences", "respond_async"]

Preferences = Annotated[str, Header(alias="Prefer", max_length=200)]


def respond_async(prefer: str) -> bool:
    """Whether an answer before the work is done is preferred."""
    return any(preference.partition(";")[0].strip().lower() == "respond-async" for preference in prefer.split(","))
