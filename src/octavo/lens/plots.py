"""Pictures of views, with matplotlib (the extra `plot`): `draw` on anybody's axes, `save` into a file of its own.

    from octavo.lens import attention, plots

    plots.save(attention("runs/my-1", "The king said", layer=2, head=1), "looks.png")

Nothing is computed here: what is drawn is the view's array, and `draw` returns it. matplotlib is imported when
something is drawn, pyplot only where no axes were given.

The axis letters: `T` positions, `P` of them that are shown, `L` layers, `M` checkpoints, `N` whatever else there are.
"""

import io
import math
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from octavo import files
from octavo.errors import OctavoError
from octavo.lens.ablation import Ablation
from octavo.lens.attention import Attention
from octavo.lens.contributions import Contributions, Part
from octavo.lens.fonts import displayable, short
from octavo.lens.logit_lens import LogitLens
from octavo.lens.losses import Losses, losses
from octavo.lens.neighbors import Neighbors
from octavo.lens.position import Position
from octavo.lens.projection import Projection
from octavo.lens.surprisal import Surprisal
from octavo.lens.tokens import RUN, label
from octavo.lens.view import View
from octavo.runs import Run

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.image import AxesImage
    from matplotlib.lines import Line2D
    from matplotlib.text import Text

_SHARES, _SIGNED = "magma_r", "RdBu_r"  # colours of shares, pale to dark; and of numbers around 0, which is white
_INK, _OTHER, _PALE = "#0f5fa6", "#c8501e", "#b9c3cc"  # blue, orange, grey; in print, dashes or sides tell them apart
_TICKS = 50  # tokens beside an axis
_LONGEST = 16  # characters of a token
_BARS = 20
_NEIGHBORS = 40  # as bars
_LINES = 6  # of neighbors along training
_COLUMNS = 24  # of the logit lens
_CELL = 8  # characters in a cell of it
_LABELS = 150  # on a map
_DPI = 150

_Picture = Callable[[Any, "Axes"], np.ndarray]  # draws a view
_Size = Callable[[Any], tuple[float, float]]  # width and height for a view, in inches


def draw(view: View, ax: "Axes | None" = None) -> np.ndarray:
    """Draw a view on axes, pyplot's current ones if none are given; returns the array that is drawn.

    Raises `OctavoError` for a view that has no picture, and where matplotlib is missing.
    """
    picture, _ = _picture(view)
    if ax is None:
        from matplotlib import pyplot as plt

        ax = plt.gca()
    return picture(view, ax)


def save(view: View, path: str | Path) -> None:
    """Draw a view into a .png or .svg, with its caveat beneath: a whole file or none, the same for the same view."""
    path = Path(path)
    kind = path.suffix.lower()
    if kind not in (".png", ".svg"):
        raise OctavoError(f"{path} ends in neither .png nor .svg", f"{path.stem or 'plot'}.png")
    _, size = _picture(view)
    import matplotlib
    from matplotlib.figure import Figure

    figure = Figure(figsize=size(view), dpi=_DPI, layout="compressed")
    draw(view, figure.add_subplot())
    if view.caveat:
        lines = textwrap.fill(view.caveat, int(figure.get_figwidth() * 18))
        figure.supxlabel(lines, x=0.01, horizontalalignment="left", fontsize=7, color="0.35")
    content = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "octavo"}):  # without it and a date, an SVG differs every time
        figure.savefig(content, format=kind[1:], metadata={"Date": None} if kind == ".svg" else None)
    with files.translate_disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise OctavoError(f"{path} is a folder", f"{path / 'plot'}{kind}")
    files.write_atomic(path, content.getvalue())


def plot_loss(run: RUN | Run, ax: "Axes | None" = None) -> np.ndarray:
    """Draw a run's losses; returns the training losses, as logged."""
    return draw(losses(run.folder if isinstance(run, Run) else run), ax)


