"""The number of connections that the limit of file descriptors allows."""

from __future__ import annotations

import logging
import sys

__all__ = ["allowed_connections"]

_LOG = logging.getLogger(__name__)

_RESERVED = 192
"""File descriptors for everything but open connections: the store, workers, parsers, and lingering connections.

Too few would let the store or a worker fail under load; more would be lost to connections.
"""

_MIN_FRACTION = 4
"""With few file descriptors, one in this many is for connections, whatever is reserved."""


def allowed_connections(requested: int) -> int:
    """Return how many connections may be open, at most ``requested``.

    The soft limit of file descriptors is raised as necessary, up to the hard limit.
    """
    if sys.platform == "win32":
        return requested
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = requested + _RESERVED
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return requested
    limit = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    allowed = max(limit // _MIN_FRACTION, limit - _RESERVED)
    if allowed < requested:
        _LOG.warning(
            "this process may open %d file descriptors, so it serves at most %d connections at a time instead of the "
            "%d of max_connections; raise the limit (ulimit -n)",
            limit,
            allowed,
            requested,
        )
    return min(allowed, requested)
