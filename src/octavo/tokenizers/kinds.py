"""Builds a tokenizer of one of the five kinds, from text or from GPT-2's published files."""

import difflib
import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from octavo.errors import OctavoError
from octavo.files import cache_dir, download, sha256
from octavo.tokenizers.bytelevel import (
    END_OF_TEXT,
    LETTER_TO_BYTE,
    byte_level_backend,
    find_surrogates,
    split_at_spaces,
)
from octavo.tokenizers.fast_path import WORD_PATTERN
from octavo.tokenizers.folder import read_vocab_and_merges
from octavo.tokenizers.tokenizer import Tokenizer

if TYPE_CHECKING:
    import tokenizers

KINDS = ("char", "byte", "word", "bpe", "gpt2")
SPECS = ("char", "byte", "word", "word:N", "bpe:N", "gpt2")
FIXED_VOCAB_SIZES = {"gpt2": 50_257, "byte": 257}  # the kinds that do not depend on the text
DEFAULT_WORD_VOCAB_SIZE = 8192  # of `word` without N; tiny Shakespeare has 13,338 distinct words
MIN_VOCAB_SIZE, MAX_VOCAB_SIZE = 257, 100_000  # of `word:N` and `bpe:N`; at least the 256 bytes and `<|endoftext|>`


def build(spec: str, text: str | Iterable[str]) -> Tokenizer:
    """Build the tokenizer named by `spec`, one of `SPECS`, from a text or from its chunks.

    Its `start_of_text` is for a model that is trained on one text: see `choose_start`.

    >>> build("word", "the cat sat on the mat").decode([256, 32, 257])
    'the cat'
    """
    kind, size = _parse_spec(spec)
    chunks = _check_surrogates([text] if isinstance(text, str) else text)
    match kind:
        case "char":
            backend = _build_char(set().union(*chunks))
        case "byte":
            backend = _build_byte()
        case "word":
            backend = _train_word(chunks, size - 1)
        case "bpe":
            backend = _train_bpe(chunks, size - 1)
        case _:
            backend = read_vocab_and_merges(_gpt2_file("encoder.json"), _gpt2_file("vocab.bpe"))
    backend.add_special_tokens([END_OF_TEXT])  # as the last id, unless the files have it
    return choose_start(Tokenizer(backend), trained_on_end_of_text=False)


def choose_start(tokenizer: Tokenizer, trained_on_end_of_text: bool) -> Tokenizer:
    """Return the tokenizer with the `start_of_text` for a model: what its generated texts start after.

    A model that is not trained on `<|endoftext|>` has an untrained embedding for it. If its tokens are characters,
    bytes or words, it starts after a line break, or after the first token if it has no line break. All other models
    start after `<|endoftext|>`, as GPT-2 does, or after the bos token of the folder that the tokenizer comes from.
    """
    start = None
    is_untrained = not trained_on_end_of_text and tokenizer.kind in ("char", "byte", "word")
    if is_untrained and tokenizer.special_tokens_map.get("bos_token") == END_OF_TEXT:
        start = tokenizer.decode(tokenizer.encode("\n", unknown="skip")) or tokenizer.decode([0])
    if start == tokenizer.start_of_text:
        return tokenizer
    return Tokenizer(
        tokenizer.backend, tokenizer.special_tokens_map, start_of_text=start, chat_template=tokenizer.chat_template
    )


def from_characters(ids: Mapping[str, int], end_of_text: bool = False, start_of_text: str | None = None) -> Tokenizer:
    """A char tokenizer with the given id for each character, and `<|endoftext|>` after them if `end_of_text`."""
    backend = _char_backend(ids)
    if end_of_text:
        backend.add_special_tokens([END_OF_TEXT])
    return Tokenizer(backend, start_of_text=start_of_text)


