"""Files on other storage, by URL: `s3://BUCKET/KEY`, `gs://...`, `memory://...`, `file://...`, with fsspec.

Octavo reads files at random positions and renames folders, so it needs them on a disk. `fetch` copies what a URL names
into the cache, and copies it again if it has changed. `octavo.mirror` copies runs there and back.
"""

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from octavo import files
from octavo.errors import MachineError, OctavoError, first_line, install_command
from octavo.progress import ProgressReporter

T = TypeVar("T")
_PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "abfs": "adlfs", "az": "adlfs"}
_URL = re.compile(r"([a-z][a-z0-9+.-]+)://.")
# The properties of a file that file systems report, by which a changed file is recognized.
_IDENTITY = ("size", "ETag", "etag", "md5Hash", "mtime", "LastModified", "last_modified", "updated", "created")
_WAIT_SECONDS = 0.2


class MissingError(OctavoError):
    """There is no such file at the URL."""


def is_url(name: object) -> bool:
    """Whether a run or source is named by a URL, and not by a path."""
    return isinstance(name, str) and _URL.match(name) is not None


class Storage:
    """The files at a URL. Names are relative to it, with `/`. Raises `MissingError`, `OctavoError` or `MachineError`.

    A call that fails because of the machine or the network is retried, once after each of the `delays` in seconds.
    """

    def __init__(self, url: str, delays: Sequence[float] = (), wait: Callable[[float], object] = time.sleep) -> None:
        from fsspec.core import url_to_fs  # most commands read no URL

        self.url, self._delays, self._wait = url.rstrip("/"), delays, wait
        protocol = url.partition("://")[0]
        options = {"auto_mkdir": True} if protocol in ("file", "local") else {}
        try:
            # Another program may change what is there, so listings are not kept.
            self._system, path = url_to_fs(self.url, use_listings_cache=False, **options)
        except ImportError:
            package = _PACKAGES.get(protocol)
            hint = f"{install_command('remote')} {package}" if package else "s3://, gs://, file:// or memory://"
            needed = f"the package {package}" if package else f"a package for {protocol}://"
            raise OctavoError(f"{url} needs {needed}", hint) from None
        except ValueError as error:
            raise OctavoError(f"{url}: {error}", "s3://BUCKET/KEY, gs://BUCKET/KEY or a path") from None
        self._root = str(path).rstrip("/")

    @property
    def name(self) -> str:
        """The last part of the URL."""
        return PurePosixPath(self._root).name

    def read(self, name: str) -> bytes:
        return bytes(self._call(name, self._system.cat_file))

    def exists(self, name: str) -> bool:
        """Whether there is a file of this name."""
        return bool(self._call(name, self._system.isfile))

    def list_files(self, folder: str = "") -> dict[str, dict[str, str]]:
        """All files in a folder and its subfolders: by name, the size, hash and times by which a change is recognized.

        Empty if there is no such folder. If the URL names a file, the file itself, by the name "".
        """
        root = self._path(folder)
        found: dict[str, dict[str, Any]] = self._call(folder, lambda path: self._system.find(path, detail=True))
        infos = {path.removeprefix(root).removeprefix("/"): info for path, info in found.items()}
        return {
            "/".join(filter(None, (folder, name))): {key: str(info[key]) for key in _IDENTITY if info.get(key)}
            for name, info in infos.items()
            if info.get("type") != "directory"
        }

    def glob(self, pattern: str) -> list[str]:
        """The names of the files that match a pattern of `*`, `?` and `**`."""
        paths: list[str] = self._call(pattern, self._system.glob)
        return [path.removeprefix(self._root + "/") for path in paths]

    def download(self, name: str, path: Path) -> None:
        """Copy a file to `path`."""
        from fsspec.callbacks import Callback

        report = ProgressReporter(f"downloading {PurePosixPath(self._path(name)).name}", None, "bytes")
        callback = Callback(hooks={"progress": lambda size, value, **_: report(value, size)})
        self._call(name, lambda remote_path: self._system.get_file(remote_path, str(path), callback=callback))

    def upload(self, path: Path, name: str) -> None:
        """Copy the local file `path` to the storage. Raises `MachineError` if the copy has another size."""

        def put(remote_path: str) -> None:
            self._system.put_file(str(path), remote_path)
            size, expected = self._system.size(remote_path), path.stat().st_size
            if size != expected:
                raise OSError(f"the copy has {size} bytes, and {path} has {expected}")

        if not path.exists():  # not a fault of the storage
            raise MissingError(f"{path} was removed", "keep it in place")
        self._call(name, put)

    def write(self, name: str, content: bytes) -> None:
        """Write a small file. Raises `MachineError` if its content is different when it is read again."""

        def pipe(remote_path: str) -> None:
            self._system.pipe_file(remote_path, content)
            if bytes(self._system.cat_file(remote_path)) != content:
                raise OSError("its content is not what was written")

        self._call(name, pipe)

    def remove(self, name: str) -> None:
        """Remove a file if it exists."""
        with contextlib.suppress(MissingError):
            self._call(name, self._system.rm_file)

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    def _call(self, name: str, act: Callable[[str], T]) -> T:
        """Call `act` with the path of a file. Translates its errors, and retries after a `MachineError`."""
        for delay in (*self._delays, None):
            try:
                return self._call_once(name, act)
            except MachineError:
                if delay is None:
                    raise
                self._wait(delay)
        raise AssertionError

    def _call_once(self, name: str, act: Callable[[str], T]) -> T:
        url = f"{self.url}/{name}" if name else self.url
        try:
            return act(self._path(name))
        except FileNotFoundError:
            raise MissingError(f"there is nothing at {url}", "check the URL") from None
        except PermissionError as error:
            raise OctavoError(f"{url} can't be accessed: {first_line(error)}", "check the credentials") from error
        except Exception as error:  # errors of the network and of the clients have no common class
            reason = first_line(error)
            if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                raise MachineError(f"the disk is full while copying {url}", "free some space") from error
            hint = "check the URL, the credentials and the network"
            raise MachineError(f"{url} can't be accessed: {reason}", hint) from error


