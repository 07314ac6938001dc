"""Draw views with matplotlib (the extra `plot`): `draw` on given axes, `save` into a file.

    from octavo.lens import attention, plots

    plots.save(attention("runs/my-1", "The king said", layer=2, head=1), "attention.png")

Nothing is computed here: a plot shows an array of the view, and `draw` returns that array. matplotlib is imported
when something is drawn, and pyplot only if no axes are given.

The axis letters: `T` positions, `P` positions that are shown, `L` layers, `M` checkpoints, `N` items of any kind.
"""

import io
import math
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from octavo import files
from octavo.errors import OctavoError, install_command
from octavo.lens.ablation import Ablation
from octavo.lens.attention import Attention
from octavo.lens.contributions import Contributions, Part
from octavo.lens.fonts import choose_fonts, shorten
from octavo.lens.logit_lens import LogitLens
from octavo.lens.losses import Losses, losses
from octavo.lens.neighbors import Neighbors
from octavo.lens.position import Position
from octavo.lens.projection import Projection
from octavo.lens.surprisal import Surprisal
from octavo.lens.tokens import label
from octavo.lens.view import View
from octavo.runs import RunLike

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.image import AxesImage
    from matplotlib.lines import Line2D
    from matplotlib.text import Text

# The colors of the page's light theme (octavo/page/style.css), by their names there.
PALETTE = {
    "sequential": ("#f5f2ea", "#c7d2f0", "#6680d4", "#1c2f86"),  # numbers from 0 to 1, pale to dark
    "minus": ("#8d3307", "#e8ad84"),  # numbers below 0, dark to pale
    "plus": ("#8ba2e4", "#1c2f86"),  # numbers above 0, pale to dark
    "series": ("#2a47a5", "#b03a0c", "#0f766e", "#7b3fa0", "#77620a", "#5d584f"),  # lines
    "surface": ("#fffefb",),
    "ink": ("#1e1c19",),
    "border": ("#e2ddd1",),
}
# The plots can be read without color: of a blue and an orange line, one is dashed, and bars are on either side of 0.
_BLUE, _ORANGE, _GRAY = *PALETTE["series"][:2], "#b4ada0"
_SEQUENTIAL = PALETTE["sequential"]
_DIVERGING = (*PALETTE["minus"], PALETTE["sequential"][0], *PALETTE["plus"])
_MAX_TICKS = 50  # labels of an axis
_MAX_LABEL_LENGTH = 16  # characters of a token's label
_MAX_BARS = 20
_MAX_NEIGHBOR_BARS = 40
_MAX_NEIGHBOR_LINES = 6  # neighbors over training
_MAX_LENS_COLUMNS = 24  # positions of the logit lens
_MAX_CELL_LENGTH = 8  # characters in a cell of the logit lens
_MAX_PROJECTION_LABELS = 150
_DPI = 150
_LEGEND_WIDTH = 36  # characters
# Inches, at 8 points
_CHARACTER_WIDTH = 0.068
_TICK_WIDTH = 0.15

DrawFunction = Callable[[Any, "Axes"], np.ndarray]  # draws a view on axes and returns the drawn array
SizeFunction = Callable[[Any], tuple[float, float]]  # the width and height of a view's plot, in inches


def draw(view: View, ax: "Axes | None" = None) -> np.ndarray:
    """Draw a view on axes, by default pyplot's current ones, and return the array that is drawn.

    Raises `OctavoError` for a view that cannot be plotted, or if matplotlib is missing.
    """
    draw_on, _ = _find_functions(view)
    if ax is None:
        from matplotlib import pyplot as plt

        ax = plt.gca()
    return draw_on(view, ax)


