"""Registry of the gallery's entries.

Every module in ``entries`` is an entry. The first line of its docstring is the title, the constant ``SOURCE`` names the
paper and the section, and the function ``run`` returns a ``Result``. Arguments of ``run`` are keyword-only; the
defaults produce the figure, smaller sizes a quick test.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module

import convexlayer.gallery.entries
from convexlayer.errors import ProblemError
from convexlayer.gallery.result import Result

__all__ = ["Entry", "available", "entry"]


@dataclass(frozen=True)
class Entry:
    """An experiment that can be run.

    Attributes:
        name: name of its module.
        title: one line that says what it shows.
        source: paper and section.
        run: runs it, with sizes as keyword arguments.
    """

    name: str
    title: str
    source: str
    run: Callable[..., Result]


def available() -> list[Entry]:
    """List all entries, sorted by name."""
    return [_load(name) for name in _names()]


def entry(name: str) -> Entry:
    """Get an entry by name.

    Raises:
        ProblemError: there is no entry of this name.
    """
    if name not in _names():
        raise ProblemError(f"no gallery entry {name!r}: there are {', '.join(_names())}")
    return _load(name)


def _names() -> list[str]:
    return sorted(module.name for module in pkgutil.iter_modules(convexlayer.gallery.entries.__path__))


def _load(name: str) -> Entry:
    module = import_module(f"convexlayer.gallery.entries.{name}")
    title = (module.__doc__ or "").partition("\n")[0].rstrip(".")
    return Entry(name, title, module.SOURCE, module.run)
