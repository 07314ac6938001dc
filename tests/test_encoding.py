"""The encoder gives the ids of the whole text, in C and in Python, on one core or several, and marks document ends."""

import contextlib
import ctypes
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tiktoken
from hypothesis import given
from hypothesis import settings as options
from hypothesis import strategies as st

from octavo import tokenizers
from octavo.data.chunks import cut_text
from octavo.data.encoder import Encoder, WordCache, load_functions, split_words
from octavo.data.encoder_pool import encode_texts
from octavo.data.limits import DEFAULT_LIMITS, Limits
from octavo.data.word_table import WordTable
from octavo.errors import OctavoWarning, UnknownCharactersError
from octavo.native_library import UnavailableError, load_library
from octavo.tokenizers import Tokenizer
from preparing import error_of

TEXT = "The quick brown fox's jumps,\n\n  over 12 lazy dogs.\n\tNaïve: 漢字 \U0001f600 नमस्ते!\r\n" * 12
SPACES = list(" \n\t\r\x0b\x0c\x1c\x1f\x85\xa0\u1680\u2000\u200a\u200b\u2028\u2029\u202f\u205f\u3000\ufeff")
OTHERS = ["a", "the", "'s", "'LL", "'ve ", "''", "12", "\u00b2", ".", "é", "漢", "\u0301", "_", "\0", "<|endoftext|>"]
TEXTS = st.lists(st.sampled_from(SPACES + OTHERS) | st.text(max_size=3)).map("".join)
law = options(derandomize=True, deadline=None, max_examples=400)


