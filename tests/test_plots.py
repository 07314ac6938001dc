"""Plots show the arrays of their views, files are complete, and labels are readable in any script."""

import dataclasses
import re
import struct
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from matplotlib import font_manager, rcParams
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

import octavo
from lenses import random_checkpoint
from octavo import lens, views
from octavo.checkpoint import Checkpoint
from octavo.errors import OctavoError
from octavo.lens import fonts, plots
from octavo.lens.attention import Attention
from octavo.lens.losses import Losses
from octavo.lens.neighbors import CheckpointCosines, Neighbor, Neighbors
from octavo.lens.tokens import Token, label
from octavo.lens.view import View
from octavo.runs import Run

TEXT = "the cat sat, القط نام, राजा और रानी: $x_1$\n"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A random character model; no font has one of the characters."""
    return random_checkpoint(
        tmp_path_factory.mktemp("plots") / "model", "char", text=TEXT + "\U0003134a", block_size=48, n_head=6
    )


@pytest.fixture(scope="module")
def byte_model(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A random byte model with a long context."""
    return random_checkpoint(tmp_path_factory.mktemp("plots") / "model", "byte", n_layer=2, block_size=512)


@pytest.fixture(scope="module")
def trained(small: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run with three checkpoints, which is not trained."""
    run = Run.create(small.settings, "text", out=tmp_path_factory.mktemp("plots") / "run_$1$")
    for step in (1, 2, 3):
        run.log("metrics", {"step": step, "loss": 4.0 / step, "val_loss": 2.0 if step == 3 else None})
        run.save(step, small.model, small.tokenizer, small.settings, {"step": step})
    (run.folder / "last").write_text("step-000003\n")
    return run


@pytest.fixture
def ax() -> Iterator[Axes]:
    """Axes of a figure that pyplot does not manage."""
    return FigureCanvasAgg(Figure()).figure.add_subplot()


def render(ax: Axes) -> None:
    """Render the figure with its fonts. Warnings, of missing characters for example, are errors."""
    ax.figure.canvas.draw()


def neighbors_with_history(against: bool, has_control: bool = True) -> Neighbors:
    """Neighbors of a word at four checkpoints."""
    control_cosines = (0.1, -0.1, 0.3) if has_control else (None, None, None)
    history = [
        CheckpointCosines(step, [0.1 * step, -0.2, 0.3], 0.2 if against else None, *control_cosines)
        for step in (1, 2, 3, 5)
    ]
    nearest = [Neighbor(Token(i, name, ""), 0.5 - 0.1 * i) for i, name in enumerate(("_a", "$b$", "قط"))]
    other = Neighbor(Token(9, "_$9", ""), 0.2) if against else None
    control = "500 random pairs" if has_control else "none"
    return Neighbors("$_x\n", "", [Token(1, "x", "")], nearest, other, history, control)


# Plots

VIEWS: dict[str, tuple[Callable[[Checkpoint], View], Callable[[View], np.ndarray]]] = {
    "attention": (lambda run: lens.attention(run, TEXT, layer=1, head=2), lambda view: view.weights),
    "position": (lambda run: lens.position(run, "cat"), lambda view: view.similarity),
    "projection": (lens.projection, lambda view: view.points),
    "logit_lens": (lambda run: lens.logit_lens(run, TEXT), lambda view: view.probabilities[:, -24:, 0]),
    "neighbors": (lambda run: lens.neighbors(run, "t"), lambda view: [each.cosine for each in view.neighbors]),
    "contributions": (
        lambda run: lens.contributions(run, TEXT, against="e"),
        lambda view: sorted(view.contributions, key=abs, reverse=True)[:20],
    ),
    "surprisal": (lambda run: lens.surprisal(run, TEXT), lambda view: view.surprisal),
    "ablation": (
        lambda run: lens.ablation(run, TEXT),
        lambda view: sorted((trial.change for trial in view.trials), key=abs, reverse=True)[:20],
    ),
}


def test_plots_have_the_colors_of_the_page() -> None:
    style = (Path(octavo.__file__).parent / "page" / "style.css").read_text(encoding="utf-8")
    light = dict(re.findall(r"--([\w-]+): light-dark\((#\w+),", style))
    order = {"minus": ("minus-2", "minus-1"), "plus": ("plus-1", "plus-2")}
    for name, colors in plots.PALETTE.items():
        names = order.get(name) or [each for each in light if re.fullmatch(rf"{name}(-\d)?", each)]
        assert colors == tuple(light[each] for each in names), name


@pytest.mark.parametrize("name", VIEWS)
def test_every_view_is_plotted_on_the_given_axes_and_returns_its_array(name: str, small: Checkpoint, ax: Axes) -> None:
    make_view, array = VIEWS[name]
    view = make_view(small)
    np.testing.assert_array_equal(plots.draw(view, ax), array(view))
    assert ax.has_data()
    assert ax.get_title(loc="left")
    render(ax)


@pytest.mark.parametrize("name", ["attention", "position", "logit_lens"])
def test_a_heat_map_shows_the_array_itself(name: str, small: Checkpoint, ax: Axes) -> None:
    make_view, array = VIEWS[name]
    view = make_view(small)
    plots.draw(view, ax)
    (image,) = ax.images
    np.testing.assert_array_equal(image.get_array(), array(view))


def test_positions_are_axis_coordinates(small: Checkpoint, ax: Axes) -> None:
    view = lens.position(small, "cat", at=(3, 11))
    plots.draw(dataclasses.replace(view, positions=[4 * i for i in range(48)]), ax)
    assert ax.images[0].get_extent() == [-2, 190, 190, -2]
    assert [tuple(line.get_xydata()[0]) for line in ax.lines] == [(11, 3)]


def test_the_lengths_of_bars_are_the_numbers(small: Checkpoint, ax: Axes) -> None:
    view = lens.contributions(small, TEXT)
    shown = plots.draw(view, ax)
    assert [bar.get_width() for bar in ax.patches] == shown.tolist()
    assert len(view.parts) > len(shown) == 20
    rest = float(ax.get_xlabel().split(": ")[1].split()[0])  # the sum of the parts that are not shown
    assert rest == pytest.approx(view.logit - shown.sum(), abs=0.006)


@pytest.mark.parametrize("against", [True, False])
def test_neighbors_with_a_history_are_lines_over_steps(against: bool, ax: Axes) -> None:
    view = neighbors_with_history(against)
    shown = plots.draw(view, ax)
    expected = [each.against if against else each.neighbors for each in view.history]
    np.testing.assert_array_equal(shown, expected)
    assert ax.get_xscale() == "log"
    assert len(ax.collections) == against  # the range of the control pairs
    names = [text.get_text() for text in ax.get_legend().get_texts()]
    assert names == (
        ["‘$_x⏎’ with ‘_$9’", "500 random pairs: mean", "5th to 95th percentile"] if against else ["_a", "$b$", "قط"]
    )
    render(ax)


def test_the_plot_of_a_pair_without_a_control_says_why(ax: Axes) -> None:
    plots.draw(neighbors_with_history(True, has_control=False), ax)
    assert not ax.collections
    assert ax.get_xlabel() == "step (control: none)"
    render(ax)


def test_neighbors_without_a_history_are_bars_and_against_is_a_line(small: Checkpoint, ax: Axes) -> None:
    view = lens.neighbors(small, "t", top=5, against="e")
    assert len(plots.draw(view, ax)) == 5
    assert any(set(line.get_xdata()) == {view.against.cosine} for line in ax.lines)


def test_losses_have_a_logarithmic_axis_if_they_span_a_wide_range(ax: Axes) -> None:
    steps = np.arange(1, 5)
    flat = Losses("run_$1$", steps, np.array([4.0, 3.0, 2.0, 1.0]), steps[3:], np.array([1.1]))
    np.testing.assert_array_equal(plots.draw(flat, ax), flat.train)
    assert ax.get_yscale() == "linear"
    render(ax)
    ax.clear()
    plots.draw(dataclasses.replace(flat, train=np.array([4.0, 1.0, np.nan, 0.01])), ax)
    assert ax.get_yscale() == "log"
    render(ax)


def test_plot_loss_takes_a_run_and_a_path(trained: Run, ax: Axes) -> None:
    expected = lens.losses(trained.folder).train
    for run in (trained, trained.folder, str(trained.folder)):
        np.testing.assert_array_equal(octavo.plot_loss(run, ax), expected)
    render(ax)


def test_without_axes_the_current_ones_of_pyplot_are_used(small: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPLBACKEND", "agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots()
    try:
        plots.draw(lens.surprisal(small, TEXT), None)
        assert axes.has_data()
    finally:
        plt.close(figure)


def test_a_view_that_cannot_be_plotted_is_an_error_that_names_those_that_can(small: Checkpoint, ax: Axes) -> None:
    with pytest.raises(OctavoError, match=r"Tokens cannot be plotted.*Attention"):
        plots.draw(lens.tokens(small, TEXT), ax)


def test_the_table_of_views_says_which_can_be_plotted() -> None:
    drawn = {view.__name__ for view in plots.PLOTS}
    assert drawn == {name.title().replace("_", "") for name, view in views.VIEWS.items() if view.is_plotted}


# Files


def png_size(png: bytes) -> tuple[int, int]:
    """Width and height in pixels."""
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", png[16:24])


@pytest.mark.parametrize("name", VIEWS)
def test_every_view_is_saved_as_png_and_svg_reproducibly(name: str, small: Checkpoint, tmp_path: Path) -> None:
    view = VIEWS[name][0](small)
    before = dict(rcParams)
    plots.save(view, tmp_path / "new" / "plot.PNG")
    plots.save(view, str(tmp_path / "plot.svg"))
    assert all(400 < side < 3600 for side in png_size((tmp_path / "new" / "plot.PNG").read_bytes()))
    first = (tmp_path / "plot.svg").read_bytes()
    assert ET.fromstring(first).tag.endswith("svg")
    plots.save(view, tmp_path / "plot.svg")
    assert (tmp_path / "plot.svg").read_bytes() == first
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "plot.svg"]
    assert dict(rcParams) == before


def test_views_of_a_run_are_saved(trained: Run, tmp_path: Path) -> None:
    for view in (lens.losses(trained.folder), lens.neighbors(trained.folder, "t", against="e")):
        plots.save(view, tmp_path / "plot.png")
        png_size((tmp_path / "plot.png").read_bytes())


def test_the_plot_of_512_tokens_has_a_bounded_size(byte_model: Checkpoint, tmp_path: Path) -> None:
    text = "the cat sat on the mat. " * 22
    for view in (lens.attention(byte_model, text), lens.surprisal(byte_model, text), lens.logit_lens(byte_model, text)):
        plots.save(view, tmp_path / "plot.png")
        png = (tmp_path / "plot.png").read_bytes()
        assert max(png_size(png)) < 3600
        assert len(png) < 2_000_000


def test_a_text_of_one_token_can_be_plotted(small: Checkpoint, tmp_path: Path) -> None:
    plots.save(lens.attention(small, "t"), tmp_path / "a.png")
    plots.save(lens.logit_lens(small, "t"), tmp_path / "b.png")


def test_another_file_type_is_an_error(small: Checkpoint, tmp_path: Path) -> None:
    for name in ("plot.pdf", "plot"):
        with pytest.raises(OctavoError, match=r"\.png"):
            plots.save(lens.surprisal(small, TEXT), tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_an_unwritable_path_is_an_error_that_names_it(small: Checkpoint, tmp_path: Path) -> None:
    view = lens.surprisal(small, "the cat")
    (tmp_path / "file").write_text("here")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(OctavoError, match=r"file.* can't be written"):
        plots.save(view, tmp_path / "file" / "plot.png")
    with pytest.raises(OctavoError, match="is a folder"):
        plots.save(view, tmp_path / "folder.png")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder.png"]


def test_without_matplotlib_the_error_says_how_to_install_it(
    small: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    view = lens.surprisal(small, TEXT)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for call in (lambda: plots.save(view, tmp_path / "plot.png"), lambda: plots.draw(view)):
        with pytest.raises(OctavoError, match=r"matplotlib\s+try: pip install .*\[plot\]"):
            call()


def test_matplotlib_is_imported_only_for_plots_and_pyplot_never(tmp_path: Path) -> None:
    program = """
import sys
import numpy as np
from octavo.lens import plots
from octavo.lens.losses import Losses
assert "matplotlib" not in sys.modules
at = np.arange(3)
plots.save(Losses("run", at, at + 1.0, at, at + 1.0), sys.argv[1])
assert "matplotlib" in sys.modules
assert "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program, tmp_path / "plot.png"], check=True)
    png_size((tmp_path / "plot.png").read_bytes())


# Labels

LABELS = [
    label(piece)
    for piece in (
        "القط".encode(),
        "राजा".encode(),
        "ि".encode(),
        "\u064b".encode(),
        b"$x_1$",
        b"_",
        b"$",
        b"\\frac{",
        b"\n",
        b" ",
        b"\xe2\x82",
        "\u200d".encode(),
        "漢字".encode(),
        "🦉".encode(),
        "\U0003134a".encode(),
        "ⴰ".encode(),
        b"^{",
    )
]


def tick_labels(ax: Axes) -> list[str]:
    return [text.get_text() for text in ax.get_xticklabels()]


def test_labels_of_any_script_are_rendered_without_a_warning(ax: Axes, tmp_path: Path) -> None:
    shares = np.tri(len(LABELS)) / np.arange(1, len(LABELS) + 1)[:, None]
    view = Attention([Token(0, name, "") for name in LABELS], 0, 0, shares, [], 0)
    plots.draw(view, ax)
    render(ax)
    assert tick_labels(ax)[4:12] == ["$x_1$", "_", "$", "\\frac{", "⏎", "␣", "<e2 82>", "<U+200D>"]
    plots.save(view, tmp_path / "plot.svg")


def test_a_character_that_no_font_has_is_replaced_by_its_code_point() -> None:
    shown, chosen = fonts.choose_fonts("a\U0003134ab")
    assert shown == "aU+3134Ab"
    assert chosen == ["DejaVu Sans"]


@pytest.mark.parametrize("text", ["القط", "राजा", "◌ि", "漢字", "‘ab’ …", "a\nb", "", *LABELS])
def test_every_shown_character_has_a_font(text: str) -> None:
    shown, chosen = fonts.choose_fonts(text)
    assert set(shown) - {"\n"} <= set().union(*map(fonts.characters_of, chosen))
    assert all(font in {each.name for each in font_manager.fontManager.ttflist} for font in chosen)


def test_one_font_for_all_characters_is_preferred() -> None:
    """A combining mark and its circle need the same font; otherwise a second circle is drawn."""
    available = {"Latin": set("ab◌U+0123456789ABCDEF"), "Marks": set("◌कि"), "Other": set("xyzक")}
    assert fonts.choose_fonts("ab", available=available) == ("ab", ["Latin"])
    assert fonts.choose_fonts("◌ि", available=available) == ("◌ि", ["Marks", "Latin"])
    assert fonts.choose_fonts("◌िab", available=available) == ("◌िab", ["Latin", "Marks"])
    assert fonts.choose_fonts("क!", available=available) == ("कU+0021", ["Latin", "Marks"])


def test_labels_are_shortened() -> None:
    assert fonts.choose_fonts("a" * 100, 8)[0] == "aaaaaaa…"
    assert fonts.choose_fonts("\U0003134a" * 3, 8)[0] == "U+3134A…"


def test_every_token_is_labeled_unless_there_are_many(byte_model: Checkpoint) -> None:
    ax = Figure(figsize=(12, 4)).add_subplot()
    plots.draw(lens.surprisal(byte_model, "ab" * 24), ax)
    assert tick_labels(ax) == ["a", "b"] * 24
    plots.draw(lens.surprisal(byte_model, "abc" * 24), ax)
    assert tick_labels(ax) == [f"{i}: {'abc'[i % 3]}" for i in range(0, 72, 2)]
    assert {text.get_rotation() for text in ax.get_xticklabels()} == {90}


@pytest.mark.parametrize("inches", [2, 4, 8])
def test_labels_of_small_axes_do_not_overlap(inches: int, small: Checkpoint) -> None:
    ax = FigureCanvasAgg(Figure(figsize=(inches, inches))).figure.add_subplot()
    plots.draw(lens.attention(small, TEXT), ax)
    render(ax)
    for labels in (ax.get_xticklabels(), ax.get_yticklabels()):
        boxes = [text.get_window_extent() for text in labels]
        assert len(boxes) > 4
        assert not any(one.overlaps(other) for i, one in enumerate(boxes) for other in boxes[:i])


def test_labels_of_a_projection_do_not_overlap(ax: Axes, byte_model: Checkpoint) -> None:
    view = lens.projection(byte_model)
    plots.draw(view, ax)
    render(ax)
    boxes = [text.get_window_extent() for text in ax.texts]
    assert 20 < len(boxes) <= 150
    assert not any(one.overlaps(other) for i, one in enumerate(boxes) for other in boxes[:i])
    sizes = ax.collections[0].get_sizes()  # tokens with a label have no dot
    assert np.count_nonzero(sizes == 0) == len(boxes)


def test_the_columns_of_the_logit_lens_are_labeled_by_position(small: Checkpoint) -> None:
    view = lens.logit_lens(small, "the cat sat " * 4)
    ax = Figure(figsize=(3, 3)).add_subplot()
    plots.draw(view, ax)
    shown = view.positions[-24:]
    every = -(-len(shown) // len(tick_labels(ax)))
    assert every > 1
    assert tick_labels(ax) == [f"{t}: {view.tokens[t].label}" for t in shown[::every]]


def test_correct_predictions_have_a_frame(small: Checkpoint, ax: Axes) -> None:
    view = lens.logit_lens(small, TEXT)
    plots.draw(view, ax)
    assert len(ax.patches) == np.count_nonzero(view.rank[:, -24:] == 1)
    cells = [text.get_text() for text in ax.texts]
    assert len(cells) == 4 * 24
