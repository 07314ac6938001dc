"""Encode text with the `tokenizers` library, which may panic, or take hours, with the `tokenizer.json` of a user.

A regular expression can take hours on a short text: Oniguruma, the library's engine, backtracks.
"""

import contextlib
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

from octavo.errors import OctavoError, translate_parser_errors

if TYPE_CHECKING:
    import tokenizers

T = TypeVar("T")

_SECONDS, _CHARACTERS_PER_SECOND = 5.0, 20_000  # the library encodes millions of characters in a second


def encode_batch(backend: "tokenizers.Tokenizer", texts: Sequence[str], seconds: float | None = None) -> list[int]:
    """The ids of the texts, joined. Raises `OctavoError` if the library panics or takes too long.

    The time limit depends on the length of the texts, unless `seconds` is given.
    """
    if seconds is None:
        seconds = _SECONDS + sum(map(len, texts)) / _CHARACTERS_PER_SECOND
    with translate_encoding_errors():
        encodings = _run_with_time_limit(lambda: backend.encode_batch_fast(texts, add_special_tokens=False), seconds)
    return [id for encoding in encodings for id in encoding.ids]


_HINT = "another tokenizer: the regular expressions in its tokenizer.json may be at fault"


def translate_encoding_errors() -> contextlib.AbstractContextManager[None]:
    """Turn what the library raises while it encodes into an `OctavoError`."""
    return translate_parser_errors("the tokenizers library cannot encode the text", _HINT)


def _run_with_time_limit(function: Callable[[], T], seconds: float) -> T:
    """The result of a function that releases Python's global interpreter lock.

    Raises `OctavoError` if it takes longer. A thread cannot be stopped: it keeps running until the function or the
    process ends.
    """
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(function())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not results:
        raise OctavoError(f"it did not finish in {seconds:.0f} seconds", _HINT)
    return results[0]
