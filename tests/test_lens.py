"""What all views have in common, and the view `losses`."""

import dataclasses
import html.parser
import importlib
import inspect
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import octavo
from lenses import LINE, TEXT, random_checkpoint
from octavo import lens, views
from octavo.checkpoint import Checkpoint
from octavo.errors import OctavoError
from octavo.model import GPT
from octavo.runs import Run
from octavo.settings import resolve

pytestmark = pytest.mark.usefixtures("one_thread")


def test_losses_are_those_that_training_logged(tiny_run: Run) -> None:
    lines = tiny_run.lines("metrics")
    view = lens.losses(tiny_run.folder)
    logged, evaluated = ([line for line in lines if line.get(name) is not None] for name in ("loss", "val_loss"))
    assert dict(zip(view.steps.tolist(), view.train.tolist(), strict=True)) == {
        line["step"]: line["loss"] for line in logged
    }
    assert dict(zip(view.val_steps.tolist(), view.val.tolist(), strict=True)) == {
        line["step"]: line["val_loss"] for line in evaluated
    }
    assert len(view.val) >= 2
    assert view.to_dict() == lens.losses(octavo.load(tiny_run.folder)).to_dict()


def test_a_checkpoint_outside_a_run_has_no_losses(small: Checkpoint) -> None:
    with pytest.raises(OctavoError, match="belongs to no run"):
        lens.losses(small)


VIEWS: dict[str, dict[str, Any]] = {
    "shapes": {},
    "tokens": {},
    "position": {"word": None},
    "neighbors": {"word": None, "against": "e"},
    "projection": {"words": ["a"]},
    "attention": {},
    "flow": {},
    "next_token": {},
    "logit_lens": {},
    "contributions": {"against": "e"},
    "surprisal": {},
    "ablation": {},
    "losses": {},
    "verify": {},
}
TEXT_VIEWS = [name for name, view in views.VIEWS.items() if "text" in view.options]
SCRIPT = "<script>alert('&')</script>"


def inspect_view(loaded: Checkpoint, name: str, text: str, word: str) -> Any:
    options = {key: word if value is None else value for key, value in VIEWS[name].items()}
    return lens.inspect(loaded, name, **options | ({"text": text} if name in TEXT_VIEWS else {}))


def test_every_view_of_the_table_is_a_function_with_its_options() -> None:
    assert list(views.VIEWS) == list(lens.FUNCTIONS)
    assert views.VIEWS.keys() == VIEWS.keys()
    for name, spec in views.VIEWS.items():
        function = importlib.import_module(f"octavo.lens.{name}").__dict__[name]
        assert lens.FUNCTIONS[name] is getattr(lens, name) is function
        assert sorted(list(inspect.signature(function).parameters)[1:]) == sorted(spec.options)
    assert {option for spec in views.VIEWS.values() for option in spec.options} == views.OPTIONS.keys()


def test_the_guide_has_a_heading_for_every_view_in_the_order_of_the_table() -> None:
    guide = (Path(__file__).parents[1] / "docs" / "inspect.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## .*", guide, re.M)
    assert [name for heading in headings for name in re.findall(r"`(\w+)`", heading)] == list(views.VIEWS)


def test_the_tabs_of_the_table_are_tabs_of_the_page() -> None:
    page = (Path(octavo.__file__).parent / "page" / "main.js").read_text(encoding="utf-8")
    tabs = json.loads(re.search(r"const TABS = (\[.*?\]);", page, re.S)[1])
    assert {view.tab for view in views.VIEWS.values()} - {""} <= set(tabs)


