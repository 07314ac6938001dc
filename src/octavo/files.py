"""Files that are whole or not there: atomic writes, and files fetched once and checked.

Everything Octavo writes goes through here: to a temporary sibling, flushed and fsynced, then renamed
over its name, then the parent folder fsynced. A crash leaves the old file or the new one, never half
of one. A full disk is told as an `OctavoError` that names the folder.
"""

import contextlib
import errno
import hashlib
import http.client
import os
import secrets
import shutil
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import platformdirs

from octavo.errors import OctavoError


@contextlib.contextmanager
def translate_disk_errors(path: Path) -> Iterator[None]:
    """Turn what a disk refuses (full, read-only, not permitted) into an `OctavoError` naming `path`."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise OctavoError(
                f"the disk is full while writing {path}",
                "free some space; what was there before is untouched",
            ) from error
        if error.errno in (
            errno.EACCES,
            errno.EPERM,
            errno.EROFS,
            errno.EEXIST,
            errno.ENOTDIR,
            errno.ENAMETOOLONG,
            errno.EBUSY,
            errno.EXDEV,
        ):
            raise OctavoError(f"may not write {path}: {error.strerror}", "choose another folder") from error
        raise


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Fill a folder that appears at `path` complete, or not at all.

    Yields a temporary sibling to write into. On success its files are fsynced and it is renamed to
    `path`, replacing a folder that was there; on any error it is removed.
    """
    with translate_disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".partial"))
        try:
            partial.chmod(0o755)  # mkdtemp makes it private to the user; a checkpoint is like any other folder
            yield partial
            commit_folder(partial, path)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise


def commit_folder(partial: Path, path: Path) -> None:
    """Flush a folder's files and rename it to `path`; the folder that was there goes only once the new one stands."""
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
    """Write a file that appears at `path` complete, or not at all: a crash leaves the old one or the new one."""
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
    """Write `content` to `path` so that a crash leaves the old file or the new one."""
    with atomic_file(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def remove_folder(path: Path) -> None:
    """Remove a folder so that no name ever stands for half of it: renamed away first."""
    doomed = path.with_name(f".{path.name}.removed")
    shutil.rmtree(doomed, ignore_errors=True)
    os.replace(path, doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def remove_leftovers(folder: Path) -> None:
    """Clear away what a process that was killed while it wrote into `folder` left behind.

    A folder that was renamed away and not yet replaced gets its name back.
    """
    for left in folder.glob(".*.removed"):
        path = left.with_name(left.name[1:].removesuffix(".removed"))
        if path.exists():
            shutil.rmtree(left, ignore_errors=True)
        else:
            os.replace(left, path)
    for left in folder.glob(".*.partial"):
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


def _fsync(path: Path) -> None:
    if os.name == "nt" and path.is_dir():
        return  # Windows can't open a folder; its rename is journalled
    # Windows refuses to flush what is open for reading only.
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(path: Path) -> str:
    """The hexadecimal sha256 of a file, read in pieces."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cache_dir() -> Path:
    """Where fetched and prepared files are kept: `OCTAVO_CACHE`, or the user's cache folder."""
    named = os.environ.get("OCTAVO_CACHE")
    return Path(named) if named else Path(platformdirs.user_cache_dir("octavo", appauthor=False))


def fetch(name: str, url: str, digest: str) -> Path:
    """The file `name` in the cache, fetched from `url` if it isn't there, and held against `digest`.

    Raises `OctavoError` where there is no network, saying where to put the file by hand, or where the
    bytes are not the ones expected.
    """
    path = cache_dir() / name
    if path.exists():
        if sha256(path) == digest:
            return path
        raise OctavoError(f"{path} is not the file it should be: its sha256 differs from {digest}",
                          "delete it, and it will be fetched again")  # fmt: skip
    try:
        with urllib.request.urlopen(url, timeout=30) as response:
            content = response.read()
    except (OSError, http.client.HTTPException) as error:
        raise OctavoError(
            f"{name} is not in the cache and could not be fetched from {url} ({error})",
            f"put the file at {path}, or set OCTAVO_CACHE to a folder that has {name}",
        ) from error
    if hashlib.sha256(content).hexdigest() != digest:
        raise OctavoError(f"what {url} sent is not {name}: its sha256 differs from {digest}",
                          f"put the right file at {path}")  # fmt: skip
    with translate_disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, content)
    return path
