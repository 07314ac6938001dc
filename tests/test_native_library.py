"""The C library's cache: what is loaded from it, what is built again, and what happens if it can't be used."""

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from generating import make_request, random_model, run, token_ids
from octavo import native_library
from octavo.files import sha256
from octavo.generation.engine import Engine
from octavo.generation.native import NativeDecoder
from octavo.generation.torch_decoder import TorchDecoder
from octavo.native_library import UnavailableError, load_library


class Compiler:
    """A compiler for tests: a script that copies a library which was compiled before, and counts its runs."""

    def __init__(self, folder: Path, library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.path, self._log = folder / "fake-cc", folder / "runs"
        self.library, self._monkeypatch = library, monkeypatch
        self.become("1.0", f'while [ "$1" != -o ]; do shift; done\ncp {library} "$2"')

    def become(self, version: str, build: str) -> None:
        count = f'case "$*" in *forward.c*) echo run >> {self._log};; esac'
        lines = ["#!/bin/sh", f'[ "$1" = --version ] && echo {version} && exit', count, build]
        new = self.path.with_suffix(".new")  # the old one may still be running
        new.write_text("\n".join(lines) + "\n", encoding="utf-8")
        new.chmod(0o755)
        new.replace(self.path)
        self._monkeypatch.setenv("CC", str(self.path))

    def remove(self) -> None:
        self.path.unlink()
        self._monkeypatch.setenv("PATH", "")

    @property
    def runs(self) -> int:
        return len(self._log.read_text(encoding="utf-8").splitlines()) if self._log.exists() else 0


@pytest.fixture(scope="module")
def library(built: Path) -> Path:
    """The file of the library that other tests use."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OCTAVO_CACHE", str(built.parent))
        return Path(load_library().functions._name)


@pytest.fixture
def compiler(tmp_path: Path, library: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Compiler]:
    """The compiler of these tests. Libraries that are loaded here do not stay loaded for other tests."""
    monkeypatch.setenv("OCTAVO_NATIVE", "native")  # which is never prebuilt
    native_library.load_library.cache_clear()
    yield Compiler(tmp_path, library, monkeypatch)
    native_library.load_library.cache_clear()


@pytest.fixture
def cached(compiler: Compiler, own_cache: Path) -> Path:
    """The library in the cache, built a moment ago."""
    load_again()
    [library] = (own_cache / "native").iterdir()
    assert compiler.runs == 1
    return library


def load_again() -> str | None:
    """Load the library as a new process would, and use it. Returns the notice."""
    native_library.load_library.cache_clear()
    notice = load_library().notice
    assert NativeDecoder(random_model(), 1).notices == ([notice] if notice else [])
    return notice


def test_a_library_is_built_once_and_named_for_its_content(compiler: Compiler, cached: Path) -> None:
    assert cached.stem.rpartition("-")[2] == sha256(cached)
    assert cached.stat().st_mode & 0o777 == 0o755
    assert load_again() is None
    assert compiler.runs == 1


def test_a_library_that_is_needed_while_it_is_compiled_in_the_background_is_compiled_once(
    compiler: Compiler, own_cache: Path
) -> None:
    compiler.become("1.0", f'sleep 0.2\nwhile [ "$1" != -o ]; do shift; done\ncp {compiler.library} "$2"')
    thread = native_library.load_in_background()
    assert load_library().notice is None
    thread.join()
    assert compiler.runs == 1


def test_a_failure_in_the_background_is_raised_where_the_library_is_needed(compiler: Compiler) -> None:
    compiler.become("1.0", "exit 1")
    native_library.load_in_background().join()
    with pytest.raises(UnavailableError):
        load_library()


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:1000],
        lambda content: content[:-1],
        lambda content: content + b"\0",
        lambda content: os.urandom(len(content)),
        lambda content: bytes([content[0] ^ 1]) + content[1:],
        lambda content: content[:5000] + bytes([content[5000] ^ 64]) + content[5001:],
    ],
    ids=["empty", "first 1000 bytes", "last byte missing", "one byte more", "random", "first bit", "one bit"],
)
def test_a_damaged_library_is_built_again(compiler: Compiler, cached: Path, damage: Callable[[bytes], bytes]) -> None:
    intact = cached.read_bytes()
    cached.unlink()  # the file is loaded in this process: to cut it short would crash it
    cached.write_bytes(damage(intact))
    cached.chmod(0o755)
    assert load_again() is None
    assert compiler.runs == 2
    assert cached.read_bytes() == intact
    assert load_again() is None
    assert compiler.runs == 2


def test_a_library_that_others_could_have_written_is_built_again(
    compiler: Compiler, cached: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for mode in (0o775, 0o757, 0o777):
        cached.chmod(mode)
        assert load_again() is None
        assert cached.stat().st_mode & 0o777 == 0o755
    assert compiler.runs == 4
    give_to_another_user(cached, monkeypatch)
    load_again()
    assert compiler.runs == 5


def test_a_link_is_not_a_library(compiler: Compiler, cached: Path, tmp_path: Path) -> None:
    cached.rename(tmp_path / "elsewhere.so")
    cached.symlink_to(tmp_path / "elsewhere.so")
    assert load_again() is None
    assert compiler.runs == 2
    assert not cached.is_symlink()


def give_to_another_user(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Change the owner of a file, or, as only root may do that, the user."""
    if os.geteuid() == 0:
        os.chown(path, 65534, 65534)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: 65534)


