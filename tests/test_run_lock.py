"""The lock of a run folder, and file systems that cannot lock or flush."""

import errno
import os
import stat
import subprocess
import sys

import pytest

from folders import system_call_error
from octavo import files, runs
from octavo.errors import OctavoError, OctavoWarning
from octavo.runs import Run
from preparing import error_of
from run_folders import SETTINGS, save

pytestmark = pytest.mark.usefixtures("empty_workdir")


HOLD_LOCK = """
import sys
from octavo.runs import Run
with Run(sys.argv[1]).lock():
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_locked_run_is_rejected_until_the_process_that_locked_it_is_killed() -> None:
    run = Run.create(SETTINGS, "corpus")
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD_LOCK, str(run.folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n"
            assert run.is_locked
            for _ in range(2):
                error = error_of(lambda: run.lock().__enter__())
                assert f"{run.folder} is in use" in error.message
        finally:
            process.kill()  # no clean-up runs
    assert not run.is_locked
    with run.lock():
        pass


@pytest.mark.skipif(os.name == "nt", reason="POSIX")
@pytest.mark.parametrize("kind", ["missing", "pipe", "folder", "unreadable"])
def test_a_lock_file_that_cannot_be_read_is_not_a_lock(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run.create(SETTINGS, "corpus")
    match kind:
        case "pipe":
            os.mkfifo(run.folder / ".lock")
        case "folder":
            (run.folder / ".lock").mkdir()
        case "unreadable":  # root may read every file, so the system call is replaced
            monkeypatch.setattr(os, "open", system_call_error(errno.EACCES))
    free = next_descriptor()
    assert not run.is_locked
    assert next_descriptor() == free  # none is left open


def next_descriptor() -> int:
    """The number that the next file of this process gets."""
    descriptor = os.dup(0)
    os.close(descriptor)
    return descriptor


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_that_cannot_lock_is_reported_once(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    fcntl = pytest.importorskip("fcntl")
    monkeypatch.setattr(fcntl, "flock", system_call_error(number))
    monkeypatch.setattr(files, "_warned", set())
    run = Run.create(SETTINGS, "corpus")

    def write_three_times() -> None:
        for _ in range(3):
            with run.lock():
                save(run, 10)
                assert not run.is_locked

    with pytest.warns(OctavoWarning, match="cannot lock") as caught:
        write_three_times()
    assert len(caught) == 1
    assert str(run.folder) in str(caught[0].message)


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EBADF, errno.ENOTSUP, errno.ENOSYS])
def test_a_file_system_that_cannot_flush_a_folder_is_reported_once(
    number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync = os.fsync

    def fsync_files_only(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync_files_only)
    monkeypatch.setattr(files, "_warned", set())

    def train() -> Run:
        run = Run.create(SETTINGS, "corpus")
        for step in (10, 20, 30, 40):
            run.log("metrics", {"step": step})
            save(run, step, best=True)
        return run

    with pytest.warns(OctavoWarning, match="cannot flush") as caught:
        run = train()
    assert len(caught) == 1
    assert runs.load(run).info["step"] == 40


def test_a_disk_that_cannot_flush_a_file_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run.create(SETTINGS, "corpus")

    def fsync_folders_only(descriptor: int) -> None:
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(os, "fsync", fsync_folders_only)
    with pytest.raises(OctavoError):
        save(run, 10)
    assert run.checkpoints == {}


def test_an_exception_releases_the_lock() -> None:
    run = Run.create(SETTINGS, "corpus")

    def fail() -> None:
        with run.lock():
            assert "in use" in error_of(lambda: Run(run.folder).lock().__enter__()).message
            raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            fail()