def _picture(view: View) -> tuple[_Picture, _Size]:
    """What draws a view, and the size that suits it."""
    pictures: dict[type, tuple[_Picture, _Size]] = {
        Attention: (_attention, lambda view: _square(len(view.tokens))),
        Position: (_position, lambda view: (6.4, 5.8)),
        Projection: (_embedding_map, lambda view: (8, 7)),
        Losses: (_losses, lambda view: (7, 4.2)),
        LogitLens: (_logit_lens, _cells),
        Neighbors: (_neighbors, lambda view: (7, 4.2 if _trained(view) else _rows(len(view.neighbors), _NEIGHBORS))),
        Contributions: (_residual, lambda view: (7, _rows(len(view.parts), _BARS))),
        Surprisal: (_score, lambda view: (min(max(7, 0.2 * len(view.tokens)), 14), 3.6)),
        Ablation: (_ablation, lambda view: (7, _rows(len(view.trials), _BARS))),
    }
    if type(view) not in pictures:
        drawn = ", ".join(each.__name__ for each in pictures)
        raise OctavoError(f"{type(view).__name__} has no picture; these have: {drawn}", "--json")
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise OctavoError("plots need matplotlib", "pip install octavo[plot]") from None
    return pictures[type(view)]


def _cells(view: LogitLens) -> tuple[float, float]:
    longest = max(len(short(each, _CELL)) for each in view.vocabulary.values())
    columns = len(view.positions[-_COLUMNS:])
    return max(6.5, 3 + (0.2 + 0.068 * longest) * columns), max(3.4, 1.6 + 0.36 * len(view.ids))


def _square(tokens: int) -> tuple[float, float]:
    side = min(max(2.6, 0.19 * tokens), 8.5)
    return side + 2.4, side + 1.4


def _rows(count: int, most: int) -> float:
    return 1.4 + 0.24 * min(count, most)


# A picture for each view


def _attention(view: Attention, ax: "Axes") -> np.ndarray:
    from matplotlib.colors import PowerNorm

    past = np.ma.masked_where(np.triu(np.ones_like(view.weights, dtype=bool), 1), view.weights)  # the rest is 0, always
    # A long text's shares are small: as roots, they still show beside the first row's 1.
    image = _heat_map(ax, past, _SHARES, norm=PowerNorm(0.5, 0, 1))
    _scale(ax, image, "share of the row's attention")
    _name(ax.xaxis, [token.label for token in view.tokens], upright=1)
    _name(ax.yaxis, [token.label for token in view.tokens])
    _title(ax, f"Attention of layer {view.layer}, head {view.head}", "looked at (token)", "inference (token)")
    return view.weights


def _position(view: Position, ax: "Axes") -> np.ndarray:
    first, last = view.positions[0], view.positions[-1]
    half = (view.positions[1] - first) / 2 if len(view.positions) > 1 else 0.5
    around = (first - half, last + half, last + half, first - half)
    image = _heat_map(ax, view.similarity, _SIGNED, vmin=-1, vmax=1, extent=around)
    one, other = view.pieces[0].at
    ax.plot([other], [one], "o", markersize=7, markerfacecolor="none", markeredgecolor="black")
    said = ", ".join(f"{piece.token.label}\u00a0{piece.cosine:.2f}" for piece in view.pieces[:4])
    more = ", …" if len(view.pieces) > 4 else ""
    about = f"Rows of wpe, each with each. Circle: {_word(view.word)} at {one} and {other},"
    _title(ax, f"{about}\nwhere wte + wpe have {said}{more}", "position", "position")
    _scale(ax, image, "cosine")
    return view.similarity


def _embedding_map(view: Projection, ax: "Axes") -> np.ndarray:
    dots = ax.scatter(view.points[:, 0], view.points[:, 1], s=6, color=_PALE, linewidths=0)
    ax.autoscale_view()  # so that distances are known
    names = [short(token.label, _LONGEST) for token in view.tokens]
    named = _apart(ax, view.points, names)
    for i in named:  # in the place of the dot
        _write(ax.annotate("", view.points[i], ha="center", va="center", fontsize=8), names[i])
    dots.set_sizes(np.where(np.isin(np.arange(len(names)), named), 0, 6))
    _title(
        ax,
        f"{len(view.points):,} of {view.vocab_size:,} tokens: rows of wte on their two main axes",
        f"first axis ({view.explained[0]:.0%} of the variance)",
        f"second axis ({view.explained[1]:.0%})",
    )
    return view.points


