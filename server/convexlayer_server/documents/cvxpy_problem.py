"""CVXPY problems from expression documents."""

from __future__ import annotations

import graphlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import cvxpy as cp
import numpy as np

from ..encodings.arrays import decode
from ..errors import DocumentError, pointer
from ..settings import Settings
from .advice import convexity_advice
from .evaluate import Evaluator
from .grammar import RESERVED, Grammar
from .model import ExpressionDocument, Leaf
from .syntax import Node, names_in
from .values import Value

__all__ = ["CvxpyProblem", "build_problem"]

_MAX_CYCLE = 10
"""Names of a cycle of shared subexpressions that a message lists."""


@dataclass(frozen=True)
class CvxpyProblem:
    """The CVXPY problem of a document.

    Attributes:
        problem: the problem.
        parameters: parameters by name.
        variables: variables by name.
        duals: dual variables by name: ``c2`` is that of ``subject_to[2]``; if it has several, ``c2.0``, ``c2.1`` ...
        gp: whether the problem is a geometric program.
    """

    problem: cp.Problem
    parameters: Mapping[str, cp.Parameter]
    variables: Mapping[str, cp.Variable]
    duals: Mapping[str, cp.Variable]
    gp: bool


def build_problem(document: ExpressionDocument, grammar: Grammar, settings: Settings) -> CvxpyProblem:
    """Build the problem of a document.

    Raises:
        DocumentError: the document is invalid or exceeds a limit; the message has pointer, line and column.
    """
    _check_names(document, settings)
    parameters = _leaves(document.parameters, "parameters", cp.Parameter, settings.max_leaf_size, settings)
    variables = _leaves(document.variables, "variables", cp.Variable, settings.max_variable_size, settings)
    constants = {
        name: cp.Constant(decode(value, pointer("constants", name), settings))
        for name, value in document.constants.items()
    }
    leaves = {**parameters, **variables, **constants}
    scope = {name: Value(leaf, coefficients=leaf.size) for name, leaf in leaves.items()}
    with np.errstate(all="ignore"):
        for name, node in _in_order(document.let, grammar):
            scope[name] = Evaluator(scope, settings, pointer("let", name)).expression(node)
        objective, total = _objective(document, grammar, scope, settings)
        constraints = []
        for position, text in enumerate(document.subject_to):
            where = pointer("subject_to", position)
            tree = grammar.constraint(text, where)
            constraint = Evaluator(scope, settings, where).constraint(tree)
            constraints.append(constraint.content)
            _check_convex(constraint.content, tree, where, gp=document.gp)
            total = _add_sizes(total, constraint, where, settings)
    duals = _duals(constraints)
    for name in duals.keys() & variables.keys():
        raise DocumentError.at(
            pointer("variables", name), f"{name!r} is also the name of a dual variable; rename the variable"
        )
    problem = cp.Problem(objective, constraints)
    used = {variable.id for variable in problem.variables()}
    for name, variable in variables.items():
        if variable.id not in used:
            raise DocumentError.at(
                pointer("variables", name), f"{name!r} is declared, but neither the objective nor a constraint uses it"
            )
    if not variables:
        raise DocumentError.at("/variables", "a problem needs at least one variable")
    return CvxpyProblem(problem, parameters, variables, duals, document.gp)


def _check_names(document: ExpressionDocument, settings: Settings) -> None:
    groups: Mapping[str, Mapping[str, Any]] = {
        "parameters": document.parameters,
        "variables": document.variables,
        "constants": document.constants,
        "let": document.let,
    }
    owners: dict[str, str] = {}
    for group, members in groups.items():
        for name in members:
            if name in RESERVED:
                raise DocumentError.at(pointer(group, name), f"{name!r} is a reserved word; choose another name")
            if name in owners:
                raise DocumentError.at(pointer(group, name), f"{name!r} is already declared in {owners[name]}")
            owners[name] = group
    if len(owners) > settings.max_names:
        raise DocumentError.at("", f"declares {len(owners)} names; the limit is {settings.max_names}")
    if len(document.subject_to) > settings.max_constraints:
        raise DocumentError.at(
            "/subject_to", f"has {len(document.subject_to)} constraints; the limit is {settings.max_constraints}"
        )
    if "objective" in document.variables:
        raise DocumentError.at(
            "/variables/objective", "'objective' names the optimal value in vjp; rename the variable"
        )


