"""The laws of every tokenizer (nothing is lost, a stream is its text, Hugging Face agrees), then each kind."""

import doctest
import hashlib
import json
import random
import subprocess
import sys
import urllib.error
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import tiktoken
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import octavo.tokenizers
from octavo.errors import OctavoError, UnknownCharactersError
from octavo.tokenizers import Tokenizer, build, load

SPECS = ["char", "byte", "word", "bpe:600", "gpt2"]
GPT2_FILES = {"encoder.json": "vocab.json", "vocab.bpe": "merges.txt"}

a_few = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
# Words, spaces, marks, emoji, and what a tokenizer may stumble over: its own notations, controls, odd spaces.
SNAGS = [
    *("<|endoftext|>", "<0x41>", "Ġ", "Ċ", "\r\n", "\x1c", "\x85", "\u00a0", "\ufeff", "\0", "\ufffd", "  \n\n  "),
    *("👩\u200d👩\u200d👧", "क्षि", "السَّلام", "don't", "'LL", "aaaaaaa", "٣½_9", "e\u0301"),
]
texts = st.lists(st.sampled_from(SNAGS) | st.text(max_size=12), max_size=12).map("".join)


@pytest.fixture
def gpt2_at_hand(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(shared / "tiktoken-cache"))


@pytest.fixture(scope="session")
def notes(shared: Path) -> str:
    """The notes in Arabic, Hindi, French and German."""
    return "\n".join(path.read_text(encoding="utf-8") for path in sorted((shared / "notes").glob("*.md")))


@pytest.fixture(scope="session")
def shakespeare(shared: Path) -> str:
    return (shared / "tinyshakespeare.txt").read_text(encoding="utf-8")


@cache
def tokenizer_of(spec: str, text: str) -> Tokenizer:
    return build(spec, text)


@pytest.fixture(params=SPECS)
def tokenizer(request: pytest.FixtureRequest, gpt2_at_hand: None, notes: str) -> Tokenizer:
    """One of each kind, made of the notes."""
    return tokenizer_of(request.param, notes)


def alphabet(tokenizer: Tokenizer) -> st.SearchStrategy[str]:
    """Texts that the tokenizer has ids for."""
    known = [token.decode() for token in tokenizer.token_bytes] if tokenizer.kind == "char" else None
    return st.text(known) if known else texts


def auto_tokenizer(tokenizer: Tokenizer, folder: Path) -> transformers.PreTrainedTokenizerFast:
    """What transformers makes of a saved tokenizer that lies beside a GPT-2 model."""
    tokenizer.save(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}))
    return transformers.AutoTokenizer.from_pretrained(folder)


def ids_of(theirs: transformers.PreTrainedTokenizerFast, text: str) -> list[int]:
    return theirs(text, verbose=False)["input_ids"]


# Laws of every kind


def test_every_kind_brings_the_notes_back(tokenizer: Tokenizer, notes: str) -> None:
    ids = tokenizer.encode(notes)
    assert ids.dtype == np.int64
    assert ids.ndim == 1
    assert 0 <= ids.min() <= ids.max() < tokenizer.vocab_size
    assert tokenizer.decode(ids) == notes


@a_few
@given(data=st.data())
def test_every_kind_round_trips_any_text_it_knows(tokenizer: Tokenizer, data: st.DataObject) -> None:
    text = data.draw(alphabet(tokenizer))
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert b"".join(tokenizer.token_bytes[id] for id in ids) == text.encode()
    assert not tokenizer.special_ids & set(ids.tolist())


@a_few
@given(data=st.data())
def test_a_stream_is_the_decoded_text(tokenizer: Tokenizer, data: st.DataObject) -> None:
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1)))
    stream = tokenizer.decoder()
    assert "".join(stream.push(id) for id in ids) + stream.flush() == tokenizer.decode(ids)


def test_a_stream_never_shows_a_broken_character(tokenizer: Tokenizer, notes: str) -> None:
    stream, shown = tokenizer.decoder(), ""
    for id in tokenizer.encode(notes):
        shown += stream.push(id)
        assert notes.startswith(shown)
    assert shown == notes


