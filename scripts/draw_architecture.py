"""Draw the package's rooms, layer by layer, from its imports: writes docs/architecture.svg.

    python scripts/draw_architecture.py

A room is a module or a subpackage of `octavo`. `LAYERS` is the rule that `tests/test_layers.py` enforces: a room
imports only from layers below its own. An arrow is an import between rooms; an arrow that follows from two others is
left out (transitive reduction).
"""

import ast
import html
import importlib.util
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "octavo"

# From top to bottom, each room with its purpose. A module belongs to the longest name here that it starts with.
LAYERS: list[dict[str, str]] = [
    {"octavo.__main__": "python -m octavo"},
    {"octavo.cli": "one file per command"},
    {"octavo": "public names, loaded lazily"},
    {"octavo.server": "HTTP API and page", "octavo.terminal": "draws events", "octavo.benchmark": "octavo bench"},
    {"octavo.training": "plan, loop, step, optimizers"},
    {"octavo.lens": "views of a trained model"},
    {"octavo.evaluation": "exact loss", "octavo.estimate": "cost, by formula"},
    {"octavo.generation": "engine, decoders, text stream"},
    {
        "octavo.generation.sampling": "logits to a token",
        "octavo.loss": "next-token loss",
        "octavo.runs": "run folders",
        "octavo.data": "text to token shards",
    },
    {"octavo.checkpoint": "checkpoint folders", "octavo.device": "device, precision"},
    {"octavo.model": "GPT-2", "octavo.tokenizers": "text to ids", "octavo.kernels": "fast CPU paths"},
    {"octavo.settings": "settings, presets", "octavo.files": "atomic writes", "octavo.views": "the table of views"},
    {"octavo.errors": "typed errors", "octavo.units": "numbers for people"},
]
LAYER_OF = {room: number for number, rooms in enumerate(LAYERS) for room in rooms}

WIDTH, ROW, MARGIN = 920, 64, 14  # pixels


def main() -> None:
    path = ROOT / "docs" / "architecture.svg"
    path.write_text(draw(PACKAGE), encoding="utf-8")
    print(f"wrote {path.relative_to(ROOT)}")


def modules(package: Path) -> dict[str, Path]:
    """Return every module of the package, by its dotted name."""
    parts = {path: path.relative_to(package.parent).with_suffix("").parts for path in package.rglob("*.py")}
    return {".".join(each[:-1] if each[-1] == "__init__" else each): path for path, each in parts.items()}


def imports(module: str, path: Path, known: dict[str, Path]) -> Iterator[tuple[int, str]]:
    """Yield line and module of each import from the package, in functions and under TYPE_CHECKING too."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            members = [f"{base}.{alias.name}" for alias in node.names]
            names = [member if member in known else base for member in members]
        else:
            continue
        yield from ((node.lineno, name) for name in names if name.split(".")[0] == "octavo")


def room_of(module: str) -> str | None:
    """Return the room of a module: `octavo.training` for `octavo.training.loop`; None for one without a layer."""
    while module not in LAYER_OF:
        module = module.rpartition(".")[0]
        if module in ("octavo", ""):  # the public names are a room for `import octavo` alone
            return None
    return module


def room_imports(package: Path) -> dict[str, set[str]]:
    """Return, for each room, the rooms it imports from."""
    known = modules(package)
    graph: dict[str, set[str]] = {room: set() for room in LAYER_OF}
    for module, path in known.items():
        here = room_of(module)
        for _, imported in imports(module, path, known):
            there = room_of(imported)
            if here is not None and there is not None and here != there:
                graph[here].add(there)
    return graph


def reduced(graph: dict[str, set[str]]) -> dict[str, set[str]]:
    """Return the graph without the edges that a longer path implies."""

    def reachable(room: str) -> set[str]:
        return set().union(*({each} | reachable(each) for each in graph[room])) if graph[room] else set()

    return {
        room: {each for each in rooms if not any(each in reachable(other) for other in rooms - {each})}
        for room, rooms in graph.items()
    }


def draw(package: Path) -> str:
    """Return the picture as SVG."""
    purpose = {room: text for rooms in LAYERS for room, text in rooms.items()}
    boxes: dict[str, tuple[float, float, float]] = {}  # left, top, width
    for number, rooms in enumerate(LAYERS):
        width = min(220.0, (WIDTH - MARGIN * (len(rooms) + 1)) / len(rooms))
        left = (WIDTH - len(rooms) * (width + MARGIN) + MARGIN) / 2
        for room in rooms:
            boxes[room] = (left, MARGIN + number * ROW, width)
            left += width + MARGIN
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {len(LAYERS) * ROW + MARGIN}" '
        'font-family="system-ui, sans-serif" font-size="13" role="img" aria-label="The rooms of octavo and imports">',
        '<rect width="100%" height="100%" fill="#fff"/>',
    ]
    for room, targets in sorted(reduced(room_imports(package)).items()):
        for target in sorted(targets):
            (x1, y1, w1), (x2, y2, w2) = boxes[room], boxes[target]
            start, end = (x1 + w1 / 2, y1 + 36), (x2 + w2 / 2, y2)
            bend = (end[1] - start[1]) / 2
            parts.append(
                f'<path d="M{start[0]:.0f} {start[1]:.0f}C{start[0]:.0f} {start[1] + bend:.0f} {end[0]:.0f} '
                f'{end[1] - bend:.0f} {end[0]:.0f} {end[1]:.0f}" fill="none" stroke="#9aa5b1" stroke-width="1.2"/>'
            )
    for room, (left, top, width) in boxes.items():
        name = html.escape(room.removeprefix("octavo.") if room != "octavo" else "octavo (public names)")
        parts.append(
            f'<rect x="{left:.0f}" y="{top:.0f}" width="{width:.0f}" height="36" rx="6" fill="#eef3f9" '
            'stroke="#21508c"/>'
            f'<text x="{left + width / 2:.0f}" y="{top + 16:.0f}" text-anchor="middle" font-weight="600">{name}</text>'
            f'<text x="{left + width / 2:.0f}" y="{top + 30:.0f}" text-anchor="middle" font-size="11" fill="#555">'
            f"{html.escape(purpose[room])}</text>"
        )
    return "\n".join([*parts, "</svg>", ""])


if __name__ == "__main__":
    main()
