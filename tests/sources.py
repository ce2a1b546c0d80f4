"""The sources of the packages, as the rules of their architecture and form see them."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


CLIENT = "clients/python/src/convexlayer_client"


SERVER = "server/convexlayer_server"


PACKAGES = {
    "convexlayer": ROOT / "convexlayer",
    "convexlayer_server": ROOT / SERVER,
    "convexlayer_client": ROOT / CLIENT,
}


SCRIPTS = {"benchmarks": ROOT / "benchmarks", "examples": ROOT / "examples", "tests": ROOT / "tests"}
"""Programs that import the packages; only the rules on the form of modules and functions hold for them."""


@dataclass(frozen=True)
class Import:
    """One imported name, qualified by its module: ``from a import b`` is ``a.b``."""

    name: str
    line: int
    lazy: bool  # inside a function, so not at import time

    @property
    def package(self) -> str:
        return self.name.split(".")[0]


@dataclass(frozen=True)
class Module:
    path: str  # from the repository root
    source: str

    @property
    def package(self) -> str:
        roots = PACKAGES | SCRIPTS
        return next(name for name, folder in roots.items() if (ROOT / self.path).is_relative_to(folder))

    @property
    def part(self) -> str:
        """The part of its package that the module belongs to: its file or folder below the package."""
        return (ROOT / self.path).relative_to(PACKAGES[self.package]).parts[0].removesuffix(".py")

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.source, self.path)

    @cached_property
    def imports(self) -> list[Import]:
        folder = (ROOT / self.path).parent.relative_to(PACKAGES[self.package].parent)
        return list(_imports(self.tree, folder.parts, lazy=False))


def _imports(node: ast.AST, package: tuple[str, ...], *, lazy: bool) -> Iterator[Import]:
    """Iterate over all imports below a node; relative imports are resolved against the module's package."""
    match node:
        case ast.Import(names=names):
            yield from (Import(alias.name, node.lineno, lazy) for alias in names)
        case ast.ImportFrom(module=module, names=names, level=level):
            above = package[: len(package) - level + 1] if level else ()
            origin = ".".join([*above, *([module] if module else [])])
            yield from (Import(f"{origin}.{alias.name}", node.lineno, lazy) for alias in names)
        case ast.Call(func=ast.Attribute(attr="import_module"), args=[ast.Constant(value=str(name)), *_]):
            yield Import(name, node.lineno, lazy)
    inside = lazy or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
    for child in ast.iter_child_nodes(node):
        yield from _imports(child, package, lazy=inside)


@cache
def modules() -> tuple[Module, ...]:
    """Modules of the packages."""
    return _modules_in(PACKAGES.values())


@cache
def scripts() -> tuple[Module, ...]:
    """Modules of benchmarks, examples and tests."""
    return _modules_in(SCRIPTS.values())


def _modules_in(folders: Iterable[Path]) -> tuple[Module, ...]:
    paths = sorted(path for folder in folders for path in folder.rglob("*.py"))
    return tuple(Module(path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")) for path in paths)


Rule = Callable[[Module], Iterator[str]]
"""Yields what is wrong with a module."""


def assert_holds(rule: Rule, among: Iterable[Module]) -> None:
    """Fail with every violation of a rule."""
    violations = [f"{module.path}: {violation}" for module in among for violation in rule(module)]
    assert not violations, "\n".join(violations)
