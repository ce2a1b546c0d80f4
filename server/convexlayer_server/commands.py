"""The server's commands of the command line.

``serve`` imports the server itself; the other commands need not wait for that.
"""

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

from . import store
from .admission.keys import new_key, new_token
from .compute import forkserver
from .errors import ServerError, StoreError
from .settings import Settings
from .store import Store

__all__ = ["backup", "create_key", "list_keys", "load_settings", "restore", "revoke_key", "serve"]

FIRST_KEY = "CONVEXLAYER_FIRST_KEY"
"""Environment variable with a token that is valid from the first start on.

With the suffix ``_FILE``, a file with it.
"""

_BACKLOG = 1024
"""Connections that wait to be accepted; the kernel caps this at net.core.somaxconn."""

_UNSENT_BYTES = 2**18
"""Bytes of each connection that the kernel buffers beyond what it may send at once.

Fewer could leave a fast connection idle. The kernel's buffers do not count towards the memory budget.
"""


def load_settings(options: Mapping[str, Any]) -> Settings:
    """Return the settings of the environment and its file, overridden by the given command-line options.

    Raises:
        SettingsError: a value is invalid.
    """
    given = {f"CONVEXLAYER_{name.upper()}": str(value) for name, value in options.items() if value is not None}
    return Settings.from_environment(os.environ | given)


def serve(settings: Settings, host: str, port: int, *, insecure: bool) -> None:
    """Serve until a signal stops the server.

    Raises:
        ServerError: the server cannot listen on the address; or others can reach the address and there is no key; or a
            requested GPU is not visible.
    """
    with closing(Store(settings, settings.store)) as opened:
        _add_first_key(opened)
        if not insecure and not _is_loopback(host) and not opened.all_keys():
            raise ServerError(
                f"others can reach {host}, and there is no key to authenticate them: create one with `convexlayer keys "
                f"create NAME`, or set {FIRST_KEY}; or listen on 127.0.0.1; or pass --insecure on a trusted network"
            )
        try:
            listener = _listen(host, port)
        except OSError as error:
            raise ServerError(f"cannot listen on {host} port {port}: {error}") from error
        with listener:
            _serve_on(listener, host, settings, opened)


def _serve_on(listener: socket.socket, host: str, settings: Settings, opened: Store) -> None:
    """Serve on a socket. The imports of this process and those of the fork server take seconds, and run in parallel."""
    if settings.workers != 0:
        forkserver.start()

    from .app import create_app
    from .compute.devices import devices_of
    from .http.connections import Server, configuration
    from .http.file_descriptors import allowed_connections
    from .observability import logs
    from .service import Service

    devices_of(settings.device)
    logs.configure(settings)
    shown = f"[{host}]" if listener.family == socket.AF_INET6 else host
    sys.stdout.write(f"listening on http://{shown}:{listener.getsockname()[1]}\n")
    sys.stdout.flush()
    limit = allowed_connections(settings.max_connections)
    app = create_app(settings, store=opened)
    service: Service = app.state.service
    config = configuration(app, settings, service.metrics, limit)
    gc.collect()
    gc.freeze()  # imported objects stay; scanning them would block the event loop for 0.2 s per full collection
    Server(config, service.compute.close).run(sockets=[listener])


def create_key(settings: Settings, name: str, requests_per_minute: int | None, seconds_per_day: float | None) -> None:
    """Create a key and write its token to standard output; it is not stored, and cannot be shown again.

    Raises:
        StoreError: the name is invalid, the store cannot be opened, or it has reached ``max_keys``.
    """
    token = new_token()
    key = new_key(name, token, requests_per_minute=requests_per_minute, seconds_per_day=seconds_per_day)
    with closing(Store(settings, settings.store)) as opened:
        namesakes = [other.id for other in opened.all_keys() if other.name == key.name and other.revoked_s is None]
        taken = opened.add_key(key)
    if namesakes:
        sys.stderr.write(f"{', '.join(namesakes)} has the same name and stays valid until `convexlayer keys revoke`\n")
    if taken:
        sys.stderr.write(f"{taken} problems that were registered without a key now belong to this key\n")
    sys.stderr.write(f"key {key.id} ({key.name}); its token is not shown again:\n")
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
    """Revoke a key and delete its problems; a running server applies this within ``refresh_s``.

    Raises:
        StoreError: there is no valid key of this ID.
    """
    with closing(Store(settings, settings.store)) as opened:
        revoked = opened.revoke_key(key_id)
    if not revoked:
        raise StoreError(
            f"there is no valid key {key_id!r}; `convexlayer keys list` shows the IDs, which begin with k_"
        )


def backup(settings: Settings, target: str) -> None:
    """Copy the store to a new file; a server may be running.

    Raises:
        StoreError: there is no store, or the file exists.
    """
    store.backup(settings.store, target)


def restore(settings: Settings, source: str) -> None:
    """Replace the problems of the store by those of a backup; a running server applies this within ``refresh_s``.

    Keys and usage of both are merged, and revoked keys stay revoked.

    Raises:
        StoreError: the backup is not a store, or the store cannot be read.
    """
    store.restore(source, settings.store)


def _add_first_key(opened: Store) -> None:
    """Add the key of the environment, unless it was added before, even if it is revoked by now."""
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
        if hasattr(socket, "TCP_NOTSENT_LOWAT"):  # unread responses stay in this process, where the budget counts them
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
