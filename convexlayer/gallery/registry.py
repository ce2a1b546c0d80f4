"""The entries of the gallery, by name.

Every module in ``entries`` is one. It has a docstring whose first line is the entry's title, a constant ``SOURCE`` (the
paper and the place in it), and a function ``run`` that returns a ``Result``; all arguments of ``run`` are keyword-only
and have defaults, which make the figure; smaller sizes make it a quick test.
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
        name: the name of its module.
        title: one line on what it shows.
        source: the paper and the place in it.
        run: does it, with keyword arguments for its sizes.
    """

    name: str
    title: str
    source: str
    run: Callable[..., Result]


def available() -> list[Entry]:
    """All entries, by name."""
    return [_load(name) for name in _names()]


def entry(name: str) -> Entry:
    """The entry of this name.

    Raises:
        ProblemError: there is none.
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
