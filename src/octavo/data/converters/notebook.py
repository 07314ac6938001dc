"""Text of a Jupyter notebook: the source of its cells in order, with an empty line between them; no outputs."""

import json
from typing import Any

from octavo.data.unreadable import UnreadableFileError


def convert(content: bytes, name: str, encoding: str) -> str:
    try:
        notebook = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UnreadableFileError(f"{name} is damaged: it is not JSON, {error}", "damaged") from None
    if not isinstance(notebook, dict):
        raise UnreadableFileError(f"{name} is not a notebook: it has no cells", "damaged")
    worksheets = notebook.get("worksheets", [])  # before version 4 of the format
    cells = notebook.get("cells", [cell for sheet in _objects(worksheets) for cell in _objects(sheet.get("cells"))])
    sources = [_join(cell.get("source", cell.get("input"))) for cell in _objects(cells)]
    return "\n".join(source.rstrip("\n") + "\n" for source in sources if source.strip())


def _objects(value: Any) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _join(source: Any) -> str:
    """The source of a cell: text, or a list of lines."""
    if isinstance(source, list):
        return "".join(line for line in source if isinstance(line, str))
    return source if isinstance(source, str) else ""
