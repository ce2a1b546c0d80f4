"""The client without the library, and its imports."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from convexlayer import ConvexLayer
from tests.client.conftest import CLIENT, ROOT
from tests.client.test_layer import NAMES
from tests.families import family

HERE = Path(__file__).parent


def run(*arguments: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [sys.executable, *arguments],
        env=environment | {"PYTHONPATH": os.pathsep.join([str(CLIENT), str(ROOT)])},
        cwd=HERE,
        check=True,
        capture_output=True,
        text=True,
        timeout=600,
    ).stdout


@pytest.fixture(scope="module")
def remote_gradients(url: str) -> dict[str, list[list[float]]]:
    return json.loads(run("without_library.py", url, *NAMES))


@pytest.mark.parametrize("name", NAMES)
def test_gradients_without_the_library_equal_local_gradients(
    name: str, remote_gradients: dict[str, list[list[float]]]
) -> None:
    case = family(name)
    tensors = case.tensors(3, seed=11)
    layer = ConvexLayer(case.problem, case.parameters, case.outputs, gp=case.gp)
    sum((output**2).sum() for output in layer(*tensors)).backward()
    for ours, tensor in zip(remote_gradients[name], tensors, strict=True):
        torch.testing.assert_close(torch.tensor(ours, dtype=torch.float64), tensor.grad, rtol=1e-9, atol=1e-9)


def test_importing_the_client_imports_neither_torch_nor_cvxpy_nor_scipy() -> None:
    script = "import convexlayer_client, sys; print([m for m in ('torch', 'cvxpy', 'scipy') if m in sys.modules])"
    assert run("-P", "-c", script).strip() == "[]"
