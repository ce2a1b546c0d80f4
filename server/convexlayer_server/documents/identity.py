"""The identity of a problem: a hash of what the document means, not of how it was written."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any, NamedTuple

from ..arrays import decode, encode
from ..body import validated
from ..encoding.packing import load
from ..errors import DocumentError, InvalidError, pointer
from ..settings import Settings
from .model import ConeProgramDocument, ExpressionDocument, problem_documents

__all__ = ["Identified", "identified", "normalise"]


class Identified(NamedTuple):
    """A document that has the form of one.

    Attributes:
        id: ``p_`` and the lower-case base32 SHA-256 of the text.
        text: canonical JSON (sorted keys, no spaces, ASCII) of the document, normalised.
    """

    id: str
    text: bytes


def identified(body: bytes | bytearray, settings: Settings) -> Identified:
    """Read a document, and normalise it.

    Raises:
        MalformedError: it is not JSON.
        InvalidError: it has not the form of a document.
        DocumentError: a constant is not an array, or all together are too large; or it holds NaN or infinity, or is
            nested too deep.
    """
    document = normalise(validated(problem_documents, load(body)), settings)
    try:
        text = json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")
    except ValueError as error:
        raise DocumentError.at("", f"a problem document holds finite numbers only: {error}") from error
    except RecursionError as error:
        raise DocumentError.at("", "the document is nested too deep") from error
    digest = base64.b32encode(hashlib.sha256(text).digest()).decode("ascii")
    return Identified("p_" + digest.rstrip("=").lower(), text)


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
