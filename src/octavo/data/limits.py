"""The sizes that bound memory and time while a text is prepared."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Sizes in characters. The defaults are for use, smaller values for tests.

    The token ids depend only on `uncut` and `tokenizer_text`; the number of shards depends on `shard`.
    """

    chunk: int = 1 << 20  # text that is read, tokenized and counted at a time
    uncut: int = 1 << 24  # a text with nowhere to cut, such as one without spaces, is cut after this length
    shard: int = 1 << 25  # text per shard, which then has 16 to 64 MB
    tokenizer_text: int = 100_000_000  # text that a vocabulary is trained on, at most
    single_process: int = 16 << 20  # shorter texts are encoded before a second process would have started
    progress_seconds: float = 0.2  # at least, between two progress reports


DEFAULT_LIMITS = Limits()
