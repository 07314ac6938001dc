"""Files are whole or not there, whatever goes wrong; what is fetched is what was asked for."""

import errno
import hashlib
import http.client
import io
import os
import shutil
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from octavo import files
from octavo.errors import OctavoError

CONTENT = b"what was asked for\n"
DIGEST = hashlib.sha256(CONTENT).hexdigest()
URL = "https://example.org/text.txt"


def contents(folder: Path) -> dict[str, bytes]:
    """Every file under `folder`, hidden ones too."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def failing(number: int) -> object:
    """A stand-in for a system call that refuses."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    return refuse


# Folders


@pytest.mark.parametrize("before", [{}, {"old": b"1", "both": b"2"}])
def test_a_folder_appears_whole_and_replaces_what_was_there(tmp_path: Path, before: dict[str, bytes]) -> None:
    path = tmp_path / "parent" / "step-1"
    for name, content in before.items():
        path.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    with files.atomic_folder(path) as partial:
        (partial / "both").write_bytes(b"3")
        (partial / "new").write_bytes(b"4")
        assert path.exists() == bool(before)  # nothing is seen until all is there
    assert contents(tmp_path) == {"parent/step-1/both": b"3", "parent/step-1/new": b"4"}


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_folder_that_fails_leaves_all_as_it_was(tmp_path: Path, error: type[BaseException]) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "old").write_bytes(b"old")

    def fill_half_of(path: Path) -> None:
        with files.atomic_folder(path) as partial:
            (partial / "new").write_bytes(b"half")
            raise error

    for name in ("run", "another"):
        with pytest.raises(error):
            fill_half_of(tmp_path / name)
    assert contents(tmp_path) == {"run/old": b"old"}
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_folder_that_does_not_reach_the_disk_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "old").write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", failing(errno.ENOSPC))
    with pytest.raises(OctavoError, match="disk is full"), files.atomic_folder(tmp_path / "run") as partial:
        (partial / "new").write_bytes(b"new")
    assert contents(tmp_path) == {"run/old": b"old"}


def test_a_folder_that_can_not_be_put_in_place_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "old").write_bytes(b"old")
    replace = os.replace

    def refuse_the_new(source: Path, target: Path) -> None:
        if (Path(source) / "new").exists():
            raise PermissionError(errno.EACCES, "Permission denied")
        replace(source, target)

    monkeypatch.setattr(os, "replace", refuse_the_new)
    with pytest.raises(OctavoError, match="may not write"), files.atomic_folder(tmp_path / "run") as partial:
        (partial / "new").write_bytes(b"new")
    assert contents(tmp_path) == {"run/old": b"old"}


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such permissions")
def test_a_folder_is_as_open_as_any_other(tmp_path: Path) -> None:
    with files.atomic_folder(tmp_path / "run"):
        pass
    assert (tmp_path / "run").stat().st_mode & 0o777 == 0o755


# Files


