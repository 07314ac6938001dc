"""Atomic files and folders survive errors and crashes; downloads are verified."""

import errno
import hashlib
import http.client
import io
import os
import shutil
import urllib.error
import urllib.request
from pathlib import Path
from typing import ClassVar

import pytest

from folders import contents, system_call_error
from octavo import files
from octavo.errors import OctavoError

CONTENT = b"the expected content\n"
DIGEST = hashlib.sha256(CONTENT).hexdigest()
URL = "https://example.org/text.txt"


# Folders


@pytest.mark.parametrize("before", [{}, {"old": b"1", "both": b"2"}])
def test_a_folder_appears_complete_and_replaces_an_existing_one(tmp_path: Path, before: dict[str, bytes]) -> None:
    path = tmp_path / "parent" / "step-1"
    for name, content in before.items():
        path.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    with files.atomic_folder(path) as partial:
        (partial / "both").write_bytes(b"3")
        (partial / "new").write_bytes(b"4")
        assert path.exists() == bool(before)  # not visible before the block ends
    assert contents(tmp_path) == {"parent/step-1/both": b"3", "parent/step-1/new": b"4"}


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_error_leaves_the_old_folder_unchanged(tmp_path: Path, error: type[BaseException]) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "old").write_bytes(b"old")

    def fill_partly(path: Path) -> None:
        with files.atomic_folder(path) as partial:
            (partial / "new").write_bytes(b"part")
            raise error

    for name in ("run", "another"):
        with pytest.raises(error):
            fill_partly(tmp_path / name)
    assert contents(tmp_path) == {"run/old": b"old"}
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_failing_fsync_leaves_the_old_folder_unchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "old").write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", system_call_error(errno.ENOSPC))
    with pytest.raises(OctavoError, match="disk is full"), files.atomic_folder(tmp_path / "run") as partial:
        (partial / "new").write_bytes(b"new")
    assert contents(tmp_path) == {"run/old": b"old"}


def test_a_failing_rename_leaves_the_old_folder_unchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "old").write_bytes(b"old")
    replace = os.replace

    def fail_for_the_new_folder(source: Path, target: Path) -> None:
        if (Path(source) / "new").exists():
            raise PermissionError(errno.EACCES, "Permission denied")
        replace(source, target)

    monkeypatch.setattr(os, "replace", fail_for_the_new_folder)
    with pytest.raises(OctavoError, match="can't be written"), files.atomic_folder(tmp_path / "run") as partial:
        (partial / "new").write_bytes(b"new")
    assert contents(tmp_path) == {"run/old": b"old"}


@pytest.mark.skipif(os.name == "nt", reason="Windows has other permissions")
def test_a_folder_gets_ordinary_permissions(tmp_path: Path) -> None:
    with files.atomic_folder(tmp_path / "run"):
        pass
    assert (tmp_path / "run").stat().st_mode & 0o777 == 0o755


# Files


