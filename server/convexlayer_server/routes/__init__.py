"""The endpoints: one module a group."""

from . import account, health, jobs, operations, problems

__all__ = ["account", "health", "jobs", "operations", "problems"]
