"""The shared library of the C files: compiled by the machine's own compiler, kept in the cache, checked before loading.

A library is code that runs in this process, so one from the cache is loaded only if

- its name has the key of these sources, flags and this kind of CPU;
- only the user (or root) can write to it and to its folder;
- its sha256 is the one in its name.

The name is `kernels-KEY-COMPILER-SHA256.so`. A library that is missing or damaged is built again. If the cache can't be
used, the library is compiled for this process alone, and a notice says so.

PyTorch is not imported here: a command starts the compiler before it imports it.
"""

import contextlib
import ctypes
import functools
import hashlib
import itertools
import os
import platform
import shutil
import stat
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from octavo.errors import OctavoError
from octavo.files import atomic_file, cache_dir, sha256, translate_disk_errors

_FOLDER = Path(__file__).parent / "kernels"
SOURCES = (_FOLDER / "forward.c", _FOLDER / "training.c")
_HEADERS = tuple(_FOLDER / name for name in ("floats.h", "amx.h", "team.h", "linear.h", "newton_schulz.h"))
_FLAGS = ["-O2", "-march=native", "-std=gnu11", "-fPIC", "-pthread", "-Wno-psabi"]
_MAX_CACHED = 16  # libraries: those of other CPUs, compilers and versions of Octavo are kept too
_STALE_SECONDS = 600.0  # a temporary file of this age belongs to a process that was killed: a build takes seconds
_BUILD_PREFIX = "octavo-build-"


_loading = threading.Lock()


class UnavailableError(Exception):
    """The C code can't be used; the message says why."""


class Library(NamedTuple):
    """The loaded library. `notice` says why it could not be kept in the cache; None if it was."""

    functions: ctypes.CDLL
    notice: str | None = None


@functools.cache
def load_library() -> Library:
    """Load the library from the cache, or compile it.

    Raises `UnavailableError` if there is no library and it can't be compiled, or OCTAVO_NATIVE=0 forbids it.
    """
    if os.environ.get("OCTAVO_NATIVE") == "0":
        raise UnavailableError("OCTAVO_NATIVE=0 disables the C code")
    with _loading:
        return _load_or_build()


def load_in_background() -> threading.Thread:
    """Load or compile the library in a thread. Compiling takes some seconds. `load_library` waits for the thread."""

    def load() -> None:
        with contextlib.suppress(UnavailableError):  # reported where the library is needed
            load_library()

    thread = threading.Thread(target=load, daemon=True)  # Ctrl-C does not wait for the compiler
    thread.start()
    return thread


def _load_or_build() -> Library:
    compiler = _find_compiler()
    try:
        return Library(_load(_cached_library(cache_dir() / "native", compiler)))
    except OctavoError as error:
        problem = error.message
    try:
        with _build(compiler) as built:
            library = _load(built)
    except (UnavailableError, OctavoError) as error:
        raise UnavailableError(f"{problem}, and {error}") from None
    hint = "set OCTAVO_CACHE to a folder that only you can write to"
    return Library(library, f"{problem}; the C code is compiled again at every start ({hint})")


# The cache


def _cached_library(folder: Path, compiler: str | None) -> Path:
    """The library in the cache, built if it is missing. Raises `OctavoError` if the cache can't be used."""
    key = f"kernels-{_key()}"
    name = f"{key}-{_compiler_key(compiler)}"
    if path := _find(folder, name):
        return path
    try:
        _prepare(folder)  # before the build, which takes some seconds
        with _build(compiler) as built:
            return _store(built, folder, name)
    except UnavailableError:
        if path := _find(folder, key):  # built by a compiler that was removed since
            return path
        raise


def _find(folder: Path, name: str) -> Path | None:
    """The newest intact library whose name begins with `name`. Removes damaged ones, and old files."""
    with translate_disk_errors(folder):
        if not folder.exists():
            return None
        _require_private(folder)
        _remove(_stale(folder.glob(".kernels-*.partial")))
        libraries = _newest_first(folder.glob("kernels-*.so"))
    _remove(libraries[_MAX_CACHED:])
    for path in libraries[:_MAX_CACHED]:
        if path.name.startswith(f"{name}-"):
            if _is_intact(path):
                with contextlib.suppress(OSError):
                    os.utime(path)  # so that libraries in use stay among the newest
                return path
            _remove([path])
    return None


def _is_intact(path: Path) -> bool:
    """Whether a library is a file that only the user or root can write to, with the content that its name states."""
    try:
        status = path.lstat()
        return stat.S_ISREG(status.st_mode) and _is_private(status) and path.stem.endswith(f"-{sha256(path)}")
    except OSError:
        return False


def _is_private(status: os.stat_result) -> bool:
    """Whether nobody but the user and root can write to a file or folder. Always true on Windows."""
    return os.name != "posix" or (status.st_uid in (os.geteuid(), 0) and not status.st_mode & 0o022)


