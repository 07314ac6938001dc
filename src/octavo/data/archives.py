"""Read the files in a .zip or .tar archive, one after another. Nothing is written to the disk.

An archive may come from anybody: its names are only shown in messages, links are left out, and its size is bounded by
`limits`, as that of a compressed file is.
"""

import contextlib
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import BinaryIO, cast

from octavo.data import formats
from octavo.data.decoding import BoundedReader
from octavo.data.file_search import SKIPPED_FOLDERS
from octavo.data.formats import Format
from octavo.data.limits import Limits
from octavo.data.report import Report
from octavo.data.unreadable import UnreadableFileError
from octavo.errors import OctavoError

_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # the others need as much memory as the file asks for
_IS_ENCRYPTED = 1  # the bit of `ZipInfo.flag_bits`


def open_members(
    file: BinaryIO, name: str, format: Format, limits: Limits, report: Report
) -> Iterator[tuple[str, BinaryIO]]:
    """Yield the name and the content of each file in an archive, in its order. `report` counts those left out.

    The content can be read until the next one is yielded. Raises `UnreadableFileError` if the archive is damaged.
    """
    members = _open_zip(file, name, limits, report) if format is formats.ZIP else _open_tar(file, name, report)
    with _translate_errors(name):
        for member, content in members:
            parts = PurePosixPath(member).parts
            if any(part.startswith((".", "__")) or part in SKIPPED_FOLDERS for part in parts):
                continue
            if formats.find_format(member) in formats.ARCHIVES:
                report.skip("within another archive", f"{name}/{member}")
            else:
                yield f"{name}/{member}", cast(BinaryIO, _Member(content, f"{name}/{member}"))


@contextlib.contextmanager
def _translate_errors(name: str) -> Iterator[None]:
    try:
        yield
    except (OctavoError, MemoryError):
        raise
    except Exception as error:  # the libraries raise errors of many classes for damaged files
        raise UnreadableFileError(f"{name} is damaged: {error or type(error).__name__}", "damaged") from None


class _Member:
    """The content of a file in an archive. Reading it raises `UnreadableFileError` if it is damaged."""

    def __init__(self, content: BinaryIO, name: str) -> None:
        self._content, self._name = content, name

    def read(self, size: int) -> bytes:
        with _translate_errors(self._name):
            return self._content.read(size)


def _open_zip(file: BinaryIO, name: str, limits: Limits, report: Report) -> Iterator[tuple[str, BinaryIO]]:
    with zipfile.ZipFile(file) as archive:
        size = file.seek(0, 2)
        read_before = 0
        for member in archive.infolist():
            if member.is_dir():
                continue
            if member.flag_bits & _IS_ENCRYPTED:
                report.skip("encrypted", f"{name}/{member.filename}")
            elif member.compress_type not in _COMPRESSIONS:
                report.skip("with an unsupported compression", f"{name}/{member.filename}")
            else:
                with archive.open(member) as content:
                    # The limit is for all members together, since they may overlap.
                    bounded = BoundedReader(cast(BinaryIO, content), lambda: size, name, limits, read_before)
                    yield member.filename, cast(BinaryIO, bounded)
                    read_before = bounded.size


def _open_tar(file: BinaryIO, name: str, report: Report) -> Iterator[tuple[str, BinaryIO]]:
    with tarfile.open(fileobj=file, mode="r|") as archive:
        for member in archive:
            # A sparse file may claim any size.
            content = archive.extractfile(member) if member.isreg() and not member.issparse() else None
            if content is not None:
                yield member.name, cast(BinaryIO, content)
            elif not member.isdir():
                report.skip("not a regular file", f"{name}/{member.name}")
