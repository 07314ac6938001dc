"""The base of all views: plain data of bounded size that becomes JSON, text for a terminal, or HTML for a notebook.

A view knows nothing of models; the other modules of this package compute the views. A view with a picture also gives
the same data as tables, for readers who cannot see the picture.
"""

import dataclasses
import html
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

Cell = str | int | float | None
_SIGNIFICANT_DIGITS = 6  # of a number in JSON: a row of attention weights that sums to 1 still sums to 1 within 5e-7
_TERMINAL_ROWS = 40  # rows of a table that a terminal shows


@dataclass(frozen=True)
class Table:
    """Rows of cells under named columns. A float is shown with four significant digits."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]


class View:
    """The base of all views, each a frozen dataclass."""

    caveat: ClassVar[str] = ""  # what a reader could conclude wrongly from the view
    nullable: ClassVar[tuple[str, ...]] = ()  # fields in which NaN and infinity mean "no value", which is null in JSON

    def tables(self) -> list[Table]:
        """The view as tables."""
        raise NotImplementedError

    def picture(self) -> str:
        """HTML that a notebook shows above the tables; empty by default."""
        return ""

    def to_dict(self) -> dict[str, Any]:
        """The view as JSON values: its fields, and the caveat. Numbers in arrays have six significant digits."""
        return _fields(self) | ({"caveat": self.caveat} if self.caveat else {})

    def __str__(self) -> str:
        parts = [_as_text(table) for table in self.tables()]
        return "\n\n".join([*parts, *([self.caveat] if self.caveat else [])])

    def _repr_html_(self) -> str:
        """For notebooks: static, self-contained, everything escaped."""
        parts = [self.picture(), *(_as_html(table) for table in self.tables())]
        return "".join([*parts, *([f"<p><small>{html.escape(self.caveat)}</small></p>"] if self.caveat else [])])


def shaded(text: str, darkness: float, number: float, tag: str = "span") -> str:
    """Text on a background that gets darker as `darkness` goes from 0 to 1, with a number as its tooltip."""
    color = "#fff" if darkness > 0.6 else "#000"
    style = f"background:rgba(33,80,140,{min(max(darkness, 0.0), 1.0):.3f});color:{color}"
    return f'<{tag} style="{style}" title="{number:.4f}">{html.escape(text)}</{tag}>'


def _fields(data: Any) -> dict[str, Any]:
    values = {field.name: _to_json(getattr(data, field.name)) for field in dataclasses.fields(data)}
    return values | {name: _finite_or_null(values[name]) for name in getattr(data, "nullable", ())}


def _to_json(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return _rounded(value.tolist()) if value.dtype.kind == "f" else value.tolist()
    if isinstance(value, np.generic):
        return value.item()
    if dataclasses.is_dataclass(value):
        return _fields(value)
    if isinstance(value, dict):
        return {str(key): _to_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_to_json(item) for item in value]
    return value


def _rounded(values: Any) -> Any:
    if isinstance(values, list):
        return [_rounded(item) for item in values]
    return float(f"{values:.{_SIGNIFICANT_DIGITS}g}")


def _finite_or_null(values: Any) -> Any:
    if isinstance(values, list):
        return [_finite_or_null(item) for item in values]
    return values if math.isfinite(values) else None


def _format_cell(cell: Cell) -> str:
    if cell is None:
        return ""
    if isinstance(cell, int):
        return f"{cell:,}"
    return f"{cell:.4g}" if isinstance(cell, float) else cell


def _is_numeric(column: Iterable[Cell]) -> bool:
    return all(cell is None or isinstance(cell, (int, float)) for cell in column)


def _as_text(table: Table) -> str:
    cells = [[_format_cell(cell) for cell in row] for row in table.rows[:_TERMINAL_ROWS]]
    numeric = [_is_numeric(column) for column in zip(*table.rows, strict=True)] or [False] * len(table.columns)
    widths = [max(map(len, column)) for column in zip(table.columns, *cells, strict=True)]
    lines = []
    for row in [table.columns, *cells]:
        aligned = [
            cell.rjust(width) if is_number else cell.ljust(width)
            for cell, width, is_number in zip(row, widths, numeric, strict=True)
        ]
        lines.append("  ".join(aligned).rstrip())
    hidden = len(table.rows) - len(cells)
    return "\n".join([table.title, *lines, *([f"... {hidden:,} more rows (--json has all)"] if hidden else [])])


def _as_html(table: Table) -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name in table.columns)
    rows = "".join(
        "<tr>" + "".join(f"<td>{html.escape(_format_cell(cell))}</td>" for cell in row) + "</tr>" for row in table.rows
    )
    return f"<table><caption>{html.escape(table.title)}</caption><tr>{head}</tr>{rows}</table>"
