"""The shell blocks of the documentation: valid shell, commands, options and files that exist; marked blocks are run."""

from __future__ import annotations

import json
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import tomllib

from convexlayer.cli import main
from tests.docs.pages import ROOT, SERVER, Block, blocks, pages

SHELL = ("sh", "bash", "console")
BLOCKS = [block for page in pages() for block in blocks(page, *SHELL)]
RUN = [block for block in BLOCKS if block.mark == "run"]

needs_bash = pytest.mark.skipif(not shutil.which("bash"), reason="needs bash")
needs_curl = pytest.mark.skipif(not shutil.which("curl"), reason="needs curl")


def commands(block: Block) -> Iterator[list[str]]:
    """The simple commands of a block, as words; what it quotes stays one word."""
    text = block.text.replace("\\\n", " ")
    for line in text.splitlines():
        words = shlex.split(line, comments=True) if line.count("'") % 2 == 0 and line.count('"') % 2 == 0 else []
        while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
            words = words[1:]
        if words:
            yield words


def commands_of(program: str) -> list[tuple[str, list[str]]]:
    """Every use of a program with its place, also as ``python -m program``."""
    found = []
    for block in BLOCKS:
        for words in commands(block):
            if words[0] == program:
                found.append((block.where, words[1:]))
            elif words[:2] == ["python", "-m"] and words[2].split(".")[0] == program:
                found.append((block.where, words[2:]))
    return found


def run(block: Block, url: str, folder: Path) -> str:
    """What a block writes to standard output."""
    script = "shopt -s expand_aliases\n" + block.text.replace(SERVER, url)
    command = ["bash", "-eu", "-c", script]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True, timeout=600).stdout


@needs_bash
@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.where)
def test_is_valid_shell(block: Block) -> None:
    checked = subprocess.run(["bash", "-n", "-c", block.text], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr


@needs_bash
@needs_curl
@pytest.mark.parametrize("block", RUN, ids=lambda block: block.where)
def test_runs(block: Block, server_url: str, tmp_path: Path) -> None:
    assert run(block, server_url, tmp_path)


@needs_bash
@needs_curl
def test_the_curl_example_answers_as_it_claims(server_url: str, tmp_path: Path) -> None:
    (block,) = (block for block in RUN if block.page == "README.md")
    decoder, answers, rest = json.JSONDecoder(), [], run(block, server_url, tmp_path)
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


def test_make_targets_exist() -> None:
    text = "".join((ROOT / page).read_text(encoding="utf-8") for page in pages())
    named = {word for line in re.findall(r"^make ([^#\n]*)", text, re.MULTILINE) for word in line.split()}
    named |= {word for words in re.findall(r"`make ([^`]*)`", text) for word in words.split()}
    named = {name for name in named if "=" not in name}
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert named
    assert named <= targets


def options_in(text: str) -> set[str]:
    """The long options that a help text describes."""
    return set(re.findall(r"--[\w-]+", text))


def options_of(words: list[str]) -> set[str]:
    """The long options that a command uses."""
    return {word.partition("=")[0] for word in words if word.startswith("--")}


@pytest.mark.parametrize(("where", "words"), commands_of("convexlayer"))
def test_commands_of_convexlayer_exist(where: str, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    depth = 2 if words[0] in ("keys", "store", "gallery") else 0 if words[0].startswith("-") else 1
    with pytest.raises(SystemExit) as ended:
        main([*words[:depth], "--help"])
    assert ended.value.code == 0, where
    assert options_of(words) <= options_in(capsys.readouterr().out), where


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")  # runpy runs it again
@pytest.mark.parametrize(("where", "words"), commands_of("benchmarks"))
def test_options_of_the_benchmarks_exist(
    where: str, words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", [words[0], "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(words[0], run_name="__main__")
    assert ended.value.code == 0, where
    assert options_of(words) <= options_in(capsys.readouterr().out), where


def test_files_that_commands_name_exist() -> None:
    for block in BLOCKS:
        for path in re.findall(r"(?:docker|examples|benchmarks|\.ci)/[\w./-]+", block.text):
            made_by_the_reader = path.startswith(("docker/first_key", "examples/output", "benchmarks/output"))
            assert made_by_the_reader or (ROOT / path).exists(), f"{block.where}: {path}"


def test_extras_that_are_installed_exist() -> None:
    projects = {".": ROOT, "./clients/python": ROOT / "clients" / "python"}
    extras = {
        folder: set(tomllib.loads((path / "pyproject.toml").read_text())["project"]["optional-dependencies"])
        for folder, path in projects.items()
    }
    text = "".join((ROOT / page).read_text(encoding="utf-8") for page in pages())
    named = re.findall(r"pip install '?(\./clients/python|\.)\[([\w,]+)\]", text)
    assert named
    for folder, names in named:
        assert set(names.split(",")) <= extras[folder]
