"""Rules of form, checked on the sources: documented and short modules, short functions, no unfinished work."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.sources import PACKAGES, ROOT, SCRIPTS, SERVER, Module, Rule, assert_holds, modules, scripts
from tests.test_architecture import COMPOSITION_ROOTS

MAX_LINES = 400
MAX_FUNCTION_LINES = 80  # of the body, without the docstring
MAX_ARGUMENTS = 20
LONG_FUNCTIONS = {"convexlayer/interior_point/lanes/loop.py": {"solve_range"}}


def init_files_hold_imports_only(module: Module) -> Iterator[str]:
    """Lazy imports are allowed: under TYPE_CHECKING for type checkers, and by ``attach`` at run time."""
    if Path(module.path).name != "__init__.py":
        return
    package = ".".join((ROOT / module.path).parent.relative_to(PACKAGES[module.package].parent).parts)
    for position, node in enumerate(module.tree.body):
        match node:
            case ast.Expr(value=ast.Constant(value=str())) if position == 0:
                pass
            case ast.Import() | ast.ImportFrom() | ast.Assign(targets=[ast.Name(id="__all__" | "__version__")]):
                pass
            case ast.If(
                test=ast.Name(id="TYPE_CHECKING"),
                body=[*checked],
                orelse=[ast.Assign(value=ast.Call(func=ast.Name(id="attach"), args=[_, names]))],
            ) if all(isinstance(each, ast.ImportFrom) for each in checked):
                late = {(home, name) for home, given in ast.literal_eval(names).items() for name in given}
                shown = {
                    (str(each.module).removeprefix(f"{package}."), alias.name)
                    for each in checked
                    if isinstance(each, ast.ImportFrom)
                    for alias in each.names
                }
                yield from (f"line {node.lineno}: {name} differs from the lazy imports" for name in late ^ shown)
            case _:
                yield f"line {node.lineno}: only a docstring, imports, __all__ and __version__ are allowed"


def modules_are_documented(module: Module) -> Iterator[str]:
    if not ast.get_docstring(module.tree):
        yield "the module has no docstring"


def modules_are_short(module: Module) -> Iterator[str]:
    lines = module.source.count("\n")
    if lines > MAX_LINES:
        yield f"{lines} lines; the maximum is {MAX_LINES}"


def functions_are_short(module: Module) -> Iterator[str]:
    """Limit the lines from the first statement after the docstring to the last, nested functions included."""
    for function in _functions(module.tree):
        _docstring, *rest = function.body
        first = rest[0] if rest and ast.get_docstring(function) is not None else function.body[0]
        lines = (function.end_lineno or first.lineno) - first.lineno + 1
        if lines > MAX_FUNCTION_LINES and function.name not in LONG_FUNCTIONS.get(module.path, ()):
            yield f"line {function.lineno}: {function.name} has {lines} lines; the maximum is {MAX_FUNCTION_LINES}"


def functions_have_few_arguments(module: Module) -> Iterator[str]:
    for function in _functions(module.tree):
        given = function.args
        count = len([*given.posonlyargs, *given.args, *given.kwonlyargs, *filter(None, (given.vararg, given.kwarg))])
        if count > MAX_ARGUMENTS:
            yield f"line {function.lineno}: {function.name} has {count} arguments; the maximum is {MAX_ARGUMENTS}"


def _functions(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def libraries_do_not_print(module: Module) -> Iterator[str]:
    if module.path in COMPOSITION_ROOTS:
        return
    for node in ast.walk(module.tree):
        match node:
            case ast.Call(func=ast.Name(id="print")):
                yield f"line {node.lineno}: log instead of printing"


def no_todo_comments(module: Module) -> Iterator[str]:
    for number, line in enumerate(module.source.splitlines(), start=1):
        if any(word in line for word in ("TODO", "FIXME", "XXX")):
            yield f"line {number}: unfinished work: {line.strip()}"


RULES: list[Rule] = [
    init_files_hold_imports_only,
    modules_are_documented,
    modules_are_short,
    functions_are_short,
    functions_have_few_arguments,
    libraries_do_not_print,
    no_todo_comments,
]
RULES_OF_SCRIPTS = [modules_are_short, functions_are_short, functions_have_few_arguments]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_rule_holds(rule: Rule) -> None:
    assert_holds(rule, modules())


@pytest.mark.parametrize("rule", RULES_OF_SCRIPTS, ids=lambda rule: rule.__name__)
def test_rule_holds_in_benchmarks_examples_and_tests(rule: Rule) -> None:
    assert_holds(rule, scripts())


def test_every_exception_exists() -> None:
    assert {module.package for module in scripts()} == set(SCRIPTS)
    assert {module.path for module in modules()} >= {*LONG_FUNCTIONS}


@pytest.mark.parametrize(
    ("rule", "path", "source"),
    [
        (init_files_hold_imports_only, "convexlayer/canon/__init__.py", '"""Text."""\nlimit = 3'),
        (
            init_files_hold_imports_only,
            "convexlayer/__init__.py",
            "if TYPE_CHECKING:\n    from convexlayer.a import b\nelse:\n    f, g = attach(__name__, {'a': ['c']})",
        ),
        (modules_are_documented, "convexlayer/a.py", "import numpy"),
        (modules_are_short, "convexlayer/a.py", "\n" * (MAX_LINES + 1)),
        (functions_are_short, "benchmarks/a.py", "def f():\n    x = 1" + "\n" * MAX_FUNCTION_LINES + "    return x"),
        (functions_have_few_arguments, "examples/a.py", f"def f(a, *, {', '.join(f'x{i}' for i in range(20))}): ..."),
        (libraries_do_not_print, f"{SERVER}/a.py", "def f():\n    print()"),
        (no_todo_comments, "convexlayer/a.py", "# TODO: more"),
    ],
)
def test_rule_can_fail(rule: Rule, path: str, source: str) -> None:
    assert list(rule(Module(path, source)))
