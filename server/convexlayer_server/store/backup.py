"""Copies of a store, made and put back while a server may run."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path

from ..errors import StoreError
from .schema import VERSION, version

__all__ = ["backup", "restore"]


def backup(store: str | Path, target: str | Path) -> None:
    """Write a consistent copy of a store to a new file, which the owner alone can read.

    Raises:
        StoreError: there is no store, or the file exists.
    """
    _check(store)
    try:
        os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    except OSError as error:
        raise StoreError(f"cannot write {target}: {error.strerror}; name a file that does not exist") from error
    _copy(store, target)


def restore(source: str | Path, store: str | Path) -> None:
    """Replace the contents of a store, which a server may have open, by those of a copy.

    Raises:
        StoreError: the copy is no store.
    """
    _check(source)
    Path(store).parent.mkdir(parents=True, exist_ok=True)
    _copy(source, store)
    os.chmod(store, 0o600)


def _check(path: str | Path) -> None:
    try:
        with closing(sqlite3.connect(f"{Path(path).absolute().as_uri()}?mode=ro", uri=True)) as connection:
            found = version(connection)
    except sqlite3.Error as error:
        raise StoreError(f"{path} is no store of convexlayer: {error}") from error
    if not 0 < found <= VERSION:
        raise StoreError(f"{path} has tables of version {found}, expected 1 to {VERSION}")


def _copy(source: str | Path, target: str | Path) -> None:
    try:
        with closing(sqlite3.connect(source)) as origin, closing(sqlite3.connect(target)) as copy:
            origin.backup(copy)
    except sqlite3.Error as error:
        raise StoreError(f"cannot copy {source} to {target}: {error}") from error
