"""Reloading of keys after a failure of the store."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from convexlayer_server import Settings, create_app
from convexlayer_server.admission.keys import new_key, new_token
from convexlayer_server.errors import StoreError, UnauthenticatedError
from convexlayer_server.maintenance import Maintenance
from convexlayer_server.service import Service
from convexlayer_server.store import Store


def test_a_key_that_was_revoked_while_the_store_failed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    store, token = Store(Settings()), new_token()
    key = new_key("a", token)
    store.add_key(key)
    service: Service = create_app(Settings(workers=0), store=store).state.service
    maintenance, all_keys, versions = Maintenance(service), store.all_keys, iter(range(10))
    monkeypatch.setattr(store, "version", lambda: next(versions))

    def fail() -> Any:
        raise StoreError("the disk is busy")

    async def scenario() -> None:
        await maintenance.start()
        assert service.keyring.authenticate(f"Bearer {token}").id == key.id
        store.revoke_key(key.id)
        monkeypatch.setattr(store, "all_keys", fail)
        with pytest.raises(StoreError):
            await maintenance._reload_keys()
        monkeypatch.setattr(store, "all_keys", all_keys)
        monkeypatch.setattr(store, "version", lambda: 1)  # nothing has changed since
        await maintenance._reload_keys()
        with pytest.raises(UnauthenticatedError):
            service.keyring.authenticate(f"Bearer {token}")
        await service.parsers.close()

    asyncio.run(scenario())
    store.close()
