"""The documentation site builds without warnings and loads nothing from other hosts; links of README lead somewhere."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import convexlayer
import convexlayer_client
import convexlayer_server
from convexlayer import nodes, testing
from tests.docs.pages import ROOT, pages


@pytest.mark.skipif(not importlib.util.find_spec("mkdocs"), reason="needs convexlayer[docs]")
def test_the_site_builds_strictly_and_is_self_contained(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    pages = sorted((tmp_path / "site").rglob("*.html"))
    assert len(pages) > 20
    for page in pages:
        text = page.read_text(encoding="utf-8")
        loaded = re.findall(r"<(?:script|img|iframe)[^>]*\ssrc=[\"']?(https?:)?//", text)
        loaded += re.findall(r"<link[^>]*rel=[\"']?stylesheet[^>]*href=[\"']?(https?:)?//", text)
        assert not loaded, page
        assert "arithmatex" not in text, f"{page}: a formula was not converted"


@pytest.mark.parametrize("name", ["README.md", "clients/python/README.md"])
def test_links_to_files_lead_somewhere(name: str) -> None:
    page = ROOT / name
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", pages())
def test_paths_in_code_exist(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    folders = "convexlayer|server|clients|tests|docs|examples|benchmarks|docker|.ci"
    made = (
        "examples/output",
        "benchmarks/output",
        "docker/first_key",
        "convexlayer/solvers/name_.py",
        "convexlayer/cones/name.py",
        "convexlayer/cones/kernels/name.py",
        "convexlayer/interior_point/lanes/cones/name.py",
    )
    for path in re.findall(rf"`((?:{folders})/[\w./-]*)`", text):
        assert path.startswith(made) or (ROOT / path).exists(), path


@pytest.mark.parametrize("package", [convexlayer, nodes, testing, convexlayer_server, convexlayer_client])
def test_the_reference_lists_every_public_name(package: ModuleType) -> None:
    reference = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs" / "api").glob("*.md"))
    listed = set(re.findall(rf"^::: {package.__name__}\.(\w+)$", reference, re.MULTILINE))
    public = {name for name in package.__all__ if not name.startswith("_")}
    assert public <= listed


def test_the_limits_of_a_lab_server_have_the_defaults_that_are_named() -> None:
    text = (ROOT / "docs" / "lab-server.md").read_text(encoding="utf-8")
    fields = convexlayer_server.Settings.model_fields
    rows = re.findall(r"^\| ([^|]*) \| (`[\d.]+`(?:, `[\d.]+`)*) \|", text, re.MULTILINE)
    assert rows
    for names, values in rows:
        for name, value in zip(re.findall(r"`(\w+)`", names), re.findall(r"`([\d.]+)`", values), strict=True):
            assert str(fields[name].default) == value, name


def test_the_slugs_of_errors_are_those_of_the_server() -> None:
    text = (ROOT / "docs" / "service.md").read_text(encoding="utf-8")
    sources = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "server").rglob("*.py"))
    rows = re.findall(r"^\| \d{3} \| ([^|]*) \|", text, re.MULTILINE)
    slugs = {slug for row in rows for slug in re.findall(r"`([\w-]+)`", row)}
    assert len(slugs) > 15
    assert {slug for slug in slugs if f'"{slug}"' not in sources} == set()
