"""Any `tokenizer.json` is encoded with the ids of the `tokenizers` library, or refused; nothing it contains crashes."""

import contextlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors

import octavo.tokenizers
from octavo.data.encoder import Encoder
from octavo.errors import OctavoError
from octavo.tokenizers import Tokenizer, library
from octavo.tokenizers.bytelevel import LETTER_TO_BYTE

LETTERS = list(LETTER_TO_BYTE)
ASCII = [letter for letter, byte in LETTER_TO_BYTE.items() if byte < 128]
PIECES = [
    "a",
    "b",
    "ab",
    "abc",
    "aab",
    " ",
    "  ",
    "\n",
    "\t",
    "1",
    "23",
    "'s",
    ".",
    "é",
    "漢",
    "😀",
    "<pad>",
    "<eos>",
    "xy",
]
texts = st.lists(st.sampled_from(PIECES), max_size=12).map("".join)

PRE_TOKENIZERS: list[Any] = [
    None,
    pre_tokenizers.ByteLevel(add_prefix_space=False),
    pre_tokenizers.ByteLevel(add_prefix_space=True),
    pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    pre_tokenizers.Whitespace(),
    *(
        pre_tokenizers.Sequence([first, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
        for first in (
            pre_tokenizers.Split(tokenizers.Regex(r"[\p{L}\p{M}\p{N}_]+|\s+|[^\p{L}\p{M}\p{N}_\s]"), "isolated"),
            pre_tokenizers.Split(tokenizers.Regex(r"\p{N}{1,2}|\p{L}+|\s+"), "isolated"),
            pre_tokenizers.Split(" ", "removed"),
            pre_tokenizers.Split(" ", "merged_with_next"),
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.WhitespaceSplit(),
        )
    ),
]


@st.composite
def added_tokens(draw: st.DrawFn) -> AddedToken:
    flags = {name: draw(st.booleans()) for name in ("special", "lstrip", "rstrip", "single_word", "normalized")}
    if draw(st.booleans()):  # the usual flags, so that the fast paths are tested too
        flags = {"special": True}
    return AddedToken(draw(st.sampled_from(["<pad>", "<eos>", "xy", "a", "é", "ab"])), **flags)


@st.composite
def backends(draw: st.DrawFn) -> tokenizers.Tokenizer:
    """A tokenizer with random vocabulary, merges and features; half of the features have their usual value."""

    def usually(value: Any, *others: Any) -> Any:
        return draw(st.just(value) | st.sampled_from([value, *others]))

    tokens = list(usually(LETTERS, ASCII, ["a", "b", "c", " ", "é", "漢"], ["a", "é"]))
    merges: list[tuple[str, str]] = []
    for _ in range(draw(st.integers(0, 12))):
        known = st.sampled_from([token for token in tokens if set(token) <= set("abcĠ12")] or tokens)
        left, right = draw(known), draw(known)
        if left + right not in tokens:
            tokens.append(left + right)
            merges.append((left, right))
    if usually(False, True):
        tokens = draw(st.permutations(tokens))
    if usually(False, True):
        merges = draw(st.permutations(merges))
    unk_token = usually(None, "<unk>")
    if unk_token:
        tokens.append(unk_token)
    options = {
        "unk_token": unk_token,
        "fuse_unk": usually(False, True),
        "byte_fallback": usually(False, True),
        "ignore_merges": usually(False, True),
        "continuing_subword_prefix": usually(None, ""),
        "end_of_word_suffix": usually(None, "", "</w>"),
        "dropout": usually(None, None, 0.5),
    }
    vocabulary = {token: id for id, token in enumerate(tokens)}
    model = models.BPE(vocabulary, merges, **{name: value for name, value in options.items() if value is not None})
    backend = tokenizers.Tokenizer(model)
    if pre_tokenizer := usually(PRE_TOKENIZERS[1], *PRE_TOKENIZERS):
        backend.pre_tokenizer = pre_tokenizer
    backend.decoder = usually(decoders.ByteLevel(), decoders.Fuse())
    if normalizer := usually(None, normalizers.NFKC(), normalizers.Lowercase()):
        backend.normalizer = normalizer
    if post_processor := usually(None, processors.ByteLevel(trim_offsets=True)):
        backend.post_processor = post_processor
    backend.add_tokens(draw(st.lists(added_tokens(), max_size=2)))
    if usually(False, True):
        backend.enable_truncation(3)
        backend.enable_padding(length=8)
    return backend


def library_ids(description: str, text: str) -> list[int]:
    backend = tokenizers.Tokenizer.from_str(description)
    backend.encode_special_tokens = True
    backend.no_truncation()
    backend.no_padding()
    return backend.encode(text, add_special_tokens=False).ids


@settings(max_examples=2000 if os.environ.get("OCTAVO_TORTURE") == "1" else 400, deadline=None)
@given(backends(), st.lists(texts, min_size=1, max_size=6))
def test_a_random_tokenizer_has_the_ids_of_the_library_or_is_refused(
    backend: tokenizers.Tokenizer, texts: list[str]
) -> None:
    description = backend.to_str()
    try:
        tokenizer = Tokenizer(tokenizers.Tokenizer.from_str(description))
    except OctavoError:
        return
    for text in texts:
        expected = library_ids(description, text)
        expressed = b"".join(tokenizer.token_bytes[id] for id in expected).decode(errors="replace")
        if expressed not in (text, " " + text):
            with pytest.raises(OctavoError):
                tokenizer.encode(text)
            continue
        assert tokenizer.encode(text).tolist() == expected
        assert tokenizer.decode(expected) == expressed
        encoded = Encoder(tokenizer).encode(text.encode()).tolist()
        if tokenizer.without_prefix_space is tokenizer:
            assert encoded == expected
        else:  # a document is encoded as it is
            assert tokenizer.decode(encoded) == text


# Hostile files


def hostile_tokenizer(pattern: str) -> Tokenizer:
    backend = tokenizers.Tokenizer(models.BPE(LETTER_TO_BYTE, []))
    split = pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated")
    bytes_to_letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, bytes_to_letters])
    backend.decoder = decoders.ByteLevel()
    return Tokenizer(backend)