def save(view: View, path: str | Path) -> None:
    """Draw a view with its caveat into a .png or .svg file. The file is written atomically, and is reproducible."""
    path = Path(path)
    kind = path.suffix.lower()
    if kind not in (".png", ".svg"):
        raise OctavoError(f"{path} ends in neither .png nor .svg", f"{path.stem or 'plot'}.png")
    _, size = _find_functions(view)
    import matplotlib
    from matplotlib.figure import Figure

    figure = Figure(figsize=size(view), dpi=_DPI, layout="compressed", facecolor=PALETTE["surface"][0])
    draw(view, figure.add_subplot(facecolor=PALETTE["surface"][0]))
    if view.caveat:
        lines = textwrap.fill(view.caveat, int(figure.get_figwidth() * 18))
        figure.supxlabel(lines, x=0.01, horizontalalignment="left", fontsize=7, color="0.35")
    content = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "octavo"}):  # with a random salt or a date, every SVG would differ
        figure.savefig(content, format=kind[1:], metadata={"Date": None} if kind == ".svg" else None)
    with files.translate_disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise OctavoError(f"{path} is a folder", f"{path / 'plot'}{kind}")
    files.write_atomic(path, content.getvalue())


def plot_loss(run: RunLike, ax: "Axes | None" = None) -> np.ndarray:
    """Draw a run's losses, and return the logged training losses."""
    return draw(losses(run), ax)


def _find_functions(view: View) -> tuple[DrawFunction, SizeFunction]:
    if type(view) not in PLOTS:
        names = ", ".join(each.__name__ for each in PLOTS)
        raise OctavoError(f"{type(view).__name__} cannot be plotted; these views can: {names}", "--json")
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise OctavoError("plots need matplotlib", install_command("plot")) from None
    return PLOTS[type(view)]


# A plot for each view


def _draw_attention(view: Attention, ax: "Axes") -> np.ndarray:
    from matplotlib.colors import PowerNorm

    # Later positions always have weight 0, so they are left blank.
    past = np.ma.masked_where(np.triu(np.ones_like(view.weights, dtype=bool), 1), view.weights)
    # Most weights of a long text are small. A square-root scale keeps them visible although the first row has a 1.
    image = _heat_map(ax, past, _SEQUENTIAL, norm=PowerNorm(0.5, 0, 1))
    _add_color_bar(ax, image, "attention weight")
    _label_ticks(ax.xaxis, [token.label for token in view.tokens], max_horizontal_length=1)
    _label_ticks(ax.yaxis, [token.label for token in view.tokens])
    _add_title(ax, f"Attention of layer {view.layer}, head {view.head}", "attended to (token)", "attending (token)")
    return view.weights


def _draw_position(view: Position, ax: "Axes") -> np.ndarray:
    first, last = view.positions[0], view.positions[-1]
    half = (view.positions[1] - first) / 2 if len(view.positions) > 1 else 0.5
    extent = (first - half, last + half, last + half, first - half)
    image = _heat_map(ax, view.similarity, _DIVERGING, vmin=-1, vmax=1, extent=extent)
    one, other = view.tokens[0].at
    ax.plot([other], [one], "o", markersize=7, markerfacecolor="none", markeredgecolor="black")
    cosines = ", ".join(f"{each.token.label}\u00a0{each.cosine:.2f}" for each in view.tokens[:4])
    more = ", …" if len(view.tokens) > 4 else ""
    circle = f"Cosines of rows of wpe. Circle: positions {one} and {other}."
    _add_title(
        ax,
        f"{circle}\nCosines of wte + wpe of {_quote(view.word)} at these positions: {cosines}{more}",
        "position",
        "position",
    )
    _add_color_bar(ax, image, "cosine")
    return view.similarity


def _draw_projection(view: Projection, ax: "Axes") -> np.ndarray:
    dots = ax.scatter(view.points[:, 0], view.points[:, 1], s=6, color=_GRAY, linewidths=0)
    ax.autoscale_view()  # fix the axis limits first, because label overlap is measured in pixels
    labels = [shorten(token.label, _MAX_LABEL_LENGTH) for token in view.tokens]
    labeled = _select_without_overlap(ax, view.points, labels)
    for i in labeled:  # a label replaces its dot
        _set_text(ax.annotate("", view.points[i], ha="center", va="center", fontsize=8), labels[i])
    dots.set_sizes(np.where(np.isin(np.arange(len(labels)), labeled), 0, 6))
    _add_title(
        ax,
        f"{len(view.points):,} of {view.vocab_size:,} tokens: rows of wte on their two principal axes",
        f"first axis ({view.explained[0]:.0%} of the variance)",
        f"second axis ({view.explained[1]:.0%})",
    )
    return view.points


