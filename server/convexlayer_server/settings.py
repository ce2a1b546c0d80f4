"""Limits and ways of working of the service, read once from the environment.

Every field is read from ``CONVEXLAYER_<FIELD>``, upper case: ``CONVEXLAYER_MAX_BATCH=256``. Sizes count array entries
unless the name ends in ``_bytes``; durations end in ``_s``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields

from .errors import SettingsError

__all__ = ["Settings"]

_PREFIX = "CONVEXLAYER_"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Limits that no request may exceed, and the sizes of caches and pools.

    Attributes:
        max_body_bytes: bytes of one request body.
        max_text_length: characters of one expression.
        max_depth: nesting of one expression, its shared subexpressions included.
        max_nodes: nodes of all expressions of a document, each use of a shared subexpression counted again.
        max_constraints: constraints of a document.
        max_names: parameters, variables, constants and shared subexpressions of a document.
        max_dimensions: number of dimensions of an array.
        max_leaf_size: entries of all parameters, and of all constants, of a document.
        max_variable_size: entries of all variables of a document, or of all outputs of a cone program.
        max_expression_size: entries of any one expression.
        max_canonical_size: estimated number of coefficients of the canonicalised problem; and then rows and columns,
            coefficients, and entries of the squares of its second-order and semidefinite blocks together.
        max_batch: elements of a batch.
        max_array_size: entries of one decoded array, batch included.
        max_batch_size: entries of all program data, solutions and outputs of a batch together.
        max_iter: iterations that a request may ask for.
        max_time_limit_s: time limit that a request may ask for.
        solver_threads: requests that are solved at the same time.
        compiled_problems: compiled problems kept in memory.
        max_compiled_size: their size together, each measured as for ``max_canonical_size``, with the coefficients of
            the map from its parameters; the one used last is kept in any case.
    """

    max_body_bytes: int = 16 * 2**20
    max_text_length: int = 20_000
    max_depth: int = 64
    max_nodes: int = 20_000
    max_constraints: int = 5_000
    max_names: int = 2_000
    max_dimensions: int = 4
    max_leaf_size: int = 1_000_000
    max_variable_size: int = 100_000
    max_expression_size: int = 1_000_000
    max_canonical_size: int = 20_000_000
    max_batch: int = 4_096
    max_array_size: int = 8_000_000
    max_batch_size: int = 50_000_000
    max_iter: int = 1_000_000
    max_time_limit_s: float = 600.0
    solver_threads: int = 4
    compiled_problems: int = 64
    max_compiled_size: int = 60_000_000

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Settings:
        """Read every field that the environment sets; the others keep their defaults.

        Raises:
            SettingsError: a value is not a positive number.
        """
        values: dict[str, float] = {}
        source = os.environ if environment is None else environment
        for field in fields(cls):
            text = source.get(_PREFIX + field.name.upper())
            if text is not None:
                values[field.name] = _positive(field.name, text, type(field.default))
        return cls(**values)  # type: ignore[arg-type]  # _positive converts to the type of the field's default


def _positive(name: str, text: str, kind: type) -> float:
    try:
        value: float = kind(text)
    except ValueError:
        value = -1
    if not 0 < value < float("inf"):
        raise SettingsError(f"{_PREFIX}{name.upper()} must be a positive {kind.__name__}, got {text!r}")
    return value
