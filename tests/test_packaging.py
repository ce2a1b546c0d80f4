"""Both distributions build without a network, and their wheels contain exactly the expected packages."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import zipfile
from email.message import Message
from email.parser import Parser
from itertools import chain
from pathlib import Path

import pytest
import tomllib
from packaging.requirements import Requirement
from packaging.utils import NormalizedName, canonicalize_name
from packaging.version import Version

import convexlayer

ROOT = Path(__file__).resolve().parents[1]
CLIENT = ROOT / "clients" / "python"


class Wheel:
    def __init__(self, project: Path, folder: Path) -> None:
        command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(project)]
        subprocess.run(command, check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        (path,) = folder.glob("*.whl")
        with zipfile.ZipFile(path) as archive:
            self.files = frozenset(archive.namelist())
            (info,) = {name.split("/")[0] for name in self.files if ".dist-info/" in name}
            self.metadata: Message = Parser().parsestr(archive.read(f"{info}/METADATA").decode())
            scripts = f"{info}/entry_points.txt"
            self.entry_points = archive.read(scripts).decode() if scripts in self.files else ""
        self.licence = f"{info}/licenses/LICENSE"

    @property
    def packages(self) -> set[str]:
        return {name.split("/")[0] for name in self.files if ".dist-info/" not in name}

    @property
    def extras(self) -> set[str]:
        return set(self.metadata.get_all("Provides-Extra") or [])

    def requires(self, extra: str = "") -> set[str]:
        """Names of the required distributions: always required, or additionally by an extra."""
        requirements = [Requirement(line) for line in self.metadata.get_all("Requires-Dist") or []]
        always = {line.name for line in requirements if "extra ==" not in str(line.marker)}
        return {line.name for line in requirements if f'extra == "{extra}"' in str(line.marker)} if extra else always


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Wheel:
    return Wheel(ROOT, tmp_path_factory.mktemp("library"))


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Wheel:
    return Wheel(CLIENT, tmp_path_factory.mktemp("client"))


def sources(package: Path) -> set[str]:
    return {path.relative_to(package.parent).as_posix() for path in package.rglob("*.py")}


def test_the_library_wheel_contains_library_and_server(library: Wheel) -> None:
    assert library.packages == {"convexlayer", "convexlayer_server"}
    assert library.files >= sources(ROOT / "convexlayer") | sources(ROOT / "server" / "convexlayer_server")
    assert "convexlayer/py.typed" in library.files
    assert library.licence in library.files


def test_the_client_wheel_contains_only_the_client(client: Wheel) -> None:
    assert client.packages == {"convexlayer_client"}
    assert client.files >= sources(CLIENT / "src" / "convexlayer_client")
    assert "convexlayer_client/py.typed" in client.files
    assert client.licence in client.files


def test_the_library_has_its_command_and_extras(library: Wheel) -> None:
    assert "convexlayer = convexlayer.cli:main" in library.entry_points
    assert library.extras == {"server", "telemetry", "solvers", "bench", "docs", "demo", "gallery", "dev", "all"}
    assert library.requires("all") == set().union(
        *(library.requires(extra) for extra in library.extras - {"all", "bench", "docs"})
    )


def test_diffcp_is_not_a_dependency(library: Wheel) -> None:
    assert "diffcp" in library.requires("dev")
    assert "diffcp" not in library.requires()


def test_the_client_needs_neither_library_nor_server(client: Wheel) -> None:
    assert client.requires() == {"httpx", "httpx-sse", "numpy", "tenacity"}
    assert client.extras == {"cvxpy", "progress"}


def test_torch_is_pinned_for_every_install() -> None:
    for constraints in ("constraints.txt", "lowest.txt"):
        assert "torch==2.13.0" in (ROOT / constraints).read_text().splitlines()
    installs = [
        line
        for name in ("Makefile", ".ci/run", ".ci/check-wheels", "docker/Dockerfile")
        for line in (ROOT / name).read_text().splitlines()
        if "pip install" in line
    ]
    assert installs
    pins = ("constraints.txt", "$(CONSTRAINTS)")
    assert all("--constraint" in line and any(pin in line for pin in pins) for line in installs), installs


def test_both_distributions_have_the_version_of_the_one_literal(library: Wheel, client: Wheel) -> None:
    assert library.metadata["Version"] == client.metadata["Version"] == convexlayer.__version__
    sources = [*(ROOT / "convexlayer").rglob("*.py"), *(ROOT / "server").rglob("*.py"), *CLIENT.rglob("*.py")]
    others = [ROOT / "pyproject.toml", CLIENT / "pyproject.toml", *(ROOT / "docker").iterdir()]
    literal = re.compile(rf"""(?<![\d.]){re.escape(convexlayer.__version__)}["']""")
    named = [path for path in (*sources, *others) if literal.search(path.read_text(encoding="utf-8", errors="ignore"))]
    assert named == [ROOT / "convexlayer" / "__init__.py"]


def test_the_client_builds_from_its_source_distribution_alone(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", str(tmp_path), str(CLIENT)]
    subprocess.run(command, check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        opened.extractall(tmp_path, filter="data")
    wheel = Wheel(tmp_path / archive.name.removesuffix(".tar.gz"), tmp_path / "wheel")
    assert wheel.metadata["Version"] == convexlayer.__version__
    assert wheel.packages == {"convexlayer_client"}


def test_the_lowest_tested_versions_are_the_declared_ones() -> None:
    """The higher bound if the distributions differ; without torch, whose oldest builds include CUDA."""
    declared: dict[NormalizedName, Version] = {}
    for folder in (ROOT, CLIENT):
        project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
        extras = {
            name: lines for name, lines in project["optional-dependencies"].items() if name not in ("all", "bench")
        }
        for line in [*project["dependencies"], *chain.from_iterable(extras.values())]:
            requirement = Requirement(line)
            (bound,) = (Version(each.version) for each in requirement.specifier if each.operator == ">=")
            name = canonicalize_name(requirement.name)
            declared[name] = max(bound, declared.get(name, bound))
    del declared[canonicalize_name("torch")]
    lines = (line.split("==") for line in (ROOT / "lowest.txt").read_text().splitlines() if not line.startswith("#"))
    pinned = {canonicalize_name(name): Version(version) for name, version in lines}
    assert {name: pinned[name] for name in declared} == declared
