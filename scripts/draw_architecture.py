"""Draw the components of the package, layer by layer, with their imports: write docs/architecture.svg.

    python scripts/draw_architecture.py

An arrow is an import between components. An arrow that follows from two others is left out (transitive reduction).
"""

import html
from pathlib import Path

from layers import LAYERS, component_imports

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "octavo"
PICTURE = ROOT / "docs" / "architecture.svg"
WIDTH, ROW, MARGIN = 920, 64, 14  # pixels


def main() -> None:
    PICTURE.write_text(draw(PACKAGE), encoding="utf-8")
    print(f"wrote {PICTURE.relative_to(ROOT)}")


def draw(package: Path) -> str:
    """Return the picture as SVG."""
    purpose = {component: text for components in LAYERS for component, text in components.items()}
    boxes: dict[str, tuple[float, float, float]] = {}  # left, top, width
    for number, components in enumerate(LAYERS):
        width = min(220.0, (WIDTH - MARGIN * (len(components) + 1)) / len(components))
        left = (WIDTH - len(components) * (width + MARGIN) + MARGIN) / 2
        for component in components:
            boxes[component] = (left, MARGIN + number * ROW, width)
            left += width + MARGIN
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {len(LAYERS) * ROW + MARGIN}" '
        'font-family="system-ui, sans-serif" font-size="13" role="img" aria-label="Imports between the components">',
        '<rect width="100%" height="100%" fill="#fff"/>',
    ]
    for component, targets in sorted(transitive_reduction(component_imports(package)).items()):
        for target in sorted(targets):
            (x1, y1, w1), (x2, y2, w2) = boxes[component], boxes[target]
            start, end = (x1 + w1 / 2, y1 + 36), (x2 + w2 / 2, y2)
            bend = (end[1] - start[1]) / 2
            parts.append(
                f'<path d="M{start[0]:.0f} {start[1]:.0f}C{start[0]:.0f} {start[1] + bend:.0f} {end[0]:.0f} '
                f'{end[1] - bend:.0f} {end[0]:.0f} {end[1]:.0f}" fill="none" stroke="#9aa5b1" stroke-width="1.2"/>'
            )
    for component, (left, top, width) in boxes.items():
        name = html.escape(component.removeprefix("octavo.") if component != "octavo" else "octavo (public names)")
        parts.append(
            f'<rect x="{left:.0f}" y="{top:.0f}" width="{width:.0f}" height="36" rx="6" fill="#eef3f9" '
            'stroke="#21508c"/>'
            f'<text x="{left + width / 2:.0f}" y="{top + 16:.0f}" text-anchor="middle" font-weight="600">{name}</text>'
            f'<text x="{left + width / 2:.0f}" y="{top + 30:.0f}" text-anchor="middle" font-size="11" fill="#555">'
            f"{html.escape(purpose[component])}</text>"
        )
    return "\n".join([*parts, "</svg>", ""])


def transitive_reduction(graph: dict[str, set[str]]) -> dict[str, set[str]]:
    """Return the graph without the edges that a longer path implies."""

    def reachable(component: str) -> set[str]:
        return set().union(*({each} | reachable(each) for each in graph[component])) if graph[component] else set()

    return {
        component: {each for each in components if not any(each in reachable(other) for other in components - {each})}
        for component, components in graph.items()
    }


if __name__ == "__main__":
    main()
