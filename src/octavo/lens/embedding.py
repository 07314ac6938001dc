"""What `position`, `neighbors` and `projection` share: comparing rows of the embeddings, and counting tokens.

The axis letters: `C` width, `V` the vocabulary.
"""

from collections.abc import Sequence

import numpy as np

from octavo.checkpoint import Checkpoint
from octavo.data.prepare import reopen_dataset
from octavo.errors import OctavoError
from octavo.settings import Settings


def cosines(wte: np.ndarray, ids: Sequence[int]) -> np.ndarray:
    """The cosine of every row of wte with the mean of the rows `ids`, (V,), in float64."""
    mean = wte[list(ids)].astype(np.float64).mean(0)[None]  # (1, C)
    similarity: np.ndarray = unit_rows(wte) @ unit_rows(mean)[0]
    return similarity


def unit_rows(rows: np.ndarray) -> np.ndarray:
    """Rows scaled to L2 norm 1, in float64. A row of zeros stays zero."""
    rows = rows.astype(np.float64)
    scaled: np.ndarray = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-300)
    return scaled


def count_tokens(loaded: Checkpoint) -> np.ndarray | None:
    """How often each token occurs in the training split, (V,), or None if the training text is not available."""
    if not isinstance(loaded.settings, Settings) or not loaded.info.get("data"):  # an imported GPT-2, or no dataset
        return None
    try:
        dataset = reopen_dataset(loaded.settings, loaded.info["data"], loaded.tokenizer).result
    except OctavoError:
        return None
    V = loaded.tokenizer.vocab_size
    counts = (np.bincount(ids, minlength=V) for ids in dataset.tokens["train"].blocks())
    return sum(counts, start=np.zeros(V, dtype=np.int64))
