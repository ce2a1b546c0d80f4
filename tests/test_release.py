"""The release command on a copy of the repository: what it checks, writes, builds and tags."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LITERAL, CHANGELOG, DIST = "convexlayer/__init__.py", "CHANGELOG.md", "dist"
FILES = (".gitignore", "CHANGELOG.md", "LICENSE", "README.md", "pyproject.toml")
FOLDERS = (".ci", "clients", "convexlayer", "server")

pytestmark = pytest.mark.skipif(not shutil.which("git"), reason="needs git")


class Repository:
    """A git repository with what the wheels are built from."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        ignore = shutil.ignore_patterns("__pycache__", "*.egg-info", ".venv*")
        for name in FILES:
            shutil.copy(ROOT / name, folder / name)
        for name in FOLDERS:
            shutil.copytree(ROOT / name, folder / name, ignore=ignore)
        self.git("init", "--quiet", "--initial-branch", "main")
        self.commit("first")

    def git(self, *arguments: str) -> str:
        done = subprocess.run(
            ["git", *arguments], cwd=self.folder, check=True, capture_output=True, text=True, env=_ENV
        )
        return done.stdout.strip()

    def commit(self, message: str) -> None:
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message", message)

    def read(self, name: str) -> str:
        return (self.folder / name).read_text(encoding="utf-8")

    def write(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text, encoding="utf-8")

    def release(self, version: str, check: str = "true") -> subprocess.CompletedProcess[str]:
        command = [sys.executable, ".ci/release.py", version, "--check", check]
        return subprocess.run(command, cwd=self.folder, check=False, capture_output=True, text=True, env=_ENV)


_NAMES = {f"GIT_{role}_{part}": "release@example.org" for role in ("AUTHOR", "COMMITTER") for part in ("NAME", "EMAIL")}
_ENV = {
    **{name: value for name, value in os.environ.items() if not name.startswith("GIT_")},
    **_NAMES,
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_NOSYSTEM": "1",
}


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(tmp_path)


def test_a_release_sets_builds_commits_and_tags(repository: Repository) -> None:
    entries = repository.read(CHANGELOG).partition("## [Unreleased]\n")[2]
    done = repository.release("7.8.9", check="test ! -e dist")
    assert done.returncode == 0, done.stderr
    assert '\n__version__ = "7.8.9"\n' in repository.read(LITERAL)
    heading, _, rest = repository.read(CHANGELOG).partition("\n## [7.8.9] - ")
    assert heading.endswith("## [Unreleased]\n")
    assert re.fullmatch(r"\d{4}-\d{2}-\d{2}", rest[:10])
    assert rest[11:] == entries
    assert [path.name.split("-")[:2] for path in sorted((repository.folder / DIST).iterdir())] == [
        ["convexlayer", "7.8.9"],
        ["convexlayer_client", "7.8.9"],
    ]
    assert repository.git("status", "--porcelain") == ""
    assert repository.git("log", "-1", "--format=%s") == "Version 7.8.9"
    assert repository.git("diff", "--name-only", "HEAD~1").split() == [CHANGELOG, LITERAL]
    assert repository.git("rev-parse", "v7.8.9^{commit}") == repository.git("rev-parse", "HEAD")
    again = repository.release("7.8.9")
    assert "the tag v7.8.9 exists" in again.stderr
    assert "no entries under ## [Unreleased]" in repository.release("7.9.0").stderr


def _branch(repository: Repository) -> None:
    repository.git("switch", "--quiet", "--create", "topic")


def _change(repository: Repository) -> None:
    repository.write("README.md", "changed")


def _no_entries(repository: Repository) -> None:
    repository.write(CHANGELOG, "# Changelog\n\n## [Unreleased]\n\n### Added\n\n## [0.0.1] - 2020-01-01\n\n- First.\n")
    repository.commit("no entries")


def _nothing(repository: Repository) -> None:
    pass


def _broken_build(repository: Repository) -> None:
    repository.write("clients/python/pyproject.toml", "[project\n")
    repository.commit("broken")


@pytest.mark.parametrize(
    ("prepare", "version", "check", "message"),
    [
        (_branch, "7.8.9", "true", "expected the branch main, got topic"),
        (_change, "7.8.9", "true", "not clean:\nM README.md"),
        (_no_entries, "7.8.9", "true", "no entries"),
        (_nothing, "0.0.1", "true", "expected a version after"),
        (_nothing, "1.2", "true", "such as 1.2.3, got '1.2'"),
        (_nothing, "v1.2.3", "true", "such as 1.2.3, got 'v1.2.3'"),
        (_nothing, "7.8.9", "exit 3", "the check failed: exit 3"),
        (_nothing, "7.8.9", "echo >> README.md", "not clean"),
        (_broken_build, "7.8.9", "true", "clients/python failed"),
    ],
)
def test_a_release_that_is_refused_leaves_everything_as_it_was(
    repository: Repository, prepare: Callable[[Repository], None], version: str, check: str, message: str
) -> None:
    prepare(repository)
    head, literal, log = repository.git("rev-parse", "HEAD"), repository.read(LITERAL), repository.read(CHANGELOG)
    done = repository.release(version, check)
    assert done.returncode == 1
    assert done.stderr.startswith("not released: ")
    assert message in done.stderr
    assert (repository.git("rev-parse", "HEAD"), repository.git("tag")) == (head, "")
    assert (repository.read(LITERAL), repository.read(CHANGELOG)) == (literal, log)


def test_the_present_version_can_be_released_once(repository: Repository) -> None:
    found = re.search(r'^__version__ = "(.*)"$', repository.read(LITERAL), re.MULTILINE)
    assert found is not None
    repository.git("tag", f"v{found[1]}")
    assert "exists" in repository.release(found[1]).stderr
    repository.git("tag", "--delete", f"v{found[1]}")
    assert repository.release(found[1]).returncode == 0
