"""What `position`, `neighbors` and `projection` share: rows of the token embedding `wte`, compared and looked up.

The axis letters: `C` width, `V` the vocabulary.
"""

from collections.abc import Sequence

import numpy as np

from octavo.checkpoint import Checkpoint
from octavo.data.prepare import reopen_dataset
from octavo.errors import OctavoError
from octavo.lens.tokens import make_token
from octavo.settings import Settings
from octavo.tokenizers import Tokenizer

_PIECES = 16  # of a word


def cosines(wte: np.ndarray, ids: Sequence[int]) -> np.ndarray:
    """Of every row of wte with the mean of some, (V,), in float64."""
    near: np.ndarray = unit_rows(wte) @ unit_rows(wte[list(ids)].astype(np.float64).mean(0)[None])[0]
    return near


def unit_rows(rows: np.ndarray) -> np.ndarray:
    """Rows of length 1, in float64; a row of zeros stays."""
    rows = rows.astype(np.float64)
    ones: np.ndarray = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-300)
    return ones


def resolve_word(tokenizer: Tokenizer, word: str) -> tuple[list[int], str]:
    """A word's tokens, and what there is to say about them: alone, or with the space before it, if that is one."""
    try:
        ids = [int(id) for id in tokenizer.encode(word)]
    except OctavoError as error:
        raise OctavoError(error.message, "a word of characters that it knows") from None
    if not ids:
        raise OctavoError("an empty word has no token", "--word king")
    if len(ids) == 1:
        return ids, ""
    if tokenizer.kind in ("bpe", "gpt2"):
        spaced = tokenizer.encode(" " + word)
        if len(spaced) == 1:
            return [int(spaced[0])], "with the space before it, for so it is one token"
    if len(ids) > _PIECES:
        raise OctavoError(f"{word!r} is {len(ids)} tokens; at most {_PIECES} are shown", "a shorter word")
    pieces = " ".join(make_token(tokenizer, id).label for id in ids)
    return ids, f"{len(ids)} tokens, {pieces}: this tokenizer has no row for the word itself"


def count_tokens(loaded: Checkpoint) -> np.ndarray | None:
    """How often each token stands in the text that was trained on, (V,), if that can still be had."""
    if not isinstance(loaded.settings, Settings) or "data" not in loaded.info:
        return None
    try:
        tokens = reopen_dataset(loaded.settings, loaded.info["data"], loaded.tokenizer).tokens("train")
    except OctavoError:
        return None
    V = loaded.tokenizer.vocab_size
    return sum((np.bincount(piece, minlength=V) for piece in tokens.pieces()), start=np.zeros(V, dtype=np.int64))
