"""Several processes train one model: the bits of one process, also if one of them dies."""

import hashlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

import octavo
from octavo import cli, distributed
from reliability.torture import IS_TORTURE, SETTINGS, TEXT, VARIANTS, Outcome, Report, leftovers, metrics

pytestmark = pytest.mark.skipif(os.name == "nt", reason="TorchElastic's processes are POSIX's")
KILLS = 20 if IS_TORTURE else 1
# The batch of four is divided among two processes; one process computes the same two parts one after the other.
TRAIN = ["train", "text.txt", *SETTINGS, "--micro-batch=2"]
TWO = ["--processes", "2", "--timeout", "10"]


def start(folder: Path, *words: object) -> subprocess.Popen[str]:
    return start_python(folder, "-m", "octavo", *words)


def start_python(
    folder: Path, *words: object, limit: int | None = None, log: Path | None = None, **environment: str
) -> subprocess.Popen[str]:
    """Start Python with these words. `limit`: the size that no file may exceed. `log`: a file for the output."""
    output = subprocess.PIPE if log is None else os.open(log, os.O_WRONLY | os.O_CREAT, 0o644)
    cache = {"OMP_NUM_THREADS": "1", "OCTAVO_CACHE": str(folder / "cache")}
    limited = ["prlimit", f"--fsize={limit}"] if limit else []
    return subprocess.Popen(
        [*limited, sys.executable, *map(str, words)],
        cwd=folder,
        env=os.environ | cache | environment,
        stdin=subprocess.DEVNULL,
        stdout=output,
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
def folder(tmp_path: Path, built: Path) -> Path:
    """A folder with a text, and a cache with the compiled C code."""
    shutil.copytree(built, tmp_path / "cache" / "native")
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    return tmp_path


def launch(folder: Path, monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    """Run a command whose launcher is this process, which has loaded PyTorch already. Returns the exit code."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("OCTAVO_CACHE", str(folder / "cache"))
    return cli.main([str(word) for word in words])


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


@pytest.mark.torture  # half a minute each
@pytest.mark.parametrize("variant", list(VARIANTS))
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


def files(run: Path) -> dict[str, bytes]:
    """The digests of all weights, optimizer states and samples of a run."""
    paths = [*run.rglob("*.safetensors"), *run.glob("samples.jsonl")]
    return {str(path.relative_to(run)): hashlib.sha256(path.read_bytes()).digest() for path in paths}


@pytest.mark.parametrize("shard", [0, 1, 2] if IS_TORTURE else [2])
@pytest.mark.parametrize("variant", [*VARIANTS, "baby"] if IS_TORTURE else ["muon-bf16"])
def test_two_processes_that_divide_the_model_write_the_files_of_one(
    variant: str, shard: int, folder: Path, report: Report, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A vocabulary of 65 can't be divided evenly, and the table is also the output head."""
    monkeypatch.setenv("OCTAVO_NATIVE", "0")  # as a sharded model: the C code has other last bits
    if variant == "baby":
        words = ["train", "text.txt", "--preset=baby", "--batch-size=2", "--micro-batch=1", "--device=cpu"]
        words += ["--n-layer=2", "--curriculum-splits=4", "--eval-every=10", "--log-every=1", "--sample-every=0"]
    else:
        words = [*TRAIN, *VARIANTS[variant], "--vocab-size=65"]
    words += [f"--max-steps={10 if variant == 'baby' else 30}"]
    run(folder, *words, "--out=one")
    assert launch(folder, monkeypatch, *words, "--out=two", *TWO, "--timeout=60", f"--shard={shard}") == 0
    assert files(folder / "one") == files(folder / "two")
    assert metrics(octavo.Run(folder / "one")) == metrics(octavo.Run(folder / "two"))
    if variant != "baby":
        first, *_, last = octavo.Run(folder / "two").checkpoints.values()
        before, after = (octavo.load(path).model.lm_head.weight for path in (first, last))
        assert (before != after).any(1).all()
    report(f"{variant}, two processes, --shard {shard}: files that differ from those of one process", 1, differences=0)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM] if IS_TORTURE else [signal.SIGTERM])
