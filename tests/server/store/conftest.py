"""A store in a temporary folder, and problems and keys in it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from convexlayer_server import Settings
from convexlayer_server.admission.keys import new_key, new_token
from convexlayer_server.store import Store, StoredProblem


def problem(name: str, versions: str = "1", document: bytes = b"{}") -> StoredProblem:
    return StoredProblem(document, {"id": name, "made": versions}, versions)


def listed(store: Store, owner: str) -> list[str]:
    summaries, following = store.page(owner, 0, 1000)
    assert following is None
    return [json.loads(summary)["id"] for summary in summaries]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "store.sqlite"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    with closing(Store(Settings(), path)) as store:
        yield store


def made(store: Store, *names: str) -> list[str]:
    """IDs of new keys."""
    keys = [new_key(name, new_token()) for name in names]
    for key in keys:
        store.add_key(key)
    return [key.id for key in keys]
