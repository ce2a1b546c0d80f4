"""The log of a server."""

from __future__ import annotations

import json
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Log"]

_ERRORS = {"ERROR", "CRITICAL"}
_ACCESS = "convexlayer_server.access"
_CRASH_PREFIXES = ("Traceback", "Exception ignored", "Fatal Python error")
_TAIL = 12
"""Last lines of the log that a failure shows."""

_LINE = 300
"""Characters of a line that are shown."""


@dataclass(frozen=True)
class Log:
    """A parsed log.

    Attributes:
        errors: lines of level ERROR and above, and first lines of tracebacks and fatal errors.
        tail: the last lines, without the access log.
    """

    errors: tuple[str, ...] = ()
    tail: str = ""

    @classmethod
    def of(cls, path: Path) -> Log:
        """Parse a log, whose lines are JSON objects."""
        errors, tail = [], deque[str](maxlen=_TAIL)
        with path.open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                record = _record(line)
                text = " ".join(
                    str(record[name]) for name in ("level", "logger", "message", "exc_info") if name in record
                )
                if record.get("level") in _ERRORS or text.startswith(_CRASH_PREFIXES):
                    errors.append(text[:_LINE])
                if record.get("logger") != _ACCESS:
                    tail.append(text[:_LINE])
        return cls(tuple(errors), "\n".join(tail))

    def __str__(self) -> str:
        """Return the number of errors, and the first error."""
        if not self.errors:
            return "no error lines"
        return f"{len(self.errors)} error lines, the first: {' '.join(self.errors[0].split())}".replace("|", "/")


def _record(line: str) -> dict[str, Any]:
    """Parse a line, which may not be a JSON object."""
    try:
        record = json.loads(line)
    except ValueError:
        record = None
    return record if isinstance(record, dict) else {"message": line.rstrip()}