def test_a_signal_to_the_launcher_ends_all_processes_with_one_checkpoint(number: signal.Signals, folder: Path) -> None:
    words = ["--max-steps=100000", "--max-epochs=0", "--save-every=0", "--out=run", "--mirror=file://copy"]
    launcher = start(folder, *TRAIN, *words, *TWO)
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
    for name in ("last", f"checkpoints/{saved.last.name}/manifest.json"):
        assert (folder / "copy" / name).read_bytes() == (folder / "run" / name).read_bytes()
    assert f"stopped after {saved.lines('metrics')[-1]['step']} steps" in output


def test_a_mistake_that_every_process_meets_is_reported_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["train", "text.txt", "--block-size=100000", "--n-layer=1", "--out=run", *TWO]
    assert launch(folder, monkeypatch, *words) == 2
    output = "".join(capfd.readouterr())
    assert output.count("error:") == 1, output
    assert "block_size" in output
    assert "restart" not in output
    assert not (folder / "run").exists()


def torchrun(*words: object) -> list[str]:
    """The command that trains in two processes under torchrun."""
    options = ["--nproc-per-node=2", "--max-restarts=30", "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"]
    return ["-m", "torch.distributed.run", *options, "-m", "octavo", *map(str, words), "--continue"]


def continue_seconds(run: Path, steps: int) -> float:
    """The seconds until a run has made this many more steps than it has now."""

    def last_step() -> int:
        return max((line["step"] for line in octavo.Run(run).lines("metrics")), default=0)

    start, now = time.monotonic(), last_step()
    while last_step() < now + steps:
        assert time.monotonic() < start + 120
        time.sleep(0.02)
    return time.monotonic() - start


GATHER = """
import os, signal
from octavo import distributed
world = distributed.join(timeout=3600)
signal.signal(signal.SIGTERM, lambda *_: None)  # as in training, which stops after the step
if world.rank == 1:
    os.kill(os.getpid(), signal.SIGKILL)
try:
    world.all_gather_object("checksum")
except distributed.LostProcessError as error:
    print(error)
"""


def test_a_process_does_not_wait_for_the_value_of_one_that_has_died(folder: Path) -> None:
    variables = {"WORLD_SIZE": "2", "GLOO_SOCKET_IFNAME": "lo", distributed.STORE: str(folder / "store")}
    processes = [start_python(folder, "-c", GATHER, RANK=rank, LOCAL_RANK=rank, **variables) for rank in "01"]
    outputs = [process.communicate(timeout=300)[0] for process in processes]  # an exchange may take an hour
    assert "process 1 of 2" in outputs[0]


