"""What a worker process needs, imported: the process that forks workers imports this once for all of them."""

from __future__ import annotations

import importlib

from convexlayer import compiled

from . import worker

__all__ = ["worker"]

if compiled._is_complete():
    for module in compiled.PARTS.values():
        importlib.import_module(module)
