"""Loggers: each has, read back by its own package, what `metrics.jsonl` has; none can end a training."""

import importlib.util
import json
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

import octavo
from octavo import cli, training
from octavo.errors import OctavoError
from octavo.settings import LOGGERS

SMALL = dict(
    n_layer=1, n_head=1, n_embd=16, block_size=16, batch_size=6, max_steps=12, warmup_steps=2, eval_every=4,
    sample_every=0, log_every=1, device="cpu", precision="fp32",
)  # fmt: skip

Numbers = list[tuple[int, str, float]]  # step, name, value


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory with a small text, `text.txt`. No name is looked up."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("The quick brown fox jumps over the lazy dog. " * 40, encoding="utf-8")

    def refuse(host: object, *rest: object, **options: object) -> object:
        raise AssertionError(f"asked for {host}")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return tmp_path


def run_events(stop_after: int | None = None, resume: Path | None = None, **changes: object) -> list[training.Event]:
    """All events of a small run, stopped after a step, or of resuming one."""
    planned = training.plan(**({"resume": resume} if resume else {"source": "text.txt", **SMALL}) | changes)
    asked = iter(range(1, 10**6))
    return [*training.events(planned, stop=lambda: next(asked) == stop_after)]


def finished(events: list[training.Event]) -> training.Finished:
    last = events[-1]
    assert isinstance(last, training.Finished)
    return last


def notices(events: list[training.Event]) -> list[str]:
    return [event.text for event in events if isinstance(event, training.Notice)]


def recorded(run: Path) -> Numbers:
    lines = octavo.Run(run).lines("metrics")
    return sorted((line["step"], name, value) for line in lines for name, value in line.items() if name != "step")


def samples(run: Path) -> list[tuple[int, str]]:
    return [(line["step"], line["text"]) for line in octavo.Run(run).lines("samples")]


def indented(text: str) -> str:
    return "\n".join("    " + line for line in text.split("\n"))


# What the packages read back


def tensorboard_numbers(run: Path) -> Numbers:
    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    return sorted(
        (event.step, name, event.value) for name in events.Tags()["scalars"] for event in events.Scalars(name)
    )


def tensorboard_samples(run: Path) -> list[tuple[int, str]]:
    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"tensors": 0})
    events.Reload()
    return [(event.step, event.tensor_proto.string_val[0].decode()) for event in events.Tensors("sample/text_summary")]


def wandb_records(run: Path) -> list[Any]:
    """The records of all parts of a run. Another process writes them, a moment later than `finish` says."""
    parts, deadline = len([*(run / "wandb").glob("offline-run-*")]), time.monotonic() + 20
    while sum(kind(each) == "exit" for each in _wandb_records(run)) < parts and time.monotonic() < deadline:
        time.sleep(0.02)
    return [*_wandb_records(run)]


def kind(record: Any) -> str:
    return record.WhichOneof("record_type")


def _wandb_records(run: Path) -> Iterator[Any]:
    """W&B reads its files in Go; in Python it has only what a record is."""
    from wandb.proto.wandb_internal_pb2 import Record

    for path in sorted((run / "wandb").glob("offline-run-*/*.wandb")):
        content, at, record = path.read_bytes(), 7, b""  # a header, then LevelDB's log format, blocks of 32 KiB
        while at + 7 <= len(content):
            if (left := 32768 - at % 32768) < 7:
                at += left
                continue
            _, size, piece = struct.unpack_from("<IHB", content, at)
            record += content[at + 7 : at + 7 + size]
            at += 7 + size
            if piece in (1, 4):  # whole, or the last part of one
                yield Record.FromString(record)
                record = b""


