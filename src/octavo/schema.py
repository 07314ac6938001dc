"""Read JSON and TOML files whose contents are checked against types, before any other code sees them.

A file may be damaged or forged: cut short, nested 20,000 levels deep, an integer where a string belongs, a pipe that
never ends. Each of these is an `OctavoError` that names the file and the place in it.
"""

import json
import os
import stat
import sys
import threading
import tomllib
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec

from octavo import byte_order_mark
from octavo.errors import OctavoError

T = TypeVar("T")

Count = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
NonNegative = Annotated[float, msgspec.Meta(ge=0, le=sys.float_info.max)]  # and finite
# A file name without a path. A file that lists such names can only refer to files in its own folder. One character must
# not be a dot (the middle part of the pattern), which excludes "." and "..".
FileName = Annotated[str, msgspec.Meta(pattern=r"\A[^/\\:\x00]*[^/\\:.\x00][^/\\:\x00]*\Z", max_length=255)]

MAX_BYTES = 256 * 2**20
_decoder = msgspec.json.Decoder()
_initialized: set[Any] = set()
_initializing = threading.Lock()


def read_json(path: Path, type: type[T], hint: str) -> T:
    """Read a JSON file as `type`: a dataclass, a `msgspec.Struct` or a plain type. Raises `OctavoError`."""
    return parse_json(read_regular_file(path, hint), type, str(path), hint)


def parse_json(content: bytes, type: type[T], name: str, hint: str) -> T:
    """Convert the content of a JSON file named `name` to `type`. Raises `OctavoError`."""
    try:
        _initialize(type)
        return msgspec.json.decode(content, type=type)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise OctavoError(f"{name} is damaged: {_describe(error)}", hint) from None


def read_toml(path: Path, hint: str) -> dict[str, Any]:
    """Read a TOML file. Raises `OctavoError`."""
    content = read_regular_file(path, hint)
    try:
        return tomllib.loads(byte_order_mark.decode(content))
    except (ValueError, RecursionError) as error:  # ValueError: not TOML, not UTF-8, or an integer with 5,000 digits
        raise OctavoError(f"{path} is not readable TOML: {_describe(error)}", hint) from None


def decode_json(text: str) -> Any:
    """`json.loads(text)`, in two thirds of the time for text that msgspec can decode."""
    try:
        return _decoder.decode(text)
    except (msgspec.MsgspecError, RecursionError, UnicodeEncodeError):  # NaN, an integer with 20 digits, not JSON, ...
        return json.loads(text)


def check(value: object, type: type[T], name: str, hint: str) -> T:
    """Convert a value that was read from a file named `name` to `type`. Raises `OctavoError`."""
    try:
        _initialize(type)
        return msgspec.convert(value, type, str_keys=True)  # as in JSON: "5" is a key of dict[int, ...]
    except (msgspec.MsgspecError, RecursionError) as error:
        raise OctavoError(f"{name} is damaged: {_describe(error)}", hint) from None


def read_regular_file(path: Path, hint: str, max_bytes: int = MAX_BYTES) -> bytes:
    """Read a file of at most `max_bytes`. Raises `OctavoError` if it is larger, missing, or a pipe or device."""
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):  # `open` would not close the descriptor of a folder
                raise OctavoError(f"{path} is not a regular file", hint)
            with open(descriptor, "rb", closefd=False) as file:
                content = file.read(max_bytes + 1)
        finally:
            os.close(descriptor)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise OctavoError(f"{path} is not readable: {getattr(error, 'strerror', None) or error}", hint) from None
    if len(content) > max_bytes:
        raise OctavoError(f"{path} has more than {max_bytes} bytes", hint)
    return content


def _initialize(type: Any) -> None:
    """Let msgspec examine a type before its first use. If two threads did that at once, msgspec 0.22 would crash."""
    if type not in _initialized:
        with _initializing:
            msgspec.json.Decoder(type)
            _initialized.add(type)


def _describe(error: Exception) -> str:
    return "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
