"""Every write-side system call of a training fails once: the previous checkpoint always loads, the message is one."""

import errno
import os
import shutil
import subprocess
from pathlib import Path

import pytest

import octavo
from reliability.torture import IS_TORTURE, SETTINGS, TEXT, VARIANTS, Outcome, leftovers, start

pytestmark = pytest.mark.skipif(os.name == "nt", reason="LD_PRELOAD is Linux's")
STRIDE = 1 if IS_TORTURE else 67  # of the calls that fail in turn
ERRORS = {"EIO": errno.EIO, "ENOSPC": errno.ENOSPC, "short": 0}
MAX_STEPS = 8
SHORT = ["--max-steps", MAX_STEPS, "--eval-every", 4, "--sample-every", 4]


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library that makes a call fail, compiled."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no C compiler")
    library = tmp_path_factory.mktemp("shim") / "failing_calls.so"
    source = Path(__file__).with_name("failing_calls.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-Wall", "-o", library, source, "-ldl"], check=True)
    return library


@pytest.mark.parametrize("name", ERRORS)
def test_a_failing_call_loses_no_checkpoint_and_changes_no_bit(name: str, shim: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    new_run = ["train", "text.txt", *SETTINGS, *VARIANTS["adamw"], *SHORT, "--out"]
    log = tmp_path / "calls.log"

    def run(folder: Path, call: int, resume: bool = False) -> tuple[int, str]:
        words = ["train", "--resume", folder] if resume else [*new_run, folder]
        preload = {
            "LD_PRELOAD": str(shim),
            "FAIL_BELOW": str(folder),
            "FAIL_CALL": str(call),
            "FAIL_ERRNO": str(ERRORS[name]),
            "FAIL_LOG": str(log) if call == 0 else "",
        }
        process = start(words, tmp_path, **(preload if not resume else {}))
        err = process.communicate(timeout=120)[1]
        return process.returncode, err

    assert run(tmp_path / "undisturbed", 0)[0] == 0
    undisturbed = Outcome.of(tmp_path / "undisturbed")
    calls = log.read_text().splitlines()
    assert len(calls) > 100
    for call in range(1, len(calls) + 1, STRIDE):
        folder = tmp_path / f"call-{call}"
        code, err = run(folder, call)
        case = f"{calls[call - 1]}\nexit code {code}\n{err}"
        assert "Traceback" not in err, case
        assert code in (0, 3), case
        if code == 3:
            assert err.count("error: ") == 1, case
            if not (folder / "settings.toml").exists():
                continue  # the run folder could not be made
            if octavo.Run(folder).resumable:
                octavo.load(folder)
            again, err = run(folder, 0, resume=True)
            assert again == 0, f"{case}\nthen: {err}"
        outcome = Outcome.of(folder)
        assert outcome.weights == undisturbed.weights, case
        assert outcome.metrics == undisturbed.metrics, case
        assert outcome.samples == undisturbed.samples, case
        if code == 3:
            assert leftovers(folder) == [], case