class CheckedHtml(html.parser.HTMLParser):
    """Parses HTML, asserts that tags are nested, and collects tags, attributes and text."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.open: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.parametrize("name", VIEWS)
def test_every_view_can_be_json_text_and_escaped_html(name: str, tiny_run: Run) -> None:
    view = inspect_view(octavo.load(tiny_run.folder), name, SCRIPT, "<b>")
    values = json.loads(json.dumps(view.to_dict(), allow_nan=False))
    fields = {each.name for each in dataclasses.fields(view)}
    assert values.keys() == fields | ({"caveat"} if view.caveat else set())
    assert view.caveat in str(view)
    page = CheckedHtml()
    page.feed(view._repr_html_())
    page.close()
    assert page.open == []
    assert page.tags <= {"table", "caption", "tr", "th", "td", "p", "small", "span"}
    assert page.attributes <= {"style", "title"}
    for table in view.tables():
        assert table.title in page.text
        assert all(len(row) == len(table.columns) for row in table.rows)
        for cell in [cell for row in table.rows for cell in row if isinstance(cell, str)]:
            assert cell in page.text
        assert table.title in str(view)


@pytest.mark.parametrize("name", TEXT_VIEWS)
def test_no_control_character_of_a_text_is_printed(name: str, small: Checkpoint) -> None:
    shown = str(lens.inspect(small, name, text="a\x1b[31mb\x07\u202ec\r\n"))
    assert shown.replace("\n", "").isprintable()


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A model with 512 positions and a vocabulary of 5,000."""
    return random_checkpoint(tmp_path_factory.mktemp("long") / "model", "byte", block_size=512, vocab_size=5000)


@pytest.mark.parametrize("name", [name for name in VIEWS if name != "losses"])
def test_a_view_of_a_long_text_and_a_large_vocabulary_has_a_bounded_size(long: Checkpoint, name: str) -> None:
    view = inspect_view(long, name, TEXT[:600], "a")
    content = json.dumps(view.to_dict(), allow_nan=False)
    assert len(content) < 4 << 20
    assert len(str(view)) < 1 << 14
    assert len(view._repr_html_()) < 1 << 20


@pytest.mark.parametrize("name", VIEWS)
def test_a_view_does_not_change_the_model(name: str, tiny_run: Run) -> None:
    loaded = octavo.load(tiny_run.folder)
    before = {key: value.clone() for key, value in loaded.model.state_dict().items()}
    loaded.model.train()
    first, again = (inspect_view(loaded, name, "the cat sat", "cat").to_dict() for _ in range(2))
    assert first == again
    assert loaded.model.training
    assert all(parameter.grad is None for parameter in loaded.model.parameters())
    assert all(torch.equal(value, before[key]) for key, value in loaded.model.state_dict().items())
    assert (
        lens.inspect(
            tiny_run.folder,
            name,
            **VIEWS[name]
            | ({"text": "the cat sat"} if name in TEXT_VIEWS else {})
            | ({"word": "cat"} if "word" in VIEWS[name] else {}),
        ).to_dict()
        == first
    )


@pytest.mark.parametrize("kind", ["byte", "char"])
@pytest.mark.parametrize("block_size", [1, 2])
@pytest.mark.parametrize("name", [name for name in VIEWS if name not in ("losses", "verify")])
def test_the_smallest_model_has_every_view(name: str, block_size: int, kind: str, tmp_path: Path) -> None:
    loaded = random_checkpoint(tmp_path / "model", kind, n_layer=1, n_head=1, n_embd=8, block_size=block_size)
    if name == "ablation" and block_size == 1:
        with pytest.raises(OctavoError, match="one token"):
            lens.ablation(loaded, "at")
        return
    if name == "position":
        view: Any = lens.position(loaded, "a", at=(0, -1))
    else:
        view = inspect_view(loaded, name, "at", "a")
    json.dumps(view.to_dict(), allow_nan=False)
    assert str(view)
    assert view._repr_html_()


@pytest.mark.parametrize("block_size", [1, 2, 3])
@pytest.mark.parametrize("n_head", [1, 2])
def test_every_check_passes_on_the_smallest_model(block_size: int, n_head: int, tmp_path: Path) -> None:
    loaded = random_checkpoint(tmp_path / "model", "byte", n_layer=1, n_head=n_head, n_embd=8, block_size=block_size)
    assert lens.verify(loaded).ok