@pytest.fixture(scope="module", params=["char", "byte", "word", "bpe:300"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return tokenizers.build(request.param, TEXT + "".join(SPACES + OTHERS))


@pytest.fixture(scope="module", params=["python", "c"])
def functions(request: pytest.FixtureRequest, built: Path) -> ctypes.CDLL | None:
    """The C library, or None for the Python code that it must equal."""
    return load_library().functions if request.param == "c" else None


def test_the_encoder_gives_the_ids_of_the_tokenizer(tokenizer: Tokenizer, functions: ctypes.CDLL | None) -> None:
    encoder = Encoder(tokenizer, functions=functions, cached_words=50)

    @law
    @given(text=TEXTS.map(lambda text: _without_unknown(text, tokenizer)))
    def agree(text: str) -> None:
        assert encoder.encode(text.encode()).tolist() == tokenizer.encode(text).tolist()

    agree()


def _without_unknown(text: str, tokenizer: Tokenizer) -> str:
    known = set(TEXT).union(*SPACES, *OTHERS)
    return "".join(filter(known.__contains__, text)) if tokenizer.kind == "char" else text


def test_the_encoder_gives_the_ids_of_special_tokens(functions: ctypes.CDLL | None) -> None:
    tokenizer = tokenizers.build("bpe:300", TEXT)
    encoder = Encoder(tokenizer, special_tokens=True, functions=functions)

    @law
    @given(text=TEXTS)
    def agree(text: str) -> None:
        assert encoder.encode(text.encode()).tolist() == tokenizer.encode(text, special_tokens=True).tolist()

    agree()


def test_the_encoder_gives_the_ids_of_gpt2(
    functions: ctypes.CDLL | None, shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", f"{shared}/tiktoken-cache")
    tokenizer, reference = tokenizers.build("gpt2", ""), tiktoken.get_encoding("gpt2")
    encoder = Encoder(tokenizer, functions=functions)

    @law
    @given(documents=st.lists(TEXTS, max_size=3))
    def agree(documents: list[str]) -> None:
        ids = [id for text in documents for id in [*reference.encode_ordinary(text), reference.eot_token]]
        assert encoder.encode(b"".join(text.encode() + b"\xff" for text in documents)).tolist() == ids

    agree()
    assert encoder.encode(TEXT.encode()).tolist() == reference.encode_ordinary(TEXT)
    assert encoder.encode(TEXT.encode()).dtype == np.uint16


@law
@given(
    texts=st.lists(
        st.lists(st.sampled_from([b"a", b"bc", b" ", b"\n", b"\xff", b" \xe3\x80\x80", b"\t"])).map(b"".join)
    ),
    size=st.integers(1, 9),
    longest=st.integers(1, 9),
    room=st.integers(1, 40),
)
def test_the_table_in_c_cuts_words_as_python_does(texts: list[bytes], size: int, longest: int, room: int) -> None:
    asked: list[bytes] = []

    def encode_words(words: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
        asked.extend(words)
        return np.frombuffer(b"".join(words), np.uint8).astype(np.uint16), np.cumsum(list(map(len, words)))

    table = WordTable(load_library().functions, encode_words, np.array([0xFF], np.uint16), size, longest, room)
    for text in texts:
        assert table.encode(text).tolist() == list(text)
        assert len(table) <= size
    assert set(asked) == {word for text in texts for word in split_words(text)} - {b"\xff"}


def test_the_table_in_c_asks_for_a_word_once() -> None:
    asked: list[bytes] = []

    def encode_words(words: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
        asked.extend(words)
        return np.zeros(len(words), np.uint32), np.arange(1, len(words) + 1)

    table = WordTable(load_library().functions, encode_words, np.array([], np.uint32), size=100, longest=4)
    assert table.encode(b"a b a b long-word b\xff").tolist() == [0] * 6
    assert table.encode(b"a b long-word\xff c").tolist() == [0] * 4
    assert asked == [b"a", b" b", b" a", b" long-word", b" long-word", b" c"]


def test_the_table_in_c_is_right_again_after_an_error() -> None:
    is_broken = True

    def encode_words(words: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
        if is_broken:
            raise MemoryError
        return np.frombuffer(b"".join(words), np.uint8).astype(np.uint16), np.cumsum(list(map(len, words)))

    table = WordTable(load_library().functions, encode_words, np.array([0xFF], np.uint16), size=100, longest=4)
    with pytest.raises(MemoryError):
        table.encode(b"a b")
    is_broken = False
    assert table.encode(b"b a b").tolist() == list(b"b a b")


@law
@given(text=TEXTS)
def test_the_ids_of_chunks_are_those_of_the_whole_text(tokenizer: Tokenizer, text: str) -> None:
    text = _without_unknown(text, tokenizer)
    chunks = list(cut_text([text], Limits(chunk=5)))
    ids = [id for chunk in chunks for id in tokenizer.encode(chunk).tolist()]
    assert ids == tokenizer.encode(text).tolist()


def test_words_are_cut_before_whitespace_and_around_the_ends_of_documents() -> None:
    words = split_words(b"a b  c\n\nd\n\xffe\xff\xff f")
    assert words == [b"a", b" b", b"  c", b"\n\nd", b"\n", b"\xff", b"e", b"\xff", b"\xff", b" f"]
    assert split_words("a\xa0 b\u3000\nc".encode()) == ["a\xa0 b\u3000\nc".encode()]
    assert split_words(b"") == []


def test_end_of_text_follows_each_document(functions: ctypes.CDLL | None) -> None:
    tokenizer = tokenizers.build("bpe:300", TEXT)
    documents = ["one", " two\n", "three"]
    ids = (
        Encoder(tokenizer, functions=functions).encode(b"".join(each.encode() + b"\xff" for each in documents)).tolist()
    )
    assert ids == [id for each in documents for id in [*tokenizer.encode(each).tolist(), tokenizer.end_of_text]]


def test_the_word_cache_is_bounded(functions: ctypes.CDLL | None) -> None:
    tokenizer = tokenizers.build("bpe:300", TEXT)
    encoder = Encoder(tokenizer, functions=functions, cached_words=10)
    assert encoder.encode(TEXT.encode()).tolist() == tokenizer.encode(TEXT).tolist()
    assert encoder.words is not None
    assert len(encoder.words) <= 10


def test_long_words_are_not_cached() -> None:
    tokenizer = tokenizers.build("bpe:300", TEXT)
    encoder = Encoder(tokenizer)
    assert encoder.encode(b"abc" * 1000 + b" abc").tolist() == tokenizer.encode("abc" * 1000 + " abc").tolist()
    assert isinstance(encoder.words, WordCache)
    assert list(encoder.words) == [b"\xff", b" abc"]


def test_a_large_text_is_encoded_in_c_or_with_a_warning_in_python(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise UnavailableError("no C compiler was found")

    large, small = 1 << 30, 1 << 20  # characters
    is_cut = tokenizer.kind in ("word", "bpe")
    assert load_functions(tokenizer, large, DEFAULT_LIMITS) is (load_library().functions if is_cut else None)
    monkeypatch.setattr("octavo.data.encoder.load_library", fail)
    with pytest.warns(OctavoWarning, match="no C compiler") if is_cut else contextlib.nullcontext():
        assert load_functions(tokenizer, large, DEFAULT_LIMITS) is None
    assert load_functions(tokenizer, small, DEFAULT_LIMITS) is None  # and no warning


# Several cores


def numbered_texts(count: int) -> Iterator[tuple[int, bytes]]:
    for i in range(count):
        yield i, f"{i}: {TEXT}".encode()


def test_several_cores_give_the_same_ids_in_the_same_order(tokenizer: Tokenizer, functions: ctypes.CDLL | None) -> None:
    if tokenizer.kind == "char":
        tokenizer = tokenizers.build("char", TEXT + "0123456789: ")
    one = list(encode_texts(tokenizer, numbered_texts(40), 1))
    three = list(encode_texts(tokenizer, numbered_texts(40), 3, functions=functions))
    assert [key for key, _ in three] == list(range(40))
    assert [ids.tolist() for _, ids in three] == [ids.tolist() for _, ids in one]
    assert {ids.dtype for _, ids in three} == {np.dtype(np.uint16)}


def test_unknown_characters_in_a_worker_are_reported() -> None:
    tokenizer = tokenizers.build("char", "abc")
    with pytest.raises(UnknownCharactersError, match="'x'"):
        list(encode_texts(tokenizer, [(0, b"abc"), (1, b"abx")], cores=2))


def test_a_worker_that_cannot_start_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    tokenizer = tokenizers.build("char", "abc")
    error = error_of(lambda: list(encode_texts(tokenizer, [(i, b"abc") for i in range(5)], cores=2)))
    assert "was killed" in error.message
    assert "finished shards are kept" in str(error.hint)
