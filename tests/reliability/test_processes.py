"""Several processes train one model: the bits of one process, whatever happens to one of them."""

import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

import octavo
from reliability.torture import IS_TORTURE, SETTINGS, TEXT, VARIANTS, Outcome, Report, leftovers

pytestmark = pytest.mark.skipif(os.name == "nt", reason="TorchElastic's processes are POSIX's")
KILLS = 20 if IS_TORTURE else 1
# The batch of four is divided among two processes; one process computes the same two parts one after the other.
TRAIN = ["train", "text.txt", *SETTINGS, "--micro-batch=2"]
TWO = ["--processes", "2", "--timeout", "10"]


def start(folder: Path, *words: object, **environment: str) -> subprocess.Popen[str]:
    cache = {"OMP_NUM_THREADS": "1", "OCTAVO_CACHE": str(folder / "cache")}
    return subprocess.Popen(
        [sys.executable, "-m", "octavo", *map(str, words)],
        cwd=folder,
        env=os.environ | cache | environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run(folder: Path, *words: object) -> str:
    """Run a command to its end. Returns its output."""
    process = start(folder, *words)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    return output


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    return tmp_path


def wait_for_steps(run: Path, steps: int) -> None:
    """Wait until a run has the metrics of this many steps."""
    deadline = time.monotonic() + 300
    while not (run / "settings.toml").exists() or len(octavo.Run(run).lines("metrics")) < steps:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def stop_after(steps: int, run: Path, process: subprocess.Popen[str]) -> str:
    """Stop a command by a signal when its run has the metrics of this many steps. Returns its output."""
    wait_for_steps(run, steps)
    process.terminate()
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 128 + signal.SIGTERM, output
    assert "Traceback" not in output
    return output


def workers(launcher: subprocess.Popen[str]) -> list[psutil.Process]:
    """The processes that train, in the order of their ranks."""
    children = psutil.Process(launcher.pid).children()
    return sorted((each for each in children if "RANK" in each.environ()), key=lambda each: each.environ()["RANK"])


def is_alive(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


@pytest.mark.parametrize("variant", list(VARIANTS) if IS_TORTURE else ["muon-bf16"])
def test_one_process_then_two_then_one_have_the_bits_of_one(variant: str, folder: Path, report: Report) -> None:
    """The two are stopped by a signal, and one of them is killed before."""
    words = [*TRAIN, *VARIANTS[variant], "--max-steps=300"]
    run(folder, *words, "--out=undisturbed")
    undisturbed = Outcome.of(folder / "undisturbed")
    generator = random.Random(f"processes {variant}")
    for number in range(KILLS):
        path = folder / f"run-{number}"
        stop_after(10, path, start(folder, *words, f"--out={path}"))
        launcher = start(folder, "train", "--resume", path, *TWO)
        wait_for_steps(path, generator.randint(11, 60))
        victim = generator.choice(workers(launcher))
        victim.kill()
        while is_alive(victim):
            time.sleep(0.02)
        output = stop_after(130, path, launcher)
        assert f"(pid {victim.pid}) was ended by SIGKILL; restart 1 of 3" in output
        run(folder, "train", "--resume", path)
        outcome = Outcome.of(path)
        assert (outcome.weights, outcome.metrics) == (undisturbed.weights, undisturbed.metrics)
        assert outcome.samples == undisturbed.samples
        assert leftovers(path) == []
    report("kill -9 of one of two processes", KILLS, runs_with_other_bits=0, unusable_runs=0)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM] if IS_TORTURE else [signal.SIGTERM])
def test_a_signal_to_the_launcher_ends_all_processes_with_one_checkpoint(number: signal.Signals, folder: Path) -> None:
    launcher = start(folder, *TRAIN, "--max-steps=100000", "--max-epochs=0", "--save-every=0", "--out=run", *TWO)
    wait_for_steps(folder / "run", 5)
    processes = workers(launcher)
    listening = [
        each.laddr.ip
        for process in [psutil.Process(launcher.pid), *processes]
        for each in process.net_connections()
        if each.status == psutil.CONN_LISTEN
    ]
    assert set(listening) <= {"127.0.0.1", "::1"}
    launcher.send_signal(number)
    output, _ = launcher.communicate(timeout=120)
    assert launcher.returncode == 128 + number, output
    assert "Traceback" not in output
    assert not any(map(is_alive, processes))
    saved = octavo.Run(folder / "run")
    assert saved.last is not None
    assert octavo.load(saved).info["step"] <= saved.lines("metrics")[-1]["step"]
    assert f"stopped after {saved.lines('metrics')[-1]['step']} steps" in output


def test_a_mistake_that_every_process_meets_is_reported_once(folder: Path) -> None:
    launcher = start(folder, "train", "text.txt", "--block-size=100000", "--n-layer=1", "--out=run", *TWO)
    output, _ = launcher.communicate(timeout=120)
    assert launcher.returncode == 2, output
    assert output.count("error:") == 1, output
    assert "block_size" in output
    assert "restart" not in output
    assert not (folder / "run").exists()


if IS_TORTURE:  # it waits for the timeout

    def test_a_process_that_hangs_is_named_and_replaced(folder: Path, report: Report) -> None:
        launcher = start(folder, *TRAIN, "--out=run", *TWO)
        wait_for_steps(folder / "run", 15)
        hanging = workers(launcher)[1]
        hanging.suspend()
        output, _ = launcher.communicate(timeout=600)
        assert launcher.returncode == 0, output
        assert f"no answer from process 1 of 2 (pid {hanging.pid} on {socket.gethostname()}) for 10 s" in output
        report("one of two processes hangs", 1, named_and_replaced=1)