@pytest.mark.usefixtures("gpt2_at_hand")
@pytest.mark.parametrize("spec", SPECS)
def test_auto_tokenizer_gives_the_same_ids_and_text(spec: str, notes: str, shakespeare: str, tmp_path: Path) -> None:
    tokenizer = tokenizer_of(spec, notes)
    theirs = auto_tokenizer(tokenizer, tmp_path)
    assert type(theirs).__name__ in ("PreTrainedTokenizerFast", "TokenizersBackend")
    assert len(theirs) == tokenizer.vocab_size
    for text in (notes, shakespeare[:200_000], *SNAGS, "".join(SNAGS), " a  b ", ""):
        ids = tokenizer.encode(text, unknown="skip")  # what theirs does in `char`
        assert ids_of(theirs, text) == ids.tolist()
        assert theirs.decode(ids) == tokenizer.decode(ids)


@pytest.mark.usefixtures("gpt2_at_hand")
@pytest.mark.parametrize("spec", ["byte", "word", "bpe:600", "gpt2"])
def test_auto_tokenizer_agrees_on_any_text_and_any_ids(spec: str, notes: str, tmp_path: Path) -> None:
    tokenizer = tokenizer_of(spec, notes)
    theirs = auto_tokenizer(tokenizer, tmp_path)

    @a_few
    @given(text=texts, ids=st.lists(st.integers(0, tokenizer.vocab_size - 1)))
    def agree(text: str, ids: list[int]) -> None:
        assert ids_of(theirs, text) == tokenizer.encode(text).tolist()
        assert theirs.decode(ids) == tokenizer.decode(ids)

    agree()


