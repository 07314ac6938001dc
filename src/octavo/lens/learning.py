"""A run's training as one moving picture, an animated SVG: samples, a map of tokens, a head, the cosine of two words.

The picture shows kept checkpoints, at most 12, one after the other. Browsers play it without a script, even in a
README. All numbers are those of the views `projection`, `attention` and `neighbors`.

The axis letters: `M` checkpoints, `N` tokens of the map, `T` positions.
"""

import html
import textwrap
import unicodedata
from collections.abc import Iterable, Sequence

import numpy as np

from octavo import runs
from octavo.checkpoint import Checkpoint
from octavo.errors import OctavoError
from octavo.lens.attention import attention
from octavo.lens.fonts import shorten
from octavo.lens.neighbors import Neighbors, neighbors
from octavo.lens.plots import PALETTE
from octavo.lens.projection import Projection, projection
from octavo.lens.tokens import tokenize
from octavo.progress import track
from octavo.runs import RunLike

_WIDTH, _HEIGHT = 960, 600
_MAX_FRAMES = 12
_FRAME_SECONDS = 0.9
_EXTRA_FRAMES = 3  # the last checkpoint is shown this many frames longer than the others
_MAP_TOKENS = 400  # candidates for the map, which shows those whose names do not overlap
_MAX_TOKENS = 14  # of the text whose attention is shown
_MAX_LABEL_LENGTH = 12  # characters of a name on the map
_LINES, _COLUMNS = 9, 52  # of a sample
_PAIRS = (("king", "queen"), ("a", "e"))
_BLUE, _ORANGE, _GRAY = PALETTE["series"][0], PALETTE["series"][1], PALETTE["series"][5]


def learning_svg(run: RunLike, text: str | None = None, pair: tuple[str, str] | None = None) -> str:
    """The animated SVG of a run. `text` is the head's input, by default the beginning of the last sample.

    `pair` are two words, the second of one token. The head has the largest `distant` at the last checkpoint.
    Raises `OctavoError` if the run has fewer than two checkpoints.
    """
    owner = runs.find_run(run)
    steps = [] if owner is None else _select_steps(list(owner.checkpoints))
    if owner is None or len(steps) < 2:
        raise OctavoError(
            "only a run with at least two checkpoints shows how it learned",
            "--keep-checkpoints 8",
        )
    last = runs.load(owner.checkpoints[steps[-1]])
    samples = owner.lines("samples")
    sample_text = str(samples[-1]["text"]) if samples else None
    ids = [token.id for token in tokenize(last, text or sample_text, "skip").tokens[:_MAX_TOKENS]]
    final = attention(last, ids)
    pair_history = _pair_history(last, pair)
    maps, patterns = [], []
    for step in track(steps, "drawing", "checkpoints"):
        loaded = last if step == steps[-1] else runs.load(owner.checkpoints[step])
        maps.append(projection(loaded))
        patterns.append(attention(loaded, ids, layer=final.layer, head=final.head).weights)
    animation = _Animation(steps)
    labels = [token.label for token in final.tokens]
    parts = [
        animation.title(owner.folder.name),
        animation.samples([_sample_at(samples, step) for step in steps]),
        animation.pattern(f"layer {final.layer}, head {final.head}", labels, np.stack(patterns)),
        animation.map(maps),
        animation.curve(pair_history) if pair_history else "",
    ]
    return animation.svg(parts)


def _select_steps(steps: Sequence[int]) -> list[int]:
    """At most `_MAX_FRAMES` of the steps, with the first and the last one."""
    indices = np.linspace(0, len(steps) - 1, min(len(steps), _MAX_FRAMES)).round().astype(int)
    return [steps[i] for i in dict.fromkeys(indices.tolist())]


def _pair_history(last: Checkpoint, pair: tuple[str, str] | None) -> Neighbors | None:
    """The cosines of a pair of words over training; without a pair, of the first of `_PAIRS` that are tokens."""
    if pair:
        return neighbors(last, pair[0], top=1, against=pair[1])
    for word, against in _PAIRS:
        try:
            found = neighbors(last, word, top=1, against=against)
        except OctavoError:
            continue
        if len(found.tokens) == 1:
            return found
    return None


def _sample_at(samples: Iterable[dict[str, object]], step: int) -> str:
    """The newest sample that is not later than a step."""
    earlier = [str(sample["text"]) for sample in samples if isinstance(at := sample.get("step"), int) and at <= step]
    return earlier[-1] if earlier else ""