def _draw_losses(view: Losses, ax: "Axes") -> np.ndarray:
    if len(view.train):
        marker = "." if len(view.train) < 30 else ""
        ax.plot(view.steps, view.train, color=_BLUE, linewidth=1, marker=marker, label="training")
    if len(view.val):
        name = f"validation, {view.val[-1]:.3f} at step {view.val_steps[-1]:,}"
        ax.plot(view.val_steps, view.val, "o--", color=_ORANGE, linewidth=1, markersize=5, label=name)
    both = np.concatenate([view.train, view.val])
    both = both[np.isfinite(both)]
    if len(both) and both.min() > 0 and both.max() > 20 * both.min():
        ax.set_yscale("log")
    ax.grid(alpha=0.3)
    ax.legend(frameon=False)
    _add_title(ax, f"Loss of {_quote(view.run)}", "step", "loss (nats per token)")
    return view.train


def _draw_logit_lens(view: LogitLens, ax: "Axes") -> np.ndarray:
    from matplotlib.patches import Rectangle

    probabilities = view.probabilities[:, -_MAX_LENS_COLUMNS:, 0]  # (L + 1, P)
    ids, rank = view.ids[:, -_MAX_LENS_COLUMNS:, 0], view.rank[:, -_MAX_LENS_COLUMNS:]
    positions = view.positions[-_MAX_LENS_COLUMNS:]
    characters_per_column = int(_inches(ax)[0] / len(positions) / _CHARACTER_WIDTH)
    max_length = min(_MAX_CELL_LENGTH, max(1, characters_per_column))
    image = _heat_map(ax, probabilities, _SEQUENTIAL, vmin=0, vmax=1, aspect="auto", origin="lower")
    _add_color_bar(ax, image, "probability of the top prediction")
    for (i, p), id in np.ndenumerate(ids):
        color = "white" if probabilities[i, p] > 0.55 else PALETTE["ink"][0]
        prediction = ax.text(p, i, "", ha="center", va="center", fontsize=8, color=color, clip_on=True)
        _set_text(prediction, view.vocabulary[int(id)], max_length)
        if rank[i, p] == 1:
            ax.add_patch(Rectangle((p - 0.46, i - 0.46), 0.92, 0.92, fill=False, edgecolor=color, linewidth=1))
    labels = [view.tokens[t].label for t in positions]
    _label_ticks(ax.xaxis, labels, max_length=max_length, max_horizontal_length=max_length, positions=positions)
    _label_ticks(ax.yaxis, ["embedding", *(f"after layer {i}" for i in range(len(ids) - 1))])
    _add_title(ax, "Top prediction of the next token, layer by layer (framed: correct)", "token", "")
    return probabilities


def _draw_neighbors(view: Neighbors, ax: "Axes") -> np.ndarray:
    title = f"Nearest to {_quote(view.word)} in wte"
    if not _is_line_plot(view):
        nearest = view.neighbors[:_MAX_NEIGHBOR_BARS]
        cosines = np.array([each.cosine for each in nearest])
        _bars(ax, [each.token.label for each in nearest], cosines)
        if view.against:
            ax.axvline(view.against.cosine, color=_ORANGE, linestyle="--")
            title += f" (dashed: {_quote(view.against.token.label)}, {view.against.cosine:.2f})"
        _add_title(ax, title, "cosine", "")
        return cosines
    if view.against:
        return _draw_pair(view, ax)
    history = np.array([each.neighbors[:_MAX_NEIGHBOR_LINES] for each in view.history])  # (M, N)
    labels = [shorten(each.token.label, _MAX_LABEL_LENGTH) for each in view.neighbors[:_MAX_NEIGHBOR_LINES]]
    _add_legend(ax, _lines_over_steps(ax, view, history), labels)
    _add_title(ax, f"{title}, over training", "step", "cosine")
    return history


