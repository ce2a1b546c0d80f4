"""Lazy imports: help and keys do not import torch, and all public names can be imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import convexlayer
import convexlayer_server

HEAVY = {"torch", "cvxpy", "numba", "llvmlite", "scipy", "numpy", "fastapi", "uvicorn"}

RUN = """
import sys
from convexlayer.cli import main
try:
    status = main(sys.argv[1:])
except SystemExit as error:
    status = error.code
sys.stderr.write(" ".join(sys.modules))
sys.exit(status)
"""


def imported(*arguments: str) -> tuple[str, set[str]]:
    """The output of a command, and the packages that it imports."""
    run = subprocess.run([sys.executable, "-c", RUN, *arguments], check=True, capture_output=True, text=True)
    return run.stdout, {name.split(".")[0] for name in run.stderr.splitlines()[-1].split()}


@pytest.mark.parametrize("arguments", [["--help"], ["serve", "--help"], ["keys", "--help"], ["gallery", "--help"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    written, packages = imported(*arguments)
    assert "usage: convexlayer" in written
    assert not packages & (HEAVY | {"pydantic", "convexlayer_server"})


def test_version() -> None:
    written, packages = imported("--version")
    assert written == f"convexlayer {convexlayer.__version__} (Python {sys.version.split()[0]})\n"
    assert not packages & (HEAVY | {"pydantic", "convexlayer_server"})


def test_keys_and_the_store_import_nothing_heavy(tmp_path: Path) -> None:
    store = ["--store", str(tmp_path / "store.sqlite")]
    for command in (["keys", "create", "a"], ["keys", "list"], ["store", "backup", str(tmp_path / "copy.sqlite")]):
        _, packages = imported(*command, *store)
        assert "convexlayer_server" in packages
        assert not packages & HEAVY


@pytest.mark.parametrize("package", [convexlayer, convexlayer_server], ids=lambda package: package.__name__)
def test_every_public_name_can_be_imported(package: object) -> None:
    names = set(package.__all__)  # type: ignore[attr-defined]
    assert names <= set(dir(package))
    assert all(getattr(package, name) is getattr(package, name) for name in names)


def test_unknown_names_raise() -> None:
    with pytest.raises(AttributeError, match="module 'convexlayer' has no attribute 'ConvexLayr'"):
        convexlayer.ConvexLayr  # type: ignore[attr-defined]  # noqa: B018
    with pytest.raises(ImportError, match="ConvexLayr"):
        from convexlayer import ConvexLayr  # type: ignore[attr-defined]  # noqa: F401


def test_layers_and_nodes_do_not_import_the_compiler() -> None:
    """torch._dynamo takes about as long as torch itself; it is imported with the first use of torch.compile."""
    script = "import sys; from convexlayer import ConvexLayer, nodes; print('torch._dynamo' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert run.stdout.strip() == "False"
