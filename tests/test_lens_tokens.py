"""The view `tokens`, and how all views tokenize a text."""

import functools
import types
from pathlib import Path
from typing import Any

import hypothesis
import hypothesis.strategies as st
import pytest

from lenses import KINDS, LINE, TEXT, Case, random_checkpoint
from octavo import lens, tokenizers, views
from octavo.checkpoint import Checkpoint
from octavo.errors import OctavoError
from octavo.lens.tokens import Token, Tokens, label, make_token
from octavo.settings import ModelSettings

pytestmark = pytest.mark.usefixtures("one_thread")
TEXT_VIEWS = [name for name, view in views.VIEWS.items() if "text" in view.options]
law = hypothesis.settings(derandomize=True, deadline=None, max_examples=30)


build = functools.cache(lambda kind: tokenizers.build(kind, TEXT))


def checkpoint_without_model(kind: str) -> Checkpoint:
    """A checkpoint with a tokenizer, but without a model; its block is longer than any text here."""
    return Checkpoint(
        types.SimpleNamespace(settings=ModelSettings()), build(kind), ModelSettings(), {}, Path("nowhere")
    )  # type: ignore[arg-type]


def assert_complete(view: Tokens, text: str) -> None:
    """The tokens have all bytes of the text. Each group has the fewest tokens that make whole characters."""
    pieces = [bytes.fromhex(token.bytes) for token in view.tokens]
    assert b"".join(pieces) == text.encode()
    assert "".join(group.text for group in view.groups) == view.text == text
    assert [at for group in view.groups for at in range(group.first, group.first + group.count)] == [
        *range(len(pieces))
    ]
    for group in view.groups:
        group_pieces = pieces[group.first : group.first + group.count]
        assert b"".join(group_pieces).decode() == group.text
        for count in range(1, group.count):
            with pytest.raises(UnicodeDecodeError):
                b"".join(group_pieces[:count]).decode()


def test_the_bytes_of_the_tokens_are_those_of_the_text(case: Case) -> None:
    view = lens.tokens(case.loaded, LINE)
    assert_complete(view, LINE)
    assert [token.id for token in view.tokens] == view.ids[0].tolist() == case.ids
    assert view.labels == [token.label for token in view.tokens]
    assert (view.left_out, view.generated) == (0, False)


@pytest.mark.parametrize("kind", KINDS[1:])
@law
@hypothesis.given(text=st.text(min_size=1))
@hypothesis.example(text="e\u0301\u0301 \u200d🦉🏿\r\n\x00")
def test_any_text_is_complete_and_grouped_by_character(kind: str, text: str) -> None:
    assert_complete(lens.tokens(checkpoint_without_model(kind), text), text)


@pytest.mark.parametrize("kind", KINDS)
@law
@hypothesis.given(data=st.data())
def test_every_id_is_in_one_group_even_if_the_ids_are_not_valid_utf8(kind: str, data: st.DataObject) -> None:
    tokenizer = build(kind)
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), min_size=1, max_size=30))
    view = lens.tokens(checkpoint_without_model(kind), ids)
    assert [token.id for token in view.tokens] == ids
    assert [at for group in view.groups for at in range(group.first, group.first + group.count)] == [*range(len(ids))]
    assert view.text == "".join(group.text for group in view.groups) == tokenizer.decode(ids)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (" ", "␣"),
        (" the", "␣the"),
        ("\n", "⏎"),
        ("\r\n", "␍⏎"),
        ("\t", "⇥"),
        ("\0", "<U+0000>"),
        ("é", "é"),
        ("\x1b[31m", "<U+001B>[31m"),
        ("\u00a0", "<U+00A0>"),
        ("\u3000", "<U+3000>"),
        ("\u2028", "<U+2028>"),
        ("\u202e", "<U+202E>"),
        ("\u200d", "<U+200D>"),
        ("\ufeff", "<U+FEFF>"),
        ("\ue000", "<U+E000>"),
        ("\u0301", "◌\u0301"),
        ("e\u0301", "e\u0301"),
        ("\u093f", "◌\u093f"),
        ("🦉", "🦉"),
        ("<b>", "<b>"),
        (b"\xc3", "<c3>"),
        (b"\x9f\xa6", "<9f a6>"),
        (b"a\xc3", "<61 c3>"),
        (b"\xff", "<ff>"),
    ],
)
def test_labels_show_blanks_and_control_characters(content: str | bytes, expected: str) -> None:
    assert label(content if isinstance(content, bytes) else content.encode()) == expected


@law
@hypothesis.given(content=st.one_of(st.binary(min_size=1), st.text(min_size=1).map(str.encode)))
def test_no_label_has_blanks_or_control_characters(content: bytes) -> None:
    name = label(content)
    assert name
    assert name.replace(" ", "").isprintable()
    assert " " not in name or name == f"<{content.hex(' ')}>"


def test_the_label_of_a_row_without_a_token_is_its_number() -> None:
    tokenizer = build("byte")
    assert make_token(tokenizer, 300) == Token(300, "#300", "")


def test_a_text_longer_than_the_block_is_truncated_and_left_out_says_by_how_much(small: Checkpoint) -> None:
    ids = small.tokenizer.encode(TEXT).tolist()
    for name in ("attention", "next_token", "logit_lens", "contributions", "ablation"):
        view: Any = lens.inspect(small, name, text=TEXT)
        assert [token.id for token in view.tokens] == ids[:16]
        assert view.left_out == len(ids) - 16 > 0
        assert view.to_dict()["left_out"] == view.left_out
    for name in ("tokens", "surprisal"):
        view = lens.inspect(small, name, text=TEXT)
        assert len(view.tokens) == len(ids)
        assert view.left_out == 0
    assert [stage.shape for stage in lens.shapes(small, TEXT).stages][-1] == (1, 16, small.settings.vocab_size)


def test_without_a_text_the_model_generates_one(small: Checkpoint) -> None:
    view = lens.tokens(small)
    assert view.generated
    assert view.text
    assert not lens.tokens(small, view.text).generated
    assert lens.tokens(small).text == view.text


def test_a_text_may_be_given_as_ids_of_existing_tokens(small: Checkpoint) -> None:
    ids = small.tokenizer.encode("the cat").tolist()
    assert lens.surprisal(small, ids).surprisal.tolist()[1:] == lens.surprisal(small, "the cat").surprisal.tolist()[1:]
    for wrong in (-1, small.tokenizer.vocab_size):
        with pytest.raises(OctavoError, match=f"token {wrong}"):
            lens.surprisal(small, [0, wrong])


@pytest.mark.parametrize("text", ["", []])
def test_an_empty_text_is_an_error(small: Checkpoint, text: Any) -> None:
    for view in TEXT_VIEWS:
        with pytest.raises(OctavoError, match="no text"):
            lens.inspect(small, view, text=text)


def test_unknown_characters_are_an_error_or_skipped_or_replaced(tmp_path: Path) -> None:
    loaded = random_checkpoint(tmp_path / "model", "char", text="abc ?\n")
    for view in TEXT_VIEWS:
        with pytest.raises(OctavoError, match="'é'"):
            lens.inspect(loaded, view, text="abéc")
        lens.inspect(loaded, view, text="abéc", unknown="skip")
    assert lens.tokens(loaded, "abéc", unknown="skip").text == "abc"
    assert lens.tokens(loaded, "abéc", unknown="replace").text == "ab?c"
    with pytest.raises(OctavoError, match="'é'"):
        lens.neighbors(loaded, "é")
