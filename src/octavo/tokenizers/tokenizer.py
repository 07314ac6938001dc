"""The class behind all five kinds: encodes and decodes, and saves itself in Hugging Face's format.

Axis letters: `T` tokens of a text, `V` tokens of the vocabulary, `W` words.
"""

import codecs
import dataclasses
import functools
import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from octavo.errors import OctavoError, UnknownCharactersError
from octavo.tokenizers import fast_path
from octavo.tokenizers.bytelevel import END_OF_TEXT, LETTER_TO_BYTE, find_surrogates, letters_to_bytes, split_at_spaces
from octavo.tokenizers.library import encode_batch

if TYPE_CHECKING:
    import tiktoken
    import tokenizers

UNKNOWN = ("error", "skip", "replace")  # what `encode` can do with unknown characters
_REPLACEMENTS = "\ufffd? "  # for unknown="replace": the first one in the vocabulary


@dataclass(frozen=True)
class UnknownCharacters:
    """The characters of a text that a tokenizer has no token for, and that were skipped or replaced."""

    count: int
    first: str
    offset: int  # of the first, in characters
    lost_bytes: int  # bytes of the text less those of its tokens

    def add(self, later: "UnknownCharacters") -> "UnknownCharacters":
        """The unknown characters of this text and of a later one. Both offsets count from the same beginning."""
        return dataclasses.replace(self, count=self.count + later.count, lost_bytes=self.lost_bytes + later.lost_bytes)

    def __str__(self) -> str:
        plural = "s" * (self.count > 1)
        return f"{self.count:,} unknown character{plural}, the first {self.first!r} at offset {self.offset:,}"