def _losses(view: Losses, ax: "Axes") -> np.ndarray:
    if len(view.train):
        mark = "." if len(view.train) < 30 else ""
        ax.plot(view.steps, view.train, color=_INK, linewidth=1, marker=mark, label="training")
    if len(view.val):
        name = f"validation, {view.val[-1]:.3f} at step {view.val_steps[-1]:,}"
        ax.plot(view.val_steps, view.val, "o--", color=_OTHER, linewidth=1, markersize=5, label=name)
    both = np.concatenate([view.train, view.val])
    both = both[np.isfinite(both)]
    if len(both) and both.min() > 0 and both.max() > 20 * both.min():
        ax.set_yscale("log")
    ax.grid(alpha=0.3)
    ax.legend(frameon=False)
    _title(ax, f"Loss of {_word(view.run)}", "step", "loss (nats a token)")
    return view.train


def _logit_lens(view: LogitLens, ax: "Axes") -> np.ndarray:
    from matplotlib.patches import Rectangle

    shares = view.probabilities[:, -_COLUMNS:, 0]  # (L + 1, P)
    ids, rank, positions = view.ids[:, -_COLUMNS:, 0], view.rank[:, -_COLUMNS:], view.positions[-_COLUMNS:]
    fit = min(_CELL, max(1, int(_inches(ax)[0] / len(positions) / 0.068)))  # characters of 8 points
    image = _heat_map(ax, shares, _SHARES, vmin=0, vmax=1, aspect="auto", origin="lower")
    _scale(ax, image, "probability of the best guess")
    for (i, p), id in np.ndenumerate(ids):
        ink = "white" if shares[i, p] > 0.45 else "black"
        guess = ax.text(p, i, "", ha="center", va="center", fontsize=8, color=ink, clip_on=True)
        _write(guess, view.vocabulary[int(id)], fit)
        if rank[i, p] == 1:
            ax.add_patch(Rectangle((p - 0.46, i - 0.46), 0.92, 0.92, fill=False, edgecolor=ink, linewidth=1))
    _name(ax.xaxis, [view.tokens[t].label for t in positions], longest=fit, upright=fit, positions=positions)
    _name(ax.yaxis, ["embedding", *(f"after layer {i}" for i in range(len(ids) - 1))])
    _title(ax, "Best guess of what comes next, layer by layer (framed: it came)", "token read", "")
    return shares


def _neighbors(view: Neighbors, ax: "Axes") -> np.ndarray:
    nearest = f"Nearest to {_word(view.word)} in wte"
    if not _trained(view):
        near = view.neighbors[:_NEIGHBORS]
        shown = np.array([each.cosine for each in near])
        _bars(ax, [each.token.label for each in near], shown)
        if view.against:
            ax.axvline(view.against.cosine, color=_OTHER, linestyle="--")
            nearest += f" (dashed: {_word(view.against.token.label)}, {view.against.cosine:.2f})"
        _title(ax, nearest, "cosine", "")
        return shown
    if view.against:
        return _along_with_control(view, ax)
    along = np.array([moment.neighbors[:_LINES] for moment in view.history])  # (M, N)
    _legend(ax, _along(ax, view, along), [short(each.token.label, _LONGEST) for each in view.neighbors[:_LINES]])
    _title(ax, f"{nearest}, along training", "step", "cosine")
    return along


def _trained(view: Neighbors) -> bool:
    """Whether there are checkpoints along training to draw."""
    return len(view.history) > (0 if view.against else 1)


