"""A backup that fails."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

from convexlayer_server.errors import StoreError
from convexlayer_server.store import Store, backup


def test_a_failed_backup_leaves_no_file(
    store: Store, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "backup.sqlite"

    def fail(*_: Any) -> None:
        raise StoreError("the disk is full")

    with monkeypatch.context() as patched:
        patched.setattr(importlib.import_module("convexlayer_server.store.backup"), "_copy", fail)
        with pytest.raises(StoreError, match="the disk is full"):
            backup(path, target)
    backup(path, target)
