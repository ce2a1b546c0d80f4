"""What the command line does with a server and its store; what only a server needs is imported where it is served."""

from __future__ import annotations

import gc
import ipaddress
import os
import socket
import sys
import time
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from . import forking, store
from .errors import ServerError, StoreError
from .keys import new_key, new_token
from .settings import Settings
from .store import Store

__all__ = ["backup", "create_key", "list_keys", "restore", "revoke_key", "serve", "settings_of"]

FIRST_KEY = "CONVEXLAYER_FIRST_KEY"
"""Variable with a token that is good from the first start on; with ``_FILE`` at its end, with the name of a file."""

_BACKLOG = 1024
_UNSENT_BYTES = 2**18
"""Of each connection, that the system takes beyond what it may send at once."""


def settings_of(options: Mapping[str, Any]) -> Settings:
    """Settings of the environment and its file, under those options of the command line that were given.

    Raises:
        SettingsError: a value cannot be used.
    """
    given = {f"CONVEXLAYER_{name.upper()}": str(value) for name, value in options.items() if value is not None}
    return Settings.from_environment(os.environ | given)


def serve(settings: Settings, host: str, port: int, *, insecure: bool) -> None:
    """Serve until told to stop.

    Raises:
        ServerError: the address cannot be had, or others can reach it and there is no key to ask them for; or a GPU is
            asked for that is not visible.
    """
    with closing(Store(settings, settings.store)) as opened:
        _keep_first_key(opened)
        if not insecure and not _is_loopback(host) and not opened.all_keys():
            raise ServerError(
                f"{host} can be reached by others, and there is no key to ask them for: make one by `convexlayer keys "
                f"create NAME` or set {FIRST_KEY}; or listen on 127.0.0.1; or pass --insecure if the network is yours"
            )
        try:
            listener = _listen(host, port)
        except OSError as error:
            raise ServerError(f"cannot listen on {host} port {port}: {error}") from error
        with listener:
            _serve_on(listener, host, settings, opened)


def _serve_on(listener: socket.socket, host: str, settings: Settings, opened: Store) -> None:
    """Serve on an address that was had; the imports of this process and those of its workers take seconds each."""
    if settings.workers != 0:
        forking.begin()

    from . import logs
    from .app import create_app
    from .connections import Server, configuration
    from .descriptors import connections_allowed
    from .engine.devices import devices_of

    devices_of(settings.device)
    logs.configure(settings)
    shown = f"[{host}]" if listener.family == socket.AF_INET6 else host
    sys.stdout.write(f"listening on http://{shown}:{listener.getsockname()[1]}\n")
    sys.stdout.flush()
    most = connections_allowed(settings.max_connections)
    app = create_app(settings, store=opened)
    config = configuration(app, settings, most)
    gc.collect()
    gc.freeze()  # what is imported stays; looking through all of it would stop the event loop for 0.2 s at a time
    Server(config, app.state.service).run(sockets=[listener])


def create_key(settings: Settings, name: str, requests_per_minute: int | None, seconds_per_day: float | None) -> None:
    """Make a key and write its token to the standard output, which is the only time that it is seen.

    Raises:
        StoreError: the name cannot be used, the store cannot be opened, or it holds as many keys as it may.
    """
    token = new_token()
    key = new_key(name, token, requests_per_minute=requests_per_minute, seconds_per_day=seconds_per_day)
    with closing(Store(settings, settings.store)) as opened:
        namesakes = [other.id for other in opened.all_keys() if other.name == key.name and other.revoked_s is None]
        taken = opened.add_key(key)
    if namesakes:
        sys.stderr.write(f"{', '.join(namesakes)} has this name, too, and stays good until `convexlayer keys revoke`\n")
    if taken:
        sys.stderr.write(f"problems that were registered without a key, {taken}, are this key's from now on\n")
    sys.stderr.write(f"key {key.id} of {key.name}; its token is not shown again:\n")
    sys.stdout.write(f"{token}\n")


def list_keys(settings: Settings) -> None:
    """Write a table of the keys, without their tokens.

    Raises:
        StoreError: the store cannot be opened.
    """
    with closing(Store(settings, settings.store)) as opened:
        keys = opened.all_keys()
    rows = [("key", "name", "created", "revoked", "requests/min", "seconds/day")]
    rows += [
        (
            key.id,
            key.name,
            _day(key.created_s),
            "" if key.revoked_s is None else _day(key.revoked_s),
            "" if key.requests_per_minute is None else str(key.requests_per_minute),
            "" if key.seconds_per_day is None else f"{key.seconds_per_day:g}",
        )
        for key in keys
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        sys.stdout.write("  ".join(cells).rstrip() + "\n")


def revoke_key(settings: Settings, key_id: str) -> None:
    """Let a key be good no longer, and forget its problems; a running server learns of it within ``refresh_s``.

    Raises:
        StoreError: there is no such key that is good.
    """
    with closing(Store(settings, settings.store)) as opened:
        revoked = opened.revoke_key(key_id)
    if not revoked:
        raise StoreError(f"there is no good key {key_id!r}; `convexlayer keys list` shows them, by their k_ ids")


def backup(settings: Settings, target: str) -> None:
    """Copy the store to a new file; a server may be running.

    Raises:
        StoreError: there is no store, or the file exists.
    """
    store.backup(settings.store, target)


def restore(settings: Settings, source: str) -> None:
    """Replace the problems of the store by those of a copy; a running server learns of it within ``refresh_s``.

    Keys and usage of both are kept, and what was revoked stays revoked.

    Raises:
        StoreError: the copy is no store, or the store cannot be read.
    """
    store.restore(source, settings.store)


def _keep_first_key(opened: Store) -> None:
    """Keep the key that the environment asks for, unless it was kept before, even if it was revoked since."""
    file = os.environ.get(f"{FIRST_KEY}_FILE")
    try:
        token = Path(file).read_text(encoding="utf-8").strip() if file else os.environ.get(FIRST_KEY, "")
    except OSError as error:
        raise StoreError(f"the key in {file} cannot be read: {error}") from error
    if token:
        key = new_key("first", token)
        if key.digest not in {known.digest for known in opened.all_keys()}:
            opened.add_key(key)


def _listen(host: str, port: int) -> socket.socket:
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if hasattr(socket, "TCP_NOTSENT_LOWAT"):  # what nobody reads stays here, where it is counted
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _UNSENT_BYTES)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _day(seconds: float) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(seconds))