def _leaves(
    declared: Mapping[str, Leaf],
    group: str,
    kind: type[cp.Parameter] | type[cp.Variable],
    limit: int,
    settings: Settings,
) -> dict[str, Any]:
    """Create the CVXPY leaves of one kind, by name."""
    leaves: dict[str, Any] = {}
    total = 0
    for name, leaf in declared.items():
        where = pointer(group, name)
        if len(leaf.shape) > settings.max_dimensions:
            raise DocumentError.at(where, f"has {len(leaf.shape)} dimensions; the limit is {settings.max_dimensions}")
        total += math.prod(leaf.shape)
        if total > limit:
            raise DocumentError.at(where, f"the {group} have more than {limit} entries together")
        try:
            leaves[name] = kind(tuple(leaf.shape), name=name, **dict.fromkeys(leaf.attributes, True))
        except ValueError as error:
            raise DocumentError.at(where, str(error)) from error
    return leaves


def _in_order(texts: Mapping[str, str], grammar: Grammar) -> list[tuple[str, Node]]:
    """Parse the shared subexpressions; return each after those that it uses."""
    trees = {name: grammar.expression(text, pointer("let", name)) for name, text in texts.items()}
    uses = {name: {used for used in names_in(tree) if used in trees} for name, tree in trees.items()}
    try:
        return [(name, trees[name]) for name in graphlib.TopologicalSorter(uses).static_order()]
    except graphlib.CycleError as error:
        cycle = " -> ".join(error.args[1][:_MAX_CYCLE])
        raise DocumentError.at("/let", f"the expressions form a cycle: {cycle}") from error


def _objective(
    document: ExpressionDocument, grammar: Grammar, scope: Mapping[str, Value], settings: Settings
) -> tuple[cp.Minimize | cp.Maximize, Value]:
    given = {name: text for name in ("minimize", "maximize") if (text := getattr(document, name)) is not None}
    if len(given) != 1:
        raise DocumentError.at("", f"expected exactly one of minimize and maximize, got {len(given)}")
    ((name, text),) = given.items()
    where = pointer(name)
    tree = grammar.expression(text, where)
    value = Evaluator(scope, settings, where).expression(tree)
    if not value.content.is_scalar():
        shape = list(value.content.shape)
        raise DocumentError.at(where, f"the objective must be a scalar, got shape {shape}; write sum(...) around it")
    objective = (cp.Minimize if name == "minimize" else cp.Maximize)(value.content)
    _check_convex(objective, tree, where, gp=document.gp)
    return objective, value


def _check_convex(part: cp.Objective | cp.Constraint, tree: Node, where: str, *, gp: bool) -> None:
    """Check that one part follows the rules of CVXPY; the library checks the whole problem."""
    if not (part.is_dgp() if gp else part.is_dcp()):
        property_, rules = ("log-log convex", "DGP") if gp else ("convex", "DCP")
        curvatures = ", ".join(argument.log_log_curvature if gp else argument.curvature for argument in part.args)
        advice = "" if gp else convexity_advice(tree)
        message = f"is not {property_} by CVXPY's rules ({rules}); its sides are: {curvatures.lower()}{advice}"
        raise DocumentError.at(where, message)


def _add_sizes(total: Value, value: Value, where: str, settings: Settings) -> Value:
    """Add up nodes and coefficients of the document, and check their limits."""
    result = Value(None, total.nodes + value.nodes, 0, total.coefficients + value.coefficients)
    if result.nodes > settings.max_nodes:
        raise DocumentError.at(
            where, f"the document has more than {settings.max_nodes} nodes, counting each use of a 'let'"
        )
    if result.coefficients > settings.max_canonical_size:
        limit = settings.max_canonical_size
        raise DocumentError.at(where, f"the standard form would have more than {limit} coefficients")
    return result


def _duals(constraints: list[cp.Constraint]) -> dict[str, cp.Variable]:
    duals: dict[str, cp.Variable] = {}
    for position, constraint in enumerate(constraints):
        variables = constraint.dual_variables
        for number, variable in enumerate(variables):
            duals[f"c{position}" if len(variables) == 1 else f"c{position}.{number}"] = variable
    return duals
