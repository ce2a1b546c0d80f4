"""What outlives the process: problems, keys and usage."""

from .backup import backup, restore
from .records import Key, StoredProblem, Usage
from .store import Store

__all__ = ["Key", "Store", "StoredProblem", "Usage", "backup", "restore"]
