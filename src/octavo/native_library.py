"""The shared library of the C files: the package's own, or one that was compiled on this machine and kept in the cache.

An installed package has a library for each instruction set (`native_build`). The best that this processor can run is
loaded, and trusted as the package's Python files are. If there is none, or the C files have changed since, the library
is compiled here. It is code that runs in this process, so one from the cache is loaded only if

- its name has the key of these sources, flags and this kind of CPU;
- only the user (or root) can write to it and to its folder;
- its sha256 is the one in its name.

Its name is `kernels-KEY-COMPILER-SHA256.so`. A library that is missing or damaged is built again. If the cache can't be
used, the library is compiled for this process alone, and a notice says so.
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
from pathlib import Path
from typing import NamedTuple

from octavo.errors import OctavoError
from octavo.files import atomic_file, cache_dir, sha256, translate_disk_errors
from octavo.native_build import (
    BUILD_PREFIX,
    NATIVE,
    UnavailableError,
    Variant,
    build_library,
    find_compiler,
    variants,
)

__all__ = ["Library", "UnavailableError", "cpu_flags", "load_in_background", "load_library"]
_MAX_CACHED = 16  # libraries: those of other CPUs, compilers and versions of Octavo are kept too
_STALE_SECONDS = 600.0  # a temporary file of this age belongs to a process that was killed: a build takes seconds

_loading = threading.Lock()
_failures: dict[tuple[str | None, Variant], str] = {}  # the message of each build that has failed


class Library(NamedTuple):
    """The loaded library. `notice` says why it could not be kept in the cache, if it was compiled for this process."""

    functions: ctypes.CDLL
    notice: str | None = None


@functools.cache
def load_library() -> Library:
    """Load the package's library, or else the one in the cache, or compile it.

    The environment variable OCTAVO_NATIVE, if it is set, names the variant to use, or is 0 to use none. Raises
    `UnavailableError` if it is 0, or if there is no library and it can't be compiled. Raises `OctavoError` if the
    variant is unknown or this processor can't run it.
    """
    wanted = os.environ.get("OCTAVO_NATIVE", "")
    if wanted == "0":
        raise UnavailableError("OCTAVO_NATIVE=0 disables the C code")
    candidates = [_find_variant(wanted)] if wanted else [*runnable_variants(), NATIVE]
    with _loading:
        for path in (variant.prebuilt for variant in candidates):
            if path.exists():
                with contextlib.suppress(OctavoError):  # built for a newer C library than this system's
                    return Library(_load(path))
        return _load_or_build(candidates[-1])


def load_in_background() -> threading.Thread:
    """Load or compile the library in a thread. Compiling takes some seconds. `load_library` waits for the thread."""

    def load() -> None:
        with contextlib.suppress(UnavailableError, OctavoError):  # reported where the library is needed
            load_library()

    thread = threading.Thread(target=load, daemon=True)  # Ctrl-C does not wait for the compiler
    thread.start()
    return thread


def runnable_variants() -> list[Variant]:
    """The variants that this processor can run, the best first."""
    flags = cpu_flags()
    return [variant for variant in variants() if variant.runs_on(flags)]


def cpu_flags() -> str:
    """The instruction sets of an x86 processor, as /proc/cpuinfo names them; empty where it does not."""
    return _cpu_info().get("flags", "")


def _find_variant(name: str) -> Variant:
    runnable = {variant.name: variant for variant in (*runnable_variants(), NATIVE)}
    if name in runnable:
        return runnable[name]
    is_known = name in {variant.name for variant in variants()}
    problem = "needs instructions that this processor lacks" if is_known else "is not a known instruction set"
    raise OctavoError(f"OCTAVO_NATIVE={name} {problem}", f"OCTAVO_NATIVE={' or '.join([*runnable, '0'])}, or unset it")


def _load_or_build(variant: Variant) -> Library:
    compiler = find_compiler()
    try:
        return Library(_load(_cached_library(cache_dir() / "native", compiler, variant)))
    except OctavoError as error:
        problem = error.message
    try:
        with _build(compiler, variant) as built:
            library = _load(built)
    except (UnavailableError, OctavoError) as error:
        raise UnavailableError(f"{problem}, and {error}") from None
    hint = "set OCTAVO_CACHE to a folder that only you can write to"
    return Library(library, f"{problem}; the C code is compiled again at every start ({hint})")


@contextlib.contextmanager
def _build(compiler: str | None, variant: Variant) -> Iterator[Path]:
    """Compile the library. If that fails, this process does not try it again: every evaluation asks for the library."""
    with contextlib.suppress(OSError):  # left by builds that were killed
        _remove(_stale(Path(tempfile.gettempdir()).glob(f"{BUILD_PREFIX}*")))
    if (compiler, variant) in _failures:
        raise UnavailableError(_failures[compiler, variant])
    try:
        with build_library(compiler, variant) as path:
            yield path
    except UnavailableError as error:
        if compiler is not None:
            _failures[compiler, variant] = str(error)
        raise


# The cache


def _cached_library(folder: Path, compiler: str | None, variant: Variant) -> Path:
    """The library in the cache, built if it is missing. Raises `OctavoError` if the cache can't be used."""
    key = f"kernels-{_key(variant)}"
    name = f"{key}-{_compiler_key(compiler)}"
    if path := _find(folder, name):
        return path
    try:
        _prepare(folder)  # before the build, which takes some seconds
        with _build(compiler, variant) as built:
            return _store(built, folder, name)
    except UnavailableError:
        if path := _find(folder, key):  # built by a compiler that has been removed
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
            raise OctavoError(f"{folder} can't be written to")


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


def _load(path: Path) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(str(path), mode=os.RTLD_NOW) if hasattr(os, "RTLD_NOW") else ctypes.CDLL(str(path))
    except OSError as error:  # a file system without permission to execute
        raise OctavoError(f"{path} can't be loaded: {error}") from None


# What the name of a library states


def _key(variant: Variant) -> str:
    """A hash of what the library depends on besides the compiler: sources, flags, and the kind of CPU."""
    return hashlib.sha256(repr([variant.source_hash(), _cpu()]).encode()).hexdigest()[:16]


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
    info = _cpu_info()
    return [platform.system(), platform.machine(), _processor(), [(name, info.get(name)) for name in names]]


def _cpu_info() -> dict[str, str]:
    """What /proc/cpuinfo says about the first processor; empty where it is missing."""
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
        lines = (line.partition(":") for line in itertools.takewhile(str.strip, file))
        return {name.strip(): value.strip() for name, _, value in lines}
    return {}


def _processor() -> str:
    """The processor's name where /proc/cpuinfo is missing."""
    if platform.system() == "Darwin":
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    return platform.processor()
