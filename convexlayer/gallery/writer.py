"""Run an entry; write its figure, its numbers, and a page of all entries in the folder."""

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

PAGE = "README.md"  # rendered by code hosts for a folder


def write(entry: Entry, folder: Path, **sizes: Any) -> Result:
    """Run an entry; write ``NAME.png``, ``NAME.json``, and the page ``README.md`` of all entries in the folder.

    Args:
        entry: the entry.
        folder: output folder, created if missing.
        sizes: arguments of the entry that replace its defaults.

    Returns:
        The result of the entry.

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
    """Convert a value to JSON types; NaN and infinities, which JSON lacks, become strings."""
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
        "Written by `convexlayer gallery run`. The numbers of each entry are in its JSON file.",
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
