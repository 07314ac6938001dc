"""Byte order marks: the first bytes of a text file that name its encoding. Programs on Windows write them.

PowerShell 5 writes UTF-16 with a mark when output is redirected to a file. As in browsers, a mark decides the encoding,
whatever encoding the user named.
"""

import codecs

# UTF-32 before UTF-16: its little-endian mark begins with that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


def split_mark(content: bytes) -> tuple[str | None, bytes]:
    """The encoding that the mark at the start of `content` names, or None, and the content without the mark."""
    for mark, encoding in _MARKS:
        if content.startswith(mark):
            return encoding, content[len(mark) :]
    return None, content


def decode(content: bytes) -> str:
    """Decode a text file by its byte order mark, or as UTF-8 if it has none. Raises `UnicodeDecodeError`."""
    encoding, content = split_mark(content)
    return content.decode(encoding or "utf-8")
