"""Encoding many documents: the ids are those of the whole text, alone or on several cores, and ends are marked."""

import shutil
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as options
from hypothesis import strategies as st

from octavo import tokenizers
from octavo.data import encoding, readers
from octavo.data.encoding import Encoder, encoded, words
from octavo.errors import OctavoError
from octavo.tokenizers import Tokenizer

TEXT = "The quick brown fox's jumps,\n\n  over 12 lazy dogs.\n\tNaïve: 漢字 \U0001f600 नमस्ते!\r\n" * 12
SPACES = list(" \n\t\r\x0b\x0c\x1c\x1f\x85\xa0\u1680\u2000\u200a\u200b\u2028\u2029\u202f\u205f\u3000\ufeff")
PARTS = st.lists(
    st.sampled_from([*SPACES, "a", "the", "'s", "12", ".", "é", "漢", "\u0301", "_", "\0", "<|endoftext|>"])
)
law = options(derandomize=True, deadline=None, max_examples=400)


@pytest.fixture(scope="module", params=["char", "byte", "word", "bpe:300"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    alphabet = "".join(SPACES) + "athe's12.é漢\u0301_\0<|endoftext|>"
    return tokenizers.build(request.param, TEXT + alphabet)


@law
@given(parts=PARTS)
def test_the_ids_are_those_of_the_whole_text(tokenizer: Tokenizer, parts: list[str]) -> None:
    text = "".join(parts)
    assert Encoder(tokenizer).encode(text.encode()).tolist() == tokenizer.encode(text).tolist()


def test_gpt2_too(shared: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", f"{shared}/tiktoken-cache")
    tokenizer = tokenizers.build("gpt2", "")
    encoder = Encoder(tokenizer)

    @law
    @given(parts=PARTS)
    def law_holds(parts: list[str]) -> None:
        text = "".join(parts)
        assert encoder.encode(text.encode()).tolist() == tokenizer.encode(text).tolist()

    law_holds()
    assert encoder.encode(TEXT.encode()).dtype == np.uint16


@law
@given(parts=PARTS)
def test_pieces_of_a_text_have_together_the_ids_of_the_whole(tokenizer: Tokenizer, parts: list[str]) -> None:
    text = "".join(parts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(readers, "PIECE", 5)
        pieces = list(readers.cut([text]))
    ids = [id for piece in pieces for id in tokenizer.encode(piece).tolist()]
    assert ids == tokenizer.encode(text).tolist()


def test_words_are_cut_before_white_space_and_around_the_ends_of_documents() -> None:
    assert [word for word in words(b"a b  c\n\nd\n\xffe\xff\xff f") if word] == [
        b"a", b" b", b"  c", b"\n\nd", b"\n", b"\xff", b"e", b"\xff", b"\xff", b" f"
    ]  # fmt: skip
    assert words("a\xa0 b\u3000\nc".encode()) == ["a\xa0 b\u3000\nc".encode()]
    assert words(b"") == [b""]


def test_an_end_of_text_stands_where_a_document_ends() -> None:
    tokenizer = tokenizers.build("bpe:300", TEXT)
    documents = ["one", " two\n", "three"]
    ids = Encoder(tokenizer).encode(b"".join(each.encode() + b"\xff" for each in documents)).tolist()
    assert ids == [id for each in documents for id in [*tokenizer.encode(each).tolist(), tokenizer.end_of_text]]


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "_REMEMBERED", 10)
    tokenizer = tokenizers.build("bpe:300", TEXT)
    encoder = Encoder(tokenizer)
    assert encoder.encode(TEXT.encode()).tolist() == tokenizer.encode(TEXT).tolist()
    assert encoder._words is not None
    assert len(encoder._words) <= 10


# Several processes


def pieces(count: int) -> Iterator[bytes]:
    for i in range(count):
        yield f"{i}: {TEXT}".encode()


def test_several_processes_give_the_same_ids_in_the_same_order(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = tokenizers.build("char", TEXT + "0123456789: ") if tokenizer.kind == "char" else tokenizer
    alone = [ids.tolist() for ids in encoded(known, pieces(40), 0)]
    monkeypatch.setattr(encoding.os, "sched_getaffinity", lambda _: {0, 1, 2}, raising=False)
    together = list(encoded(known, pieces(40), 1 << 40))
    assert [ids.tolist() for ids in together] == alone
    assert {ids.dtype for ids in together} == {np.dtype(np.uint16)}


def test_what_goes_wrong_in_a_process_is_told_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding.os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    tokenizer = tokenizers.build("char", "abc")
    with pytest.raises(OctavoError, match="unknown characters 'x'"):
        list(encoded(tokenizer, [b"abc", b"abx"], 1 << 40))
    monkeypatch.setattr(encoding.sys, "executable", shutil.which("false"))
    with pytest.raises(OctavoError, match="ended from outside") as caught:
        list(encoded(tokenizer, [b"abc"] * 5, 1 << 40))
    assert "what was finished stays" in str(caught.value.hint)