def _along_with_control(view: Neighbors, ax: "Axes") -> np.ndarray:
    assert view.against
    pair = f"{_word(view.word)} with {_word(view.against.token.label)}"
    along = np.array([moment.against for moment in view.history], dtype=np.float64)  # (M,)
    lines: list[Any] = list(_along(ax, view, along[:, None]))
    names = [pair]
    rows = [(m.step, m.control_low, m.control, m.control_high) for m in view.history if m.control is not None]
    if rows:
        steps, low, mean, high = np.array(rows, dtype=np.float64).T
        lines += ax.plot(steps, mean, color="0.4", linestyle="--", linewidth=1)
        lines.append(ax.fill_between(steps, low, high, color=_PALE, alpha=0.5, linewidth=0))
        names += [textwrap.fill(f"{view.control}: mean", 36), "5% to 95% of them"]
    _legend(ax, lines, names)
    no_control = f" (control: {view.control})" if view.control and not rows else ""
    _title(ax, f"{pair} in wte, along training", f"step{no_control}", "cosine")
    return along


def _residual(view: Contributions, ax: "Axes") -> np.ndarray:
    over = f" over {_word(view.against.label)}" if view.against else ""
    read = _word(view.tokens[view.position].label)
    title = f"Logit of {_word(view.token.label)}{over} after {read} at {view.position}: {view.logit:.2f}"
    shown, rest = _largest(ax, view.contributions, view.parts)
    _title(ax, title, f"contribution to the logit{rest}", "")
    return shown


def _score(view: Surprisal, ax: "Axes") -> np.ndarray:
    # Bars with gaps, as one shape: a text may have 65,536.
    edges = (np.arange(len(view.surprisal))[:, None] + [-0.42, 0.42]).flatten()
    heights = np.repeat(view.surprisal, 2)[:-1]
    heights[1::2] = np.nan
    ax.stairs(heights, edges, fill=True, color=_INK)
    ax.axhline(view.loss, color=_OTHER, linestyle="--", linewidth=1)
    _name(ax.xaxis, [token.label for token in view.tokens], upright=1)
    ax.margins(x=0.01)
    about = f"Surprisal of each token; mean {view.loss:.3f} nats (dashed), {view.bits_per_byte:.3f} bits per byte"
    _title(ax, about, "token", "surprisal (nats)")
    return view.surprisal


def _ablation(view: Ablation, ax: "Axes") -> np.ndarray:
    shown, _ = _largest(ax, np.array([trial.change for trial in view.trials]), [trial.part for trial in view.trials])
    _title(ax, f"Doing without a part: the loss is {view.loss:.3f} with all", "change of loss (nats a token)", "")
    return shown


# What several pictures have


def _heat_map(ax: "Axes", values: np.ndarray, colours: str, **options: Any) -> "AxesImage":
    # Cells stay sharp in an SVG; of very many, those that share a pixel are averaged.
    return ax.imshow(values, cmap=colours, interpolation="none" if len(values) < 300 else "auto", **options)


def _scale(ax: "Axes", image: "AxesImage", meaning: str) -> None:
    ax.figure.colorbar(image, ax=ax, label=meaning, pad=0.02, fraction=0.05, aspect=30)


def _title(ax: "Axes", title: str, x: str, y: str) -> None:
    room = max(1, int(_inches(ax)[0] * 12))  # characters of 11 points
    wrapped = "\n".join(textwrap.fill(line, room) for line in displayable(title)[0].split("\n"))
    _write(ax.set_title("", loc="left", fontsize=11), wrapped)
    ax.set_xlabel(x)
    ax.set_ylabel(y)


def _largest(ax: "Axes", values: np.ndarray, parts: Sequence[Part]) -> tuple[np.ndarray, str]:
    """Bars of what lies farthest from 0, and words for the rest, which is not shown."""
    order = np.argsort(-np.abs(values), kind="stable")
    shown, rest = values[order[:_BARS]], values[order[_BARS:]]
    _bars(ax, [str(parts[i]) for i in order[:_BARS]], shown)
    return shown, f"; {len(rest)} other parts: {rest.sum():+.2f} together" if len(rest) else ""


def _bars(ax: "Axes", names: Sequence[str], values: np.ndarray) -> None:
    bars = ax.barh(np.arange(len(values)), values, color=[_OTHER if value < 0 else _INK for value in values])
    digits = max(0, 3 - math.ceil(math.log10(np.abs(values).max() or 1)))  # three of the largest
    ax.bar_label(bars, fmt=f"{{:z.{digits}f}}", padding=3, fontsize=7)
    ax.axvline(0, color="0.4", linewidth=0.8)
    ax.margins(x=0.14, y=0.01)
    ax.invert_yaxis()
    _name(ax.yaxis, names, longest=28)


