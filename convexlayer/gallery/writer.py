"""Runs an entry and writes its figure, its numbers, and the page that shows all that have been run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from convexlayer.errors import NotInstalledError
from convexlayer.gallery.registry import Entry
from convexlayer.gallery.result import Result
from convexlayer.gallery.style import rendered

__all__ = ["write"]

PAGE = "README.md"  # what code hosts show for a folder


def write(entry: Entry, folder: Path, **sizes: Any) -> Result:
    """Run an entry and write ``NAME.png``, ``NAME.json`` and, over all entries in the folder, the page ``README.md``.

    Args:
        entry: the entry.
        folder: where to write; it is made if need be.
        sizes: changes to the sizes that the entry has by default.

    Returns:
        What the entry returned.

    Raises:
        NotInstalledError: matplotlib, or a package that the entry takes its data from, is missing.
    """
    try:
        result = entry.run(**sizes)
        with rendered(result.draw) as figure:
            folder.mkdir(parents=True, exist_ok=True)
            figure.savefig(folder / f"{entry.name}.png")
    except ModuleNotFoundError as error:
        raise NotInstalledError(f"the gallery needs {error.name}: pip install 'convexlayer[gallery]'") from error
    document = {
        "name": entry.name,
        "title": entry.title,
        "source": entry.source,
        "claims": [vars(claim) for claim in result.claims],
        "numbers": _plain(result.numbers),
    }
    (folder / f"{entry.name}.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    (folder / PAGE).write_text(_page(folder), encoding="utf-8")
    return result


def _plain(value: Any) -> Any:
    """The value in JSON's types; NaN and infinities, which JSON lacks, as strings."""
    match value:
        case torch.Tensor() | np.ndarray() | np.generic():
            return _plain(value.tolist())
        case dict():
            return {str(key): _plain(item) for key, item in value.items()}
        case list() | tuple():
            return [_plain(item) for item in value]
        case float() if not np.isfinite(value):
            return str(value)
    return value


def _page(folder: Path) -> str:
    documents = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    lines = [
        "# Gallery",
        "",
        "Written by `convexlayer gallery run`. Each entry's numbers are in the JSON beside it.",
        "",
    ]
    for document in documents:
        name = document["name"]
        lines += [f"## {document['title']}", "", f"{document['source']} · [{name}.json]({name}.json)", ""]
        lines += ["| the paper | here | agrees |", "|---|---|---|"]
        for claim in document["claims"]:
            cells = (claim["paper"], claim["ours"], "yes" if claim["holds"] else "no")
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        lines += ["", f"![{document['title']}]({name}.png)", ""]
    return "\n".join(lines)
