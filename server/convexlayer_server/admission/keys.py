"""API keys: their creation, and the authentication of requests.

A token is long and random, so its SHA-256 is enough to store; a slow password hash would protect nothing more.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import secrets
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import final

from ..errors import StoreError, UnauthenticatedError
from ..store import Key

__all__ = ["ANONYMOUS", "Keyring", "Principal", "new_key", "new_token"]

_PREFIX = "cl_"
"""Beginning of the tokens made here, by which scanners for leaked secrets can find them."""

_TOKEN_BYTES = 32
"""Random bytes of a token: 256 bits cannot be guessed."""

_MIN_TOKEN = 32
"""Characters of a token that the operator chooses, at least; as hexadecimal digits, 128 bits."""

_MAX_TOKEN = 256
"""Characters of a token at most; it must fit into a header."""

_MAX_NAME = 100
"""Characters of a key's name at most; it must fit into a line of the list of keys."""


@dataclass(frozen=True)
class Principal:
    """The authenticated client of a request.

    Attributes:
        id: ID of the key; empty if the service has no keys.
        key: the key; None if the service has no keys.
    """

    id: str = ""
    key: Key | None = None


ANONYMOUS = Principal()
"""The principal of every request if the service has no keys."""


def new_token() -> str:
    """Return a random token."""
    return _PREFIX + secrets.token_urlsafe(_TOKEN_BYTES)


def new_key(
    name: str, token: str, *, requests_per_minute: int | None = None, seconds_per_day: float | None = None
) -> Key:
    """Return the key of a token.

    Raises:
        StoreError: the name is empty, too long or not printable; a limit is not positive; or the token is too short to
            be secret, too long, or not printable ASCII without spaces.
    """
    if not name.strip() or len(name) > _MAX_NAME or not name.isprintable():
        raise StoreError(
            f"the name of a key has 1 to {_MAX_NAME} printable characters, got {name[:_MAX_NAME]!r}; name its owner, "
            "such as 'group A'"
        )
    for what, limit in (("requests per minute", requests_per_minute), ("seconds per day", seconds_per_day)):
        if limit is not None and not 0 < limit < math.inf:
            raise StoreError(f"the {what} of a key must be a positive number, got {limit}; revoke a key to refuse it")
    if not _MIN_TOKEN <= len(token) <= _MAX_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
        raise StoreError(
            f"a token has {_MIN_TOKEN} to {_MAX_TOKEN} printable ASCII characters without spaces, got {len(token)} "
            "characters; `openssl rand -hex 32` generates one"
        )
    return Key(
        id=f"k_{secrets.token_hex(5)}",
        name=name.strip(),
        digest=_digest(token),
        created_s=time.time(),
        requests_per_minute=requests_per_minute,
        seconds_per_day=seconds_per_day,
    )


@final
class Keyring:
    """The valid keys, in memory.

    Attributes:
        required: whether requests need a key: true once any key exists, even if it is revoked by now.
    """

    def __init__(self, keys: Iterable[Key] = ()) -> None:
        self.required = False
        self._principals: list[tuple[bytes, Principal]] = []
        self.replace(keys)

    def replace(self, keys: Iterable[Key]) -> None:
        """Replace all keys."""
        known = list(keys)
        self.required = self.required or bool(known)  # restoring an older store without keys does not open the service
        self._principals = [(key.digest, Principal(key.id, key)) for key in known if key.revoked_s is None]

    def authenticate(self, authorization: str) -> Principal:
        """Return the sender of a request with this Authorization header.

        The token is compared with every key, each in constant time, so the duration reveals nothing about any key.

        Raises:
            UnauthenticatedError: a key is required, and the header has no valid one.
        """
        if not self.required:
            return ANONYMOUS
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise UnauthenticatedError("this server requires a key; send Authorization: Bearer <key>")
        digest = _digest(token)
        matching = [principal for known, principal in self._principals if hmac.compare_digest(known, digest)]
        if not matching:
            raise UnauthenticatedError("the key is unknown or revoked")
        return matching[0]


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
