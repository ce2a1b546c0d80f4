"""The experiments of the papers that the nodes come from: numbers, figures, and the papers' claims beside ours."""

from convexlayer.gallery.registry import Entry, available, entry
from convexlayer.gallery.result import Claim, Result
from convexlayer.gallery.writer import write

__all__ = ["Claim", "Entry", "Result", "available", "entry", "write"]
