"""Decompress and decode the bytes of a file to its text. The text is kept as it is.

Only a byte order mark at the start is removed. The content is read in blocks, so memory does not depend on its size.
"""

import codecs
import contextlib
import gzip
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from octavo.byte_order_mark import split_mark
from octavo.data.limits import Limits
from octavo.data.unreadable import UnreadableFileError
from octavo.errors import OctavoError, install_command

READ_BYTES = 1 << 20
_HEAD_BYTES = 1 << 16
_CONTROL_CHARACTERS = bytes({*range(0x20), 0x7F} - set(b"\b\t\n\v\f\r\x1b"))  # those that no text has


@dataclass(frozen=True)
class TextFormat:
    """How bytes become text: `encoding` and `errors` of `bytes.decode`, and the field of a row that has the text.

    A NUL character in a text file is an error, or replaced or dropped, as `errors` says, unless `keeps_nul`.
    """

    encoding: str = "utf-8"
    errors: str = "strict"
    text_field: str = "text"
    keeps_nul: bool = False


@contextlib.contextmanager
def decompress(raw: BinaryIO, name: str, limits: Limits) -> Iterator[BinaryIO]:
    """The content of an open file, decompressed if the suffix of its name is `.gz`, `.tgz` or `.zst`.

    Reading raises `OctavoError` if the file is damaged, or decompresses to more than `limits` allow.
    """
    suffix = Path(name).suffix.lower()
    try:
        if suffix in (".gz", ".tgz"):
            with gzip.open(raw) as file:
                yield cast(BinaryIO, BoundedReader(cast(BinaryIO, file), raw.tell, name, limits))
        elif suffix == ".zst":
            with _import_zstd(name).open(raw) as file:
                yield cast(BinaryIO, BoundedReader(file, raw.tell, name, limits))
        else:
            yield raw
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise OctavoError(f"{name} is damaged or truncated: {error}", "fetch or compress it again") from error
    except Exception as error:
        if type(error).__name__ != "ZstdError":  # its class is in a package that may not be installed
            raise
        raise OctavoError(f"{name} is damaged: {error}", "fetch or compress it again") from error


class BoundedReader:
    """Reads a decompressed file. Raises `OctavoError` once it is too large for its compressed size (`check_ratio`).

    `compressed` returns the compressed size so far. `size` counts the decompressed bytes; it starts at those of the
    files read before, if several share the same compressed bytes.
    """

    def __init__(self, file: BinaryIO, compressed: Callable[[], int], name: str, limits: Limits, size: int = 0) -> None:
        self._file, self._compressed, self._name, self._limits, self.size = file, compressed, name, limits, size

    def read(self, size: int) -> bytes:
        content = self._file.read(size)
        self.size += len(content)
        check_ratio(self._compressed(), self.size, self._name, self._limits)
        return content


def check_ratio(compressed: int, decompressed: int, name: str, limits: Limits) -> None:
    """Raise `OctavoError` if a file becomes larger than any text would be, such as one made to fill the memory."""
    if decompressed > max(limits.decompressed, limits.decompression_ratio * compressed):
        raise OctavoError(
            f"{name} decompresses to more than {limits.decompression_ratio} times its size, as no ordinary text does",
            "decompress it first, if it is to be read",
        )


def _import_zstd(name: str) -> Any:
    for module in ("compression.zstd", "backports.zstd"):  # in the standard library from Python 3.14
        try:
            return __import__(module, fromlist=["open"])
        except ImportError:
            continue
    hint = install_command("zstd")
    raise UnreadableFileError(f"reading {name} needs the package backports.zstd", f"zstd ({hint})", hint)


def decode(file: BinaryIO, name: str, text_format: TextFormat) -> Iterator[str]:
    """Yield the text of a file. A byte order mark decides the encoding.

    Raises `UnreadableFileError` if it is binary.
    """
    head = file.read(_HEAD_BYTES)
    encoding, block = split_mark(head)
    if encoding is None:
        encoding = text_format.encoding
        if head and encoding in ("utf-16", "utf-32"):
            raise OctavoError(
                f"{name} is not {encoding}: it does not start with a byte order mark",
                f"--encoding {encoding}-le or {encoding}-be, or utf-8",
            )
        if _is_binary(head, encoding, text_format):
            raise _binary_error(name, head.index(0))
    offset = len(head) - len(block)
    decoder = codecs.getincrementaldecoder(encoding)(text_format.errors)
    while True:
        start = offset - len(decoder.getstate()[0])  # of the text, which begins with an unfinished character
        try:
            text = decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            raise OctavoError(
                f"{name} is not {encoding}: {error.reason} at byte offset {start + error.start}",
                "--encoding latin-1 (or the file's encoding), or --errors replace",
            ) from error
        text.encode()  # raises ValueError if the codec returned an unpaired surrogate; `Corpus.chunks` reports it
        if "\0" in text and not text_format.keeps_nul:
            if text_format.errors == "strict":
                nul = start + len(text[: text.index("\0")].encode(encoding))
                raise OctavoError(
                    f"{name} has a NUL character at byte offset {nul}, which text does not have",
                    "--errors ignore or --errors replace, the tokenizer byte, which keeps it, or another --encoding",
                )
            text = text.replace("\0", "\ufffd" if text_format.errors == "replace" else "")
        if text:
            yield text
        if not block:
            return
        offset += len(block)
        block = file.read(READ_BYTES)


def _binary_error(name: str, offset: int) -> UnreadableFileError:
    hint = "a text file; the tokenizer byte accepts a text with NUL characters"
    message = f"{name} is binary, not text: it has a NUL byte at byte offset {offset}"
    return UnreadableFileError(message, "binary", hint)


def _is_binary(head: bytes, encoding: str, text_format: TextFormat) -> bool:
    """Whether a file is not text: there is a NUL byte, and more than one byte in 50 is a control character.

    Text that can be decoded is never binary if `text_format.keeps_nul`.
    """
    if b"\0" not in head or b"\0" in "a".encode(encoding):  # UTF-16 and UTF-32 are full of NUL bytes
        return False
    if text_format.keeps_nul:
        with contextlib.suppress(UnicodeDecodeError):
            codecs.getincrementaldecoder(encoding)().decode(head)
            return False
    return 50 * (len(head) - len(head.translate(None, _CONTROL_CHARACTERS))) > len(head)
