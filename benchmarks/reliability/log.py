"""What a server wrote into its log."""

from __future__ import annotations

import json
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Log"]

_ERRORS = {"ERROR", "CRITICAL"}
_ACCESS = "convexlayer_server.access"
_BESIDE = ("Traceback", "Exception ignored", "Fatal Python error")
_TAIL = 12
_LINE = 300


@dataclass(frozen=True)
class Log:
    """A log, read.

    Attributes:
        errors: lines of level ERROR and above, and first lines of what Python writes beside the log when it fails.
        tail: the last lines but those of requests.
    """

    errors: tuple[str, ...] = ()
    tail: str = ""

    @classmethod
    def of(cls, path: Path) -> Log:
        """Read it; the lines of a log are JSON objects."""
        errors, tail = [], deque[str](maxlen=_TAIL)
        with path.open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                told = _record(line)
                text = " ".join(str(told[name]) for name in ("level", "logger", "message", "exc_info") if name in told)
                if told.get("level") in _ERRORS or text.startswith(_BESIDE):
                    errors.append(text[:_LINE])
                if told.get("logger") != _ACCESS:
                    tail.append(text[:_LINE])
        return cls(tuple(errors), "\n".join(tail))

    def __str__(self) -> str:
        """How many errors there are, and the first of them."""
        if not self.errors:
            return "no error lines"
        return f"{len(self.errors)} error lines, the first: {' '.join(self.errors[0].split())}".replace("|", "/")


def _record(line: str) -> dict[str, Any]:
    """A line, whether it is of the log or beside it."""
    try:
        record = json.loads(line)
    except ValueError:
        record = None
    return record if isinstance(record, dict) else {"message": line.rstrip()}
