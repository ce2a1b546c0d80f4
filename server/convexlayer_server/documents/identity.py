"""The identity of a problem: a hash of its normalised document, which does not depend on formatting."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any, NamedTuple

from ..encodings.arrays import decode, encode
from ..encodings.json_arrays import parse_json
from ..encodings.validation import validate
from ..errors import DocumentError, InvalidError, pointer
from ..settings import Settings
from .model import ConeProgramDocument, ExpressionDocument, problem_documents

__all__ = ["IdentifiedDocument", "identify", "normalise"]


class IdentifiedDocument(NamedTuple):
    """A normalised document and its ID.

    Attributes:
        id: ``p_`` and the lower-case base32 SHA-256 of the text.
        text: canonical JSON (sorted keys, no spaces, ASCII) of the document, normalised.
    """

    id: str
    text: bytes


def identify(body: bytes | bytearray, settings: Settings) -> IdentifiedDocument:
    """Parse, validate and normalise a document.

    Raises:
        MalformedError: the body is not JSON.
        InvalidError: the body does not have the form of a document.
        DocumentError: a constant is not an array, or the constants are too large; or the document contains NaN or
            infinity, or is nested too deep.
    """
    document = normalise(validate(problem_documents, parse_json(body)), settings)
    try:
        text = json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")
    except ValueError as error:
        raise DocumentError.at("", f"the numbers of a problem document must be finite: {error}") from error
    except RecursionError as error:
        raise DocumentError.at("", "the document is nested too deep") from error
    digest = base64.b32encode(hashlib.sha256(text).digest()).decode("ascii")
    return IdentifiedDocument("p_" + digest.rstrip("=").lower(), text)


def normalise(document: ExpressionDocument | ConeProgramDocument, settings: Settings) -> dict[str, Any]:
    """Return the document as plain JSON, without defaults and with constants in base64.

    Raises:
        DocumentError: a constant is not an array, or the constants are too large.
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
            raise DocumentError.at(
                "/constants", f"the constants have more than {settings.max_leaf_size} entries together"
            )
        array = array + 0.0  # turns -0.0 into 0.0, so that equal constants have equal bytes
        constants[name] = encode(array, "base64")
    return plain | {"constants": constants} if constants else plain