def fetch(url: str) -> Path:
    """Copy a file, a folder or the files of a glob into the cache. Returns the path of the copy.

    A file is copied if it is new or its size, hash or modification time has changed; one that was removed is removed
    from the copy. Raises `OctavoError` if there are no files, `MachineError` if the storage cannot be reached.
    """
    base, pattern = _split_glob(url)
    storage = Storage(base)
    found = storage.list_files()
    if pattern:
        matching = set(storage.glob(pattern))
        found = {name: info for name, info in found.items() if name in matching}
    if not found:
        raise MissingError(f"there is nothing at {url}", "check the URL")
    folder = cache_folder(url)
    with lock(folder):
        record = folder / "files.json"
        known = _read_record(record)
        target = folder / "copy" / (storage.name or "files")  # a name of the storage can't be that of the record
        for name in known.keys() - found.keys():
            (target / name).unlink(missing_ok=True)
        for name, info in found.items():
            path = target / _check_name(name, url) if name else target
            if known.get(name) == info and path.is_file():
                continue
            with files.translate_disk_errors(path):
                if path.is_dir():  # a file has taken the place of a folder
                    shutil.rmtree(path)
                path.parent.mkdir(parents=True, exist_ok=True)
                partial = path.with_name(f".{path.name}.partial")
                storage.download(name, partial)
                os.replace(partial, path)
            known[name] = info
            files.write_atomic(record, json.dumps(known))  # after each file: an interrupted copy continues
        files.write_atomic(record, json.dumps({name: known[name] for name in found}))
    return target


def _read_record(record: Path) -> dict[str, Any]:
    """The size, hash and time of each file that was copied; empty if the record is missing or damaged."""
    try:
        known = json.loads(record.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def cache_folder(url: str) -> Path:
    """The folder in the cache for what a URL names."""
    return files.cache_dir() / "remote" / hashlib.sha256(url.rstrip("/").encode()).hexdigest()[:24]


@contextlib.contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Create a folder and lock it. Waits while another process has locked it."""
    with files.translate_disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    while (held := files.acquire_lock(folder / ".lock")) is None:
        time.sleep(_WAIT_SECONDS)
    try:
        yield
    finally:
        held.release()


def _split_glob(url: str) -> tuple[str, str]:
    """The part of a URL before the first `*`, `?` or `[`, up to a slash, and the rest."""
    match = re.search(r"[*?\[]", url)
    if match is None:
        return url, ""
    base = url[: url.rindex("/", 0, match.start()) + 1]
    return base, url[len(base) :]


def _check_name(name: str, url: str) -> str:
    """Raise `OctavoError` for a name that leads out of the folder. Object stores allow any."""
    if any(part in ("", ".", "..") or "\\" in part or ":" in part for part in name.split("/")):
        raise OctavoError(f"{url} has a file {name!r}, which is not a valid file name", "rename it")
    return name
