"""The encoder gives the ids of the whole text, in one process or several, and marks the ends of documents."""

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as options
from hypothesis import strategies as st

from octavo import tokenizers
from octavo.data.chunks import cut_text
from octavo.data.encoder import Encoder, split_words
from octavo.data.encoder_pool import encode_texts
from octavo.data.limits import Limits
from octavo.errors import UnknownCharactersError
from octavo.tokenizers import Tokenizer
from preparing import error_of

TEXT = "The quick brown fox's jumps,\n\n  over 12 lazy dogs.\n\tNaïve: 漢字 \U0001f600 नमस्ते!\r\n" * 12
SPACES = list(" \n\t\r\x0b\x0c\x1c\x1f\x85\xa0\u1680\u2000\u200a\u200b\u2028\u2029\u202f\u205f\u3000\ufeff")
OTHERS = ["a", "the", "'s", "12", ".", "é", "漢", "\u0301", "_", "\0", "<|endoftext|>"]
TEXTS = st.lists(st.sampled_from(SPACES + OTHERS)).map("".join)
law = options(derandomize=True, deadline=None, max_examples=400)


@pytest.fixture(scope="module", params=["char", "byte", "word", "bpe:300"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return tokenizers.build(request.param, TEXT + "".join(SPACES + OTHERS))


@law
@given(text=TEXTS)
def test_the_encoder_gives_the_ids_of_the_tokenizer(tokenizer: Tokenizer, text: str) -> None:
    assert Encoder(tokenizer).encode(text.encode()).tolist() == tokenizer.encode(text).tolist()


def test_the_encoder_gives_the_ids_of_gpt2(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", f"{shared}/tiktoken-cache")
    tokenizer = tokenizers.build("gpt2", "")
    encoder = Encoder(tokenizer)

    @law
    @given(text=TEXTS)
    def agree(text: str) -> None:
        assert encoder.encode(text.encode()).tolist() == tokenizer.encode(text).tolist()

    agree()
    assert encoder.encode(TEXT.encode()).dtype == np.uint16


@law
@given(text=TEXTS)
def test_the_ids_of_chunks_are_those_of_the_whole_text(tokenizer: Tokenizer, text: str) -> None:
    chunks = list(cut_text([text], Limits(chunk=5)))
    ids = [id for chunk in chunks for id in tokenizer.encode(chunk).tolist()]
    assert ids == tokenizer.encode(text).tolist()


def test_words_are_cut_before_whitespace_and_around_the_ends_of_documents() -> None:
    words = [word for word in split_words(b"a b  c\n\nd\n\xffe\xff\xff f") if word]
    assert words == [b"a", b" b", b"  c", b"\n\nd", b"\n", b"\xff", b"e", b"\xff", b"\xff", b" f"]
    assert split_words("a\xa0 b\u3000\nc".encode()) == ["a\xa0 b\u3000\nc".encode()]
    assert split_words(b"") == [b""]


def test_end_of_text_follows_each_document() -> None:
    tokenizer = tokenizers.build("bpe:300", TEXT)
    documents = ["one", " two\n", "three"]
    ids = Encoder(tokenizer).encode(b"".join(each.encode() + b"\xff" for each in documents)).tolist()
    assert ids == [id for each in documents for id in [*tokenizer.encode(each).tolist(), tokenizer.end_of_text]]


def test_the_word_cache_is_bounded() -> None:
    tokenizer = tokenizers.build("bpe:300", TEXT)
    encoder = Encoder(tokenizer, cached_words=10)
    assert encoder.encode(TEXT.encode()).tolist() == tokenizer.encode(TEXT).tolist()
    assert encoder.words is not None
    assert len(encoder.words) <= 10


def test_long_words_are_not_cached() -> None:
    tokenizer = tokenizers.build("bpe:300", TEXT)
    encoder = Encoder(tokenizer)
    assert encoder.encode(b"abc" * 1000 + b" abc").tolist() == tokenizer.encode("abc" * 1000 + " abc").tolist()
    assert list(encoder.words or ()) == [b" abc"]


# Several processes


def numbered_texts(count: int) -> Iterator[tuple[int, bytes]]:
    for i in range(count):
        yield i, f"{i}: {TEXT}".encode()


def test_several_processes_give_the_same_ids_in_the_same_order(tokenizer: Tokenizer) -> None:
    if tokenizer.kind == "char":
        tokenizer = tokenizers.build("char", TEXT + "0123456789: ")
    one, three = (list(encode_texts(tokenizer, numbered_texts(40), processes)) for processes in (1, 3))
    assert [key for key, _ in three] == list(range(40))
    assert [ids.tolist() for _, ids in three] == [ids.tolist() for _, ids in one]
    assert {ids.dtype for _, ids in three} == {np.dtype(np.uint16)}


def test_unknown_characters_in_a_worker_are_reported() -> None:
    tokenizer = tokenizers.build("char", "abc")
    with pytest.raises(UnknownCharactersError, match="'x'"):
        list(encode_texts(tokenizer, [(0, b"abc"), (1, b"abx")], processes=2))


def test_a_worker_that_cannot_start_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    tokenizer = tokenizers.build("char", "abc")
    error = error_of(lambda: list(encode_texts(tokenizer, [(i, b"abc") for i in range(5)], processes=2)))
    assert "was killed" in error.message
    assert "finished shards are kept" in str(error.hint)