def test_a_text_of_one_token_has_every_view_that_needs_no_next_token(small: Checkpoint) -> None:
    pattern = lens.attention(small, "a")
    assert pattern.weights.tolist() == [[1.0]]
    assert all((each.entropy, each.distance, each.itself) == (0, 0, 1) for each in pattern.heads)
    rows = lens.logit_lens(small, "a")
    assert rows.rank.tolist() == [[0]] * 4
    assert lens.contributions(small, "a").position == 0
    for name in ("shapes", "tokens", "attention", "next_token", "logit_lens", "contributions"):
        view = lens.inspect(small, name, text="a")
        json.dumps(view.to_dict(), allow_nan=False)
        assert str(view)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("attention", {"layer": 3}, "layer 3: .* 0 to 2"),
        ("attention", {"layer": -4}, "layer -4"),
        ("attention", {"head": 3}, "head 3: .* 0 to 2"),
        ("attention", {"head": -4}, "head -4"),
        ("shapes", {"layer": 99}, "layer 99"),
        ("shapes", {"head": 99}, "head 99"),
        ("ablation", {"layer": 3}, "layer 3"),
        ("ablation", {"layer": -4}, "layer -4"),
        ("contributions", {"position": 6}, "position 6: .* 0 to 5"),
        ("contributions", {"position": -7}, "position -7"),
        ("logit_lens", {"positions": [0, 6]}, "position 6"),
        ("logit_lens", {"positions": [-7]}, "position -7"),
    ],
)
def test_a_layer_head_or_position_that_does_not_exist_is_an_error(
    small: Checkpoint, name: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(OctavoError, match=message):
        lens.inspect(small, name, text="the cat sat on the mat", **options)


def test_negative_indices_count_from_the_end(small: Checkpoint) -> None:
    text = "the cat sat on the mat"
    for name, negative, positive in (
        ("attention", {"layer": -1, "head": -2}, {"layer": 2, "head": 1}),
        ("ablation", {"layer": -3}, {"layer": 0}),
        ("contributions", {"position": -1}, {"position": 5}),
        ("logit_lens", {"positions": [-6]}, {"positions": [0]}),
    ):
        one, other = (lens.inspect(small, name, text=text, **options).to_dict() for options in (negative, positive))
        assert one == other


def test_the_errors_of_an_unknown_view_and_an_unknown_option_suggest_views(small: Checkpoint) -> None:
    with pytest.raises(OctavoError, match="'atention'") as caught:
        lens.inspect(small, "atention")
    assert "attention" in str(caught.value.hint)
    with pytest.raises(OctavoError, match=r"tokens .*layer") as caught:
        lens.inspect(small, "tokens", layer=1)
    assert "attention" in str(caught.value.hint)
    with pytest.raises(OctavoError, match=r"attention .*trained model"):
        lens.inspect(resolve("gpt2-512", vocab_size=50257), "attention")


def test_a_model_in_half_precision_is_an_error(small: Checkpoint) -> None:
    half = dataclasses.replace(small, model=half_precision_model(small))
    with pytest.raises(OctavoError, match="float32"):
        lens.attention(half, "the cat")


def half_precision_model(loaded: Checkpoint) -> GPT:
    model = GPT(loaded.model.settings)
    model.load_state_dict(loaded.model.state_dict())
    return model.bfloat16()


def test_weights_that_are_not_finite_are_an_error(tmp_path: Path) -> None:
    loaded = random_checkpoint(tmp_path / "model", "byte")
    loaded.model.transformer.h[1].mlp.c_fc.weight.data[0, 0] = math.nan
    for name in ("next_token", "logit_lens", "contributions", "surprisal", "ablation", "verify"):
        with pytest.raises(OctavoError, match="weights are broken"):
            inspect_view(loaded, name, LINE, "a")
