"""Draw the charts of `docs/speed.md` from its tables: speed-time.svg, speed-curve.svg and speed-ratios.svg.

    python scripts/draw_speed.py

A test compares the charts with the tables, so run it after a change of a table.
"""

import html
import math
import re
from collections.abc import Sequence
from pathlib import Path

from octavo.lens.plots import PALETTE

DOCS = Path(__file__).parents[1] / "docs"
_BLUE, _ORANGE = PALETTE["series"][:2]
_SURFACE, _INK, _BORDER, _GRAY = PALETTE["surface"][0], PALETTE["ink"][0], PALETTE["border"][0], PALETTE["series"][5]
_WIDTH, _LEFT, _RIGHT, _ROW = 760, 370, 80, 26


def table(page: str, heading: str) -> list[list[str]]:
    """The cells of the first table after a heading, without its header. Marks of bold and code are removed."""
    rows = page.partition(f" {heading}\n")[2].splitlines()
    start = next(i for i, row in enumerate(rows) if row.startswith("|"))
    cells = []
    for row in rows[start + 2 :]:
        if not row.startswith("|"):
            break
        row = row.replace("**", "").replace("`", "").rstrip().removeprefix("|").removesuffix("|")
        cells.append([cell.strip() for cell in row.split("|")])
    return cells


def draw_charts(page: str) -> dict[str, str]:
    """The charts of the page, by their file names."""
    return {
        "speed-ratios.svg": _draw_ratios(page),
        "speed-time.svg": _draw_times(page),
        "speed-curve.svg": _draw_curves(page),
    }


def _draw_ratios(page: str) -> str:
    """The last ratio of each cell of the first table, for both processors; 1 is the peer."""
    bars = []
    for name, *cells in table(page, "The two processors side by side"):
        ratios = [float(found[-1]) if (found := re.findall(r"\d+\.\d+", cell)) else None for cell in cells]
        if "ratio to" in name:
            bars.append((name.replace(": ratio to", " / "), ratios))
    known = [ratio for _, ratios in bars for ratio in ratios if ratio]
    smallest, largest = min(1, *known), max(known)
    height = 64 + len(bars) * 2 * _ROW
    room = _WIDTH - _LEFT - _RIGHT

    def x(ratio: float) -> float:
        return _LEFT + room * math.log(ratio / smallest) / math.log(largest / smallest)

    parts = [_text(16, 26, "Speedup of Octavo over each peer (logarithmic; the line marks equal speed)", size=15)]
    for i, (name, ratios) in enumerate(bars):
        top = 44 + i * 2 * _ROW
        parts.append(_text(_LEFT - 10, top + 26, name, anchor="end", size=11))
        for j, (ratio, color, machine) in enumerate(zip(ratios, (_BLUE, _ORANGE), ("AMD", "Intel"), strict=True)):
            if ratio is not None:
                y = top + j * 20
                start, end = sorted((x(1), x(ratio)))
                parts.append(
                    f'<rect x="{start:.1f}" y="{y + 4}" width="{end - start:.1f}" height="14" fill="{color}"/>'
                )
                parts.append(_text(max(end, x(1)) + 6, y + 15, f"{ratio:g} {machine}", size=11))
    parts.append(f'<line x1="{x(1):.1f}" x2="{x(1):.1f}" y1="40" y2="{height - 16}" stroke="{_INK}"/>')
    return _svg(parts, height)


def _draw_times(page: str) -> str:
    """The medians of the table of times to loss."""
    median = next(row for row in table(page, "Time to loss") if row[0] == "median")
    bars = [
        ("nanoGPT, AMD", float(median[1]), _ORANGE),
        ("Octavo, AMD", float(median[3]), _BLUE),
        ("nanoGPT, Intel", float(median[6]), _ORANGE),
        ("Octavo, Intel", float(median[7]), _BLUE),
    ]
    room, longest = _WIDTH - 140 - _RIGHT, max(seconds for _, seconds, _ in bars)
    parts = [_text(16, 26, "Seconds to a loss of 1.90 on tiny Shakespeare, whole process", size=15)]
    for i, (name, seconds, color) in enumerate(bars):
        y, width = 44 + i * _ROW, room * seconds / longest
        parts.append(_text(130, y + 15, name, anchor="end"))
        parts.append(_bar(140, y + 3, width, 16, color))
        parts.append(_text(146 + width, y + 16, f"{seconds:g} s"))
    return _svg(parts, 56 + len(bars) * _ROW)


def _draw_curves(page: str) -> str:
    """The table of losses over time."""
    curves: dict[str, list[tuple[float, float]]] = {"nanoGPT": [], "Octavo": []}
    for program, _, seconds, loss in table(page, "Loss over time"):
        curves[program].append((float(seconds), float(loss)))
    longest = max(seconds for points in curves.values() for seconds, _ in points)
    lowest, highest = 1.7, 4.3
    left, right, top, bottom, height = 52, 60, 46, 44, 330

    def position(seconds: float, loss: float) -> tuple[float, float]:
        return (
            left + (_WIDTH - left - right) * seconds / longest,
            top + (height - top - bottom) * (highest - loss) / (highest - lowest),
        )

    parts = [_text(16, 26, "Validation loss on tiny Shakespeare by the seconds of the training steps, Intel", size=15)]
    for loss in (2.0, 2.5, 3.0, 3.5, 4.0):
        y = position(0, loss)[1]
        parts.append(f'<line x1="{left}" x2="{_WIDTH - right}" y1="{y:.1f}" y2="{y:.1f}" stroke="{_BORDER}"/>')
        parts.append(_text(left - 8, y + 4, f"{loss:.1f}", anchor="end", color=_GRAY))
    for seconds in range(0, int(longest) + 1, 10):
        parts.append(_text(position(seconds, 0)[0], height - 22, f"{seconds} s", anchor="middle", color=_GRAY))
    for (name, points), color, dash in zip(curves.items(), (_ORANGE, _BLUE), ("7 3", "none"), strict=True):
        line = " ".join("{:.1f},{:.1f}".format(*position(*point)) for point in points)
        style = f'fill="none" stroke="{color}" stroke-width="2.5" stroke-dasharray="{dash}"'
        parts.append(f'<polyline points="{line}" {style}/>')
        (x, y), (seconds, loss) = position(*points[-1]), points[-1]
        anchor, shift = ("start", 8) if seconds < longest else ("end", 0)
        parts.append(_text(x + shift, y - 10, f"{name}: {loss:.2f} after {seconds:.0f} s", anchor=anchor, color=color))
    return _svg(parts, height)


def _bar(x: float, y: float, width: float, height: float, color: str) -> str:
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height}" fill="{color}"/>'


def _text(x: float, y: float, text: str, *, anchor: str = "start", size: int = 12, color: str = _INK) -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" fill="{color}"'
    return f"<text {place}>{html.escape(text)}</text>"


def _svg(parts: Sequence[str], height: float) -> str:
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" font-family="system-ui, sans-serif">'
    )
    background = f'<rect width="{_WIDTH}" height="{height}" fill="{_SURFACE}"/>'
    return "\n".join([head, background, *parts, "</svg>"]) + "\n"


def main() -> None:
    for name, content in draw_charts((DOCS / "speed.md").read_text(encoding="utf-8")).items():
        (DOCS / name).write_text(content, encoding="utf-8")


if __name__ == "__main__":
    main()