def _along(ax: "Axes", view: Neighbors, values: np.ndarray) -> "list[Line2D]":
    """Lines (M, N) over the steps of the checkpoints, which are log-spaced."""
    import matplotlib

    steps = [moment.step for moment in view.history]
    ax.set_xscale("log" if steps[0] > 0 else "symlog")
    places = np.log1p(steps)
    shown: list[int] = []  # from the last one back, those whose numbers don't touch
    for i in reversed(range(len(steps))):
        if not shown or places[shown[-1]] - places[i] > 0.06 * np.ptp(places):
            shown.append(i)
    ax.set_xticks([steps[i] for i in shown], labels=[f"{steps[i]:,}" for i in shown])
    ax.set_xticks([], minor=True)
    ax.grid(alpha=0.3)
    colours = matplotlib.color_sequences["petroff10"]
    return [
        ax.plot(steps, line, marker=mark, color=colour, markersize=4)[0]
        for line, mark, colour in zip(values.T, "os^Dv*", colours, strict=False)
    ]


def _legend(ax: "Axes", drawn: "Sequence[Artist]", names: Sequence[str]) -> None:
    # The names are written afterwards: as labels of lines, those that begin with _ would be left out.
    legend = ax.legend(drawn, ["?"] * len(drawn), frameon=False, fontsize=8)
    for text, name in zip(legend.get_texts(), names, strict=True):
        _write(text, name)


def _name(
    axis: "Axis",
    names: Sequence[str],
    longest: int = _LONGEST,
    upright: int = 100,
    positions: Sequence[int] | None = None,
) -> None:
    """Tokens as ticks 0, 1, ...; of many, every so many-th with its position. Turned, if not so short as `upright`."""
    axis.axes.apply_aspect()  # a square within the axes is smaller than they
    length = _inches(axis.axes)[axis is axis.axes.yaxis]
    every = -(-len(names) // max(1, min(_TICKS, int(length / 0.15))))
    at = list(range(0, len(names), every))
    numbers = [f"{i if positions is None else positions[i]}: " if every > 1 else "" for i in at]
    said = [displayable(number + names[i], len(number) + longest) for i, number in zip(at, numbers, strict=True)]
    axis.set_ticks(at, labels=[words for words, _ in said], parse_math=False, fontsize=8)
    turned = any(len(words) > upright for words, _ in said)
    for text, (_, fonts) in zip(axis.get_ticklabels(), said, strict=True):
        text.set(fontfamily=fonts, rotation=90 if turned else 0)


def _apart(ax: "Axes", points: np.ndarray, names: Sequence[str]) -> list[int]:
    """The first of points whose names, as large as they will be written, do not cover one another."""
    at = ax.transData.transform(points)  # pixels
    point = ax.figure.dpi / 72
    found: list[int] = []
    taken = np.zeros((0, 4))
    for i, ((x, y), name) in enumerate(zip(at, names, strict=True)):
        wide, high = (3 * len(name) + 1) * point, 5.5 * point  # half of the box of a name in 8 points
        box = np.array([x - wide, y - high, x + wide, y + high])
        if len(found) < _LABELS and not np.any((taken[:, :2] < box[2:]).all(1) & (taken[:, 2:] > box[:2]).all(1)):
            taken = np.vstack([taken, box])
            found.append(i)
    return found


def _inches(ax: "Axes") -> tuple[float, float]:
    """Width and height of axes."""
    return ax.bbox.width / ax.figure.dpi, ax.bbox.height / ax.figure.dpi


def _word(text: str) -> str:
    """A word or name within a title."""
    return f"‘{short(label(text.encode(errors='replace')), 24)}’"


def _write(text: "Text", words: str, most: int = 1000) -> None:
    """Give a Text of matplotlib its words, and fonts for them. `$` and `_` are no mathematics here."""
    words, fonts = displayable(words, most)
    text.set(text=words, fontfamily=fonts, parse_math=False)