def _is_line_plot(view: Neighbors) -> bool:
    """Whether the view is drawn as lines over training: a pair needs at least one checkpoint, neighbors two."""
    return len(view.history) >= (1 if view.against else 2)


def _draw_pair(view: Neighbors, ax: "Axes") -> np.ndarray:
    """The cosine of two tokens over training, with the mean and the range of the control."""
    assert view.against
    pair = f"{_quote(view.word)} with {_quote(view.against.token.label)}"
    history = np.array([each.against for each in view.history], dtype=np.float64)  # (M,)
    artists: list[Any] = list(_lines_over_steps(ax, view, history[:, None]))
    names = [pair]
    controls = [
        (each.step, each.control_low, each.control, each.control_high)
        for each in view.history
        if each.control is not None
    ]
    if controls:
        steps, low, mean, high = np.array(controls, dtype=np.float64).T
        artists += ax.plot(steps, mean, color="0.4", linestyle="--", linewidth=1)
        artists.append(ax.fill_between(steps, low, high, color=_GRAY, alpha=0.5, linewidth=0))
        names += [textwrap.fill(f"{view.control}: mean", _LEGEND_WIDTH), "5th to 95th percentile"]
    _add_legend(ax, artists, names)
    why_no_control = f" (control: {view.control})" if view.control and not controls else ""
    _add_title(ax, f"{pair} in wte, over training", f"step{why_no_control}", "cosine")
    return history


def _draw_contributions(view: Contributions, ax: "Axes") -> np.ndarray:
    other = f" minus that of {_quote(view.against.label)}" if view.against else ""
    last = _quote(view.tokens[view.position].label)
    title = f"Logit of {_quote(view.token.label)}{other} after {last} at {view.position}: {view.logit:.2f}"
    shown, note = _largest_bars(ax, view.contributions, view.parts)
    _add_title(ax, title, f"contribution to the logit{note}", "")
    return shown


def _draw_surprisal(view: Surprisal, ax: "Axes") -> np.ndarray:
    # All bars are one matplotlib artist, because a text can have 65,536 tokens. NaN makes the gaps.
    edges = (np.arange(len(view.surprisal))[:, None] + [-0.42, 0.42]).flatten()
    heights = np.repeat(view.surprisal, 2)[:-1]
    heights[1::2] = np.nan
    ax.stairs(heights, edges, fill=True, color=_BLUE)
    ax.axhline(view.loss, color=_ORANGE, linestyle="--", linewidth=1)
    _label_ticks(ax.xaxis, [token.label for token in view.tokens], max_horizontal_length=1)
    ax.margins(x=0.01)
    mean = f"mean {view.loss:.3f} nats (dashed), {view.bits_per_byte:.3f} bits per byte"
    _add_title(ax, f"Surprisal of each token; {mean}", "token", "surprisal (nats)")
    return view.surprisal


def _draw_ablation(view: Ablation, ax: "Axes") -> np.ndarray:
    changes = np.array([trial.change for trial in view.trials])
    shown, _ = _largest_bars(ax, changes, [trial.part for trial in view.trials])
    title = f"Loss without a part of the model: {view.loss:.3f} with all"
    _add_title(ax, title, "change of the loss (nats per token)", "")
    return shown


def _logit_lens_size(view: LogitLens) -> tuple[float, float]:
    max_length = max(len(shorten(each, _MAX_CELL_LENGTH)) for each in view.vocabulary.values())
    columns = len(view.positions[-_MAX_LENS_COLUMNS:])
    return max(6.5, 3 + (0.2 + _CHARACTER_WIDTH * max_length) * columns), max(3.4, 1.6 + 0.36 * len(view.ids))


def _attention_size(view: Attention) -> tuple[float, float]:
    side = min(max(2.6, 0.19 * len(view.tokens)), 8.5)
    return side + 2.4, side + 1.4


