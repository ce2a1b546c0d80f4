"""The endpoints."""

from . import compute, health, jobs, problems

__all__ = ["compute", "health", "jobs", "problems"]
