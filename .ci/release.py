"""Release a version: check, set the version and its date, build the wheels, commit and tag. Nothing leaves the machine.

    python .ci/release.py 1.2.3 [--check 'bash .ci/run']

The version stands in ``convexlayer/__init__.py`` alone; both distributions are built from there. If a step fails, the
files are as before.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LITERAL = ROOT / "convexlayer" / "__init__.py"
CHANGELOG = ROOT / "CHANGELOG.md"
DIST = ROOT / "dist"
CLIENT = ROOT / "clients" / "python"

VERSION_LINE = re.compile(r'^__version__ = "(.*)"$', re.MULTILINE)
UNRELEASED = re.compile(r"^## \[Unreleased\]\n(?P<entries>.*?)(?=^## \[|\Z)", re.DOTALL | re.MULTILINE)


class ReleaseError(Exception):
    """The release is not possible; the message says why."""


def git(*arguments: str) -> str:
    """The output of a git command in the repository."""
    done = subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def parts(version: str) -> tuple[int, ...]:
    """The numbers of a version.

    Raises:
        ReleaseError: it is not of the form 1.2.3.
    """
    if not re.fullmatch(r"\d+\.\d+\.\d+", version):
        raise ReleaseError(f"expected a version such as 1.2.3, got {version!r}")
    return tuple(int(part) for part in version.split("."))


def current_version() -> str:
    """The version in the sources."""
    found = VERSION_LINE.search(LITERAL.read_text(encoding="utf-8"))
    if found is None:
        raise ReleaseError(f"no line __version__ = ... in {LITERAL.relative_to(ROOT)}")
    return found[1]


def check_repository(version: str) -> None:
    """Check branch, working tree, tag, version and changelog.

    Raises:
        ReleaseError: one of them is not ready for the release.
    """
    branch, dirty, current = git("branch", "--show-current"), git("status", "--porcelain"), current_version()
    tags = git("tag", "--list").split()
    if branch != "main":
        raise ReleaseError(f"expected the branch main, got {branch or 'a detached head'}")
    if dirty:
        raise ReleaseError(f"the working tree is not clean:\n{dirty}")
    if f"v{version}" in tags:
        raise ReleaseError(f"the tag v{version} exists")
    if parts(version) < parts(current) or (version == current and f"v{current}" in tags):
        raise ReleaseError(f"expected a version after {current}, got {version}")
    unreleased = UNRELEASED.search(CHANGELOG.read_text(encoding="utf-8"))
    if unreleased is None or not re.search(r"^- ", unreleased["entries"], re.MULTILINE):
        raise ReleaseError("CHANGELOG.md has no entries under ## [Unreleased]")


def set_version(version: str) -> None:
    """Write the version to the sources, and give it the unreleased section of the changelog, with today's date."""
    source, log = LITERAL.read_text(encoding="utf-8"), CHANGELOG.read_text(encoding="utf-8")
    LITERAL.write_text(VERSION_LINE.sub(f'__version__ = "{version}"', source), encoding="utf-8")
    date = datetime.now(timezone.utc).date().isoformat()
    heading = f"## [Unreleased]\n\n## [{version}] - {date}\n"
    CHANGELOG.write_text(log.replace("## [Unreleased]\n", heading, 1), encoding="utf-8")


def build(version: str) -> list[Path]:
    """Build the wheels of both distributions into dist/.

    Raises:
        ReleaseError: a wheel has another version.
    """
    shutil.rmtree(DIST, ignore_errors=True)
    for project in (ROOT, CLIENT):
        command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(DIST), str(project)]
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    wheels = sorted(DIST.glob("*.whl"))
    if {wheel.name.split("-")[1] for wheel in wheels} != {version} or len(wheels) != 2:
        raise ReleaseError(f"expected two wheels of version {version}, got {', '.join(wheel.name for wheel in wheels)}")
    return wheels


def release(version: str, check: str) -> None:
    """Do all steps."""
    check_repository(version)
    print(f"checking: {check}", flush=True)
    if subprocess.run(check, cwd=ROOT, shell=True, check=False).returncode:
        raise ReleaseError(f"the check failed: {check}")
    check_repository(version)
    try:
        set_version(version)
        wheels = build(version)
        git("commit", "--all", "--message", f"Version {version}")
    except BaseException:
        git("checkout", "HEAD", "--", str(LITERAL), str(CHANGELOG))
        raise
    git("tag", "--annotate", f"v{version}", "--message", f"Version {version}")
    print(f"committed and tagged v{version}; built {', '.join(str(wheel.relative_to(ROOT)) for wheel in wheels)}")
    print(f"next: git push origin main v{version}; upload the wheels; make image")


def main() -> int:
    """Read the arguments, and release."""
    parser = argparse.ArgumentParser(description="Release a version: check, set it, build, commit and tag.")
    parser.add_argument("version", help="the version, such as 1.2.3")
    parser.add_argument("--check", default="bash .ci/run", help="command that must pass (default: %(default)s)")
    arguments = parser.parse_args()
    try:
        release(arguments.version, arguments.check)
    except ReleaseError as error:
        print(f"not released: {error}", file=sys.stderr)
        return 1
    except subprocess.CalledProcessError as error:
        print(f"not released: {' '.join(error.cmd)} failed: {error.stderr or ''}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
