"""The sizes that bound memory and time while a text is prepared."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Numbers of characters, unless stated otherwise. Tests use smaller values than the defaults.

    If a text is accepted, only `forced_cut` and `tokenizer_characters` change its token ids, and only
    `shard_characters` changes the number of shards.
    """

    row: int = 1 << 25  # a row of JSON or CSV, which is in memory as a whole
    # A compressed file may decompress to this many times its size. Text reaches 20 and logs 100; a file that was made
    # to fill the memory or the disk has 1,000 and more. Below `decompressed` bytes, any ratio is harmless.
    decompression_ratio: int = 250
    decompressed: int = 1 << 26
    converted_bytes: int = 1 << 28  # a PDF, Word document, ..., which is in memory as a whole
    # Converting one may take `conversion_seconds`, and one second more for every `conversion_rate` bytes.
    conversion_seconds: float = 60.0
    conversion_rate: float = 100_000.0
    chunk: int = 1 << 20  # text that is read, encoded and counted at a time
    forced_cut: int = 1 << 24  # text without a place to cut it, such as a space, is cut after this length all the same
    shard_characters: int = 1 << 25  # text per shard, which then has 16 to 64 MB
    tokenizer_characters: int = 100_000_000  # text that a tokenizer is trained on, at most
    # Shorter texts are encoded in one process: it has finished before a second process would have started.
    single_process_characters: int = 16 << 20
    unit_bytes: int = 1 << 28  # files that one process scans and encodes at a time, in `prepare --together`
    progress_seconds: float = 0.2  # minimum interval between two progress reports


DEFAULT_LIMITS = Limits()
