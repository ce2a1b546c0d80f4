"""The persistent store of problems, keys and usage."""

from .backup import backup, restore
from .database import Store
from .records import Key, StoredProblem, Usage

__all__ = ["Key", "Store", "StoredProblem", "Usage", "backup", "restore"]
