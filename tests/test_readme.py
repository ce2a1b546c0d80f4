"""The examples in README.md run as written."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).resolve().parents[1] / "README.md"


def block(language: str) -> str:
    """The code block after the marker of this language."""
    found = re.search(rf"<!-- test: {language} -->\n```\w+\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert found, f"README has no block marked {language}"
    return found[1]


def test_the_layer_example_runs_and_returns_the_stated_shapes() -> None:
    names: dict[str, object] = {}
    exec(compile(block("python"), str(README), "exec"), names)
    A_batch, b_one, x_batch = (names[name] for name in ("A_batch", "b_one", "x_batch"))
    assert tuple(x_batch.shape) == (32, 3)  # type: ignore[attr-defined]
    assert tuple(A_batch.grad.shape) == (32, 4, 3)  # type: ignore[attr-defined]
    assert tuple(b_one.grad.shape) == (4,)  # type: ignore[attr-defined]


def test_the_nodes_example_runs_and_returns_the_stated_shapes() -> None:
    names: dict[str, object] = {}
    exec(compile(block("nodes"), str(README), "exec"), names)
    assert tuple(names["y"].shape) == (32, 3)  # type: ignore[attr-defined]
    history = names["result"].history  # type: ignore[attr-defined]
    assert history.value[-1] < history.value[0]


@pytest.mark.skipif(not shutil.which("curl") or not shutil.which("bash"), reason="needs curl and bash")
def test_the_curl_example_runs_and_returns_the_stated_response(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "convexlayer.cli", "serve", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        try:
            assert server.stdout is not None
            url = next(found[1] for line in server.stdout if (found := re.search(r"listening on (http://\S+)", line)))
            script = "shopt -s expand_aliases\n" + block("shell").replace("http://127.0.0.1:8000", url)
            ran = subprocess.run(
                ["bash", "-eu", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=600
            )
        finally:
            server.terminate()
    decoder, answers, rest = json.JSONDecoder(), [], ran.stdout
    while rest.strip():
        answer, end = decoder.raw_decode(rest.strip())
        answers.append(answer)
        rest = rest.strip()[end:]
    solved, pulled = answers
    assert solved["status"] == ["optimal"] * 3
    assert [len(row) for row in solved["variables"]["x"]] == [3, 3, 3]
    assert len(solved["duals"]["c0"]) == 3
    assert len(pulled["gradients"]["b"]) == 4
    assert len(pulled["gradients"]["lam"]) == 3
