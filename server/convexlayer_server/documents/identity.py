"""The identity of a problem: a hash of what the document means, not of how it was written."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any

from ..arrays import decode, encode
from ..errors import DocumentError, InvalidError, pointer
from ..settings import Settings
from .model import ConeProgramDocument, ExpressionDocument

__all__ = ["normalise", "problem_id"]


def normalise(document: ExpressionDocument | ConeProgramDocument, settings: Settings) -> dict[str, Any]:
    """The document as plain JSON, defaults left out and every constant in base64, so that equal problems are equal.

    Raises:
        DocumentError: a constant is not an array, or all together are too large.
    """
    if isinstance(document, ConeProgramDocument):
        return {"kind": document.kind, "program": document.program}
    plain = document.model_dump(exclude_defaults=True, exclude={"constants"})
    total = 0
    constants: dict[str, Any] = {}
    for name, value in document.constants.items():
        where = pointer("constants", name)
        try:
            array = decode(value, where, settings)
        except InvalidError as error:
            raise DocumentError(error.detail, error.errors) from error
        total += array.size
        if total > settings.max_leaf_size:
            raise DocumentError.at("/constants", f"hold more than {settings.max_leaf_size} entries together")
        constants[name] = encode(array + 0.0, "base64")  # adding zero makes -0.0 and 0.0 the same constant
    return plain | {"constants": constants} if constants else plain


def problem_id(document: dict[str, Any]) -> str:
    """``p_`` and the lower-case base32 SHA-256 of the canonical JSON (sorted keys, no spaces) of a normalised document.

    Raises:
        DocumentError: the document holds NaN or infinity, or is nested too deep.
    """
    try:
        text = json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except ValueError as error:
        raise DocumentError.at("", f"a problem document holds finite numbers only: {error}") from error
    except RecursionError as error:
        raise DocumentError.at("", "the document is nested too deep") from error
    digest = hashlib.sha256(text.encode("ascii")).digest()
    return "p_" + base64.b32encode(digest).decode("ascii").rstrip("=").lower()
