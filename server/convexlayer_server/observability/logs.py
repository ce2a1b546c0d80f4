"""Logs: one JSON object a line, or text; never arrays, documents or tokens."""

from __future__ import annotations

import logging
import sys
import time
from typing import Any, final

from pydantic_core import to_json
from pythonjsonlogger.core import RESERVED_ATTRS
from pythonjsonlogger.json import JsonFormatter

from ..settings import Settings
from .tracing import current_context

__all__ = ["configure"]

_WARNING_INTERVAL_S = 5.0
"""Seconds between equal warnings of uvicorn: clients can cause them without limit."""

_TEXT = "%(asctime)s %(levelname)s %(process)d %(name)s %(request_id)s: %(message)s"
_JSON = "%(levelname)s %(process)d %(name)s %(message)s"


def configure(settings: Settings, level: int = logging.INFO) -> None:
    """Write the logs of this process to standard error, from a level on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(_RequestIdFilter())
    if settings.log_format == "json":
        names = {"levelname": "level", "name": "logger"}
        hidden = [*RESERVED_ATTRS, "color_message"]  # uvicorn's message once more, for terminals
        handler.setFormatter(
            JsonFormatter(_JSON, rename_fields=names, timestamp=True, reserved_attrs=hidden, json_serializer=_serialise)
        )
    else:
        handler.setFormatter(logging.Formatter(_TEXT))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.getLogger("uvicorn.access").disabled = True  # the middleware writes the access log
    logging.getLogger("uvicorn.error").addFilter(_RateLimitFilter())
    logging.getLogger("httpx").setLevel(logging.WARNING)


def _serialise(record: dict[str, Any], **_: Any) -> str:
    return to_json(record, fallback=str).decode()  # five times faster than json.dumps


@final
class _RequestIdFilter(logging.Filter):
    """Adds the ID of the current request to each record."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.request_id = getattr(record, "request_id", "") or current_context().request_id
        return True


@final
class _RateLimitFilter(logging.Filter):
    """Drops warnings that repeat within ``_WARNING_INTERVAL_S``."""

    def __init__(self) -> None:
        super().__init__()
        self._last: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno != logging.WARNING:
            return True
        now = time.monotonic()
        repeated = now - self._last.get(record.msg, -_WARNING_INTERVAL_S) < _WARNING_INTERVAL_S
        if not repeated:
            self._last[record.msg] = now
        return not repeated
