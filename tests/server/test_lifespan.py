"""The parts of the service are closed, whichever of them fails."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from convexlayer_server import Settings, create_app
from convexlayer_server.compute.local_backend import LocalBackend
from convexlayer_server.errors import SettingsError, StoreError
from convexlayer_server.store import Store


def assert_closed(store: Store) -> None:
    with pytest.raises(StoreError, match="cannot be read"):
        store.all_keys()


def test_a_backend_that_cannot_start(monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(self: LocalBackend, record_usage: Any) -> None:
        raise SettingsError("there is no GPU")

    async def run() -> None:
        monkeypatch.setattr(LocalBackend, "open", fail)
        async with app.router.lifespan_context(app):
            pass

    store = Store(Settings())
    app = create_app(Settings(workers=0), store=store)
    with pytest.raises(SettingsError, match="there is no GPU"):
        asyncio.run(run())
    assert_closed(store)


def test_usage_that_cannot_be_written_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(used: Any) -> None:
        raise StoreError("the disk is full")

    async def run() -> None:
        async with app.router.lifespan_context(app):
            app.state.service.ledger.count("k", requests=1)
            monkeypatch.setattr(store, "add_usage", fail)

    store = Store(Settings())
    app = create_app(Settings(workers=0), store=store)
    with pytest.raises(StoreError, match="the disk is full"):
        asyncio.run(run())
    assert_closed(store)
