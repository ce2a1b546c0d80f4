"""The endpoints."""

from . import compute, health, problems

__all__ = ["compute", "health", "problems"]