def wandb_rows(run: Path) -> list[dict[str, object]]:
    rows = []
    for record in wandb_records(run):
        if kind(record) == "history":
            row = {".".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            rows.append({"_step": record.history.step.num, **row})
    return rows


def wandb_numbers(run: Path) -> Numbers:
    rows = wandb_rows(run)
    return sorted((row["_step"], name, value) for row in rows for name, value in row.items()
                  if not name.startswith(("_", "sample")))  # fmt: skip


def wandb_samples(run: Path) -> list[tuple[int, str]]:
    paths = [row["sample.path"] for row in wandb_rows(run) if "sample.path" in row]
    tables = [json.loads(next((run / "wandb").glob(f"offline-run-*/files/{path}")).read_text()) for path in paths]
    return [tuple(row) for table in tables for row in table["data"]]


def trackio_rows(run: Path) -> list[dict[str, object]]:
    from trackio.sqlite_storage import SQLiteStorage

    name = f"{run.name}-{(run / 'trackio' / 'id').read_text().strip()}"
    assert [each["name"] for each in SQLiteStorage.get_run_records("octavo")].count(name) == 1
    return SQLiteStorage.get_logs("octavo", name)


def trackio_numbers(run: Path) -> Numbers:
    return sorted((row["step"], name, value) for row in trackio_rows(run) for name, value in row.items()
                  if name not in ("step", "timestamp", "sample"))  # fmt: skip


def trackio_samples(run: Path) -> list[tuple[int, str]]:
    return [(row["step"], row["sample"]["_value"]) for row in trackio_rows(run) if "sample" in row]


NUMBERS: dict[str, Callable[[Path], Numbers]] = {
    "tensorboard": tensorboard_numbers, "wandb": wandb_numbers, "trackio": trackio_numbers,
}  # fmt: skip


def same(tool: str, seen: Numbers, expected: Numbers) -> bool:
    single = tool == "tensorboard"  # it keeps float32
    return seen == [(step, name, float(np.float32(value)) if single else value) for step, name, value in expected]


# What they have


def test_each_logger_has_the_numbers_and_samples_of_the_run() -> None:
    events = run_events(log="tensorboard, wandb,trackio", sample_every=6)
    run = finished(events).run
    assert notices(events) == []
    for tool in LOGGERS:
        assert same(tool, NUMBERS[tool](run), recorded(run)), tool
    assert wandb_samples(run) == samples(run)
    assert tensorboard_samples(run) == trackio_samples(run) == [(step, indented(text)) for step, text in samples(run)]


def test_the_settings_go_along() -> None:
    from trackio.sqlite_storage import SQLiteStorage

    run = finished(run_events(log="tensorboard,wandb,trackio")).run
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    assert b"n_embd = 16" in events.Tensors("settings/text_summary")[0].tensor_proto.string_val[0]
    (told,) = [each.run for each in wandb_records(run) if kind(each) == "run"]
    assert {each.key: each.value_json for each in told.config.update}["n_embd"] == "16"
    assert (told.project, told.display_name) == ("octavo", run.name)
    name = f"{run.name}-{(run / 'trackio' / 'id').read_text().strip()}"
    assert SQLiteStorage.get_run_config("octavo", name)["n_embd"] == 16


@pytest.mark.parametrize("tool", LOGGERS)
def test_a_resumed_run_goes_on_where_it_was(tool: str) -> None:
    stopped = finished(run_events(5, log=tool))
    run = finished(run_events(resume=stopped.run)).run
    assert [step for step, name, _ in NUMBERS[tool](run) if name == "loss"] == list(range(1, 13))
    assert same(tool, NUMBERS[tool](run), recorded(run))


@pytest.mark.parametrize("tool", LOGGERS)
def test_steps_that_a_killed_run_makes_again_are_there_once(tool: str) -> None:
    events = training.events(training.plan("text.txt", log=tool, **SMALL))
    for event in events:
        if isinstance(event, training.Step) and event.step == 11:
            break
    events.close()  # as if the process had died: the checkpoint of step 8 is the last
    run = finished(run_events(resume=Path("runs/text-1"))).run
    losses = [number for number in NUMBERS[tool](run) if number[1] == "loss"]
    if tool == "wandb":  # two parts of one run, for its server to join
        assert len({each.run.run_id for each in wandb_records(run) if kind(each) == "run"}) == 1
        assert len(losses) == 12 + 3
        losses = sorted(set(losses))
    assert same(tool, losses, [number for number in recorded(run) if number[1] == "loss"])


def test_two_runs_of_one_name_are_two_runs_for_trackio(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = []
    for name in ("here", "there"):
        (folder / name).mkdir()
        monkeypatch.chdir(folder / name)
        (folder / name / "text.txt").write_text((folder / "text.txt").read_text())
        runs.append(finished(run_events(log="trackio")).run.resolve())
    assert [run.name for run in runs] == ["text-1", "text-1"]
    for run in runs:
        assert same("trackio", trackio_numbers(run), recorded(run))


def test_a_logger_comes_and_goes_when_a_run_is_resumed() -> None:
    run = finished(run_events(3)).run
    finished(run_events(3, resume=run, log="tensorboard"))
    finished(run_events(3, resume=run))  # as it was
    finished(run_events(resume=run, log="none"))
    assert [step for step, name, _ in tensorboard_numbers(run) if name == "loss"] == [4, 5, 6, 7, 8, 9]


# What goes wrong


def test_a_logger_that_fails_is_let_go_with_one_notice_and_training_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    add_scalar = SummaryWriter.add_scalar

    def full(self: SummaryWriter, name: str, value: float, step: int) -> None:
        if step == 5:
            raise OSError(28, "No space left on device")
        add_scalar(self, name, value, step)

    monkeypatch.setattr(SummaryWriter, "add_scalar", full)
    events = run_events(log="tensorboard,trackio")
    run = finished(events).run
    assert notices(events) == ["tensorboard is off, metrics.jsonl continues: [Errno 28] No space left on device"]
    assert finished(events).step == 12
    assert same("trackio", trackio_numbers(run), recorded(run))


def test_a_logger_that_can_not_be_opened_is_let_go_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_SERVER_URL", "http://127.0.0.1:9")
    events = run_events(log="trackio")
    assert isinstance(events[0], training.Started)
    assert ["trackio is off" in text and "write token" in text for text in notices(events)] == [True]
    assert finished(events).step == 12


def test_a_logger_that_fails_at_the_end_leaves_the_end_the_last_event(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(self: SummaryWriter) -> None:
        raise RuntimeError

    with monkeypatch.context() as patch:
        patch.setattr(SummaryWriter, "close", fails)
        events = run_events(log="tensorboard")
    assert events[-2] == training.Notice("tensorboard is off, metrics.jsonl continues: RuntimeError")
    assert finished(events).reason == "done"


def test_a_training_that_breaks_closes_its_loggers(monkeypatch: pytest.MonkeyPatch) -> None:
    events = training.events(training.plan("text.txt", log="wandb", **SMALL))
    for event in events:
        if isinstance(event, training.Step) and event.step == 3:
            break
    events.close()
    (ended,) = [each for each in wandb_records(Path("runs/text-1")) if kind(each) == "exit"]
    assert ended.exit.exit_code == 1


@pytest.mark.parametrize(
    ("log", "hint"), [("wanbd", "--log wandb"), ("wandb,tensorbord", "--log tensorboard"), ("?", ", ".join(LOGGERS))]
)
def test_a_logger_that_is_none_is_answered_with_the_nearest(log: str, hint: str) -> None:
    with pytest.raises(OctavoError, match="there is no logger") as caught:
        training.plan("text.txt", log=log)
    assert hint in str(caught.value.hint)


@pytest.mark.parametrize("tool", LOGGERS)
def test_a_package_that_is_missing_is_told_before_anything_is_written(
    tool: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == tool else find_spec(name))
    assert cli.main(["train", "text.txt", "--log", tool]) == 2
    said = capsys.readouterr().err
    assert f"log={tool} needs the package {tool}" in said
    assert f"pip install 'octavo[{tool}]'" in said
    assert [path.name for path in folder.iterdir()] == ["text.txt"]


def test_a_folder_that_a_tool_left_is_not_taken_for_its_package(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "wandb").mkdir()
    monkeypatch.setattr(sys, "path", [str(folder)])
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    with pytest.raises(OctavoError, match="needs the package wandb"):
        run_events(log="wandb")


def test_json_stays_one_object(capsys: pytest.CaptureFixture[str]) -> None:
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items()]
    assert cli.main(["train", "text.txt", "--json", "--log", "trackio", *flags]) == 0
    assert json.loads(capsys.readouterr().out)["step"] == 12


def test_what_is_not_named_is_not_imported() -> None:
    script = (
        "import octavo, sys; octavo.train('text.txt', max_steps=1, n_embd=8, n_head=1, device='cpu'); "
        f"print([name for name in {LOGGERS} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