@pytest.mark.parametrize("mode", [0o775, 0o757, 0o777])
def test_nothing_is_loaded_from_a_folder_that_others_can_write_to(compiler: Compiler, cached: Path, mode: int) -> None:
    cached.parent.chmod(mode)
    notice = load_again()
    assert notice is not None
    assert str(cached.parent) in notice
    assert "OCTAVO_CACHE" in notice
    assert compiler.runs == 2


def test_nothing_is_loaded_from_a_folder_of_another_user(
    compiler: Compiler, cached: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    give_to_another_user(cached.parent, monkeypatch)
    assert "OCTAVO_CACHE" in (load_again() or "")
    assert compiler.runs == 2


def test_a_library_for_another_cpu_is_not_loaded(
    compiler: Compiler, cached: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_65")
    load_again()
    assert compiler.runs == 2
    assert len(list(cached.parent.iterdir())) == 2


def test_a_library_of_another_compiler_is_loaded_only_if_none_can_be_built(compiler: Compiler, cached: Path) -> None:
    compiler.become("2.0", "exit 1")
    assert load_again() is None
    assert compiler.runs == 2
    compiler.remove()
    assert load_again() is None
    cached.unlink()
    with pytest.raises(UnavailableError, match="no C compiler"):
        load_again()


@pytest.mark.parametrize("kind", ["file", "below a file", "link loop", "long name", "no folder can be made here"])
def test_without_a_usable_cache_one_notice_names_it_and_the_tokens_are_the_same(
    compiler: Compiler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    cache = {"file": "file", "below a file": "file/cache", "link loop": "loop", "long name": "a" * 300}.get(kind)
    model = random_model()
    [expected] = run(Engine(model, 1), make_request())
    native_library.load_library.cache_clear()
    monkeypatch.setenv("OCTAVO_CACHE", str(tmp_path / cache) if cache else "/proc/nope")
    engine = Engine(model, 1)
    [notice] = engine.notices
    assert "OCTAVO_CACHE" in notice
    assert os.environ["OCTAVO_CACHE"] in notice
    assert isinstance(engine.decoder, NativeDecoder)
    assert token_ids(run(engine, make_request())[0]) == token_ids(expected)
    compiler.remove()
    native_library.load_library.cache_clear()
    engine = Engine(model, 1)
    assert len(engine.notices) == 1
    assert isinstance(engine.decoder, TorchDecoder)
    assert token_ids(run(engine, make_request())[0]) == token_ids(expected)


def test_on_a_full_disk_the_library_is_built_for_this_process_and_nothing_is_left(
    compiler: Compiler, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        assert "disk is full" in (load_again() or "")
    assert list((own_cache / "native").iterdir()) == []
    assert load_again() is None


def test_a_build_that_is_killed_leaves_nothing_in_the_cache_and_its_temporary_folder_is_removed_later(
    compiler: Compiler, own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setattr("tempfile.tempdir", None)
    compiler.become("1.0", "kill -9 $PPID")
    code = "from octavo.native_library import load_library; load_library()"
    process = subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)})
    assert process.returncode == -signal.SIGKILL
    [left] = temporary.iterdir()
    assert list((own_cache / "native").iterdir()) == []
    compiler.become("1.0", "exit 1")
    with pytest.raises(UnavailableError):
        load_again()
    assert left.exists()  # it could belong to a build in progress
    make_old(left)
    with pytest.raises(UnavailableError):
        load_again()
    assert list(temporary.iterdir()) == []


def test_temporary_files_of_killed_processes_and_all_but_16_libraries_are_removed(cached: Path) -> None:
    folder = cached.parent
    for i in range(20):
        library = folder / f"kernels-{i:016x}.so"
        library.write_bytes(b"of another version")
        make_old(library)
    for name in (".kernels-old.partial", ".kernels-new.partial", "notes.txt"):
        (folder / name).write_bytes(b"")
    make_old(folder / ".kernels-old.partial")
    make_old(folder / "notes.txt")
    load_again()
    assert len(list(folder.glob("*.so"))) == 16
    assert cached.exists()
    assert {path.name for path in folder.iterdir() if path.suffix != ".so"} == {".kernels-new.partial", "notes.txt"}


def make_old(path: Path) -> None:
    os.utime(path, (time.time() - 1e5, time.time() - 1e5))


def test_octavo_native_0_forbids_the_c_code(compiler: Compiler, cached: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OCTAVO_NATIVE", "0")
    with pytest.raises(UnavailableError, match="OCTAVO_NATIVE=0"):
        load_again()
