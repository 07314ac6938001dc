"""What a view is: plain data, bounded in size, that becomes JSON, text for a terminal, or HTML for a notebook.

A view knows nothing of models; the functions that make views are in the modules beside. Whatever it shows it also
gives as tables, so a reader who can't see a picture has the same numbers.
"""

import dataclasses
import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

Cell = str | int | float | None
_DIGITS = 6  # of a number in an array: a row of shares that sums to 1 still does, to 5e-7
_MANY = 40  # rows of a table that a terminal is shown


@dataclass(frozen=True)
class Table:
    """Rows of cells under named columns. A float is shown with four significant digits."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]


class View:
    """The base of all views, each a frozen dataclass."""

    caveat: ClassVar[str] = ""  # what a reader could make too much of

    def tables(self) -> list[Table]:
        """The view as tables."""
        raise NotImplementedError

    def picture(self) -> str:
        """HTML that stands above the tables in a notebook, where a view has something to colour."""
        return ""

    def plain(self) -> dict[str, Any]:
        """The view as what JSON knows: its fields, and the caveat. Numbers of arrays have six significant digits."""
        fields = {each.name: _plain(getattr(self, each.name)) for each in dataclasses.fields(self)}  # type: ignore[arg-type]
        return fields | ({"caveat": self.caveat} if self.caveat else {})

    def __str__(self) -> str:
        parts = [_as_text(table) for table in self.tables()]
        return "\n\n".join([*parts, *([self.caveat] if self.caveat else [])])

    def _repr_html_(self) -> str:
        """For notebooks: static, self-contained, everything escaped."""
        parts = [self.picture(), *(_as_html(table) for table in self.tables())]
        return "".join([*parts, *([f"<p><small>{html.escape(self.caveat)}</small></p>"] if self.caveat else [])])


def shaded(text: str, share: float, number: float, tag: str = "span") -> str:
    """A text on a ground that is the darker the nearer `share` is to 1, with a number as its tooltip."""
    ink = "#fff" if share > 0.6 else "#000"
    ground = f"background:rgba(33,80,140,{min(max(share, 0.0), 1.0):.3f});color:{ink}"
    return f'<{tag} style="{ground}" title="{number:.4f}">{html.escape(text)}</{tag}>'


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return _rounded(value.tolist()) if value.dtype.kind == "f" else value.tolist()
    if isinstance(value, np.generic):
        return value.item()
    if dataclasses.is_dataclass(value):
        return {each.name: _plain(getattr(value, each.name)) for each in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return value


def _rounded(values: Any) -> Any:
    if isinstance(values, list):
        return [_rounded(each) for each in values]
    return float(f"{values:.{_DIGITS}g}")


def _shown(cell: Cell) -> str:
    if cell is None:
        return ""
    if isinstance(cell, int):
        return f"{cell:,}"
    return f"{cell:.4g}" if isinstance(cell, float) else cell


def _is_number(column: Iterable[Cell]) -> bool:
    return all(cell is None or isinstance(cell, (int, float)) for cell in column)


def _as_text(table: Table) -> str:
    shown = [[_shown(cell) for cell in row] for row in table.rows[:_MANY]]
    right = [_is_number(column) for column in zip(*table.rows, strict=True)] or [False] * len(table.columns)
    widths = [max(map(len, column)) for column in zip(table.columns, *shown, strict=True)]
    lines = [
        "  ".join(
            cell.rjust(width) if numbers else cell.ljust(width)
            for cell, width, numbers in zip(row, widths, right, strict=True)
        ).rstrip()
        for row in [table.columns, *shown]
    ]
    more = len(table.rows) - len(shown)
    return "\n".join([table.title, *lines, *([f"... {more:,} more rows (--json has all)"] if more else [])])


def _as_html(table: Table) -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name in table.columns)
    rows = "".join(
        "<tr>" + "".join(f"<td>{html.escape(_shown(cell))}</td>" for cell in row) + "</tr>" for row in table.rows
    )
    return f"<table><caption>{html.escape(table.title)}</caption><tr>{head}</tr>{rows}</table>"
