"""Properties of every tokenizer (round trip, streaming, the ids of Hugging Face), then each kind separately."""

import doctest
import hashlib
import json
import random
import re
import subprocess
import sys
import urllib.error
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import tiktoken
import tokenizers
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import octavo.tokenizers.kinds
from octavo.data.encoder import Encoder
from octavo.errors import OctavoError, UnknownCharactersError
from octavo.tokenizers import END_OF_TEXT, StreamDecoder, Tokenizer, build, choose_start, load

SPECS = ["char", "byte", "word", "bpe:600", "gpt2"]
GPT2_FILES = {"encoder.json": "vocab.json", "vocab.bpe": "merges.txt"}

law = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
# Hard cases: special tokens and notations of tokenizers as text, control characters, unusual spaces, emoji.
HARD_TEXTS = [
    *("<|endoftext|>", "<0x41>", "Ġ", "Ċ", "\r\n", "\x1c", "\x85", "\u00a0", "\ufeff", "\0", "\ufffd", "  \n\n  "),
    *("👩\u200d👩\u200d👧", "क्षि", "السَّلام", "don't", "'LL", "aaaaaaa", "٣½_9", "e\u0301"),
]
texts = st.lists(st.sampled_from(HARD_TEXTS) | st.text(max_size=12), max_size=12).map("".join)


