"""How many connections the descriptors of this process allow."""

from __future__ import annotations

import logging
import sys

__all__ = ["connections_allowed"]

_LOG = logging.getLogger(__name__)

_RESERVED = 192
"""Descriptors for what else there is: the store, workers, and connections that are about to be closed."""


def connections_allowed(wanted: int) -> int:
    """Connections that may be open at a time, as many as are wanted if the system allows it.

    The soft limit of descriptors is raised for them as far as the hard one lets it be.
    """
    if sys.platform == "win32":
        return wanted
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + _RESERVED
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return wanted
    reached = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (reached, hard))
    allowed = max(reached // 4, reached - _RESERVED)
    if allowed < wanted:
        _LOG.warning(
            "this process may open %d descriptors, so at most %d connections are served at a time, not the %d of "
            "max_connections; raise the limit (ulimit -n)",
            reached,
            allowed,
            wanted,
        )
    return min(allowed, wanted)
