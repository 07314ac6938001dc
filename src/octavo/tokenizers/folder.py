"""Loads a tokenizer from a checkpoint or another Hugging Face folder."""

from pathlib import Path
from typing import TYPE_CHECKING

from octavo.errors import OctavoError, translate_parser_errors
from octavo.tokenizers.bytelevel import END_OF_TEXT, byte_level_backend
from octavo.tokenizers.special_tokens import (
    add_tokens,
    named_tokens,
    read_chat_template,
    read_special_token_ids,
    read_special_tokens_map,
    read_start_of_text,
)
from octavo.tokenizers.tokenizer import Tokenizer

if TYPE_CHECKING:
    import tokenizers


def load(folder: Path) -> Tokenizer:
    """The tokenizer of a folder with `tokenizer.json`, or with the older `vocab.json` and `merges.txt`.

    It has all special tokens of the folder and their names.
    """
    import tokenizers

    tokenizer_json, vocab_json, merges_txt = (folder / name for name in ("tokenizer.json", "vocab.json", "merges.txt"))
    with translate_parser_errors(f"cannot use the tokenizer in {folder}"):
        special_tokens_map = read_special_tokens_map(folder)
        if tokenizer_json.is_file():
            backend = tokenizers.Tokenizer.from_file(str(tokenizer_json))
        elif vocab_json.is_file() and merges_txt.is_file():
            backend = read_vocab_and_merges(vocab_json, merges_txt)
            # vocab.json does not say which of its tokens are special, so the named ones are.
            in_vocabulary = [
                token for token in named_tokens(special_tokens_map) if backend.token_to_id(token) is not None
            ]
            backend.add_special_tokens(in_vocabulary)
        else:
            raise OctavoError(f"no tokenizer in {folder}: expected tokenizer.json, or vocab.json and merges.txt")
        add_tokens(backend, folder, special_tokens_map)
        return Tokenizer(
            backend,
            special_tokens_map,
            read_special_token_ids(folder),
            read_start_of_text(folder),
            read_chat_template(folder),
        )


def read_vocab_and_merges(vocab: Path, merges: Path) -> "tokenizers.Tokenizer":
    """GPT-2's older pair of files: `vocab.json` and `merges.txt`, which OpenAI named `encoder.json` and `vocab.bpe`."""
    from tokenizers import models

    backend = byte_level_backend(models.BPE.from_file(str(vocab), str(merges)))
    if backend.token_to_id(END_OF_TEXT) is not None:
        backend.add_special_tokens([END_OF_TEXT])
    return backend