class Tokenizer:
    """A tokenizer of any kind. The kind is recognized by the structure of the Hugging Face tokenizer it wraps.

    `token_bytes[id]` are the bytes of a token. `special_tokens_map` has special tokens by name, as in transformers:
    `eos_token` ends a text and `bos_token` begins one; their ids are `end_of_text` and `beginning_of_text`, or None.
    `start_of_text`, unless it is None, is the text of the token that begins a text instead: see `choose_start`.
    `chat_template` is the Jinja2 template of a folder of a chat model (`octavo.generation.chat`); None if it has none.
    """

    def __init__(
        self,
        backend: "tokenizers.Tokenizer",
        special_tokens_map: Mapping[str, str | list[str]] | None = None,
        special_token_ids: Mapping[str, int] | None = None,
        start_of_text: str | None = None,
        chat_template: str | None = None,
    ) -> None:
        """`special_token_ids` are ids for names that the map lacks; the id of a token that is not special is ignored.

        If `<|endoftext|>` is a special token and no other token is the `eos_token`, it becomes the `eos_token`. As in
        GPT-2, it then also becomes the `bos_token`, `pad_token` and `unk_token`, unless another token is.
        """
        backend.encode_special_tokens = True  # encodes the text of a special token like other text
        backend.no_truncation()  # transformers stores the lengths of its last call, and they would cut texts
        backend.no_padding()
        self.backend = backend
        self._ids = backend.get_vocab(with_added_tokens=True)
        self.vocab_size = len(self._ids)
        if sorted(self._ids.values()) != list(range(self.vocab_size)):
            raise OctavoError(f"the ids of the {self.vocab_size} tokens are not 0, 1, 2, ...: some are missing")
        description = json.loads(backend.to_str())
        self.kind = _recognize_kind(description, self._ids)
        self._has_fast_path = fast_path.implements(self.kind, description)
        self._known_characters = {token: id for token, id in description["model"]["vocab"].items() if len(token) == 1}
        added = {token["content"] for token in description["added_tokens"]}  # never written in GPT-2's letters
        self.token_bytes = [
            token.encode() if self.kind == "char" or token in added else letters_to_bytes(token)
            for token in sorted(self._ids, key=self._ids.__getitem__)
        ]
        self.special_ids = frozenset(token["id"] for token in description["added_tokens"] if token["special"])
        self.special_texts = [token["content"] for token in description["added_tokens"] if token["special"]]
        self.special_tokens_map = _complete_special_tokens_map(
            dict(special_tokens_map or {}), special_token_ids or {}, description["added_tokens"]
        )
        self.start_of_text, self.chat_template = start_of_text, chat_template
        self.end_of_text, self.beginning_of_text = self.special_token_id("eos_token"), self._find_beginning()

    def special_token_id(self, name: str) -> int | None:
        """The id of the special token with a name such as `pad_token`; None if there is no such token."""
        token = self.special_tokens_map.get(name)
        return self._ids.get(token) if isinstance(token, str) else None

    @property
    def untrained_ids(self) -> list[int]:
        """The ids that do not occur in the training text: the eos token's if texts begin with another token.

        Random weights give them some probability, and sampling one would end a text anywhere.
        """
        return [] if self.start_of_text is None or self.end_of_text is None else [self.end_of_text]

    def _find_beginning(self) -> int | None:
        if self.start_of_text is None:
            return self.special_token_id("bos_token")
        ids = self.encode(self.start_of_text, unknown="skip").tolist()
        if len(ids) != 1:
            raise OctavoError(f"its start_of_text is {self.start_of_text[:20]!r}, expected one token")
        return int(ids[0])

    def encode(self, text: str, unknown: str = "error", special_tokens: bool = False) -> npt.NDArray[np.int64]:
        """The ids of `text`, (T,).

        Some characters have no id: for `char` those outside its vocabulary; for a BPE that was trained without all 256
        bytes, those with a byte that has no token; for every kind unpaired surrogates.
        `unknown` says what to do with them: "error" raises `UnknownCharactersError`; "skip" leaves them out; "replace"
        puts U+FFFD, "?" or a space in their place, the first of these that has an id.

        With `special_tokens`, the text of a special token, such as `<|endoftext|>`, is encoded as that token; without,
        like other text. Spaces beside it are kept, also if the token has the flag `lstrip` or `rstrip`.

        Raises `OctavoError` if the tokenizer changes the text in any other way, for example by dropping spaces.
        """
        return self.encode_and_report(text, unknown, special_tokens)[0]

    def encode_and_report(
        self, text: str, unknown: str = "error", special_tokens: bool = False
    ) -> tuple[npt.NDArray[np.int64], UnknownCharacters | None]:
        """The ids of `text`, (T,), and the characters that were skipped or replaced, if there were any."""
        if unknown not in UNKNOWN:
            raise OctavoError(f"unknown={unknown!r} is not one of {', '.join(UNKNOWN)}")
        if not special_tokens:
            return self._encode_ordinary(text, unknown, offset=0)
        ids, offset = [np.empty(0, np.int64)], 0
        reports: list[UnknownCharacters] = []
        for i, part in enumerate(self.special_pattern.split(text)):  # ordinary text, special token, ordinary text, ...
            if i % 2:
                ids.append(np.array([self._ids[part]]))
            elif part:
                part_ids, report = self._encode_ordinary(part, unknown, offset)
                ids.append(part_ids)
                reports += [report] if report is not None else []
            offset += len(part)
        return np.concatenate(ids), functools.reduce(UnknownCharacters.add, reports) if reports else None

    def encode_words(
        self, words: Sequence[str], special_tokens: bool = False
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """The ids of words (T,) and, for each word, the end of its ids (W,), if `can_split_at_spaces`.

        Much faster than a call for each word: words are joined and encoded together where no token can span the joint.
        """
        pairs = itertools.pairwise(words)
        cuts = [i for i, (left, right) in enumerate(pairs, 1) if right[0] not in " \n" or left[-1].isspace()]
        texts = ["".join(words[start:end]) for start, end in itertools.pairwise([0, *cuts, len(words)])]
        ids = np.concatenate([self.encode(text, special_tokens=special_tokens) for text in texts])
        word_ends = np.cumsum([len(word.encode()) for word in words])  # in bytes of the joined words
        return ids, np.searchsorted(np.cumsum(self._token_lengths[ids]), word_ends, side="right")

    @functools.cached_property
    def without_prefix_space(self) -> "Tokenizer":
        """A tokenizer that encodes a text as it is, if this one puts a space before it (`add_prefix_space`)."""
        description = json.loads(self.backend.to_str())
        pre_tokenizer = json.dumps(description["pre_tokenizer"])
        plain = pre_tokenizer.replace('"add_prefix_space": true', '"add_prefix_space": false')
        if plain == pre_tokenizer:
            return self
        backend = self.backend.from_str(json.dumps(description | {"pre_tokenizer": json.loads(plain)}))
        return Tokenizer(
            backend,
            self.special_tokens_map,
            start_of_text=self.start_of_text,
            chat_template=self.chat_template,
        )

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`. Bytes that are not UTF-8 become U+FFFD."""
        return b"".join(_bytes_of(id, self.token_bytes) for id in ids).decode("utf-8", errors="replace")

    def save(self, folder: Path, max_length: int | None = None) -> None:
        """Write `tokenizer.json`, and a `tokenizer_config.json` with which AutoTokenizer loads it unchanged.

        `max_length` is the context length of the model, to which transformers truncates texts if it is asked to.
        """
        config: dict[str, Any] = {
            "tokenizer_class": "PreTrainedTokenizerFast",  # without it, a gpt2 model gets GPT2Tokenizer
            "clean_up_tokenization_spaces": False,
            "split_special_tokens": True,  # as `encode` does
            # Without this, transformers 4 returns token_type_ids too, and its GPT-2 adds a row of `wte` for each.
            "model_input_names": ["input_ids", "attention_mask"],
        }
        config |= self.special_tokens_map
        if max_length is not None:
            config["model_max_length"] = max_length
        if self.start_of_text is not None:
            config["start_of_text"] = self.start_of_text
        if self.chat_template is not None:
            config["chat_template"] = self.chat_template
        (folder / "tokenizer.json").write_bytes(self._json())
        (folder / "tokenizer_config.json").write_bytes(json.dumps(config, indent=2).encode())

    @functools.cached_property
    def fingerprint(self) -> str:
        """The sha256 of the `tokenizer.json` that `save` writes, and of the eos token if it is an unusual one."""
        eos_token = self.special_tokens_map.get("eos_token", END_OF_TEXT)  # it follows each document of a dataset
        return hashlib.sha256(self._json() + (b"" if eos_token == END_OF_TEXT else str(eos_token).encode())).hexdigest()

    def _json(self) -> bytes:
        return self.backend.to_str(pretty=True).encode()

    @functools.cached_property
    def _token_lengths(self) -> npt.NDArray[np.int64]:
        """The bytes of each token, (V,)."""
        return np.array(list(map(len, self.token_bytes)))

    @functools.cached_property
    def special_pattern(self) -> re.Pattern[str]:
        """Matches the text of a special token. Raises `OctavoError` if there are no special tokens."""
        if not self.special_texts:
            raise OctavoError(f"this {self.kind} tokenizer has no special tokens", "leave out --special-tokens")
        longest_first = sorted(self.special_texts, key=len, reverse=True)
        return re.compile(f"({'|'.join(map(re.escape, longest_first))})")

    @property
    def can_split_at_spaces(self) -> bool:
        """Whether text can be cut into words that are encoded separately, and with `encode_words`.

        Each cut is before a space or newline that follows a character other than whitespace.
        """
        if self._missing_bytes:  # unknown characters need a report with their offsets
            return False
        return (self.kind == "word" and self._has_fast_path) or self._tiktoken is not None

    def _encode_ordinary(
        self, text: str, unknown: str, offset: int
    ) -> tuple[npt.NDArray[np.int64], UnknownCharacters | None]:
        """`encode_and_report` for a text without special tokens that begins at `offset`."""
        ids = self._encode_known(text)
        if ids is not None:
            return ids, None
        unknown_characters = self._unknown_characters(text)
        replacement = self._replacement(text, unknown_characters, unknown, offset)
        kept = text.translate({ord(character): replacement for character in unknown_characters})
        ids = self._encode_known(kept)
        assert ids is not None
        return ids, _report(text, kept, unknown_characters, offset)

    def _encode_known(self, text: str) -> npt.NDArray[np.int64] | None:
        """The ids of a text, (T,); None if it has unknown characters."""
        if self.kind == "char" and self._has_fast_path:
            return self._encode_characters(text)
        if find_surrogates(text):
            return None
        if self.kind == "byte" and self._has_fast_path:
            return np.frombuffer(text.encode(), dtype=np.uint8).astype(np.int64)
        if self._tiktoken is not None:
            return self._tiktoken.encode_to_numpy(text, disallowed_special=()).astype(np.int64)
        chunks = split_at_spaces(text) if self.kind == "word" and self._has_fast_path else [text]
        ids = encode_batch(self.backend, chunks)
        content, encoded = text.encode(), b"".join(map(self.token_bytes.__getitem__, ids))
        if encoded in (content, b" " + content):  # a tokenizer may put a space before the text: `add_prefix_space`
            return np.array(ids, dtype=np.int64)
        if self._unknown_characters(text):
            return None
        raise _preservation_error(content, encoded)

    def _encode_characters(self, text: str) -> npt.NDArray[np.int64] | None:
        """The ids of the characters; None if one of them has no id."""
        points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
        ids = np.take(self._id_of_codepoint, points, mode="clip")
        return None if (ids < 0).any() else ids

    @functools.cached_property
    def _id_of_codepoint(self) -> npt.NDArray[np.int64]:
        """The id of every code point, -1 for those without one. The last entry is for all larger code points."""
        table = np.full(max(map(ord, self._known_characters)) + 2, -1, dtype=np.int64)
        for character, id in self._known_characters.items():
            table[ord(character)] = id
        return table

    @functools.cached_property
    def _tiktoken(self) -> "tiktoken.Encoding | None":
        """A tiktoken encoder with the same ids as the backend, if there is one.

        Tiny Shakespeare (1.1 MB, two cores) with `bpe:4096`: 57 ms. `tokenizers` takes 516 ms, or 146 ms in chunks on
        both cores. `gpt2` is about the same.
        """
        import tiktoken

        if self.kind not in ("bpe", "gpt2") or not self._has_fast_path:
            return None
        if (ranks := fast_path.mergeable_ranks(self.backend)) is None:
            return None
        # GPT-2's pattern in tiktoken's faster spelling; it splits text in the same places.
        pattern = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
        # `encode_to_numpy` is slow without a special token. This one is never encoded.
        unused = {END_OF_TEXT: self.vocab_size}
        return tiktoken.Encoding("", pat_str=pattern, mergeable_ranks=ranks, special_tokens=unused)

    def _unknown_characters(self, text: str) -> set[str]:
        """The characters of `text` that have no id."""
        if self.kind == "char":
            return set(text) - self._known_characters.keys()
        surrogates = find_surrogates(text)
        if not self._missing_bytes:
            return surrogates
        return surrogates | {c for c in set(text) - surrogates if not self._missing_bytes.isdisjoint(c.encode())}

    @functools.cached_property
    def _missing_bytes(self) -> frozenset[int]:
        """The bytes without a single-byte token. The backend would drop them silently."""
        return frozenset(byte for letter, byte in LETTER_TO_BYTE.items() if letter not in self._known_characters)

    def _replacement(self, text: str, unknown_characters: set[str], unknown: str, offset: int) -> str | None:
        """What replaces each unknown character; None removes it.

        Raises `UnknownCharactersError` if `unknown` is "error", or if it is "replace" and no replacement has an id.
        """
        if unknown == "skip":
            return None
        usable = [c for c in _REPLACEMENTS if not self._unknown_characters(c)]
        if unknown == "replace" and usable:
            return usable[0]
        examples = ", ".join(map(repr, sorted(unknown_characters)[:8])) + (", ..." * (len(unknown_characters) > 8))
        alphabet = "".join(sorted(self._known_characters)) if self.kind == "char" else ""
        if alphabet:
            known = f"{alphabet[:80]!r}{' ...' * (len(alphabet) > 80)}"
        elif self._missing_bytes:
            known = f"{256 - len(self._missing_bytes)} of the 256 bytes"
        else:
            known = "all but unpaired surrogates"
        found = _report(text, text, unknown_characters, offset)
        raise UnknownCharactersError(
            f"unknown characters {examples}: {found.count:,} in all, the first at offset {found.offset:,}; "
            f"this {self.kind} tokenizer knows {known}",
            "--unknown skip" + (" or --unknown replace" if usable else ""),
        )


def _preservation_error(content: bytes, encoded: bytes) -> OctavoError:
    """The error for a text that the library changed, for example because it drops spaces."""
    pairs = enumerate(zip(content, encoded, strict=False))
    start = next((i for i, (byte, encoded_byte) in pairs if byte != encoded_byte), min(len(content), len(encoded)))
    before = content[:start].decode(errors="ignore")
    changed = content[len(before.encode()) :][:40].decode(errors="ignore")
    return OctavoError(
        f"this tokenizer does not preserve the text: it changes {changed!r} at offset {len(before):,}",
        "another tokenizer: the pre-tokenizer or an added token in its tokenizer.json drops or changes text",
    )


def _report(text: str, kept: str, unknown_characters: set[str], offset: int) -> UnknownCharacters:
    """Describe the unknown characters of `text`, which begins at `offset` and was encoded as `kept`."""
    first = next(i for i, character in enumerate(text) if character in unknown_characters)
    count = len(text) - len(text.translate(dict.fromkeys(map(ord, unknown_characters))))
    lost_bytes = len(text.encode(errors="surrogatepass")) - len(kept.encode(errors="surrogatepass"))
    return UnknownCharacters(count, text[first], offset + first, lost_bytes)


class StreamDecoder:
    """Decodes one id at a time and holds back the bytes of an incomplete character.

    The results of all calls of `push` and the final `flush`, joined, equal `Tokenizer.decode` of all ids. `errors`, as
    in `bytes.decode`, is for bytes that are not UTF-8.
    """

    def __init__(self, tokenizer: Tokenizer, errors: str = "replace") -> None:
        self._token_bytes = tokenizer.token_bytes
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors=errors)

    def push(self, id: int) -> str:
        """The characters that this id completes."""
        return self._utf8.decode(_bytes_of(id, self._token_bytes))

    def flush(self) -> str:
        """U+FFFD if the last character is incomplete, else an empty string."""
        return self._utf8.decode(b"", final=True)


def _bytes_of(id: int, token_bytes: list[bytes]) -> bytes:
    if not 0 <= id < len(token_bytes):
        raise OctavoError(f"id {int(id)} is not in the vocabulary of {len(token_bytes)} tokens")
    return token_bytes[id]


def _complete_special_tokens_map(
    named: dict[str, str | list[str]], ids: Mapping[str, int], added_tokens: list[dict[str, Any]]
) -> dict[str, str | list[str]]:
    """The map, with tokens that are known by their ids, and `<|endoftext|>` by the names that GPT-2 gives it."""
    special = {token["id"]: token["content"] for token in added_tokens if token["special"]}
    named = {**{name: special[id] for name, id in ids.items() if id in special}, **named}
    if named.get("eos_token", END_OF_TEXT) == END_OF_TEXT and END_OF_TEXT in special.values():
        named = {**dict.fromkeys(("bos_token", "eos_token", "pad_token", "unk_token"), END_OF_TEXT), **named}
    return named


def _recognize_kind(description: dict[str, Any], ids: dict[str, int]) -> str:
    """The kind of a tokenizer by its `tokenizer.json`, which may come from another program."""
    model = description["model"]
    if model.get("dropout"):
        raise OctavoError(f"dropout={model['dropout']} makes its encoding random", '"dropout": null in tokenizer.json')
    # Each ByteLevel writes bytes as letters, which have up to two bytes: 40 of them in a row would need terabytes.
    if json.dumps(description["pre_tokenizer"]).count('"ByteLevel"') > 1:
        raise OctavoError(
            "its pre-tokenizer has more than one ByteLevel", "the tokenizer that the model was trained with"
        )
    added = {token["content"] for token in description["added_tokens"]}
    parts = [(description[part] or {}).get("type") for part in ("normalizer", "pre_tokenizer", "decoder")]
    match [model["type"], *parts]:
        case ["BPE", None, None, "Fuse"] if {len(token) for token in model["vocab"].keys() - added} == {1}:
            return "char"
        case ["BPE", None, "ByteLevel", "ByteLevel"] if model["vocab"] == LETTER_TO_BYTE:
            return "byte"
        case ["BPE", None, "Sequence", "ByteLevel"] if model["ignore_merges"] and not model["merges"]:
            return "word"
        case ["BPE", None, _, "ByteLevel"]:
            # Another BPE can have the same number of tokens, but not GPT-2's last merge at the same id.
            return "gpt2" if len(ids) == 50257 and ids.get("Ġgazed") == 50255 else "bpe"
    structure = "{} with normalizer {}, pre-tokenizer {}, decoder {}".format(model["type"], *parts)
    raise OctavoError(f"expected a character-level or byte-level BPE without normalizer, not {structure}")