@pytest.mark.parametrize("content", ["", "naïve\r\n", b"\0\xff", "x" * 1_000_000])
def test_a_file_has_the_content_that_was_written(tmp_path: Path, content: str | bytes) -> None:
    for before in (None, b"old and longer than some"):
        if before:
            (tmp_path / "file").write_bytes(before)
        files.write_atomic(tmp_path / "file", content)
        expected = content.encode() if isinstance(content, str) else content
        assert contents(tmp_path) == {"file": expected}


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize(
    ("number", "message", "exit_code"),
    [
        (errno.ENOSPC, "disk is full", 3),
        (errno.EIO, "can't be written", 3),
        (errno.EROFS, "can't be written", 3),
        (errno.ENOENT, "can't be written", 2),
        (errno.EACCES, "can't be written", 2),
    ],
)
def test_a_failing_write_leaves_the_old_file_unchanged(
    tmp_path: Path, call: str, number: int, message: str, exit_code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    monkeypatch.setattr(os, call, system_call_error(number))
    with pytest.raises(OctavoError, match=message) as caught:
        files.write_atomic(path, b"new")
    assert caught.value.exit_code == exit_code
    assert contents(tmp_path) == {"file": b"old"}


def test_sha256_hashes_the_bytes_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(CONTENT)
    assert files.sha256(tmp_path / "file") == DIGEST


# Downloads


class Response(io.BytesIO):
    """A response without a Content-Length."""

    headers: ClassVar[dict[str, str]] = {}


def serve(content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every download have this content."""
    monkeypatch.setattr(urllib.request, "urlopen", lambda url, timeout: Response(content))


def fail_with(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every download raise this error."""

    def fail(url: str, timeout: float) -> None:
        raise error

    monkeypatch.setattr(urllib.request, "urlopen", fail)


def fetch_error() -> OctavoError:
    with pytest.raises(OctavoError) as caught:
        files.download("text.txt", URL, DIGEST)
    return caught.value


def test_the_cache_folder_can_be_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OCTAVO_CACHE", str(tmp_path))
    assert files.cache_dir() == tmp_path
    for unset in ("", None):
        monkeypatch.setenv("OCTAVO_CACHE", unset) if unset is not None else monkeypatch.delenv("OCTAVO_CACHE")
        assert files.cache_dir().name in ("octavo", "Cache")


def test_without_a_home_folder_the_message_says_how_to_set_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container that runs with a user id that /etc/passwd does not list."""
    monkeypatch.delenv("OCTAVO_CACHE")
    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)

    def fail(*_: object, **__: object) -> str:
        raise RuntimeError("could not determine the home directory for '~/.cache'")

    monkeypatch.setattr("platformdirs.user_cache_dir", fail)
    with pytest.raises(OctavoError) as caught:
        files.cache_dir()
    assert "OCTAVO_CACHE" in str(caught.value.hint)


@pytest.mark.parametrize(
    "number", [errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EROFS, errno.EIO]
)
def test_the_hint_for_a_cache_that_cannot_be_written_is_another_cache(
    own_cache: Path, tmp_path: Path, number: int
) -> None:
    error = OSError(number, os.strerror(number))

    def hint(path: Path) -> str:
        with pytest.raises(OctavoError) as caught, files.translate_disk_errors(path):
            raise error
        return str(caught.value.hint)

    for path in (own_cache, own_cache / "prepared" / "key"):
        assert "OCTAVO_CACHE" in hint(path)
    assert "OCTAVO_CACHE" not in hint(tmp_path / "elsewhere")


def test_a_file_is_downloaded_once(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(own_cache)  # the first download creates it
    serve(CONTENT, monkeypatch)
    path = files.download("text.txt", URL, DIGEST)
    fail_with(urllib.error.URLError("no network here"), monkeypatch)
    assert files.download("text.txt", URL, DIGEST) == path == own_cache / "text.txt"
    assert contents(own_cache) == {"text.txt": CONTENT}


@pytest.mark.parametrize(
    "error",
    [
        urllib.error.URLError("no network here"),
        TimeoutError("no network here"),
        ConnectionResetError("no network here"),
        http.client.IncompleteRead(b"no network here"),
    ],
)
def test_the_hint_for_a_failed_download_is_where_to_put_the_file(
    own_cache: Path, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_with(error, monkeypatch)
    error = fetch_error()
    assert "text.txt" in error.message
    assert URL in error.message
    assert str(own_cache / "text.txt") in str(error.hint)
    assert "OCTAVO_CACHE" in str(error.hint)
    assert contents(own_cache) == {}


def test_a_download_with_wrong_bytes_is_rejected(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    serve(CONTENT[:-1], monkeypatch)
    assert DIGEST in fetch_error().message
    assert contents(own_cache) == {}


def test_a_cached_file_with_wrong_bytes_is_neither_used_nor_deleted(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_with(AssertionError("unexpected download"), monkeypatch)
    (own_cache / "text.txt").write_bytes(b"another")
    assert str(own_cache / "text.txt") in fetch_error().message
    assert "delete it" in str(fetch_error().hint)
    assert contents(own_cache) == {"text.txt": b"another"}


def test_a_full_disk_leaves_no_partial_download(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    serve(CONTENT, monkeypatch)
    monkeypatch.setattr(os, "fsync", system_call_error(errno.ENOSPC))
    assert "disk is full" in fetch_error().message
    assert contents(own_cache) == {}


def test_a_cache_that_is_a_file_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    serve(CONTENT, monkeypatch)
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("OCTAVO_CACHE", str(tmp_path / "file"))
    assert str(tmp_path / "file") in fetch_error().message


def test_concurrent_writers_of_one_file_do_not_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several processes may download the same file: the last one wins."""
    path, replace = tmp_path / "file", os.replace

    def replace_after_another(source: Path, target: Path) -> None:
        monkeypatch.setattr(os, "replace", replace)
        files.write_atomic(path, b"another")
        replace(source, target)

    monkeypatch.setattr(os, "replace", replace_after_another)
    files.write_atomic(path, b"mine")
    assert contents(tmp_path) == {"file": b"mine"}


def test_leftovers_of_a_killed_process_are_removed_and_a_needed_folder_is_restored(tmp_path: Path) -> None:
    for name in (".zero.removed", ".one.removed", ".two.removed", "two", ".three.abc.partial"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    (tmp_path / ".last.abc.partial").write_text("part")
    files.remove_leftovers(tmp_path, {"one", "two"})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]
    assert (tmp_path / "one" / "file").read_text() == ".one.removed"
    assert (tmp_path / "two" / "file").read_text() == "two"
