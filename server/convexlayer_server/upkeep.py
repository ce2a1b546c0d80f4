"""What a running service does beside serving: it learns of keys that others made or revoked, and writes usage down.

And it gives memory back, once much of it was freed.
"""

from __future__ import annotations

import asyncio
import logging
from typing import final

from starlette.concurrency import run_in_threadpool

from .errors import StoreError
from .memory import return_to_system
from .service import Service

__all__ = ["Upkeep"]

_LOG = logging.getLogger(__name__)
_AFTER_FAILURE_S = 10.0


@final
class Upkeep:
    """Keeps memory and store the same.

    Args:
        service: what is kept.
    """

    def __init__(self, service: Service) -> None:
        self._service = service
        self._version: int | None = None

    async def begin(self) -> None:
        """Read what the store knows."""
        await run_in_threadpool(self._service.ledger.load)
        await self._refresh()

    async def go_on(self) -> None:
        """Keep up, until cancelled. A store that fails for a time does not end it."""
        shrank = False
        while True:
            await asyncio.sleep(self._service.settings.refresh_s)
            try:
                await self._refresh()
                await self._write()
                if shrank:  # a while ago: what was held may be freed a moment after it was counted out
                    await run_in_threadpool(return_to_system)
                shrank = self._service.memory.shrank()
            except Exception:  # whatever it is, keys are to be revoked and usage written as soon as it is over
                _LOG.exception("the store cannot be read or written")
                await asyncio.sleep(_AFTER_FAILURE_S)

    async def end(self) -> None:
        """Write down what is not yet written."""
        await self._write()

    async def _refresh(self) -> None:
        version = await run_in_threadpool(self._service.store.version)
        if version != self._version:
            self._version = version
            self._service.registry.forget()
            self._service.keyring.replace(await run_in_threadpool(self._service.store.all_keys))

    async def _write(self) -> None:
        taken = self._service.ledger.take()
        try:
            await run_in_threadpool(self._service.ledger.write, taken)
        except StoreError:
            self._service.ledger.give_back(taken)
            raise