if IS_TORTURE:  # minutes

    @pytest.mark.parametrize("launcher", ["octavo", "torchrun"])
    def test_one_run_survives_twenty_kills(launcher: str, folder: Path, report: Report) -> None:
        words = [*TRAIN, *VARIANTS["adamw-fp32"], "--max-steps=900", "--max-epochs=0", "--eval-every=50"]
        words += ["--save-every=10"]
        run(folder, *words, "--out=undisturbed")
        words += ["--out=run", "--timeout=60"]
        own = ["-m", "octavo", *words, "--processes=2", "--restarts=30"]
        command = own if launcher == "octavo" else torchrun(*words)
        log = folder / "log"  # more than a pipe holds
        process = start_python(folder, *command, log=log, TORCH_DISABLE_SHARE_RDZV_TCP_STORE="1")
        generator, seconds = random.Random(launcher), []
        wait_for_steps(folder / "run", 11)
        for _ in range(KILLS):
            generator.choice(workers(process)).kill()
            seconds.append(continue_seconds(folder / "run", generator.randint(12, 40)))
        assert process.wait(timeout=600) == 0, log.read_text(encoding="utf-8")
        outcome, undisturbed = Outcome.of(folder / "run"), Outcome.of(folder / "undisturbed")
        assert (outcome.weights, outcome.metrics) == (undisturbed.weights, undisturbed.metrics)
        assert outcome.samples == undisturbed.samples
        print(f"{launcher}: continued after {sorted(round(each, 1) for each in seconds)} s")
        report(f"kill -9 of one of two processes, by {launcher}", KILLS, runs_with_other_bits=0)

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    @pytest.mark.parametrize("processes", [1, 2])
    def test_a_signal_ends_a_long_evaluation(number: signal.Signals, processes: int, folder: Path) -> None:
        (folder / "text.txt").write_text(TEXT * 400, encoding="utf-8")  # an evaluation of half a minute
        signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored if the tests run in a shell's background
        words = [*TRAIN, "--n-layer=12", "--eval-every=2", "--max-steps=3", "--val-fraction=0.9", "--out=run"]
        process = start(folder, *words, "--processes", processes)
        wait_for_steps(folder / "run", 1)
        time.sleep(2)  # the second step takes milliseconds: it is being evaluated
        stopped_at = time.monotonic()
        process.send_signal(number)
        output, _ = process.communicate(timeout=600)
        assert process.returncode == 128 + number, output
        print(f"{number.name} in an evaluation, {processes} processes: {time.monotonic() - stopped_at:.1f} s")
        saved = octavo.Run(folder / "run").last
        assert saved is not None
        assert json.loads((saved / "trainer.json").read_text(encoding="utf-8"))["unevaluated_step"]["step"] == 2
        assert "Traceback" not in output

    @pytest.mark.parametrize(
        ("words", "processes", "code", "message"),
        [
            (["--batch-size=32"], 3, 2, "32 sequences"),
            (["--n-layer=0"], 2, 2, "n_layer"),
            (["--n-layer=many"], 2, 2, "many"),
            (["--n-embd=256", "--max-steps=2"], 2, 3, "disk is full"),
        ],
    )
    def test_bad_input_is_one_message_and_no_restart(
        words: list[str], processes: int, code: int, message: str, folder: Path
    ) -> None:
        begin = time.monotonic()
        command = ["-m", "octavo", *TRAIN, *words, "--out=run", "--processes", processes]
        process = start_python(folder, *command, limit=1_000_000 if code == 3 else None)
        output, _ = process.communicate(timeout=600)
        assert process.returncode == code, output
        assert output.count("error:") == 1
        assert message in output
        assert "restart" not in output
        assert "Traceback" not in output
        print(f"{words}: {time.monotonic() - begin:.1f} s")

    @pytest.mark.parametrize(
        ("fault", "code", "message"),
        [
            ("missing", 2, "missing.txt"),
            ("another", 2, "the text and its tokens"),
            ("unseen folder", 2, "can't see the run folder"),
        ],
    )
    def test_machines_that_differ_end_with_one_message_each(
        fault: str, code: int, message: str, folder: Path, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        """Each process has another working directory, as on another machine; the second one is wrong."""
        begin = time.monotonic()
        store = tmp_path_factory.mktemp("store") / "store"
        processes = []
        for rank in range(2):
            own = folder / str(rank)
            shutil.copytree(folder / "cache", own / "cache")
            (own / "text.txt").write_text(TEXT + ("the end" if fault == "another" and rank else ""), encoding="utf-8")
            words = ["train", "missing.txt" if fault == "missing" and rank else "text.txt", *TRAIN[2:]]
            out = "run" if fault == "unseen folder" else folder / "run"
            process = start_python(
                own,
                *["-m", "octavo", *words, f"--out={out}", "--timeout=60"],
                RANK=str(rank),
                LOCAL_RANK="0",
                WORLD_SIZE="2",
                OCTAVO_STORE=str(store),
            )
            processes.append(process)
        for process in processes:
            output, _ = process.communicate(timeout=600)
            assert process.returncode == code, output
            assert "Traceback" not in output
        print(f"{fault}: {time.monotonic() - begin:.1f} s")
        assert message in output

    @pytest.fixture
    def without_c_code(monkeypatch: pytest.MonkeyPatch) -> None:
        """A sharded model runs without it, and it has other last bits, and another dropout."""
        monkeypatch.setenv("OCTAVO_NATIVE", "0")

    def loss_difference(first: Path, second: Path) -> float:
        """The largest difference of a loss between two runs, whose lines are of the same steps, each once."""
        lines = [octavo.Run(folder).lines("metrics") for folder in (first, second)]
        assert [line["step"] for line in lines[0]] == [line["step"] for line in lines[1]]
        return max(abs(a["loss"] - b["loss"]) for a, b in zip(*lines, strict=True))

    @pytest.mark.parametrize(
        "engines", [["1", "2 --shard 2", "1"], ["2", "4 --shard 2", "1"], ["1", "4", "2 --shard 1"]]
    )
    def test_a_run_continues_in_another_number_of_processes(engines: list[str], folder: Path, report: Report) -> None:
        has_four = any(engine.startswith("4") for engine in engines)
        words = [*TRAIN, *VARIANTS["muon-fp32"], f"--micro-batch={1 if has_four else 2}", "--max-steps=100"]
        run(folder, *words, "--out=undisturbed")
        path = folder / "run"
        how = [["--processes", *engine.split(), "--timeout", "60"] for engine in engines]
        stop_after(10, path, start(folder, *words, f"--out={path}", *how[0]))
        stop_after(25, path, start(folder, "train", "--resume", path, *how[1]))
        run(folder, "train", "--resume", path, *how[2])
        difference = loss_difference(path, folder / "undisturbed")
        print(f"{engines}: losses differ by {difference:.2g}")
        if has_four:
            assert difference < 2e-5
        else:
            assert files(path) == files(folder / "undisturbed")
        report(f"a run continues in {', then '.join(engines)} processes", 1, differences=0)

    @pytest.mark.usefixtures("without_c_code")
    @pytest.mark.parametrize("engine", ["4", "4 --shard 1", "4 --shard 2", "4 --shard 4"])
    def test_four_processes_have_the_losses_of_one(engine: str, folder: Path) -> None:
        words = [*TRAIN, *VARIANTS["muon-fp32"], "--micro-batch=1", "--max-steps=30"]
        run(folder, *words, "--out=one")
        run(folder, *words, "--out=four", "--processes", *engine.split(), "--timeout=60")
        difference = loss_difference(folder / "one", folder / "four")
        print(f"{engine}: losses differ by {difference:.2g}")
        assert difference < 2e-5

    def test_evaluations_are_those_of_one_process(folder: Path) -> None:
        """The batches can't be divided evenly. Nothing is learned, so that all evaluate the same weights."""
        words = [*TRAIN, "--batch-size=6", "--micro-batch=1", "--max-steps=1", "--precision=fp32", "--val-fraction=0.9"]
        words += ["--learning-rate=0", "--muon-learning-rate=0", "--block-size=1"]
        losses = {}
        for engine in ("1", "2", "3", "2 --shard 1", "2 --shard 2", "3 --shard 3"):
            run(folder, *words, f"--out={engine}", "--processes", *engine.split(), "--timeout=60")
            line = octavo.Run(folder / engine).lines("metrics")[-1]
            losses[engine] = (line["val_loss"], line["train_loss"])
        print(losses)
        for val_loss, train_loss in losses.values():
            assert abs(val_loss - losses["1"][0]) < 1e-12
            assert abs(train_loss - losses["1"][1]) < 1e-12

    def test_every_row_of_a_large_vocabulary_is_trained(folder: Path) -> None:
        words = [
            *TRAIN,
            "--vocab-size=50257",
            "--precision=fp32",
            "--max-steps=2",
            "--eval-every=1",
            "--sample-every=0",
        ]
        run(folder, *words, "--out=run", *TWO, "--timeout=60", "--shard=2")
        folders = octavo.Run(folder / "run").checkpoints.values()
        before, after = (octavo.load(path).model.lm_head.weight for path in folders)
        assert (before != after).any(1).all()

    def test_a_process_that_hangs_is_named_and_replaced(folder: Path, report: Report) -> None:
        log = folder / "log"
        launcher = start_python(folder, "-m", "octavo", *TRAIN, "--out=run", *TWO, log=log)
        wait_for_steps(folder / "run", 15)
        hanging, start = workers(launcher)[1], time.monotonic()
        hanging.suspend()
        message = f"no answer from process 1 of 2 (pid {hanging.pid} on {socket.gethostname()}) for 10 s"
        while message not in log.read_text(encoding="utf-8"):
            assert time.monotonic() < start + 300
            time.sleep(0.1)
        print(f"a process that hangs is named after {time.monotonic() - start:.1f} s")
        assert launcher.wait(timeout=600) == 0, log.read_text(encoding="utf-8")
        report("one of two processes hangs", 1, named_and_replaced=1)