def _bars_height(count: int, max_bars: int) -> float:
    return 1.4 + 0.24 * min(count, max_bars)


def _neighbors_size(view: Neighbors) -> tuple[float, float]:
    return 7, 4.2 if _is_line_plot(view) else _bars_height(len(view.neighbors), _MAX_NEIGHBOR_BARS)


PLOTS: dict[type, tuple[DrawFunction, SizeFunction]] = {
    Attention: (_draw_attention, _attention_size),
    Position: (_draw_position, lambda view: (6.4, 5.8)),
    Projection: (_draw_projection, lambda view: (8, 7)),
    Losses: (_draw_losses, lambda view: (7, 4.2)),
    LogitLens: (_draw_logit_lens, _logit_lens_size),
    Neighbors: (_draw_neighbors, _neighbors_size),
    Contributions: (_draw_contributions, lambda view: (7, _bars_height(len(view.parts), _MAX_BARS))),
    Surprisal: (_draw_surprisal, lambda view: (min(max(7, 0.2 * len(view.tokens)), 14), 3.6)),
    Ablation: (_draw_ablation, lambda view: (7, _bars_height(len(view.trials), _MAX_BARS))),
}


# Shared by several plots


def _heat_map(ax: "Axes", values: np.ndarray, colors: Sequence[str], **options: Any) -> "AxesImage":
    from matplotlib.colors import LinearSegmentedColormap

    colormap = LinearSegmentedColormap.from_list("octavo", list(colors))
    # Without interpolation, cells stay sharp in an SVG. With many cells, several share a pixel; "auto" averages them.
    return ax.imshow(values, cmap=colormap, interpolation="none" if len(values) < 300 else "auto", **options)


def _add_color_bar(ax: "Axes", image: "AxesImage", quantity: str) -> None:
    ax.figure.colorbar(image, ax=ax, label=quantity, pad=0.02, fraction=0.05, aspect=30)


def _add_title(ax: "Axes", title: str, x: str, y: str) -> None:
    width = max(1, int(_inches(ax)[0] * 12))  # in characters of 11 points
    wrapped = "\n".join(textwrap.fill(line, width) for line in choose_fonts(title)[0].split("\n"))
    _set_text(ax.set_title("", loc="left", fontsize=11), wrapped)
    ax.set_xlabel(x)
    ax.set_ylabel(y)


def _largest_bars(ax: "Axes", values: np.ndarray, parts: Sequence[Part]) -> tuple[np.ndarray, str]:
    """Draw the values with the largest magnitude; return them, and a note on the sum of the others."""
    order = np.argsort(-np.abs(values), kind="stable")
    shown, others = values[order[:_MAX_BARS]], values[order[_MAX_BARS:]]
    _bars(ax, [str(parts[i]) for i in order[:_MAX_BARS]], shown)
    return shown, f"; {len(others)} other parts: {others.sum():+.2f} together" if len(others) else ""


def _bars(ax: "Axes", names: Sequence[str], values: np.ndarray) -> None:
    bars = ax.barh(np.arange(len(values)), values, color=[_ORANGE if value < 0 else _BLUE for value in values])
    # Three significant digits for the largest value.
    digits = max(0, 3 - math.ceil(math.log10(np.abs(values).max() or 1)))
    ax.bar_label(bars, fmt=f"{{:z.{digits}f}}", padding=3, fontsize=7)
    ax.axvline(0, color="0.4", linewidth=0.8)
    ax.margins(x=0.14, y=0.01)
    ax.invert_yaxis()
    _label_ticks(ax.yaxis, names, max_length=28)