def _require_private(folder: Path) -> None:
    if not _is_private(folder.stat()):
        raise OctavoError(f"{folder} belongs to another user, or others can write to it")


def _prepare(folder: Path) -> None:
    """Create the folder. Raises `OctavoError` if nothing can be written into it."""
    with translate_disk_errors(folder):
        folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        _require_private(folder)
        if not os.access(folder, os.W_OK):
            raise OctavoError(f"{folder} can't be written")


def _store(built: Path, folder: Path, name: str) -> Path:
    """Copy a library into the cache: flushed to disk, then renamed."""
    content = built.read_bytes()
    path = folder / f"{name}-{hashlib.sha256(content).hexdigest()}.so"
    with atomic_file(path) as file:
        file.write(content)
        if os.name == "posix":
            os.fchmod(file.fileno(), 0o755)  # not writable by others, whatever the umask
    return path


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        with contextlib.suppress(OSError):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _stale(paths: Iterable[Path]) -> list[Path]:
    """The temporary files and folders among `paths` that a killed process left."""
    return [path for path, time_used in _last_use(paths).items() if time.time() - time_used > _STALE_SECONDS]


def _newest_first(paths: Iterable[Path]) -> list[Path]:
    times = _last_use(paths)
    return sorted(times, key=lambda path: -times[path])


def _last_use(paths: Iterable[Path]) -> dict[Path, float]:
    """When each was last changed or used, without those that another process has just removed."""
    times = {}
    for path in paths:
        with contextlib.suppress(OSError):
            times[path] = path.lstat().st_mtime
    return times


# Compilation


def _find_compiler() -> str | None:
    candidates = [name for name in (os.environ.get("CC"), "cc", "gcc", "clang") if name]
    return next((path for name in candidates if (path := shutil.which(name))), None)


@contextlib.contextmanager
def _build(compiler: str | None) -> Iterator[Path]:
    """Compile the library in a temporary folder that only the user can read, which is removed at the end."""
    if compiler is None:
        raise UnavailableError("no C compiler was found (gcc or clang)")
    with contextlib.ExitStack() as stack:
        try:
            _remove(_stale(Path(tempfile.gettempdir()).glob(f"{_BUILD_PREFIX}*")))
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix=_BUILD_PREFIX, ignore_cleanup_errors=True))
            objects = [str(Path(folder, f"{source.stem}.o")) for source in SOURCES]
            flags = [compiler, *_FLAGS, "-c"]
            commands = [[*flags, str(source), "-o", path] for source, path in zip(SOURCES, objects, strict=True)]
            with ThreadPoolExecutor() as pool:  # at once, each on a core
                list(pool.map(_run, commands))
            output = Path(folder) / "kernels.so"
            _run([compiler, "-shared", "-pthread", *objects, "-o", str(output), "-lm"])
        except (OSError, subprocess.SubprocessError) as error:
            message = (getattr(error, "stderr", None) or str(error)).strip() or type(error).__name__
            raise UnavailableError(
                f"the C code can't be compiled with {compiler} ({message.splitlines()[0]})"
            ) from None
        yield output


def _run(command: list[str]) -> None:
    subprocess.run(command, capture_output=True, text=True, errors="replace", check=True, timeout=120)


def _load(path: Path) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(str(path), mode=os.RTLD_NOW) if hasattr(os, "RTLD_NOW") else ctypes.CDLL(str(path))
    except OSError as error:  # a file system without permission to execute
        raise OctavoError(f"{path} can't be loaded: {error}") from None


# What the name of a library states


def _key() -> str:
    """A hash of what the library depends on besides the compiler: sources, flags, and the kind of CPU."""
    sources = [path.read_text(encoding="utf-8") for path in (*SOURCES, *_HEADERS)]
    return hashlib.sha256(repr([sources, _FLAGS, _cpu()]).encode()).hexdigest()[:16]


def _compiler_key(compiler: str | None) -> str:
    """A hash of the compiler's version, or of nothing."""
    version = b""
    if compiler is not None:
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            version = subprocess.run([compiler, "--version"], capture_output=True, check=True, timeout=60).stdout
    return hashlib.sha256(version).hexdigest()[:16]


def _cpu() -> list[object]:
    """What `-march=native` depends on: the CPU's model and, on Linux, every instruction set that it has."""
    names = ("vendor_id", "cpu family", "model", "flags", "CPU implementer", "CPU part", "Features", "isa")
    lines: list[str] = []
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
        first_processor = itertools.takewhile(str.strip, file)
        lines = [line.strip() for line in first_processor if line.partition(":")[0].strip() in names]
    return [platform.system(), platform.machine(), _processor(), lines]


def _processor() -> str:
    """The processor's name where /proc/cpuinfo is missing."""
    if platform.system() == "Darwin":
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    return platform.processor()