def test_loading_gives_what_was_saved(tokenizer: Tokenizer, notes: str, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    again = load(tmp_path)
    assert again.kind == tokenizer.kind
    assert again.token_bytes == tokenizer.token_bytes
    assert again.special_ids == tokenizer.special_ids
    assert again.end_of_text == tokenizer.end_of_text
    assert again.encode(notes).tolist() == tokenizer.encode(notes).tolist()
    assert again.fingerprint == tokenizer.fingerprint
    assert again.fingerprint == hashlib.sha256((tmp_path / "tokenizer.json").read_bytes()).hexdigest()


@pytest.mark.usefixtures("gpt2_at_hand")
@pytest.mark.parametrize("spec", SPECS)
def test_the_same_text_gives_the_same_tokenizer_in_another_process(spec: str, notes: str) -> None:
    program = (
        "import sys; from octavo.tokenizers import build; assert 'torch' not in sys.modules;"
        f"print(build({spec!r}, sys.stdin.buffer.read().decode()).fingerprint)"
    )
    printed = subprocess.run([sys.executable, "-c", program], input=notes.encode(), stdout=-1, check=True).stdout
    assert printed.decode().strip() == tokenizer_of(spec, notes).fingerprint


def test_other_text_gives_another_tokenizer(notes: str) -> None:
    for spec in ("char", "word", "bpe:600"):
        assert build(spec, notes[: len(notes) // 2]).fingerprint != tokenizer_of(spec, notes).fingerprint


def test_ids_outside_the_vocabulary_are_told(tokenizer: Tokenizer) -> None:
    for id in (tokenizer.vocab_size, -1):
        with pytest.raises(OctavoError, match=rf"id {id} .* {tokenizer.vocab_size} tokens"):
            tokenizer.decode([id])
        with pytest.raises(OctavoError, match=f"id {id} "):
            tokenizer.decoder().push(id)


def test_only_trained_bpe_and_gpt2_have_an_end_of_text(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    if tokenizer.kind in ("bpe", "gpt2"):
        assert tokenizer.end_of_text == tokenizer.vocab_size - 1
        assert tokenizer.special_ids == {tokenizer.end_of_text}
        assert tokenizer.decode([tokenizer.end_of_text]) == config["eos_token"] == "<|endoftext|>"
    else:
        assert tokenizer.end_of_text is None
        assert not tokenizer.special_ids
        assert "eos_token" not in config


def test_half_a_surrogate_pair_is_an_unknown_character_everywhere(tokenizer: Tokenizer) -> None:
    with pytest.raises(UnknownCharactersError, match=r"unknown characters '\\ud83d'"):
        tokenizer.encode("a\ud83d b")
    assert tokenizer.decode(tokenizer.encode("a\ud83d b", unknown="skip")) == "a b"
    assert len(tokenizer.decode(tokenizer.encode("a\ud83d b", unknown="replace"))) == 4


# Unknown characters


def test_unknown_characters_are_named_beside_the_known() -> None:
    with pytest.raises(UnknownCharactersError) as caught:
        build("char", "cab? ").encode("a bed")
    assert caught.value.message == "unknown characters 'd', 'e'; this char tokenizer knows ' ?abc'"
    assert caught.value.hint == "--unknown skip or --unknown replace"


def test_many_unknown_characters_make_a_short_message(notes: str) -> None:
    with pytest.raises(OctavoError) as caught:
        tokenizer_of("char", notes).encode("".join(map(chr, range(0x4E00, 0x4F00))))
    assert "'一', " in caught.value.message
    assert len(caught.value.message) < 300


@pytest.mark.parametrize(("known", "stand_in"), [("ab?\ufffd ", "\ufffd"), ("ab? ", "?"), ("ab ", " ")])
def test_unknown_characters_are_replaced_by_the_first_stand_in_known(known: str, stand_in: str) -> None:
    tokenizer = build("char", known)
    assert tokenizer.decode(tokenizer.encode("abxb", unknown="replace")) == f"ab{stand_in}b"
    assert tokenizer.decode(tokenizer.encode("abxb", unknown="skip")) == "abb"
    assert tokenizer.encode("xyz", unknown="skip").tolist() == []


def test_nothing_to_replace_with_is_told() -> None:
    with pytest.raises(OctavoError, match=r"'x'.*'ab'\n  try: --unknown skip$"):
        build("char", "ab").encode("x", unknown="replace")


def test_a_misspelt_way_with_unknowns_is_told(tokenizer: Tokenizer) -> None:
    with pytest.raises(OctavoError, match=r"'ignore' is not one of error, skip, replace"):
        tokenizer.encode("a", unknown="ignore")


# Each kind's own


def test_char_numbers_the_sorted_characters() -> None:
    assert build("char", "hello\n").encode("hello\n").tolist() == [2, 1, 3, 3, 4, 0]


def test_byte_numbers_are_the_bytes() -> None:
    assert build("byte", "").encode("aé\n").tolist() == [97, 0xC3, 0xA9, 10]
    assert build("byte", "").token_bytes == [bytes([value]) for value in range(256)]


def test_word_has_a_token_for_each_word_space_and_mark() -> None:
    tokenizer = build("word", "the cat, the dog, \n\nकिताब السَّلام snake_case")
    pieces = [tokenizer.token_bytes[id].decode() for id in tokenizer.encode("the cat, \n\nकिताब السَّلام snake_case")]
    assert pieces == ["the", " ", "cat", ",", " \n\n", "किताब", " ", "السَّلام", " ", "snake_case"]


def test_word_spells_what_it_does_not_know_in_bytes() -> None:
    assert build("word", "the cat").encode("the căt").tolist() == [257, 32, *"căt".encode()]


def test_word_keeps_the_most_frequent_words() -> None:
    tokenizer = build("word:258", "one two two three three three")
    assert tokenizer.token_bytes[256:] == [b"three", b"two"]


def test_words_do_not_depend_on_where_a_long_text_is_cut(notes: str) -> None:
    text = "".join(random.Random(0).choices(["a", "का", ".", "\x1c", "\xa0", "\t", "\n", " "], k=1_000_000))
    tokenizer = tokenizer_of("word", notes)
    assert tokenizer.encode(text).tolist() == tokenizer.backend.encode(text).ids


def test_bpe_has_the_bytes_first_and_end_of_text_last(shakespeare: str) -> None:
    tokenizer = tokenizer_of("bpe:300", shakespeare)
    assert tokenizer.vocab_size == 300
    assert sorted(tokenizer.token_bytes[:256]) == [bytes([value]) for value in range(256)]
    assert tokenizer.end_of_text == 299
    assert b" the" in tokenizer.token_bytes


def test_bpe_of_a_small_text_is_smaller_than_asked() -> None:
    assert build("bpe:1000", "each pair once").vocab_size == 257
    tokenizer = build("bpe:1000", "a rose is a rose")
    assert 257 < tokenizer.vocab_size < 1000
    assert tokenizer.decode(tokenizer.encode("a prose")) == "a prose"
    assert build("bpe:1000", "").vocab_size == build("bpe:257", "a rose is a rose").vocab_size == 257


def test_bpe_learns_from_a_word_of_many_letters_in_pieces() -> None:
    assert max(map(len, build("bpe:300", "a" * 100_000).token_bytes)) <= 5000


@a_few
@given(learnt=st.text("ab 'sé\n", min_size=20), text=st.text("ab 'sé\n"), size=st.integers(257, 400))
def test_tiktoken_and_tokenizers_agree_on_whatever_bpe_was_learnt(learnt: str, text: str, size: int) -> None:
    tokenizer = build(f"bpe:{size}", learnt)
    assert tokenizer._tiktoken is not None
    for each in (learnt, text, text + learnt):
        assert tokenizer.encode(each).tolist() == tokenizer.backend.encode(each).ids


@pytest.mark.parametrize("tokenizer", ["gpt2"], indirect=True)
def test_gpt2_gives_tiktokens_ids(tokenizer: Tokenizer, shakespeare: str, notes: str) -> None:
    openai = tiktoken.get_encoding("gpt2")
    assert (tokenizer.vocab_size, tokenizer.end_of_text) == (openai.n_vocab, openai.eot_token)
    assert tokenizer.encode("Hello world").tolist() == [15496, 995]
    for text in (shakespeare, notes):
        assert tokenizer.encode(text).tolist() == openai.encode_ordinary(text)

    @a_few
    @given(texts)
    def agree(text: str) -> None:
        assert tokenizer.encode(text).tolist() == openai.encode_ordinary(text)

    agree()


# GPT-2's files


def test_gpt2_is_taken_from_octavos_cache_first(shared: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TIKTOKEN_CACHE_DIR", raising=False)
    (own_cache / "gpt2").mkdir()
    for name in GPT2_FILES:
        (own_cache / "gpt2" / name).write_bytes((shared / "gpt2-bpe" / name).read_bytes())
    assert build("gpt2", "").vocab_size == 50257
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(shared / "tiktoken-cache"))
    (own_cache / "gpt2" / "vocab.bpe").write_bytes(b"#version: 0.2\n")
    with pytest.raises(OctavoError, match=r"vocab\.bpe was changed"):
        build("gpt2", "")


def test_a_wrong_file_in_tiktokens_cache_is_not_used(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_network(url: str, timeout: float) -> None:
        raise urllib.error.URLError("no network")

    for file in (shared / "tiktoken-cache").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes() + b" ")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr("urllib.request.urlopen", no_network)
    with pytest.raises(OctavoError, match=r"gpt2/encoder\.json is not in the cache"):
        build("gpt2", "")


@pytest.mark.usefixtures("gpt2_at_hand")
def test_the_older_pair_of_files_loads(shared: Path, tmp_path: Path) -> None:
    for ours, theirs in GPT2_FILES.items():
        (tmp_path / theirs).write_bytes((shared / "gpt2-bpe" / ours).read_bytes())
    assert load(tmp_path).fingerprint == build("gpt2", "").fingerprint


@pytest.mark.usefixtures("gpt2_at_hand")
def test_a_foreign_gpt2_tokenizer_json_loads(shared: Path, notes: str, tmp_path: Path) -> None:
    for ours, theirs in GPT2_FILES.items():
        (tmp_path / theirs).write_bytes((shared / "gpt2-bpe" / ours).read_bytes())
    transformers.GPT2Tokenizer.from_pretrained(tmp_path).save_pretrained(tmp_path / "saved")
    theirs = load(tmp_path / "saved")
    assert (theirs.kind, theirs.end_of_text) == ("gpt2", 50256)
    assert theirs.encode(notes).tolist() == tokenizer_of("gpt2", notes).encode(notes).tolist()


def test_a_foreign_bpe_loads_even_where_tiktoken_cannot_follow(notes: str, tmp_path: Path) -> None:
    tokenizer = tokenizer_of("bpe:600", notes)
    tokenizer.save(tmp_path)
    file = tmp_path / "tokenizer.json"
    description = json.loads(file.read_text(encoding="utf-8"))
    vocabulary = description["model"]["vocab"]
    description["model"]["vocab"] = {token: len(vocabulary) - 1 - id for token, id in vocabulary.items()}
    file.write_text(json.dumps(description), encoding="utf-8")
    foreign = load(tmp_path)
    assert foreign.kind == "bpe"
    assert foreign._tiktoken is None
    text = notes + "<|endoftext|>"
    pieces, ours = ([each.token_bytes[id] for id in each.encode(text)] for each in (foreign, tokenizer))
    assert pieces == ours


# What can't be used


NEAREST = {
    "chars": "char",
    "char:5": "char",
    "bytes": "byte",
    "words": "word",
    "word:": "word",
    "gpt-2": "gpt2",
    "gpt2:1": "gpt2",
    "BPE:512": "bpe:1024",
    **dict.fromkeys(["bpe", "bpe:", "bpe:x", "bpe:-5", "bpe:1e9", "bpe:٣٣٣", "bpe:" + "9" * 5000], "bpe:1024"),
}


@pytest.mark.parametrize("spec", NEAREST)
def test_a_bad_spec_is_answered_with_the_nearest(spec: str) -> None:
    with pytest.raises(OctavoError, match="is not one of char, byte, word, word:N, bpe:N, gpt2") as caught:
        build(spec, "text")
    assert caught.value.hint == f"--tokenizer {NEAREST[spec]}"


def test_an_empty_spec_is_told() -> None:
    with pytest.raises(OctavoError, match="'' is not one of char"):
        build("", "text")


TOO_MUCH = {"bpe:256": "bpe:257", "bpe:0": "bpe:257", "word:1": "word:257", "bpe:100001": "bpe:100000"}


@pytest.mark.parametrize("spec", TOO_MUCH)
def test_an_absurd_size_is_answered_with_a_possible_one(spec: str) -> None:
    with pytest.raises(OctavoError, match=f"{spec}: N is 257 to 100000 tokens") as caught:
        build(spec, "text")
    assert caught.value.hint == f"--tokenizer {TOO_MUCH[spec]}"


def test_a_text_that_gives_no_tokenizer_is_told() -> None:
    with pytest.raises(OctavoError, match="the text is empty"):
        build("char", "")
    with pytest.raises(OctavoError, match="halves of surrogate pairs"):
        build("char", "a\udc00")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not json",
        b"\xff\xfe",
        b"{}",
        b'{"model": {"type": "BPE", "vocab": {"a": 7}, "merges": []}, "decoder": {"type": "Fuse"}}',
        b'{"model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}}',
        b'{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}, "decoder": {"type": "Fuse"}, '
        b'"normalizer": {"type": "Lowercase"}}',
        b'{"model": {"type": "BPE", "vocab": {}, "merges": []}, "decoder": {"type": "Fuse"}}',
    ],
)
def test_a_tokenizer_that_is_damaged_or_of_another_sort_is_told(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(OctavoError, match="cannot use the tokenizer in"):
        load(tmp_path)


def test_a_truncated_tokenizer_is_told(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    file = tmp_path / "tokenizer.json"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(OctavoError, match="cannot use the tokenizer in"):
        load(tmp_path)


def test_a_folder_without_a_tokenizer_is_told(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(OctavoError, match=r"no tokenizer in .*: expected tokenizer\.json"):
            load(folder)


def test_the_examples_run() -> None:
    outcome = doctest.testmod(octavo.tokenizers)
    assert outcome.attempted > 0
    assert outcome.failed == 0
