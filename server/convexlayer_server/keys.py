"""Keys of callers: how they are made, and how a request's is recognised.

A token is random and long, so its SHA-256 is all that has to be kept of it; a slow hash would protect nothing more.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import final

from .errors import StoreError, UnauthenticatedError
from .store import Key

__all__ = ["ANONYMOUS", "Caller", "Keyring", "new_key", "new_token"]

_PREFIX = "cl_"
_MIN_TOKEN = 32
_MAX_TOKEN = 256
_MAX_NAME = 100


@dataclass(frozen=True)
class Caller:
    """Who sends a request.

    Attributes:
        id: of the key; empty where the service asks for none.
        key: the key; None where the service asks for none.
    """

    id: str = ""
    key: Key | None = None


ANONYMOUS = Caller()
"""Everybody, where the service asks for no keys."""


def new_token() -> str:
    """A token with 256 random bits."""
    return _PREFIX + secrets.token_urlsafe(32)


def new_key(
    name: str, token: str, *, requests_per_minute: int | None = None, seconds_per_day: float | None = None
) -> Key:
    """The key of a token.

    Raises:
        StoreError: the name is empty, too long or not printable; or the token is too short to be secret, too long, or
            not printable ASCII without spaces.
    """
    if not name.strip() or len(name) > _MAX_NAME or not name.isprintable():
        raise StoreError(
            f"a key has a name of 1 to {_MAX_NAME} printable characters, got {name[:_MAX_NAME]!r}; say whose it is, "
            "such as 'group A'"
        )
    if not _MIN_TOKEN <= len(token) <= _MAX_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
        raise StoreError(
            f"a key has {_MIN_TOKEN} to {_MAX_TOKEN} printable ASCII characters without spaces, got {len(token)} "
            "characters; `openssl rand -hex 32` makes a good one"
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
    """The keys that are good, in memory.

    Attributes:
        required: whether a caller must show a key: as soon as any was ever made, though it may be revoked by now.
    """

    def __init__(self, keys: Iterable[Key] = ()) -> None:
        self.required = False
        self._callers: list[tuple[bytes, Caller]] = []
        self.replace(keys)

    def replace(self, keys: Iterable[Key]) -> None:
        """Know these keys from now on."""
        known = list(keys)
        self.required = self.required or bool(known)  # an older store brought back does not let everybody in
        self._callers = [(key.digest, Caller(key.id, key)) for key in known if key.revoked_s is None]

    def caller(self, authorization: str) -> Caller:
        """Who sends a request with this Authorization header.

        Every key is compared, each in constant time, so that the time tells nothing about any of them.

        Raises:
            UnauthenticatedError: a key is needed, and this is none that is good.
        """
        if not self.required:
            return ANONYMOUS
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise UnauthenticatedError("send a key of this server: Authorization: Bearer <key>")
        digest = _digest(token)
        matching = [caller for known, caller in self._callers if hmac.compare_digest(known, digest)]
        if not matching:
            raise UnauthenticatedError("the key is not known here, or was revoked")
        return matching[0]


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