@pytest.fixture
def gpt2_files(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let GPT-2's files be found in tiktoken's cache, so that they need no download."""
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(shared / "tiktoken-cache"))


@pytest.fixture(scope="session")
def notes(shared: Path) -> str:
    """Texts in Arabic, Hindi, French and German."""
    return "\n".join(path.read_text(encoding="utf-8") for path in sorted((shared / "notes").glob("*.md")))


@pytest.fixture(scope="session")
def shakespeare(shared: Path) -> str:
    return (shared / "tinyshakespeare.txt").read_text(encoding="utf-8")


@cache
def build_once(spec: str, text: str) -> Tokenizer:
    return build(spec, text)


@pytest.fixture(params=SPECS)
def tokenizer(request: pytest.FixtureRequest, gpt2_files: None, notes: str) -> Tokenizer:
    """A tokenizer of each kind, built from the notes."""
    return build_once(request.param, notes)


def encodable_texts(tokenizer: Tokenizer) -> st.SearchStrategy[str]:
    """Texts without unknown characters."""
    if tokenizer.kind == "char":
        return st.text([token.decode() for token in tokenizer.token_bytes[:-1]])
    return texts


def load_with_transformers(tokenizer: Tokenizer, folder: Path) -> transformers.PreTrainedTokenizerFast:
    """Save a tokenizer beside the config of a GPT-2 model and load it with transformers."""
    tokenizer.save(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}))
    return transformers.AutoTokenizer.from_pretrained(folder)


def encode_with_transformers(theirs: transformers.PreTrainedTokenizerFast, text: str) -> list[int]:
    return theirs(text, verbose=False)["input_ids"]


# Properties of every kind


def test_every_kind_round_trips_the_notes(tokenizer: Tokenizer, notes: str) -> None:
    ids = tokenizer.encode(notes)
    assert ids.dtype == np.int64
    assert ids.ndim == 1
    assert 0 <= ids.min() <= ids.max() < tokenizer.vocab_size
    assert tokenizer.decode(ids) == notes


@law
@given(data=st.data())
def test_every_kind_round_trips_any_encodable_text(tokenizer: Tokenizer, data: st.DataObject) -> None:
    text = data.draw(encodable_texts(tokenizer))
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert b"".join(tokenizer.token_bytes[id] for id in ids) == text.encode()
    assert not tokenizer.special_ids & set(ids.tolist())


@law
@given(text=texts | st.text(st.sampled_from("ab é😀漢\n\ud83d\udc00"), max_size=12))
def test_every_kind_round_trips_any_text_or_reports_what_was_lost(tokenizer: Tokenizer, text: str) -> None:
    known = {token.decode() for token in tokenizer.token_bytes} if tokenizer.kind == "char" else None
    unknown = [c for c in text if ("\ud800" <= c <= "\udfff" if known is None else c not in known)]
    if unknown:
        with pytest.raises(
            UnknownCharactersError, match=rf"{len(unknown)} in all, the first at offset {text.find(unknown[0])}"
        ):
            tokenizer.encode(text)
    ids, report = tokenizer.encode_and_report(text, "skip")
    assert tokenizer.decode(ids) == "".join(c for c in text if c not in unknown)
    for handling in ("skip", "replace"):
        ids, report = tokenizer.encode_and_report(text, handling)
        encoded = sum(len(tokenizer.token_bytes[id]) for id in ids)
        assert (report is None) == (not unknown)
        if report is not None:
            assert (report.count, report.first, report.offset) == (len(unknown), unknown[0], text.find(unknown[0]))
            assert encoded + report.lost_bytes == len(text.encode(errors="surrogatepass"))


@law
@given(data=st.data())
def test_the_joined_stream_equals_the_decoded_text(tokenizer: Tokenizer, data: st.DataObject) -> None:
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1)))
    stream = StreamDecoder(tokenizer)
    assert "".join(stream.push(id) for id in ids) + stream.flush() == tokenizer.decode(ids)


def test_a_stream_never_contains_an_incomplete_character(tokenizer: Tokenizer, notes: str) -> None:
    stream, text = StreamDecoder(tokenizer), ""
    for id in tokenizer.encode(notes):
        text += stream.push(id)
        assert notes.startswith(text)
    assert text == notes


@pytest.mark.usefixtures("gpt2_files")
@pytest.mark.parametrize("spec", SPECS)
def test_auto_tokenizer_gives_the_same_ids_and_text(spec: str, notes: str, shakespeare: str, tmp_path: Path) -> None:
    tokenizer = build_once(spec, notes)
    theirs = load_with_transformers(tokenizer, tmp_path)
    assert type(theirs).__name__ in ("PreTrainedTokenizerFast", "TokenizersBackend")
    assert len(theirs) == tokenizer.vocab_size
    for text in (notes, shakespeare[:200_000], *HARD_TEXTS, "".join(HARD_TEXTS), " a  b ", ""):
        ids = tokenizer.encode(text, unknown="skip")  # as transformers does for `char`
        assert encode_with_transformers(theirs, text) == ids.tolist()
        assert theirs.decode(ids) == tokenizer.decode(ids)


@pytest.mark.usefixtures("gpt2_files")
@pytest.mark.parametrize("spec", ["byte", "word", "bpe:600", "gpt2"])
def test_auto_tokenizer_gives_the_same_for_any_text_and_any_ids(spec: str, notes: str, tmp_path: Path) -> None:
    tokenizer = build_once(spec, notes)
    theirs = load_with_transformers(tokenizer, tmp_path)

    @law
    @given(text=texts, ids=st.lists(st.integers(0, tokenizer.vocab_size - 1)))
    def agree(text: str, ids: list[int]) -> None:
        assert encode_with_transformers(theirs, text) == tokenizer.encode(text).tolist()
        assert theirs.decode(ids) == tokenizer.decode(ids)

    agree()


def test_save_and_load_round_trip(tokenizer: Tokenizer, notes: str, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    loaded = load(tmp_path)
    assert loaded.kind == tokenizer.kind
    assert loaded.token_bytes == tokenizer.token_bytes
    assert loaded.special_ids == tokenizer.special_ids
    assert (loaded.end_of_text, loaded.beginning_of_text) == (tokenizer.end_of_text, tokenizer.beginning_of_text)
    assert (loaded.special_tokens_map, loaded.start_of_text) == (tokenizer.special_tokens_map, tokenizer.start_of_text)
    assert loaded.encode(notes).tolist() == tokenizer.encode(notes).tolist()
    assert loaded.fingerprint == tokenizer.fingerprint
    assert loaded.fingerprint == hashlib.sha256((tmp_path / "tokenizer.json").read_bytes()).hexdigest()


@pytest.mark.usefixtures("gpt2_files")
@pytest.mark.parametrize("spec", SPECS)
def test_building_is_deterministic_across_processes(spec: str, notes: str) -> None:
    program = (
        "import sys; from octavo.tokenizers import build; assert 'torch' not in sys.modules;"
        f"print(build({spec!r}, sys.stdin.buffer.read().decode()).fingerprint)"
    )
    fingerprint = subprocess.run([sys.executable, "-c", program], input=notes.encode(), stdout=-1, check=True).stdout
    assert fingerprint.decode().strip() == build_once(spec, notes).fingerprint


def test_different_text_gives_a_different_tokenizer(notes: str) -> None:
    for spec in ("char", "word", "bpe:600"):
        assert build(spec, notes[: len(notes) // 2]).fingerprint != build_once(spec, notes).fingerprint


def test_ids_outside_the_vocabulary_raise(tokenizer: Tokenizer) -> None:
    for id in (tokenizer.vocab_size, -1):
        with pytest.raises(OctavoError, match=rf"id {id} .* {tokenizer.vocab_size} tokens"):
            tokenizer.decode([id])
        with pytest.raises(OctavoError, match=f"id {id} "):
            StreamDecoder(tokenizer).push(id)


def test_the_last_token_of_every_kind_ends_a_text_and_has_gpt2s_roles(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    assert tokenizer.end_of_text == tokenizer.vocab_size - 1
    assert tokenizer.special_ids == {tokenizer.end_of_text}
    assert tokenizer.decode([tokenizer.end_of_text]) == END_OF_TEXT
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for name in ("bos_token", "eos_token", "pad_token", "unk_token"):
        assert getattr(theirs, name) == END_OF_TEXT
        assert getattr(theirs, f"{name}_id") == tokenizer.end_of_text


def test_no_kind_needs_the_library_for_its_end_of_text_token(tokenizer: Tokenizer) -> None:
    """NumPy or tiktoken encode as fast as without the token."""
    assert tokenizer.can_split_at_spaces == (tokenizer.kind in ("word", "bpe", "gpt2"))
    if tokenizer.kind in ("char", "byte"):
        tokenizer = Tokenizer(tokenizer.backend)
        tokenizer.backend = None  # type: ignore[assignment]
        assert len(tokenizer.encode("the")) == 3


def test_a_model_that_never_sees_the_end_of_text_token_does_not_start_after_it(tokenizer: Tokenizer) -> None:
    """`build` makes the tokenizer for one text. BPE start after the token, as GPT-2 does."""
    after_token = choose_start(tokenizer, trained_on_end_of_text=True)
    assert (after_token.start_of_text, after_token.beginning_of_text) == (None, tokenizer.end_of_text)
    if tokenizer.kind in ("bpe", "gpt2"):
        assert tokenizer.beginning_of_text == tokenizer.end_of_text
    else:
        assert tokenizer.start_of_text == "\n"
        assert [tokenizer.beginning_of_text] == tokenizer.encode("\n").tolist()
        assert choose_start(after_token, trained_on_end_of_text=False).start_of_text == "\n"
    assert after_token.fingerprint == tokenizer.fingerprint


def test_the_start_of_a_text_without_line_breaks_is_its_first_character(tmp_path: Path) -> None:
    build("char", "cab").save(tmp_path)
    assert load(tmp_path).start_of_text == "a"
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    for start in ("ab", "", "\n"):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"start_of_text": start}))
        with pytest.raises(OctavoError, match="start_of_text"):
            load(tmp_path)


def test_transformers_gets_no_token_type_ids(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Without `model_input_names`, transformers 4 returns them, and its GPT-2 adds a row of `wte` for each."""
    tokenizer.save(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert config["model_input_names"] == ["input_ids", "attention_mask"]
    assert list(transformers.AutoTokenizer.from_pretrained(tmp_path)("a")) == config["model_input_names"]


def test_an_unpaired_surrogate_is_unknown_to_every_kind(tokenizer: Tokenizer) -> None:
    with pytest.raises(UnknownCharactersError, match=r"unknown characters '\\ud83d'"):
        tokenizer.encode("a\ud83d b")
    assert tokenizer.decode(tokenizer.encode("a\ud83d b", unknown="skip")) == "a b"
    assert len(tokenizer.decode(tokenizer.encode("a\ud83d b", unknown="replace"))) == 4


# Unknown characters


def test_the_error_names_unknown_and_known_characters() -> None:
    with pytest.raises(UnknownCharactersError) as error:
        build("char", "cab? ").encode("a bed")
    for name in ("unknown characters", "'d', 'e'", "' ?abc'"):
        assert name in error.value.message
    assert error.value.hint == "--unknown skip or --unknown replace"


def test_the_error_is_short_for_many_unknown_characters(notes: str) -> None:
    with pytest.raises(OctavoError) as error:
        build_once("char", notes).encode("".join(map(chr, range(0x4E00, 0x4F00))))
    assert "'一', " in error.value.message
    assert len(error.value.message) < 300


@pytest.mark.parametrize(("vocabulary", "replacement"), [("ab?\ufffd ", "\ufffd"), ("ab? ", "?"), ("ab ", " ")])
def test_unknown_characters_are_replaced_by_the_first_replacement_in_the_vocabulary(
    vocabulary: str, replacement: str
) -> None:
    tokenizer = build("char", vocabulary)
    assert tokenizer.decode(tokenizer.encode("abxb", unknown="replace")) == f"ab{replacement}b"
    assert tokenizer.decode(tokenizer.encode("abxb", unknown="skip")) == "abb"
    assert tokenizer.encode("xyz", unknown="skip").tolist() == []


def test_replace_without_a_replacement_in_the_vocabulary_raises() -> None:
    with pytest.raises(OctavoError, match=r"'x'.*'ab'\n  try: --unknown skip$"):
        build("char", "ab").encode("x", unknown="replace")


def test_an_invalid_value_of_unknown_raises(tokenizer: Tokenizer) -> None:
    with pytest.raises(OctavoError, match=r"'ignore'.*error, skip, replace"):
        tokenizer.encode("a", unknown="ignore")


# The kinds


def test_char_ids_follow_the_sorted_characters() -> None:
    assert build("char", "hello\n").encode("hello\n").tolist() == [2, 1, 3, 3, 4, 0]


def test_byte_ids_are_the_bytes() -> None:
    assert build("byte", "").encode("aé\n").tolist() == [97, 0xC3, 0xA9, 10]
    assert build("byte", "").token_bytes[:-1] == [bytes([value]) for value in range(256)]


def test_word_splits_words_whitespace_and_punctuation() -> None:
    tokenizer = build("word", "the cat, the dog, \n\nकिताब السَّلام snake_case")
    words = [tokenizer.token_bytes[id].decode() for id in tokenizer.encode("the cat, \n\nकिताब السَّلام snake_case")]
    assert words == ["the", " ", "cat", ",", " \n\n", "किताब", " ", "السَّلام", " ", "snake_case"]


def test_word_encodes_unknown_words_as_bytes() -> None:
    assert build("word", "the cat").encode("the căt").tolist() == [257, 32, *"căt".encode()]


def test_word_keeps_the_most_frequent_words() -> None:
    tokenizer = build("word:259", "one two two three three three")
    assert tokenizer.token_bytes[256:-1] == [b"three", b"two"]


def test_word_ids_do_not_depend_on_how_a_long_text_is_split(notes: str) -> None:
    text = "".join(random.Random(0).choices(["a", "का", ".", "\x1c", "\xa0", "\t", "\n", " "], k=1_000_000))
    tokenizer = build_once("word", notes)
    assert tokenizer.encode(text).tolist() == tokenizer.backend.encode(text).ids


def test_bpe_starts_with_the_bytes(shakespeare: str) -> None:
    tokenizer = build_once("bpe:300", shakespeare)
    assert tokenizer.vocab_size == 300
    assert sorted(tokenizer.token_bytes[:256]) == [bytes([value]) for value in range(256)]
    assert b" the" in tokenizer.token_bytes


def test_bpe_of_a_small_text_has_fewer_tokens_than_requested() -> None:
    assert build("bpe:1000", "each pair once").vocab_size == 257
    tokenizer = build("bpe:1000", "a rose is a rose")
    assert 257 < tokenizer.vocab_size < 1000
    assert tokenizer.decode(tokenizer.encode("a prose")) == "a prose"
    assert build("bpe:1000", "").vocab_size == build("bpe:257", "a rose is a rose").vocab_size == 257


def test_bpe_splits_very_long_words_before_training() -> None:
    assert max(map(len, build("bpe:300", "a" * 100_000).token_bytes)) <= 5000


@law
@given(training_text=st.text("ab 'sé\n", min_size=20), text=st.text("ab 'sé\n"), size=st.integers(257, 400))
def test_tiktoken_and_tokenizers_agree_on_any_trained_bpe(training_text: str, text: str, size: int) -> None:
    tokenizer = build(f"bpe:{size}", training_text)
    assert tokenizer.can_split_at_spaces  # so it is encoded by tiktoken
    for each in (training_text, text, text + training_text):
        assert tokenizer.encode(each).tolist() == tokenizer.backend.encode(each).ids


@cache
def bpe_without_all_bytes(text: str) -> Tokenizer:
    """A byte-level BPE whose alphabet is that of its training text, as the Hugging Face course trains it."""
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=60, special_tokens=["<|endoftext|>"], show_progress=False)
    backend.train_from_iterator([text], trainer)
    return Tokenizer(backend)


@law
@given(text=st.text("ab é😀\nzÿ"))
def test_a_bpe_without_all_bytes_round_trips_or_reports_what_it_cannot_express(text: str) -> None:
    tokenizer = bpe_without_all_bytes("a bé ab a b\n" * 50)
    unknown = set(text) & set("😀zÿ")
    if unknown:
        with pytest.raises(UnknownCharactersError, match=re.escape(repr(min(unknown)))):
            tokenizer.encode(text)
    else:
        assert tokenizer.decode(tokenizer.encode(text)) == text
    known = "".join(character for character in text if character not in unknown)
    assert tokenizer.decode(tokenizer.encode(text, unknown="skip")) == known
    replaced = "".join(" " if character in unknown else character for character in text)
    assert tokenizer.decode(tokenizer.encode(text, unknown="replace")) == replaced
    assert Encoder(tokenizer, "skip").encode(text.encode()).tolist() == tokenizer.encode(text, "skip").tolist()


@pytest.mark.parametrize("tokenizer", ["gpt2"], indirect=True)
def test_gpt2_ids_are_those_of_tiktoken(tokenizer: Tokenizer, shakespeare: str, notes: str) -> None:
    theirs = tiktoken.get_encoding("gpt2")
    assert (tokenizer.vocab_size, tokenizer.end_of_text) == (theirs.n_vocab, theirs.eot_token)
    assert tokenizer.encode("Hello world").tolist() == [15496, 995]
    for text in (shakespeare, notes):
        assert tokenizer.encode(text).tolist() == theirs.encode_ordinary(text)

    @law
    @given(texts)
    def agree(text: str) -> None:
        assert tokenizer.encode(text).tolist() == theirs.encode_ordinary(text)

    agree()


# GPT-2's files


def test_gpt2_files_are_read_from_octavos_cache_first(
    shared: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TIKTOKEN_CACHE_DIR", raising=False)
    (own_cache / "gpt2").mkdir()
    for name in GPT2_FILES:
        (own_cache / "gpt2" / name).write_bytes((shared / "gpt2-bpe" / name).read_bytes())
    assert build("gpt2", "").vocab_size == 50257
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(shared / "tiktoken-cache"))
    (own_cache / "gpt2" / "vocab.bpe").write_bytes(b"#version: 0.2\n")
    with pytest.raises(OctavoError, match=r"vocab\.bpe was changed"):
        build("gpt2", "")


def test_a_wrong_file_in_tiktokens_cache_is_ignored(
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


@pytest.mark.usefixtures("gpt2_files")
def test_vocab_json_and_merges_txt_load(shared: Path, tmp_path: Path) -> None:
    for ours, theirs in GPT2_FILES.items():
        (tmp_path / theirs).write_bytes((shared / "gpt2-bpe" / ours).read_bytes())
    assert load(tmp_path).fingerprint == build("gpt2", "").fingerprint


@pytest.mark.usefixtures("gpt2_files")
def test_gpt2_saved_by_transformers_loads(shared: Path, notes: str, tmp_path: Path) -> None:
    for ours, theirs in GPT2_FILES.items():
        (tmp_path / theirs).write_bytes((shared / "gpt2-bpe" / ours).read_bytes())
    transformers.GPT2Tokenizer.from_pretrained(tmp_path).save_pretrained(tmp_path / "saved")
    theirs = load(tmp_path / "saved")
    assert (theirs.kind, theirs.end_of_text) == ("gpt2", 50256)
    assert theirs.encode(notes).tolist() == build_once("gpt2", notes).encode(notes).tolist()


def test_a_bpe_with_ids_in_another_order_is_encoded_without_tiktoken(notes: str, tmp_path: Path) -> None:
    tokenizer = build_once("bpe:600", notes)
    tokenizer.save(tmp_path)
    file = tmp_path / "tokenizer.json"
    description = json.loads(file.read_text(encoding="utf-8"))
    vocabulary = description["model"]["vocab"]
    description["model"]["vocab"] = {token: len(vocabulary) - 1 - id for token, id in vocabulary.items()}
    file.write_text(json.dumps(description), encoding="utf-8")
    foreign = load(tmp_path)
    assert foreign.kind == "bpe"
    assert not foreign.can_split_at_spaces  # so it is not encoded by tiktoken
    text = notes + "<|endoftext|>"
    foreign_tokens, tokens = ([each.token_bytes[id] for id in each.encode(text)] for each in (foreign, tokenizer))
    assert foreign_tokens == tokens


# Errors


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
def test_an_invalid_spec_raises_and_suggests_the_nearest(spec: str) -> None:
    with pytest.raises(OctavoError, match="char, byte, word, word:N, bpe:N, gpt2") as error:
        build(spec, "text")
    assert repr(spec) in error.value.message
    assert error.value.hint == f"--tokenizer {NEAREST[spec]}"


def test_an_empty_spec_raises() -> None:
    with pytest.raises(OctavoError, match="''"):
        build("", "text")


OUT_OF_RANGE = {"bpe:256": "bpe:257", "bpe:0": "bpe:257", "word:1": "word:257", "bpe:100001": "bpe:100000"}


@pytest.mark.parametrize("spec", OUT_OF_RANGE)
def test_a_size_out_of_range_raises_and_suggests_the_nearest(spec: str) -> None:
    with pytest.raises(OctavoError, match=f"{spec}: .* 257 to 100000") as error:
        build(spec, "text")
    assert error.value.hint == f"--tokenizer {OUT_OF_RANGE[spec]}"


def test_a_text_without_characters_or_with_surrogates_raises() -> None:
    with pytest.raises(OctavoError, match="the text is empty"):
        build("char", "")
    with pytest.raises(OctavoError, match="unpaired surrogates"):
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
def test_a_damaged_or_unsupported_tokenizer_json_raises(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(OctavoError, match="cannot use the tokenizer in"):
        load(tmp_path)


def test_a_truncated_tokenizer_json_raises(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    file = tmp_path / "tokenizer.json"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(OctavoError, match="cannot use the tokenizer in"):
        load(tmp_path)


def test_a_folder_without_a_tokenizer_raises(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(OctavoError, match=r"no tokenizer in .*: expected tokenizer\.json"):
            load(folder)


def test_the_doctests_pass() -> None:
    result = doctest.testmod(octavo.tokenizers.kinds)
    assert result.attempted > 0
    assert result.failed == 0
