from __future__ import annotations

import hmac
from hmac import compare_digest
from pathlib import Path

import pytest

from convexlayer_server import Settings
from convexlayer_server.admission.keys import ANONYMOUS, Keyring, new_key, new_token
from convexlayer_server.errors import StoreError, UnauthenticatedError
from convexlayer_server.store import Store


def test_a_valid_key_is_authenticated() -> None:
    tokens = [new_token() for _ in range(3)]
    made = [new_key(f"name {number}", token) for number, token in enumerate(tokens)]
    keyring = Keyring(made)
    for key, token in zip(made, tokens, strict=True):
        assert keyring.authenticate(f"Bearer {token}").key is key
        assert keyring.authenticate(f"bearer {token}").id == key.id
    assert len({key.id for key in made}) == 3


@pytest.mark.parametrize("header", ["", "Bearer", "Bearer ", "Basic {}", "{}", "Bearer {}x", "Bearer \udcff"])
def test_invalid_headers_are_refused(header: str) -> None:
    token = new_token()
    with pytest.raises(UnauthenticatedError) as caught:
        Keyring([new_key("a", token)]).authenticate(header.format(token))
    assert token not in str(caught.value)


def test_a_service_without_keys_is_open_and_revoked_keys_are_refused() -> None:
    assert Keyring().authenticate("") is ANONYMOUS
    store, token = Store(Settings()), new_token()
    key = new_key("a", token)
    store.add_key(key)
    keyring = Keyring(store.all_keys())
    assert keyring.authenticate(f"Bearer {token}").key == key
    assert store.revoke_key(key.id)
    assert not store.revoke_key(key.id)
    keyring.replace(store.all_keys())
    for header in ("", f"Bearer {token}"):
        with pytest.raises(UnauthenticatedError):
            keyring.authenticate(header)
    store.close()


def test_every_key_is_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = [new_token() for _ in range(5)]
    keyring = Keyring(new_key("a", token) for token in tokens)
    compared: list[bytes] = []

    def compare(one: bytes, other: bytes) -> bool:
        compared.append(one)
        return compare_digest(one, other)

    monkeypatch.setattr(hmac, "compare_digest", compare)
    keyring.authenticate(f"Bearer {tokens[0]}")
    assert len(compared) == 5


def test_tokens_are_not_stored(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    store, token = Store(Settings(), path), new_token()
    store.add_key(new_key("a", token))
    store.close()
    assert token.encode() not in path.read_bytes()


@pytest.mark.parametrize("token", ["", "short", "x" * 31, "x" * 257, "x" * 32 + " y", "é" * 40, "x" * 40 + "\n"])
def test_weak_tokens_are_refused(token: str) -> None:
    with pytest.raises(StoreError, match="openssl rand"):
        new_key("a", token)


def test_keys_are_limited_and_distinct() -> None:
    store = Store(Settings(max_keys=2))
    first = new_key("a", new_token(), requests_per_minute=3, seconds_per_day=1.5)
    store.add_key(first)
    assert store.all_keys() == [first]
    with pytest.raises(StoreError, match="already"):
        store.add_key(first)
    store.add_key(new_key("b", new_token()))
    with pytest.raises(StoreError, match="2 keys"):
        store.add_key(new_key("c", new_token()))
    store.close()


def test_restoring_a_store_without_keys_does_not_open_the_service() -> None:
    keyring = Keyring([new_key("someone", new_token())])
    keyring.replace([])
    with pytest.raises(UnauthenticatedError):
        keyring.authenticate("")


@pytest.mark.parametrize("limit", [0, -1, float("nan"), float("inf")])
def test_limits_of_keys_are_positive(limit: float) -> None:
    with pytest.raises(StoreError, match="requests per minute of a key must be a positive number"):
        new_key("a", new_token(), requests_per_minute=limit)  # type: ignore[arg-type]
    with pytest.raises(StoreError, match="seconds per day of a key must be a positive number"):
        new_key("a", new_token(), seconds_per_day=limit)