def _without_overlap(candidates: Sequence[int], pixels: np.ndarray, view: Projection) -> list[int]:
    """The candidates whose names do not overlap the name of an earlier one."""
    chosen: list[int] = []
    boxes: list[tuple[float, float, float]] = []  # left, right, baseline
    for i in candidates:
        x, y = pixels[i]
        right = x + 7 * len(shorten(view.tokens[i].label, _MAX_LABEL_LENGTH)) + 4
        if all(right < a or b < x or abs(y - baseline) > 14 for a, b, baseline in boxes):
            chosen.append(i)
            boxes.append((x, right, y))
    return chosen


class _Animation:
    """The panels of the picture, each with one value or text for each checkpoint."""

    def __init__(self, steps: Sequence[int]) -> None:
        self.steps = steps
        count = len(steps) + _EXTRA_FRAMES
        self.seconds = count * _FRAME_SECONDS
        self.times = ";".join(f"{i / count:.4f}" for i in range(len(steps))) + ";1"

    def animate(self, attribute: str, values: Sequence[float | str], discrete: bool = False) -> str:
        """An `<animate>` element: the attribute takes the value of each checkpoint in turn, in an endless loop."""
        numbers = [value if isinstance(value, str) else f"{value:.4g}" for value in [*values, values[-1]]]
        mode = ' calcMode="discrete"' if discrete else ""
        return (
            f'<animate attributeName="{attribute}" values="{";".join(numbers)}" keyTimes="{self.times}" '
            f'dur="{self.seconds:.1f}s" repeatCount="indefinite"{mode}/>'
        )

    def frames(self, contents: Sequence[str]) -> str:
        """One content for each checkpoint, one shown at a time. A program that does not animate shows the last."""
        groups = []
        for i, content in enumerate(contents):
            visibility = ["visible" if i == frame else "hidden" for frame in range(len(contents))]
            first = "visible" if i == len(contents) - 1 else "hidden"
            groups.append(
                f'<g visibility="{first}">{self.animate("visibility", visibility, discrete=True)}{content}</g>'
            )
        return "".join(groups)

    def svg(self, parts: Sequence[str]) -> str:
        size = f'width="{_WIDTH}" height="{_HEIGHT}" viewBox="0 0 {_WIDTH} {_HEIGHT}"'
        background = f'<rect width="{_WIDTH}" height="{_HEIGHT}" rx="14" fill="{PALETTE["surface"][0]}"/>'
        font = 'font-family="system-ui, sans-serif" font-size="13"'
        return f'<svg xmlns="http://www.w3.org/2000/svg" {size} {font}>\n{background}\n{chr(10).join(parts)}\n</svg>\n'

    def title(self, name: str) -> str:
        steps = self.frames([_text(_WIDTH - 28, 38, f"step {step:,}", size=20, anchor="end") for step in self.steps])
        return _text(28, 38, f"How {name} learned", size=20, weight=600) + steps

    def samples(self, texts: Sequence[str]) -> str:
        left, top = 28, 84
        contents = []
        for text in texts:
            wrapped = [line for part in text.splitlines() for line in textwrap.wrap(part, _COLUMNS) or [""]]
            rows = [_text(left, top + 24 + 20 * i, line, mono=True) for i, line in enumerate(wrapped[:_LINES])]
            contents.append("".join(rows))
        return _text(left, top, "what it writes", fill=_GRAY) + self.frames(contents)

    def pattern(self, name: str, labels: Sequence[str], weights: np.ndarray) -> str:
        """The attention pattern of a head, (M, T, T)."""
        left, top, size = 610, 100, 200
        T = weights.shape[1]
        cell = size / T
        cells = [_text(left - 90, 84, f"where {name} looks", fill=_GRAY)]
        for t in range(T):
            y = top + t * cell
            cells.append(
                _text(
                    left - 8,
                    y + cell / 2 + 4,
                    shorten(labels[t], 10),
                    mono=True,
                    anchor="end",
                    size=11,
                )
            )
            for s in range(t + 1):
                shares = np.sqrt(weights[:, t, s])  # small weights stay visible
                box = f'x="{left + s * cell:.1f}" y="{y:.1f}" width="{cell - 1:.1f}" height="{cell - 1:.1f}"'
                opacity = self.animate("fill-opacity", shares.tolist())
                cells.append(f'<rect {box} fill="{_BLUE}" fill-opacity="{shares[-1]:.4g}">{opacity}</rect>')
        return "".join(cells)

    def map(self, maps: Sequence[Projection]) -> str:
        """The most frequent tokens with letters; earlier maps are rotated and mirrored to match the last one."""
        left, top, width, height = 500, 350, 430, 220
        last = maps[-1]
        candidates = [i for i, token in enumerate(last.tokens) if any(map(str.isalpha, token.label))][:_MAP_TOKENS]
        low, high = last.points[candidates].min(0), last.points[candidates].max(0)

        def to_pixels(points: np.ndarray) -> np.ndarray:
            shares = np.clip((points - low) / np.maximum(high - low, 1e-9), 0, 1)
            pixels: np.ndarray = shares * [width - 90, height] + [left + 20, top]
            return pixels

        chosen = _without_overlap(candidates, to_pixels(last.points), last)
        ids = [last.tokens[i].id for i in chosen]
        places = []
        for each in maps:
            rows = {token.id: point for token, point in zip(each.tokens, each.points, strict=True)}
            points = np.array([rows.get(id, last.points[i]) for id, i in zip(ids, chosen, strict=True)])  # (N, 2)
            u, _, vt = np.linalg.svd(points.T @ last.points[chosen])  # orthogonal Procrustes
            places.append(to_pixels(points @ u @ vt))
        scaled = np.stack(places)  # (M, N, 2)
        names = []
        for n, i in enumerate(chosen):
            x, y = (self.animate(axis, scaled[:, n, k].tolist()) for k, axis in enumerate("xy"))
            label = _escape(shorten(last.tokens[i].label, _MAX_LABEL_LENGTH))
            end = f'x="{scaled[-1, n, 0]:.1f}" y="{scaled[-1, n, 1]:.1f}"'
            names.append(f'<text {end} fill="{PALETTE["ink"][0]}" font-size="12">{x}{y}{label}</text>')
        return _text(left + 20, top - 18, "how similar its words are", fill=_GRAY) + "".join(names)

    def curve(self, pair_history: Neighbors) -> str:
        """The cosine of a pair of words over training, with a dot at the checkpoint."""
        left, top, width, height = 60, 350, 370, 190
        assert pair_history.against
        cosines = {each.step: each.against or 0.0 for each in pair_history.history}
        values = np.array([cosines[step] for step in self.steps])
        x = np.linspace(left, left + width, len(values))
        y = top + height * (1 - (values + 1) / 2)
        zero = top + height / 2
        points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))
        tokens = pair_history.tokens
        first = tokens[0].label if len(tokens) == 1 else pair_history.word
        words = f"{first} and {pair_history.against.token.label}"
        numbers = [_text(left + width, top - 18, f"{value:.2f}", anchor="end", fill=_ORANGE) for value in values]
        return "".join(
            [
                _text(28, top - 18, f"cosine of {words}", fill=_GRAY),
                *(
                    _text(
                        left - 8,
                        top + height * (1 - v) / 2 + 4,
                        f"{v:g}",
                        anchor="end",
                        size=11,
                    )
                    for v in (-1, 0, 1)
                ),
                f'<path d="M{left} {zero}h{width}" stroke="{PALETTE["border"][0]}"/>',
                f'<polyline points="{points}" fill="none" stroke="{_BLUE}" stroke-width="2"/>',
                f'<circle cx="{x[-1]:.1f}" cy="{y[-1]:.1f}" r="6" fill="{_ORANGE}">',
                self.animate("cx", x.tolist()),
                self.animate("cy", y.tolist()),
                "</circle>",
                self.frames(numbers),
            ]
        )


def _text(
    x: float,
    y: float,
    content: str,
    *,
    size: int = 13,
    anchor: str = "start",
    fill: str = PALETTE["ink"][0],
    weight: int = 400,
    mono: bool = False,
) -> str:
    font = ' font-family="ui-monospace, monospace"' if mono else ""
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text {place} fill="{fill}" font-size="{size}" font-weight="{weight}"{font}>{_escape(content)}</text>'


def _escape(text: str) -> str:
    """Text for XML, which has no control characters."""
    visible = "".join("\ufffd" if unicodedata.category(character)[0] == "C" else character for character in text)
    return html.escape(visible)
