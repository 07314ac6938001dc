"""Atomic files and folders, and downloads that are verified by sha256.

Runs, checkpoints and datasets are written only through this module, except log lines, which `octavo.runs` appends. It
writes to a temporary sibling, calls fsync, renames the sibling to its final name, and calls fsync on the parent folder.
After a crash, a path has its old content or all of its new content. Only a folder that was being replaced can be
missing, since it is renamed first: `remove_leftovers` gives it its name back. A full disk is reported as an
`OctavoError` that names the path.
"""

import contextlib
import errno
import hashlib
import http.client
import os
import secrets
import shutil
import stat
import tempfile
import time
import urllib.error
import urllib.request
import warnings
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import platformdirs

from octavo.errors import MachineError, OctavoError, OctavoWarning
from octavo.progress import ProgressReporter

if TYPE_CHECKING:
    import filelock

# Mistakes of the user, such as a folder without write permission. Every other error is a failure of the machine.
_USER_ERRNOS = (
    errno.EACCES,
    errno.EPERM,
    errno.EEXIST,
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ENAMETOOLONG,
    errno.ELOOP,
    errno.EINVAL,
    errno.EBUSY,
    errno.EXDEV,
)

# The errors of file systems that cannot lock a file or flush a folder, such as some network and FUSE file systems.
_UNSUPPORTED_ERRNOS = (
    errno.ENOSYS,
    errno.ENOTSUP,
    errno.EOPNOTSUPP,
    errno.ENOLCK,  # from locking
    errno.EINVAL,  # from fsync
    errno.EBADF,  # from fsync
)


_OLD_SECONDS = 3600.0  # the age of a temporary file that nobody writes any more


@contextlib.contextmanager
def translate_disk_errors(path: Path) -> Iterator[None]:
    """Turn an `OSError` into an `OctavoError` that names `path`, or a `MachineError` if the disk is full or broken.

    If `path` is in the cache, the hint says how to choose another cache folder.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise MachineError(
                f"the disk is full while writing {path}",
                "free some space; the previous content is unchanged",
            ) from error
        cache_hint = _SET_CACHE if _is_in_cache(path) else None
        if error.errno == errno.ENOENT:
            hint = cache_hint or "the same command again if another program removed it, or another folder"
            raise OctavoError(f"{path} can't be written: there is no such file or folder", hint) from error
        if error.errno in _USER_ERRNOS:
            hint = cache_hint or "choose another folder"
            raise OctavoError(f"{path} can't be written: {error.strerror}", hint) from error
        hint = cache_hint or "check the disk; the previous content is unchanged"
        raise MachineError(f"{path} can't be written: {error.strerror or error}", hint) from error


def make_folder(path: Path, parents: bool = True) -> None:
    """Create a folder, with its missing parents unless `parents` is False, and flush their names to disk.

    Without that, a power loss could remove the folder with everything that was flushed in it.
    """
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=parents, exist_ok=True)
    for folder in missing:
        _fsync(folder.parent)


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder to write into, which becomes `path` when the block ends without an error.

    It replaces an existing folder. On an error the temporary folder is removed and `path` is unchanged. The parent is
    created if it is missing, but not the parent's parent: a run folder that was moved meanwhile must not come back.
    """
    with translate_disk_errors(path):
        make_folder(path.parent, parents=False)
        partial = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".partial"))
        try:
            partial.chmod(0o755)  # mkdtemp creates it readable only by the user
            yield partial
            commit_folder(partial, path)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise


def commit_folder(partial: Path, path: Path) -> None:
    """Flush the files of `partial` to disk and rename it to `path`. An existing folder is removed last."""
    for file in partial.iterdir():
        _fsync(file)
    _fsync(partial)
    _rename(partial, path)
    _fsync(path.parent)


