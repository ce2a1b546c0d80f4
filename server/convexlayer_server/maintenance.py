"""Background maintenance of a running service: it reloads keys, writes usage, and releases freed memory."""

from __future__ import annotations

import asyncio
import logging
from typing import final

from starlette.concurrency import run_in_threadpool

from .admission.memory import release_free_memory
from .errors import StoreError
from .service import Service

__all__ = ["Maintenance"]

_LOG = logging.getLogger(__name__)

_RETRY_S = 10.0
"""Pause in seconds after a failure of the store."""


@final
class Maintenance:
    """Keeps memory and store consistent.

    Args:
        service: the service.
    """

    def __init__(self, service: Service) -> None:
        self._service = service
        self._version: int | None = None

    async def start(self) -> None:
        """Load usage and keys from the store."""
        await run_in_threadpool(self._service.ledger.load)
        await self._reload_keys()

    async def run(self) -> None:
        """Repeat until cancelled. A temporary failure of the store does not end it."""
        shrunk = False
        while True:
            await asyncio.sleep(self._service.settings.refresh_s)
            try:
                await self._reload_keys()
                await self._write_usage()
                if shrunk:  # one interval ago: memory is freed a moment after its reservation ends
                    await run_in_threadpool(release_free_memory)
                shrunk = self._service.memory.has_shrunk()
            except Exception:  # whatever it was, later revocations must take effect, and usage must be written
                _LOG.exception("the store cannot be read or written")
                await asyncio.sleep(_RETRY_S)

    async def stop(self) -> None:
        """Write the remaining usage."""
        await self._write_usage()

    async def _reload_keys(self) -> None:
        version = await run_in_threadpool(self._service.store.version)
        if version != self._version:
            self._service.registry.clear_cache()
            self._service.keyring.replace(await run_in_threadpool(self._service.store.all_keys))
            self._version = version  # at last: what could not be read is read again

    async def _write_usage(self) -> None:
        taken = self._service.ledger.take_unwritten()
        try:
            await run_in_threadpool(self._service.ledger.write, taken)
        except StoreError:
            self._service.ledger.return_unwritten(taken)
            raise
