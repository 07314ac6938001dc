"""Convert files of other programs to text, in a separate process, so that no file can hang or exhaust this one.

The text of a file is kept in the cache, under the sha256 of the file: a corpus is read several times, and converting a
long PDF takes a minute.
"""

import hashlib
import importlib.metadata
import importlib.util
import json
import subprocess
import sys
import threading
from pathlib import Path
from types import TracebackType

from octavo import files
from octavo.data import formats
from octavo.data.formats import Format
from octavo.data.limits import Limits
from octavo.data.unreadable import UnreadableFileError
from octavo.errors import OctavoError, install_command

# The modules of `octavo.data.converters`, and the packages that they need.
_MODULES = {
    formats.HTML: "html",
    formats.PDF: "pdf",
    formats.WORD: "word",
    formats.EPUB: "epub",
    formats.NOTEBOOK: "notebook",
}
_PACKAGES = {formats.PDF: "pypdf"}
_VERSION = 1  # increased when a converter gives another text


def reading_identity() -> str:
    """What the text of the same files depends on: the converters, and the packages that are installed."""
    packages = ("pypdf", "pyarrow", "compression.zstd", "backports.zstd")
    return f"{_VERSION} {' '.join(package for package in packages if _is_installed(package))}"


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:  # the parent of a submodule is not installed
        return False


def is_converted(format: Format) -> bool:
    return format in _MODULES


class Converter:
    """Converts files, one at a time. A context manager: the process starts with the first file, and ends with it."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "Converter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def convert(self, content: bytes, name: str, format: Format, encoding: str) -> str:
        """The text of a file. Raises `UnreadableFileError`."""
        package = _PACKAGES.get(format)
        if package is not None and not _is_installed(package):
            hint = install_command(format.extra or "")
            raise UnreadableFileError(f"reading {name} needs the package {package}", f"{format.name} ({hint})", hint)
        version = importlib.metadata.version(package) if package else ""
        key = hashlib.sha256(f"{_VERSION} {format.name} {version} {encoding}\n".encode() + content).hexdigest()
        cached = files.cache_dir() / "converted" / f"{key}.txt"
        try:
            return cached.read_bytes().decode()
        except (OSError, UnicodeDecodeError):
            text = self._convert(content, name, format, encoding)
        try:
            cached.parent.mkdir(parents=True, exist_ok=True)
            files.write_atomic(cached, text)
        except (OSError, OctavoError):  # it is converted again next time
            pass
        return text

    def _convert(self, content: bytes, name: str, format: Format, encoding: str) -> str:
        process = self._process = self._process or _start()
        assert process.stdin is not None
        assert process.stdout is not None
        request = {"module": _MODULES[format], "name": name, "encoding": encoding, "size": len(content)}
        seconds = self._limits.conversion_seconds + len(content) / self._limits.conversion_rate
        deadline = threading.Timer(seconds, process.kill)
        deadline.start()
        try:
            process.stdin.write(json.dumps(request).encode() + b"\n" + content)
            process.stdin.flush()
            header = json.loads(process.stdout.readline())
            text = process.stdout.read(header["size"])
            if len(text) != header["size"]:
                raise EOFError
        except (OSError, EOFError, ValueError):  # the process has died
            is_late = not deadline.is_alive()
            self._stop()
            problem = (
                f"takes more than {seconds:,.0f} s to convert" if is_late else "ended the process that converts it"
            )
            hint = "leave it out, or convert it to text with another program"
            # An error rather than a skipped file: a faster machine might read the file, and the corpus would differ.
            raise OctavoError(f"{name} {problem}", hint) from None
        finally:
            deadline.cancel()
        if "reason" in header:
            raise UnreadableFileError(header["message"], header["reason"], header["hint"])
        return text.decode()

    def _stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


def _start() -> "subprocess.Popen[bytes]":
    # -P: no module comes from the working directory. The package is perhaps on the path of this process alone.
    package = str(Path(__file__).parents[2])
    code = f"import sys; sys.path.append({package!r}); from octavo.data.converters import worker; worker.main()"
    return subprocess.Popen(
        [sys.executable, "-P", "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C is for this process, which then ends the other
    )
