"""The process that converts documents: requests on stdin, answers on stdout, until stdin ends.

    request    a line of JSON with `module`, `name`, `encoding` and `size`; then the file, of `size` bytes
    answer     a line of JSON with `size`, or with `message`, `reason` and `hint`; then the text, of `size` bytes

It limits its own memory; the process that started it ends it if a file takes too long.
"""

import importlib
import json
import sys
from typing import BinaryIO

from octavo.data.unreadable import UnreadableFileError

MAX_MEMORY = 3 << 30  # bytes of address space
MAX_TEXT = 1 << 27  # characters that a file may be converted to


def answer(request: dict[str, str], content: bytes) -> str:
    """The text of a file. Raises `UnreadableFileError`."""
    name = request["name"]
    converter = importlib.import_module(f"octavo.data.converters.{request['module']}")
    try:
        text: str = converter.convert(content, name, request["encoding"])
    except (MemoryError, RecursionError) as error:
        raise UnreadableFileError(
            f"{name} needs too much memory to convert: {type(error).__name__}", "too large"
        ) from None
    if len(text) > MAX_TEXT:
        raise UnreadableFileError(f"{name} has more than {MAX_TEXT:,} characters", "too large")
    # A font or an entity can name unpaired surrogates, which are not characters, and NUL.
    return text.replace("\0", "").encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def serve(requests: BinaryIO, answers: BinaryIO) -> None:
    for line in requests:
        request = json.loads(line)
        content = requests.read(request["size"])
        try:
            text = answer(request, content).encode()
        except UnreadableFileError as error:
            header = {"size": 0, "message": error.message, "reason": error.reason, "hint": error.hint}
            text = b""
        else:
            header = {"size": len(text)}
        answers.write(json.dumps(header).encode() + b"\n" + text)
        answers.flush()


def main() -> None:
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY, MAX_MEMORY))
    except (ImportError, OSError, ValueError):  # Windows, or a lower limit is set
        pass
    serve(sys.stdin.buffer, sys.stdout.buffer)