def _lines_over_steps(ax: "Axes", view: Neighbors, values: np.ndarray) -> "list[Line2D]":
    """Draw lines (M, N) over the steps of the checkpoints, on a logarithmic axis."""
    steps = [each.step for each in view.history]
    ax.set_xscale("log" if steps[0] > 0 else "symlog")
    log_steps = np.log1p(steps)
    ticks: list[int] = []  # indices of `steps`, in descending order, whose tick labels do not overlap
    for i in reversed(range(len(steps))):
        if not ticks or log_steps[ticks[-1]] - log_steps[i] > 0.06 * np.ptp(log_steps):
            ticks.append(i)
    ax.set_xticks([steps[i] for i in ticks], labels=[f"{steps[i]:,}" for i in ticks])
    ax.set_xticks([], minor=True)
    ax.grid(alpha=0.3)
    return [
        ax.plot(steps, line, marker=marker, color=color, markersize=4)[0]
        for line, marker, color in zip(values.T, "os^Dv*", PALETTE["series"], strict=False)
    ]


def _add_legend(ax: "Axes", artists: "Sequence[Artist]", names: Sequence[str]) -> None:
    # The texts are set afterwards, because matplotlib omits labels that begin with an underscore.
    legend = ax.legend(artists, ["?"] * len(artists), frameon=False, fontsize=8)
    for text, name in zip(legend.get_texts(), names, strict=True):
        _set_text(text, name)


def _label_ticks(
    axis: "Axis",
    names: Sequence[str],
    max_length: int = _MAX_LABEL_LENGTH,
    max_horizontal_length: int = 100,
    positions: Sequence[int] | None = None,
) -> None:
    """Label the ticks 0, 1, ... with tokens. If there are too many, only every nth is labeled, with its position.

    Labels are rotated if one is longer than `max_horizontal_length` characters.
    """
    axis.axes.apply_aspect()  # a plot with equal aspect is drawn smaller than the space of its axes
    width, height = _inches(axis.axes)
    length = height if axis is axis.axes.yaxis else width
    every = -(-len(names) // max(1, min(_MAX_TICKS, int(length / _TICK_WIDTH))))
    ticks = list(range(0, len(names), every))
    prefixes = [f"{i if positions is None else positions[i]}: " if every > 1 else "" for i in ticks]
    labels = [
        choose_fonts(prefix + names[i], len(prefix) + max_length) for i, prefix in zip(ticks, prefixes, strict=True)
    ]
    axis.set_ticks(ticks, labels=[text for text, _ in labels], parse_math=False, fontsize=8)
    is_rotated = any(len(text) > max_horizontal_length for text, _ in labels)
    for tick_label, (_, fonts) in zip(axis.get_ticklabels(), labels, strict=True):
        tick_label.set(fontfamily=fonts, rotation=90 if is_rotated else 0)


def _select_without_overlap(ax: "Axes", points: np.ndarray, names: Sequence[str]) -> list[int]:
    """The indices of `points` whose labels fit: those that do not overlap the label of an earlier one."""
    centers = ax.transData.transform(points)  # pixels
    pixels = ax.figure.dpi / 72  # per typographic point
    selected: list[int] = []
    boxes = np.zeros((0, 4))
    for i, ((x, y), name) in enumerate(zip(centers, names, strict=True)):
        # A label of 8-point text gets 6 points for each character and 1 on each side, and is 11 points high.
        half_width, half_height = (3 * len(name) + 1) * pixels, 5.5 * pixels
        box = np.array([x - half_width, y - half_height, x + half_width, y + half_height])
        overlaps = (boxes[:, :2] < box[2:]).all(1) & (boxes[:, 2:] > box[:2]).all(1)
        if len(selected) < _MAX_PROJECTION_LABELS and not np.any(overlaps):
            boxes = np.vstack([boxes, box])
            selected.append(i)
    return selected


def _inches(ax: "Axes") -> tuple[float, float]:
    """The width and height of axes."""
    return ax.bbox.width / ax.figure.dpi, ax.bbox.height / ax.figure.dpi


def _quote(text: str) -> str:
    """A word or name in a title."""
    return f"‘{shorten(label(text.encode(errors='replace')), 24)}’"


def _set_text(artist: "Text", text: str, max_length: int = 1000) -> None:
    """Set the text of an artist, and fonts that have its characters. `$` and `_` are not parsed as math."""
    text, fonts = choose_fonts(text, max_length)
    artist.set(text=text, fontfamily=fonts, parse_math=False)