@pytest.mark.parametrize("content", ["", "naïve\r\n", b"\0\xff", "x" * 1_000_000])
def test_a_file_has_what_was_written(tmp_path: Path, content: str | bytes) -> None:
    for before in (None, b"old and longer than some"):
        if before:
            (tmp_path / "file").write_bytes(before)
        files.write_atomic(tmp_path / "file", content)
        expected = content.encode() if isinstance(content, str) else content
        assert contents(tmp_path) == {"file": expected}


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize(
    ("number", "what"), [(errno.ENOSPC, "disk is full"), (errno.EROFS, "may not write"), (errno.EIO, None)]
)
def test_a_file_that_can_not_be_written_leaves_the_old_one(
    tmp_path: Path, call: str, number: int, what: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    monkeypatch.setattr(os, call, failing(number))
    with pytest.raises(OctavoError if what else OSError, match=what and f"{what}.*{path.name}"):
        files.write_atomic(path, b"new")
    assert contents(tmp_path) == {"file": b"old"}


def test_a_digest_is_that_of_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(CONTENT)
    assert files.sha256(tmp_path / "file") == DIGEST


# Fetched files


def served(content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(urllib.request, "urlopen", lambda url, timeout: io.BytesIO(content))


def unserved(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(url: str, timeout: float) -> None:
        raise error

    monkeypatch.setattr(urllib.request, "urlopen", fail)


def refusal(name: str = "text.txt") -> OctavoError:
    with pytest.raises(OctavoError) as caught:
        files.fetch(name, URL, DIGEST)
    return caught.value


def test_the_cache_is_where_one_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OCTAVO_CACHE", str(tmp_path))
    assert files.cache_dir() == tmp_path
    for unset in ("", None):
        monkeypatch.setenv("OCTAVO_CACHE", unset) if unset is not None else monkeypatch.delenv("OCTAVO_CACHE")
        assert files.cache_dir().name in ("octavo", "Cache")


def test_a_file_is_fetched_once(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(own_cache)  # the first fetch makes the folder
    served(CONTENT, monkeypatch)
    path = files.fetch("text.txt", URL, DIGEST)
    unserved(urllib.error.URLError("no network here"), monkeypatch)
    assert files.fetch("text.txt", URL, DIGEST) == path == own_cache / "text.txt"
    assert contents(own_cache) == {"text.txt": CONTENT}


@pytest.mark.parametrize(
    "error",
    [
        urllib.error.URLError("no network here"),
        TimeoutError("no network here"),
        ConnectionResetError("no network here"),
        pytest.param(
            http.client.IncompleteRead(b"no network here"),
        ),
    ],
)
def test_what_can_not_be_fetched_says_where_to_put_it(
    own_cache: Path, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    unserved(error, monkeypatch)
    said = refusal()
    assert "text.txt is not in the cache" in said.message
    assert URL in said.message
    assert str(own_cache / "text.txt") in str(said.hint)
    assert "OCTAVO_CACHE" in str(said.hint)
    assert contents(own_cache) == {}


def test_wrong_bytes_are_not_kept(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    served(CONTENT[:-1], monkeypatch)
    assert f"its sha256 differs from {DIGEST}" in refusal().message
    assert contents(own_cache) == {}


def test_a_cached_file_with_wrong_bytes_is_not_used_and_not_lost(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unserved(AssertionError("nothing should be fetched"), monkeypatch)
    (own_cache / "text.txt").write_bytes(b"another")
    assert str(own_cache / "text.txt") in refusal().message
    assert "delete it" in str(refusal().hint)
    assert contents(own_cache) == {"text.txt": b"another"}


def test_a_full_disk_leaves_no_half_of_a_fetched_file(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    served(CONTENT, monkeypatch)
    monkeypatch.setattr(os, "fsync", failing(errno.ENOSPC))
    assert "disk is full" in refusal().message
    assert contents(own_cache) == {}


def test_a_cache_that_is_no_folder_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    served(CONTENT, monkeypatch)
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("OCTAVO_CACHE", str(tmp_path / "file"))
    assert str(tmp_path / "file") in refusal().message


def test_two_writers_of_one_file_do_not_meet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several processes of one run may fetch the same file: the last one wins, and none fails."""
    path, replace = tmp_path / "file", os.replace

    def replace_after_another(source: Path, target: Path) -> None:
        monkeypatch.setattr(os, "replace", replace)
        files.write_atomic(path, b"another")
        replace(source, target)

    monkeypatch.setattr(os, "replace", replace_after_another)
    files.write_atomic(path, b"mine")
    assert contents(tmp_path) == {"file": b"mine"}


def test_what_a_killed_process_left_is_swept_and_what_it_renamed_away_comes_back(tmp_path: Path) -> None:
    for name in (".one.removed", ".two.removed", "two", ".three.abc.partial"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    (tmp_path / ".last.abc.partial").write_text("half")
    files.remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]
    assert (tmp_path / "one" / "file").read_text() == ".one.removed"
    assert (tmp_path / "two" / "file").read_text() == "two"
