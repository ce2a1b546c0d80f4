"""Logs: one JSON object a line, or text; never a tensor, a document or a key."""

from __future__ import annotations

import logging
import sys
import time
from typing import Any, final

from pydantic_core import to_json
from pythonjsonlogger.core import RESERVED_ATTRS
from pythonjsonlogger.json import JsonFormatter

from .settings import Settings
from .trace import current_trace

__all__ = ["configure"]

_AGAIN_S = 5.0
"""After how long a warning that anybody can cause is written again."""

_TEXT = "%(asctime)s %(levelname)s %(process)d %(name)s %(request_id)s: %(message)s"
_JSON = "%(levelname)s %(process)d %(name)s %(message)s"


def configure(settings: Settings, level: int = logging.INFO) -> None:
    """Send the logs of this process, from a level on, to its standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(_RequestIdFilter())
    if settings.log_format == "json":
        names = {"levelname": "level", "name": "logger"}
        hidden = [*RESERVED_ATTRS, "color_message"]  # the message of uvicorn once more, for terminals
        handler.setFormatter(
            JsonFormatter(_JSON, rename_fields=names, timestamp=True, reserved_attrs=hidden, json_serializer=_written)
        )
    else:
        handler.setFormatter(logging.Formatter(_TEXT))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.getLogger("uvicorn.access").disabled = True  # the line of each request is ours
    logging.getLogger("uvicorn.error").addFilter(_SparingFilter())
    logging.getLogger("httpx").setLevel(logging.WARNING)


def _written(record: dict[str, Any], **_: Any) -> str:
    return to_json(record, fallback=str).decode()  # in a fifth of the time of json.dumps


@final
class _RequestIdFilter(logging.Filter):
    """Adds to each line the id of the request that it was written for."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.request_id = getattr(record, "request_id", "") or current_trace().request_id
        return True


@final
class _SparingFilter(logging.Filter):
    """Lets each warning through once in a while: a client can cause as many of uvicorn's as it likes."""

    def __init__(self) -> None:
        super().__init__()
        self._written: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno != logging.WARNING:
            return True
        now = time.monotonic()
        sparing = now - self._written.get(record.msg, -_AGAIN_S) < _AGAIN_S
        if not sparing:
            self._written[record.msg] = now
        return not sparing
