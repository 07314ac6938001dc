"""Read the parts of a document that is a ZIP file: Word's and EPUB's."""

import contextlib
import io
import zipfile
from collections.abc import Iterator

from octavo.data.unreadable import UnreadableFileError

_MAX_BYTES = 1 << 26  # of all parts that are read


class ZipParts:
    """The parts of a document by name. Raises `UnreadableFileError` for one that is missing, damaged or large."""

    def __init__(self, content: bytes, name: str) -> None:
        self._name, self._bytes_left = name, _MAX_BYTES
        with self._translate_errors():
            self._zip = zipfile.ZipFile(io.BytesIO(content))

    @property
    def names(self) -> list[str]:
        return self._zip.namelist()

    def read(self, part: str) -> bytes:
        with self._translate_errors(), self._zip.open(part) as file:
            content = file.read(self._bytes_left + 1)
        self._bytes_left -= len(content)
        if self._bytes_left < 0:
            raise UnreadableFileError(f"{self._name} unpacks to more than {_MAX_BYTES:,} bytes", "too large")
        return content

    @contextlib.contextmanager
    def _translate_errors(self) -> Iterator[None]:
        try:
            yield
        except KeyError as error:
            raise UnreadableFileError(f"{self._name} is damaged: it has no part {error}", "damaged") from None
        except Exception as error:  # zipfile raises errors of many classes for damaged files
            raise UnreadableFileError(f"{self._name} is damaged: {error}", "damaged") from None
