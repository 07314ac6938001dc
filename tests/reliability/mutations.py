"""Mutate the content of a valid file: its bytes, or the values in it.

All randomness comes from the given generator, so that a failing input can be made again from its number.
"""

import gzip
import json
import pickle
import random
import re
import struct
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import tomli_w

# Pieces that parsers have stumbled over.
PIECES: list[bytes] = [
    b"",
    b"\0",
    b"\n",
    b"\r",
    b'"',
    b"\\",
    b"{}",
    b"[]",
    b"null",
    b"NaN",
    b"-Infinity",
    b"-1",
    b"0",
    b"1e999",
    b"-0.0",
    b"9" * 30,
    b"9" * 5000,
    b"[" * 3000,
    b'{"a":' * 3000,
    b"(" * 3000,
    b"\xff",
    b"\xff\xff\xff\xff\xff\xff\xff\xff",
    b"\x00\x00\x00\x80",
    b"\xed\xa0\x80",
    b"\\ud800",
    b"\xef\xbb\xbf",
    "é\u2028😀".encode(),
    b"../",
    b"/",
    b"a" * 5000,
]
VALUES: list[Any] = [
    None,
    True,
    False,
    0,
    1,
    -1,
    2,
    2**31,
    2**63,
    -(2**63),
    2**64,
    10**30,
    0.0,
    -0.0,
    0.5,
    1e300,
    float("nan"),
    float("inf"),
    "",
    "a",
    "x" * 5000,
    "..",
    "../../a",
    "/etc/passwd",
    "a\0b",
    "\u2028",
    [],
    [1],
    [[[]]],
    {},
    {"a": 1},
    {"type": "Sequence"},
]


def mutate_bytes(content: bytes, generator: random.Random) -> bytes:
    """Apply one to four changes: flips, cuts, insertions, repetitions, exchanged parts, other numbers."""
    for _ in range(generator.choice((1, 1, 1, 2, 3, 4))):
        start, end = sorted(generator.randint(0, len(content)) for _ in range(2))
        end = min(end, start + generator.choice((1, 4, 16, 256, 10**6)))
        match generator.randrange(9):
            case 0 if content:
                position = generator.randrange(len(content))
                flipped = content[position] ^ 1 << generator.randrange(8)
                content = content[:position] + bytes([flipped]) + content[position + 1 :]
            case 1:
                content = content[:start]
            case 2:
                content = content[:start] + content[end:]
            case 3:
                content = content[:end] + content[start:end] * generator.choice((1, 2, 50)) + content[end:]
            case 4:
                content = content[:start] + generator.randbytes(end - start) + content[end:]
            case 5:
                content = content[:start] + generator.choice(PIECES) + content[start:]
            case 6:
                content = content[:start] + generator.choice(PIECES) + content[end:]
            case 7:
                middle = generator.randint(start, end)
                content = content[:start] + content[middle:end] + content[start:middle] + content[end:]
            case 8:
                numbers = list(re.finditer(rb"\d+", content[:100_000]))
                if numbers:
                    found = generator.choice(numbers)
                    number = generator.choice((b"0", b"1", b"-1", b"2147483648", b"9" * 25, b"1.5", b"1e400"))
                    content = content[: found.start()] + number + content[found.end() :]
        content = content[: 1 << 20]
    return content


def mutate_value(value: Any, generator: random.Random) -> Any:
    """Replace, remove, copy or rename one part of a value of dicts and lists."""
    if isinstance(value, dict | list) and value and generator.random() < 0.8:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        key = generator.choice(keys)
        match generator.randrange(8):
            case 0 if isinstance(value, dict):
                return {k: v for k, v in value.items() if k != key}
            case 0:
                return value[:key] + value[key + 1 :]
            case 1 if isinstance(value, dict):
                return value | {generator.choice(("", "x", "a\0", "../a", "x" * 300)): value[key]}
            case 1:
                return [*value, value[key]] * generator.choice((1, 1, 20))
            case 2 if isinstance(value, dict):
                return value | {key: value[generator.choice(keys)]}
            case 2:
                return generator.sample(value, len(value))
            case _:
                changed = mutate_value(value[key], generator)
                if isinstance(value, dict):
                    return value | {key: changed}
                return [*value[:key], changed, *value[key + 1 :]]
    if generator.random() < 0.1:
        return [value] if generator.random() < 0.5 else {"a": value}
    if isinstance(value, str) and generator.random() < 0.5:
        return mutate_bytes(value.encode("utf-8", "surrogatepass"), generator).decode("utf-8", "surrogateescape")
    return generator.choice(VALUES)


@dataclass(frozen=True)
class Format:
    """How a file's bytes become values, and values become bytes again."""

    decode: Callable[[bytes], Any]
    encode: Callable[[Any], bytes]

    def mutate(self, content: bytes, generator: random.Random) -> bytes:
        """Change the values in half of all cases, otherwise the bytes."""
        if generator.random() < 0.5:
            return mutate_bytes(content, generator)
        value = self.decode(content)
        for _ in range(generator.choice((1, 1, 2, 3))):
            value = mutate_value(value, generator)
        try:
            return self.encode(value)
        except (TypeError, ValueError, RecursionError, AttributeError, struct.error):  # the format lacks such values
            return mutate_bytes(content, generator)


def _encode_json(value: Any) -> bytes:
    return json.dumps(value).encode()


def _decode_lines(content: bytes) -> list[Any]:
    return [json.loads(line) for line in content.splitlines()]


def _encode_lines(lines: Any) -> bytes:
    return b"".join(_encode_json(line) + b"\n" for line in lines)


def _decode_safetensors(content: bytes) -> list[Any]:
    length = struct.unpack("<Q", content[:8])[0]
    return [json.loads(content[8 : 8 + length]), content[8 + length :].hex()]


def _encode_safetensors(parts: Any) -> bytes:
    header, data = parts
    encoded = _encode_json(header)
    return struct.pack("<Q", len(encoded)) + encoded + bytes.fromhex(data)


def _decode_npy(content: bytes) -> list[Any]:
    length = struct.unpack("<H", content[8:10])[0]
    return [content[10 : 10 + length].decode("latin-1"), content[10 + length :].hex()]


def _encode_npy(parts: Any) -> bytes:
    header, data = parts
    encoded = header.encode("latin-1")
    return b"\x93NUMPY\x01\0" + struct.pack("<H", len(encoded)) + encoded + bytes.fromhex(data)


BYTES = Format(lambda content: content.decode("latin-1"), lambda value: value.encode("latin-1"))
JSON = Format(json.loads, _encode_json)
JSON_LINES = Format(_decode_lines, _encode_lines)
TOML = Format(lambda content: tomllib.loads(content.decode()), lambda value: tomli_w.dumps(value).encode())
PICKLE = Format(pickle.loads, pickle.dumps)
SAFETENSORS = Format(_decode_safetensors, _encode_safetensors)
NPY = Format(_decode_npy, _encode_npy)
GZIP_LINES = Format(
    lambda content: _decode_lines(gzip.decompress(content)), lambda lines: gzip.compress(_encode_lines(lines))
)
