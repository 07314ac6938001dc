"""Every view can be drawn: its own array, whole files, and labels that can be read in any script."""

import dataclasses
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
from lenses import written
from octavo import lens
from octavo.checkpoint import Checkpoint
from octavo.errors import OctavoError
from octavo.lens import fonts, plots
from octavo.lens.attention import Attention
from octavo.lens.losses import Losses
from octavo.lens.neighbors import Moment, Neighbor, Neighbors
from octavo.lens.tokens import Token, label
from octavo.lens.view import View
from octavo.runs import Run

TEXT = "the cat sat, القط نام, राजा और रानी: $x_1$\n"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A random model over characters, one of which no font has."""
    return written(
        tmp_path_factory.mktemp("plots") / "model", "char", text=TEXT + "\U0003134a", block_size=48, n_head=6
    )


@pytest.fixture(scope="module")
def bytewise(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A random model over bytes, with a long block."""
    return written(tmp_path_factory.mktemp("plots") / "model", "byte", n_layer=2, block_size=512)


@pytest.fixture(scope="module")
def trained(small: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that looks as if it had been trained for three steps."""
    run = Run.create(small.settings, "text", out=tmp_path_factory.mktemp("plots") / "run_$1$")
    for step in (1, 2, 3):
        run.log("metrics", {"step": step, "loss": 4.0 / step, "val_loss": 2.0 if step == 3 else None})
        run.save(step, small.model, small.tokenizer, small.settings, {"step": step})
    (run.folder / "last").write_text("step-000003\n")
    return run


@pytest.fixture
def ax() -> Iterator[Axes]:
    """Axes of a figure that pyplot knows nothing of."""
    return FigureCanvasAgg(Figure()).figure.add_subplot()


def drawn(ax: Axes) -> None:
    """Have the axes' figure drawn in full, fonts and all: warnings are errors here."""
    ax.figure.canvas.draw()


def along(against: bool, control: bool = True) -> Neighbors:
    """Neighbors of a word, along four checkpoints."""
    history = [
        Moment(step, [0.1 * step, -0.2, 0.3], 0.2 if against else None, *((0.1, -0.1, 0.3) if control else (None,) * 3))
        for step in (1, 2, 3, 5)
    ]
    found = [Neighbor(Token(i, name, ""), 0.5 - 0.1 * i) for i, name in enumerate(("_a", "$b$", "قط"))]
    other = Neighbor(Token(9, "_$9", ""), 0.2) if against else None
    return Neighbors("$_x\n", "", [Token(1, "x", "")], found, other, history, "500 random pairs" if control else "none")


# Its own array

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


@pytest.mark.parametrize("name", VIEWS)
def test_every_view_is_drawn_on_the_axes_that_are_given_and_returns_its_array(
    name: str, small: Checkpoint, ax: Axes
) -> None:
    look, array = VIEWS[name]
    view = look(small)
    np.testing.assert_array_equal(plots.draw(view, ax), array(view))
    assert ax.has_data()
    assert ax.get_title(loc="left")
    drawn(ax)


@pytest.mark.parametrize("name", ["attention", "position", "logit_lens"])
def test_a_heat_map_holds_the_array_itself(name: str, small: Checkpoint, ax: Axes) -> None:
    look, array = VIEWS[name]
    view = look(small)
    plots.draw(view, ax)
    (image,) = ax.images
    np.testing.assert_array_equal(image.get_array(), array(view))


def test_a_position_is_drawn_where_its_number_says(small: Checkpoint, ax: Axes) -> None:
    view = lens.position(small, "cat", at=(3, 11))
    plots.draw(dataclasses.replace(view, positions=[4 * i for i in range(48)]), ax)
    assert ax.images[0].get_extent() == [-2, 190, 190, -2]
    assert [tuple(line.get_xydata()[0]) for line in ax.lines] == [(11, 3)]


def test_bars_are_as_long_as_the_numbers(small: Checkpoint, ax: Axes) -> None:
    view = lens.contributions(small, TEXT)
    shown = plots.draw(view, ax)
    assert [bar.get_width() for bar in ax.patches] == shown.tolist()
    assert len(view.parts) > len(shown) == 20
    rest = float(ax.get_xlabel().split(": ")[1].split()[0])  # what isn't shown is told
    assert rest == pytest.approx(view.logit - shown.sum(), abs=0.006)


@pytest.mark.parametrize("against", [True, False])
def test_neighbors_are_followed_along_training(against: bool, ax: Axes) -> None:
    view = along(against)
    found = plots.draw(view, ax)
    expected = [m.against if against else m.neighbors for m in view.history]
    np.testing.assert_array_equal(found, expected)
    assert ax.get_xscale() == "log"
    assert len(ax.collections) == against  # the control's band
    names = [text.get_text() for text in ax.get_legend().get_texts()]
    assert names == (["‘$_x⏎’ with ‘_$9’", "500 random pairs: mean", "5% to 95% of them"] if against
                     else ["_a", "$b$", "قط"])  # fmt: skip
    drawn(ax)


def test_a_pair_without_a_control_says_why(ax: Axes) -> None:
    plots.draw(along(True, control=False), ax)
    assert not ax.collections
    assert ax.get_xlabel() == "step (control: none)"
    drawn(ax)


def test_neighbors_without_checkpoints_are_bars_with_the_other_token_as_a_line(small: Checkpoint, ax: Axes) -> None:
    view = lens.neighbors(small, "t", top=5, against="e")
    assert len(plots.draw(view, ax)) == 5
    assert any(set(line.get_xdata()) == {view.against.cosine} for line in ax.lines)


def test_losses_are_linear_or_logarithmic_as_suits(ax: Axes) -> None:
    steps = np.arange(1, 5)
    flat = Losses("run_$1$", steps, np.array([4.0, 3.0, 2.0, 1.0]), steps[3:], np.array([1.1]))
    np.testing.assert_array_equal(plots.draw(flat, ax), flat.train)
    assert ax.get_yscale() == "linear"
    drawn(ax)
    ax.clear()
    plots.draw(dataclasses.replace(flat, train=np.array([4.0, 1.0, np.nan, 0.01])), ax)
    assert ax.get_yscale() == "log"
    drawn(ax)


def test_a_runs_losses_are_plotted_by_one_public_name(trained: Run, ax: Axes) -> None:
    expected = lens.losses(trained.folder).train
    for run in (trained, trained.folder, str(trained.folder)):
        np.testing.assert_array_equal(octavo.plot_loss(run, ax), expected)
    drawn(ax)


def test_without_axes_pyplots_own_are_drawn_on(small: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPLBACKEND", "agg")
    from matplotlib import pyplot as plt

    figure, own = plt.subplots()
    try:
        plots.draw(lens.surprisal(small, TEXT), None)
        assert own.has_data()
    finally:
        plt.close(figure)


def test_a_view_without_a_picture_says_which_have_one(small: Checkpoint, ax: Axes) -> None:
    with pytest.raises(OctavoError, match=r"Tokens has no picture; these have: Attention, .*\n  try: --json"):
        plots.draw(lens.tokens(small, TEXT), ax)


# Whole files


def size_of(png: bytes) -> tuple[int, int]:
    """Width and height in pixels."""
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", png[16:24])


@pytest.mark.parametrize("name", VIEWS)
def test_every_view_is_saved_as_a_png_and_as_an_svg(name: str, small: Checkpoint, tmp_path: Path) -> None:
    view = VIEWS[name][0](small)
    before = dict(rcParams)
    plots.save(view, tmp_path / "new" / "plot.PNG")
    plots.save(view, str(tmp_path / "plot.svg"))
    assert all(400 < side < 3600 for side in size_of((tmp_path / "new" / "plot.PNG").read_bytes()))
    first = (tmp_path / "plot.svg").read_bytes()
    assert ET.fromstring(first).tag.endswith("svg")
    plots.save(view, tmp_path / "plot.svg")
    assert (tmp_path / "plot.svg").read_bytes() == first
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "plot.svg"]
    assert dict(rcParams) == before


def test_views_of_a_run_are_saved(trained: Run, tmp_path: Path) -> None:
    for view in (lens.losses(trained.folder), lens.neighbors(trained.folder, "t", against="e")):
        plots.save(view, tmp_path / "plot.png")
        size_of((tmp_path / "plot.png").read_bytes())


def test_the_picture_of_512_tokens_stays_small(bytewise: Checkpoint, tmp_path: Path) -> None:
    text = "the cat sat on the mat. " * 22
    for view in (lens.attention(bytewise, text), lens.surprisal(bytewise, text), lens.logit_lens(bytewise, text)):
        plots.save(view, tmp_path / "plot.png")
        png = (tmp_path / "plot.png").read_bytes()
        assert max(size_of(png)) < 3600
        assert len(png) < 2_000_000


def test_one_token_is_a_picture_too(small: Checkpoint, tmp_path: Path) -> None:
    plots.save(lens.attention(small, "t"), tmp_path / "a.png")
    plots.save(lens.logit_lens(small, "t"), tmp_path / "b.png")


def test_another_suffix_is_refused_with_one_that_works(small: Checkpoint, tmp_path: Path) -> None:
    for name in ("plot.pdf", "plot"):
        with pytest.raises(OctavoError, match=r"neither \.png nor \.svg[\s\S]*try: plot\.png"):
            plots.save(lens.surprisal(small, TEXT), tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_where_nothing_can_be_written_the_error_names_the_place(small: Checkpoint, tmp_path: Path) -> None:
    view = lens.surprisal(small, "the cat")
    (tmp_path / "file").write_text("here")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(OctavoError, match=r"may not write .*file"):
        plots.save(view, tmp_path / "file" / "plot.png")
    with pytest.raises(OctavoError, match="is a folder"):
        plots.save(view, tmp_path / "folder.png")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder.png"]


def test_without_matplotlib_the_error_says_how_to_get_it(
    small: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    view = lens.surprisal(small, TEXT)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for ask in (lambda: plots.save(view, tmp_path / "plot.png"), lambda: plots.draw(view)):
        with pytest.raises(OctavoError, match=r"plots need matplotlib\s+try: pip install octavo\[plot\]"):
            ask()


def test_matplotlib_is_imported_to_draw_and_pyplot_not_even_then(tmp_path: Path) -> None:
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
    size_of((tmp_path / "plot.png").read_bytes())


# Labels

LABELS = [label(piece) for piece in (
    "القط".encode(), "राजा".encode(), "ि".encode(), "\u064b".encode(), b"$x_1$", b"_", b"$", b"\\frac{", b"\n", b" ",
    b"\xe2\x82", "\u200d".encode(), "漢字".encode(), "🦉".encode(), "\U0003134a".encode(), "ⴰ".encode(), b"^{",
)]  # fmt: skip


def named(ax: Axes) -> list[str]:
    return [text.get_text() for text in ax.get_xticklabels()]


def test_labels_of_any_script_are_drawn_without_a_warning(ax: Axes, tmp_path: Path) -> None:
    shares = np.tri(len(LABELS)) / np.arange(1, len(LABELS) + 1)[:, None]
    view = Attention([Token(0, name, "") for name in LABELS], 0, 0, shares, [], 0)
    plots.draw(view, ax)
    drawn(ax)
    assert named(ax)[4:12] == ["$x_1$", "_", "$", "\\frac{", "⏎", "␣", "<e2 82>", "<U+200D>"]
    plots.save(view, tmp_path / "plot.svg")


def test_a_character_that_no_font_has_is_named_by_its_code_point() -> None:
    words, chosen = fonts.displayable("a\U0003134ab")
    assert words == "aU+3134Ab"
    assert chosen == ["DejaVu Sans"]


@pytest.mark.parametrize("text", ["القط", "राजा", "◌ि", "漢字", "‘ab’ …", "a\nb", "", *LABELS])
def test_every_character_that_is_written_has_a_font(text: str) -> None:
    words, chosen = fonts.displayable(text)
    assert set(words) - {"\n"} <= set().union(*map(fonts._letters, chosen))
    assert all(font in {each.name for each in font_manager.fontManager.ttflist} for font in chosen)


def test_a_font_for_all_goes_before_several(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mark on its circle is one shape: of two fonts it would have two circles."""
    have = {"Latin": "ab◌U+0123456789ABCDEF", "Marks": "◌कि", "Other": "xyzक"}
    monkeypatch.setattr(fonts, "_fonts", lambda: list(have))
    monkeypatch.setattr(fonts, "_letters", lambda font: frozenset(have[font]))
    assert fonts.displayable("ab") == ("ab", ["Latin"])
    assert fonts.displayable("◌ि") == ("◌ि", ["Marks", "Latin"])
    assert fonts.displayable("◌िab") == ("◌िab", ["Latin", "Marks"])
    assert fonts.displayable("क!") == ("कU+0021", ["Latin", "Marks"])


def test_no_label_grows_past_its_room(monkeypatch: pytest.MonkeyPatch) -> None:
    assert fonts.displayable("a" * 100, 8)[0] == "aaaaaaa…"
    assert fonts.displayable("\U0003134a" * 3, 8)[0] == "U+3134A…"


def test_tokens_are_all_named_until_they_are_many(bytewise: Checkpoint) -> None:
    ax = Figure(figsize=(12, 4)).add_subplot()
    plots.draw(lens.surprisal(bytewise, "ab" * 24), ax)
    assert named(ax) == ["a", "b"] * 24
    plots.draw(lens.surprisal(bytewise, "abc" * 24), ax)
    assert named(ax) == [f"{i}: {'abc'[i % 3]}" for i in range(0, 72, 2)]
    assert {text.get_rotation() for text in ax.get_xticklabels()} == {90}


@pytest.mark.parametrize("inches", [2, 4, 8])
def test_names_beside_small_axes_do_not_touch(inches: int, small: Checkpoint) -> None:
    ax = FigureCanvasAgg(Figure(figsize=(inches, inches))).figure.add_subplot()
    plots.draw(lens.attention(small, TEXT), ax)
    drawn(ax)
    for labels in (ax.get_xticklabels(), ax.get_yticklabels()):
        boxes = [text.get_window_extent() for text in labels]
        assert len(boxes) > 4
        assert not any(one.overlaps(other) for i, one in enumerate(boxes) for other in boxes[:i])


def test_names_on_the_map_do_not_cover_one_another(ax: Axes, bytewise: Checkpoint) -> None:
    view = lens.projection(bytewise)
    plots.draw(view, ax)
    drawn(ax)
    boxes = [text.get_window_extent() for text in ax.texts]
    assert 20 < len(boxes) <= 150
    assert not any(one.overlaps(other) for i, one in enumerate(boxes) for other in boxes[:i])
    sizes = ax.collections[0].get_sizes()  # a dot where there is no name
    assert np.count_nonzero(sizes == 0) == len(boxes)


def test_few_columns_of_the_lens_are_named_by_their_own_positions(small: Checkpoint) -> None:
    view = lens.logit_lens(small, "the cat sat " * 4)
    ax = Figure(figsize=(3, 3)).add_subplot()
    plots.draw(view, ax)
    shown = view.positions[-24:]
    every = -(-len(shown) // len(named(ax)))
    assert every > 1
    assert named(ax) == [f"{t}: {view.tokens[t].label}" for t in shown[::every]]


def test_guesses_that_came_true_are_framed(small: Checkpoint, ax: Axes) -> None:
    view = lens.logit_lens(small, TEXT)
    plots.draw(view, ax)
    assert len(ax.patches) == np.count_nonzero(view.rank[:, -24:] == 1)
    cells = [text.get_text() for text in ax.texts]
    assert len(cells) == 4 * 24