def _parse_spec(spec: str) -> tuple[str, int]:
    """The kind and the vocabulary size in `spec`; the size is 0 for a kind that has no N."""
    kind, _, size = spec.partition(":")
    if spec in KINDS and spec != "bpe":
        return spec, DEFAULT_WORD_VOCAB_SIZE if spec == "word" else 0
    if not re.fullmatch(r"(word|bpe):[0-9]{1,9}", spec):
        nearest = difflib.get_close_matches(kind.lower(), KINDS, n=1, cutoff=0)[0]
        hint = f"--tokenizer {nearest}{':1024' if nearest == 'bpe' else ''}"
        raise OctavoError(f"tokenizer {spec!r} is not one of {', '.join(SPECS)}", hint)
    if not MIN_VOCAB_SIZE <= int(size) <= MAX_VOCAB_SIZE:
        hint = f"--tokenizer {kind}:{min(max(int(size), MIN_VOCAB_SIZE), MAX_VOCAB_SIZE)}"
        message = f"{spec}: N must be {MIN_VOCAB_SIZE} to {MAX_VOCAB_SIZE} tokens, including the 256 bytes"
        raise OctavoError(message, hint)
    return kind, int(size)


def _check_surrogates(chunks: Iterable[str]) -> Iterator[str]:
    for chunk in chunks:
        if find_surrogates(chunk):
            raise OctavoError("the text contains unpaired surrogates, which are not characters")
        yield chunk


def _build_char(characters: set[str]) -> "tokenizers.Tokenizer":
    """The characters in the order of their code points."""
    if not characters:
        raise OctavoError("a char tokenizer takes its characters from the text, and the text is empty")
    return _char_backend({character: id for id, character in enumerate(sorted(characters))})


def _char_backend(ids: Mapping[str, int]) -> "tokenizers.Tokenizer":
    """A BPE without merges."""
    from tokenizers import Tokenizer as HuggingFaceTokenizer
    from tokenizers import decoders, models

    backend = HuggingFaceTokenizer(models.BPE(dict(ids), []))
    backend.decoder = decoders.Fuse()
    return backend


def _build_byte() -> "tokenizers.Tokenizer":
    from tokenizers import models

    return byte_level_backend(models.BPE(LETTER_TO_BYTE, []))


def _train_word(chunks: Iterable[str], size: int) -> "tokenizers.Tokenizer":
    """The 256 bytes, then words, whitespace and punctuation of the text, most frequent first: at most `size` tokens."""
    from tokenizers import Regex, models, pre_tokenizers, trainers
    from tokenizers import Tokenizer as HuggingFaceTokenizer

    word_splitter = pre_tokenizers.Split(Regex(WORD_PATTERN), "isolated")
    bytes_to_letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    word_counter = HuggingFaceTokenizer(models.WordLevel())  # only ranks the words, and is then discarded
    word_counter.pre_tokenizer = pre_tokenizers.Sequence([word_splitter, bytes_to_letters])
    trainer = trainers.WordLevelTrainer(vocab_size=size, show_progress=False)
    word_counter.train_from_iterator((part for chunk in chunks for part in split_at_spaces(chunk)), trainer)
    ranks = word_counter.get_vocab()  # by frequency, then alphabetically
    tokens = dict.fromkeys([*LETTER_TO_BYTE, *sorted(ranks, key=ranks.__getitem__)])
    backend = byte_level_backend(models.BPE(dict(zip(tokens, range(size), strict=False)), [], ignore_merges=True))
    backend.pre_tokenizer = word_counter.pre_tokenizer
    return backend


def _train_bpe(chunks: Iterable[str], size: int) -> "tokenizers.Tokenizer":
    """The 256 bytes, then the tokens made by merging the most frequent pair again and again.

    At most `size` tokens: a pair that occurs once is not merged, so a small text gives fewer.
    """
    from tokenizers import models, trainers

    backend = byte_level_backend(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=size, min_frequency=2, initial_alphabet=list(LETTER_TO_BYTE), show_progress=False
    )
    # At most 5,000 characters in each part: a single word of a million letters took the trainer nine minutes.
    short = re.compile(r"(?s).{1,4000}(?:.{,1000}?\S(?=[ \n]))?")
    backend.train_from_iterator((part for chunk in chunks for part in short.findall(chunk)), trainer)
    return backend


def _gpt2_file(name: str) -> Path:
    """One of GPT-2's two files: from the cache, from tiktoken's cache, or downloaded. Its sha256 is checked."""
    url = f"https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/{name}"
    digest = {
        "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
        "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
    }[name]
    if not (cache_dir() / "gpt2" / name).exists():
        copy = Path(os.environ.get("TIKTOKEN_CACHE_DIR", ""), hashlib.sha1(url.encode()).hexdigest())
        if copy.is_file() and sha256(copy) == digest:
            return copy
    return download(f"gpt2/{name}", url, digest)