def test_a_regular_expression_that_takes_too_long_is_an_error() -> None:
    tokenizer = hostile_tokenizer(r"a*a*[bc](?<=c)")  # cubic time
    with pytest.raises(OctavoError, match="cannot encode the text: it did not finish"):
        library.encode_batch(tokenizer.backend, ["a" * 1000 + "b"], seconds=0.05)


@pytest.mark.parametrize("pattern", ["(" * 5000, "[a"])
def test_a_damaged_regular_expression_is_an_error(pattern: str, tmp_path: Path) -> None:
    backend = hostile_tokenizer("a").backend
    description = json.loads(backend.to_str())
    description["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = pattern
    (tmp_path / "tokenizer.json").write_text(json.dumps(description), encoding="utf-8")
    with pytest.raises(OctavoError, match="cannot use the tokenizer in"):
        octavo.tokenizers.load(tmp_path)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_change_of_a_tokenizer_json_is_used_or_refused(data: st.DataObject, tmp_path: Path) -> None:
    """A value of the file is replaced by another one; then the tokenizer round-trips, or an `OctavoError` is raised."""
    description = json.loads(octavo.tokenizers.build("bpe:270", "ab ab abc\n" * 9).backend.to_str())
    node: Any = description
    while True:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        key = data.draw(st.sampled_from(keys))
        if not isinstance(node[key], (dict, list)) or not node[key] or data.draw(st.integers(0, 4)) == 0:
            break
        node = node[key]
    values = [None, True, 0, -1, 10**9, 0.5, "", "a", "Ġ", [], {}, ["a", "b"], {"type": "Lowercase"}, {"type": "BPE"}]
    node[key] = data.draw(st.sampled_from(values))
    (tmp_path / "tokenizer.json").write_text(json.dumps(description), encoding="utf-8")
    with contextlib.suppress(OctavoError):
        tokenizer = octavo.tokenizers.load(tmp_path)
        assert tokenizer.decode(tokenizer.encode("ab abc é")) in ("ab abc é", " ab abc é")