def _rename(partial: Path, path: Path) -> None:
    if not path.exists():
        os.replace(partial, path)
        return
    old = path.with_name(f".{path.name}.removed")
    shutil.rmtree(old, ignore_errors=True)
    os.replace(path, old)
    try:
        os.replace(partial, path)
    except BaseException:
        os.replace(old, path)
        raise
    shutil.rmtree(old, ignore_errors=True)


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Yield a temporary file to write to, which becomes `path` when the block ends without an error."""
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    with translate_disk_errors(path):
        try:
            with open(partial, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        _fsync(path.parent)


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a whole file. After a crash, it has the old content or all of the new content."""
    with atomic_file(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def remove_folder(path: Path) -> None:
    """Remove a folder. It is renamed first, so that a crash leaves no half-deleted folder at `path`."""
    removed = path.with_name(f".{path.name}.removed")
    shutil.rmtree(removed, ignore_errors=True)
    with translate_disk_errors(path):
        os.replace(path, removed)
        _fsync(path.parent)
    shutil.rmtree(removed, ignore_errors=True)


def remove_file(path: Path) -> None:
    """Remove a file if it exists. It stays removed after a power loss."""
    with translate_disk_errors(path):
        path.unlink(missing_ok=True)
        _fsync(path.parent)


def remove_leftovers(folder: Path, needed: Collection[str] = ()) -> None:
    """Remove the temporary files and folders of a process that was killed while it wrote into `folder`.

    A folder NAME that was to be removed is now `.NAME.removed`, perhaps without some of its files, and is deleted. But
    if NAME is in `needed` and is missing, the folder is complete and is renamed back: callers never remove a needed
    folder, and `commit_folder` deletes the old folder only after the new one is in its place.
    """
    for removed in folder.glob(".*.removed"):
        path = removed.with_name(removed.name[1:].removesuffix(".removed"))
        if path.name in needed and not path.exists():
            os.replace(removed, path)
        else:
            shutil.rmtree(removed, ignore_errors=True)
    for partial in folder.glob(".*.partial"):
        _remove(partial)


def remove_old_leftovers(cache: Path) -> None:
    """Remove the temporary files and folders of processes that were killed while they wrote into a folder of the cache.

    Several processes may write there at once, so only what has not changed for an hour is removed.
    """
    with contextlib.suppress(OSError):
        for partial in cache.glob("*/.*.partial"):
            if partial.stat().st_mtime < time.time() - _OLD_SECONDS:
                _remove(partial)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Flush a file or folder, and its name in the parent folder, to disk. Does nothing if it does not exist."""
    with translate_disk_errors(path):
        if path.exists():
            _fsync(path)
            _fsync(path.parent)


def _fsync(path: Path) -> None:
    if os.name == "nt" and path.is_dir():
        return  # Windows can't open a folder; NTFS journals the rename
    # Windows can't flush a file that is open only for reading.
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        is_folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        if not is_folder or error.errno not in _UNSUPPORTED_ERRNOS:
            raise
        _warn_once(
            path, "its file system cannot flush folders to disk: after a power loss the newest files may be missing"
        )
    finally:
        os.close(descriptor)


def acquire_lock(path: Path) -> "filelock.BaseFileLock | None":
    """Lock a file and return the lock, whose `release` unlocks it. None if another process has locked the file.

    The file is created, and never deleted: otherwise one process could lock the deleted file, and another a new one. If
    the file system cannot lock, warns once and returns a lock that nobody holds.
    """
    import filelock  # not needed by most of what imports this module

    lock = filelock.FileLock(path, timeout=0, fallback_to_soft=False)
    with translate_disk_errors(path):
        try:
            lock.acquire()
        except filelock.Timeout:  # an OSError too
            return None
        except OSError as error:
            if error.errno not in _UNSUPPORTED_ERRNOS:
                raise
            _warn_once(path.parent, "its file system cannot lock files: no two processes may write here at once")
    return lock


_warned: set[tuple[str, int]] = set()  # messages that were shown, and the device number of the file system


def _warn_once(path: Path, message: str) -> None:
    """Warn of a limit of the file system that `path` is on, once in this process."""
    key = message, path.stat().st_dev
    if key not in _warned:
        _warned.add(key)
        warnings.warn(f"{path}: {message}", OctavoWarning, stacklevel=3)


def sha256(path: Path) -> str:
    """The hexadecimal sha256 of a file. Reads it in blocks."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cache_dir() -> Path:
    """The folder for downloads and prepared datasets: `OCTAVO_CACHE`, or the user's cache folder.

    Raises `OctavoError` if there is neither.
    """
    folder = os.environ.get("OCTAVO_CACHE")
    if folder:
        return Path(folder)
    try:
        return Path(platformdirs.user_cache_dir("octavo", appauthor=False))
    except RuntimeError:  # no HOME, and the user is not in the list of users, as in some containers
        raise OctavoError("there is no folder for the cache: this user has no home folder", _SET_CACHE) from None


_SET_CACHE = "OCTAVO_CACHE=FOLDER, a folder for the cache that can be written"  # a hint


def _is_in_cache(path: Path) -> bool:
    with contextlib.suppress(OctavoError):
        return cache_dir() in (path, *path.parents)
    return False


def _read_response(name: str, response: http.client.HTTPResponse) -> bytes:
    length = response.headers.get("Content-Length") or ""
    total = int(length) if length.isdecimal() else None
    report = ProgressReporter(f"downloading {name}", total, "bytes")
    content = bytearray()
    while chunk := response.read(1 << 16):
        content += chunk
        report(len(content))
    if len(content) < (total or 0):
        raise http.client.IncompleteRead(bytes(content), (total or 0) - len(content))
    return bytes(content)


def download(name: str, url: str, digest: str) -> Path:
    """The path of `name` in the cache, downloaded from `url` if it is missing, with its sha256 checked.

    Raises `OctavoError` if the sha256 differs, or if the download fails; the hint says where to put the file by hand.
    """
    path = cache_dir() / name
    if path.exists():
        if sha256(path) == digest:
            return path
        raise OctavoError(f"{path} was changed: its sha256 is not {digest}", "delete it; it is downloaded again")
    try:
        with urllib.request.urlopen(url, timeout=30) as response:
            content = _read_response(name, response)
    except (OSError, http.client.HTTPException) as error:
        raise OctavoError(
            f"{name} is not in the cache and could not be downloaded from {url} ({error})",
            f"put the file at {path}, or set OCTAVO_CACHE to a folder that has {name}",
        ) from error
    if hashlib.sha256(content).hexdigest() != digest:
        raise OctavoError(
            f"the file at {url} is not the expected {name}: its sha256 is not {digest}", f"put the right file at {path}"
        )
    with translate_disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, content)
    return path
