"""Architecture rules, checked on the sources: allowed imports."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.sources import CLIENT, PACKAGES, SERVER, Module, Rule, assert_holds, modules

# The parts of the library, each with the parts that it may import besides itself.
BASE = {"errors", "arguments", "program", "runtime", "sparse", "status"}
CORE = {*BASE, "cones", "rays", "certificate", "solution"}
ALLOWED_PARTS = {
    "errors": set(),
    "status": set(),
    "arguments": {"errors"},
    "lazy": set(),
    "runtime": {"errors"},
    "sparse": {"runtime"},
    "program": {"errors", "runtime", "sparse"},
    "cones": BASE,
    "rays": {*BASE, "cones"},
    "certificate": {*BASE, "cones", "rays"},
    "solution": {*BASE, "cones", "rays", "certificate"},
    "canon": CORE,
    "linalg": CORE,
    "interior_point": {*CORE, "linalg"},
    "solvers": {*CORE, "linalg", "interior_point"},
    "diff": {*CORE, "linalg"},
    "layers": {*CORE, "linalg", "canon", "solvers", "diff"},
    "nodes": {*CORE, "linalg", "canon", "solvers", "diff", "layers"},
    "gallery": {*CORE, "layers", "nodes"},
    "testing": {*CORE, "lazy", "canon", "solvers", "diff", "layers"},
}

# The subpackages of ``convexlayer.nodes``, and those each may import; only the package itself imports them all.
ALLOWED_NODE_PACKAGES = {
    "autodiff": set(),
    "implicit": {"autodiff"},
    "closed_form": {"autodiff"},
    "declarative": {"autodiff", "implicit"},
    "fixed_point": {"autodiff", "implicit", "declarative"},
    "bilevel": {"autodiff", "implicit", "declarative", "fixed_point"},
}

# Each part of the server, and the parts that it may import (its own modules always): a folder or a module below
# convexlayer_server, or a single module of a folder. In this order, each part imports earlier ones alone.
SERVER_BASE = {"errors", "settings", "shared", "encodings"}
SERVER_PARTS = {*SERVER_BASE, "observability", "documents", "store", "compute", "http", "admission"}
ALLOWED_SERVER_PARTS: dict[str, set[str]] = {
    "errors": set(),
    "settings": {"errors"},
    "shared": set(),
    "encodings": {"errors", "settings"},
    "observability": {"errors", "settings"},
    "documents": SERVER_BASE,
    "store": {"errors", "settings"},
    "compute": {*SERVER_BASE, "observability", "documents"},
    "http": {*SERVER_BASE, "observability", "documents", "compute.protocol"},
    "admission": {*SERVER_BASE, "observability", "store", "compute.protocol", "http"},
    "problem_registry": {*SERVER_BASE, "documents", "store", "admission"},
    "service": {*SERVER_PARTS, "problem_registry"},
    "maintenance": {"errors", "admission", "service"},
    "routes": {*SERVER_PARTS, "problem_registry", "service"},
    "app": {*SERVER_PARTS, "problem_registry", "service", "maintenance", "routes"},
    "commands": {*SERVER_PARTS, "service", "app"},
    "__init__": {"settings", "app"},
}

# These put the parts together, so they may import any of them: the public names, and the command line.
COMPOSITION_ROOTS = {"convexlayer/__init__.py", "convexlayer/cli.py"}

MAY_IMPORT_TORCH = (
    "convexlayer/layers/",
    "convexlayer/nodes/",
    "convexlayer/gallery/",
    "convexlayer/linalg/dense/",
    "convexlayer/linalg/equilibration/tensors.py",
    "convexlayer/interior_point/torch/",
    "convexlayer/testing/",
    "convexlayer/runtime/graph_breaks.py",
)
MAY_IMPORT_CVXPY = (
    "convexlayer/canon/",
    "convexlayer/solvers/cvxpy_.py",
    "convexlayer/layers/canonicalize.py",  # these two take CVXPY objects as arguments
    "convexlayer/layers/convex.py",
    "convexlayer/gallery/entries/",  # compare nodes with the convex layer
    "convexlayer/layers/remote.py",
)
MAY_IMPORT_CVXPY_INTERNALS = (  # copy, check, canonicalise and translate CVXPY problems
    "convexlayer/canon/discipline.py",
    "convexlayer/canon/frontend.py",
    "convexlayer/canon/translate.py",
    "convexlayer/canon/detached.py",
)
CVXPY_INTERNALS = {"cvxcore", "interface", "lin_ops", "reductions", "settings", "utilities"}

MAY_IMPORT_NUMBA = (
    "convexlayer/cones/kernels/",
    "convexlayer/diff/lanes/",
    "convexlayer/interior_point/",
    "convexlayer/runtime/cached_kernel.py",
    "convexlayer/linalg/",
    "convexlayer/runtime/cpu_target.py",
    "convexlayer/runtime/inner_function.py",
    "convexlayer/runtime/simd.py",
    "convexlayer/solvers/kernels.py",
    "convexlayer/sparse/",
)  # lazy imports only

# The parts that have a compiled and a portable form of something, and so may ask which one this process uses.
CHOOSE_FORMS = {"cones", "diff", "linalg", "runtime", "solvers", "sparse"}

# Packages that solve or differentiate: each is imported only in its adapter, such as solvers/osqp_.py for osqp.
ADAPTED_PACKAGES = {
    "clarabel", "cvxopt", "daqp", "diffcp", "ecos", "highspy", "osqp", "piqp", "qoco", "scs",
}  # fmt: skip


# --- rules: each yields one sentence per violation in a module -------------------------------------------------------


def parts_import_one_way(module: Module) -> Iterator[str]:
    if module.package != "convexlayer" or module.path in COMPOSITION_ROOTS:
        return
    for found in module.imports:
        if found.package == "convexlayer":
            part = found.name.split(".")[1] if "." in found.name else "convexlayer"
            if part != module.part and part not in ALLOWED_PARTS[module.part]:
                yield f"line {found.line}: {module.part} may not import {found.name}"


def node_packages_import_one_way(module: Module) -> Iterator[str]:
    if not module.path.startswith("convexlayer/nodes/") or module.path == "convexlayer/nodes/__init__.py":
        return
    own = module.path.split("/")[2]
    for found in module.imports:
        if found.name.startswith("convexlayer.nodes."):
            other = found.name.split(".")[2]
            if other != own and other not in ALLOWED_NODE_PACKAGES[own]:
                yield f"line {found.line}: {own} may not import {found.name}"


def server_parts_import_one_way(module: Module) -> Iterator[str]:
    if module.package != "convexlayer_server":
        return
    allowed = ALLOWED_SERVER_PARTS[module.part]
    for found in module.imports:
        if found.package == "convexlayer_server":
            _, *names = found.name.split(".")
            if names[0] not in {module.part, *allowed} and ".".join(names[:2]) not in allowed:
                yield f"line {found.line}: {module.part} may not import {found.name}"


def the_library_knows_neither_server_nor_client(module: Module) -> Iterator[str]:
    if module.package == "convexlayer" and module.path not in COMPOSITION_ROOTS:
        for found in module.imports:
            if found.package in {"convexlayer_server", "convexlayer_client"}:
                yield f"line {found.line}: the library may not import {found.name}"


def client_and_server_share_the_wire_format_only(module: Module) -> Iterator[str]:
    for found in module.imports:
        if module.package == "convexlayer_client":
            if found.package == "convexlayer_server" or (found.package == "convexlayer" and not found.lazy):
                yield f"line {found.line}: the client may not import {found.name} at import time"
        elif module.package == "convexlayer_server" and found.package == "convexlayer_client":
            yield f"line {found.line}: the server may not import {found.name}"


def torch_stays_in_layers_and_the_dense_backend(module: Module) -> Iterator[str]:
    if module.package != "convexlayer_client" and not module.path.startswith(MAY_IMPORT_TORCH):
        for found in module.imports:
            if found.package == "torch":
                yield f"line {found.line}: {found.name} belongs to {', '.join(MAY_IMPORT_TORCH)}"


def cvxpy_stays_in_canon(module: Module) -> Iterator[str]:
    if module.package == "convexlayer" and not module.path.startswith(MAY_IMPORT_CVXPY):
        for found in module.imports:
            if found.package == "cvxpy":
                yield f"line {found.line}: {found.name} belongs to {', '.join(MAY_IMPORT_CVXPY)}"


def cvxpy_internals_stay_in_the_frontend(module: Module) -> Iterator[str]:
    if module.path in MAY_IMPORT_CVXPY_INTERNALS:
        return
    for found in module.imports:
        if found.name.startswith("cvxpy.") and found.name.split(".")[1] in CVXPY_INTERNALS:
            yield f"line {found.line}: {found.name} is internal to CVXPY"
    for node in ast.walk(module.tree):
        match node:
            case ast.Attribute(value=ast.Name(id="cp" | "cvxpy"), attr=attribute) if attribute in CVXPY_INTERNALS:
                yield f"line {node.lineno}: cvxpy.{attribute} is internal to CVXPY"


def kernels_stay_in_their_parts(module: Module) -> Iterator[str]:
    for found in module.imports:
        if found.package in {"numba", "llvmlite"} and not module.path.startswith(MAY_IMPORT_NUMBA):
            yield f"line {found.line}: {found.name} belongs to {', '.join(MAY_IMPORT_NUMBA)}"


def forms_are_chosen_beside_them(module: Module) -> Iterator[str]:
    if module.package != "convexlayer" or module.part in CHOOSE_FORMS:
        return
    for node in ast.walk(module.tree):
        match node:
            case ast.Attribute(value=ast.Name(id="kernel_cache"), attr="ready"):
                yield f"line {node.lineno}: {', '.join(sorted(CHOOSE_FORMS))} choose between both forms"


def adapted_packages_stay_in_their_adapters(module: Module) -> Iterator[str]:
    for found in module.imports:
        if found.package in ADAPTED_PACKAGES and Path(module.path).name != f"{found.package}_.py":
            yield f"line {found.line}: {found.package} belongs to a module named {found.package}_.py"


RULES: list[Rule] = [
    parts_import_one_way,
    node_packages_import_one_way,
    server_parts_import_one_way,
    the_library_knows_neither_server_nor_client,
    client_and_server_share_the_wire_format_only,
    torch_stays_in_layers_and_the_dense_backend,
    cvxpy_stays_in_canon,
    cvxpy_internals_stay_in_the_frontend,
    kernels_stay_in_their_parts,
    forms_are_chosen_beside_them,
    adapted_packages_stay_in_their_adapters,
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_rule_holds(rule: Rule) -> None:
    assert_holds(rule, modules())


@pytest.mark.parametrize(
    ("rule", "path", "source"),
    [
        (parts_import_one_way, "convexlayer/canon/a.py", "from convexlayer.diff import polish"),
        (parts_import_one_way, "convexlayer/diff/a.py", "def f():\n    import convexlayer.solvers.registry"),
        (parts_import_one_way, "convexlayer/program.py", "from . import solution"),
        (parts_import_one_way, "convexlayer/cones/a.py", "from ..canon.frontend import canonical_form"),
        (parts_import_one_way, "convexlayer/layers/a.py", "import convexlayer"),
        (node_packages_import_one_way, "convexlayer/nodes/implicit/a.py", "from convexlayer.nodes.bilevel import b"),
        (node_packages_import_one_way, "convexlayer/nodes/closed_form/a.py", "from ..bilevel.solve import b"),
        (node_packages_import_one_way, "convexlayer/nodes/bilevel/a.py", "from convexlayer.nodes import b"),
        (server_parts_import_one_way, f"{SERVER}/store/a.py", "from ..compute.protocol import Operation"),
        (server_parts_import_one_way, f"{SERVER}/compute/a.py", "def f():\n    from ..http import responses"),
        (server_parts_import_one_way, f"{SERVER}/http/a.py", "from ..compute.scheduler import Scheduler"),
        (server_parts_import_one_way, f"{SERVER}/settings.py", "from . import app"),
        (the_library_knows_neither_server_nor_client, "convexlayer/layers/a.py", "import convexlayer_client"),
        (client_and_server_share_the_wire_format_only, f"{CLIENT}/a.py", "import convexlayer"),
        (client_and_server_share_the_wire_format_only, f"{SERVER}/a.py", "import convexlayer_client"),
        (torch_stays_in_layers_and_the_dense_backend, "convexlayer/linalg/ldl/a.py", "from torch import linalg"),
        (cvxpy_stays_in_canon, "convexlayer/diff/a.py", "import cvxpy as cp"),
        (cvxpy_internals_stay_in_the_frontend, "convexlayer/canon/a.py", "from cvxpy import reductions"),
        (cvxpy_internals_stay_in_the_frontend, "convexlayer/canon/a.py", "import cvxpy as cp\ncp.settings.OPTIMAL"),
        (kernels_stay_in_their_parts, "convexlayer/runtime/kernel_cache.py", "def f():\n    import numba"),
        (forms_are_chosen_beside_them, "convexlayer/layers/a.py", "def f():\n    return kernel_cache.ready()"),
        (adapted_packages_stay_in_their_adapters, "convexlayer/solvers/a.py", "importlib.import_module('osqp')"),
    ],
)  # fmt: skip
def test_rule_can_fail(rule: Rule, path: str, source: str) -> None:
    assert list(rule(Module(path, source)))


def test_every_package_is_read_and_every_exception_exists() -> None:
    assert {module.package for module in modules()} == set(PACKAGES)
    paths = {module.path for module in modules()}
    assert paths >= {*COMPOSITION_ROOTS, *MAY_IMPORT_CVXPY_INTERNALS}


def test_server_parts_are_in_order() -> None:
    earlier: set[str] = set()
    for part, allowed in ALLOWED_SERVER_PARTS.items():
        assert {name.split(".")[0] for name in allowed} <= earlier, part
        earlier.add(part)
    assert earlier == {module.part for module in modules() if module.package == "convexlayer_server"}


def test_modules_of_the_server_have_distinct_names() -> None:
    names = [Path(module.path).stem for module in modules() if module.package == "convexlayer_server"]
    assert {name for name in names if names.count(name) > 1} <= {"__init__"}
