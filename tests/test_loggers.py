"""Each logger has the numbers of metrics.jsonl, read back with its package, and no logger can stop training."""

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
import small_runs
from octavo import cli, training
from octavo.errors import OctavoError, install_command
from octavo.settings import LOGGERS
from small_runs import SMALL, finished_event, kill_after, run_events

Numbers = list[tuple[int, str, float]]  # step, name, value


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a text. Host names cannot be resolved."""

    def refuse(host: object, *rest: object, **options: object) -> object:
        raise AssertionError(f"a logger resolves {host}")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return small_runs.enter_folder(tmp_path, monkeypatch)


def notices(events: list[training.Event]) -> list[str]:
    return [event.text for event in events if isinstance(event, training.Notice)]


def metrics(run: Path) -> Numbers:
    """The numbers in metrics.jsonl."""
    lines = octavo.Run(run).lines("metrics")
    return sorted((line["step"], name, value) for line in lines for name, value in line.items() if name != "step")


def samples(run: Path) -> list[tuple[int, str]]:
    return [(line["step"], line["text"]) for line in octavo.Run(run).lines("samples")]


def as_code(text: str) -> str:
    return "\n".join("    " + line for line in text.split("\n"))


# Reading with each package


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
    """All records of a run. A process of W&B writes them, and may not be done when `finish` returns."""
    folders, deadline = len([*(run / "wandb").glob("offline-run-*")]), time.monotonic() + 20
    while sum(record_type(each) == "exit" for each in read_wandb_files(run)) < folders and time.monotonic() < deadline:
        time.sleep(0.02)
    return [*read_wandb_files(run)]


def record_type(record: Any) -> str:
    return record.WhichOneof("record_type")


def read_wandb_files(run: Path) -> Iterator[Any]:
    """Parse the files. W&B reads them in Go; its Python package only has the type of a record."""
    from wandb.proto.wandb_internal_pb2 import Record

    for path in sorted((run / "wandb").glob("offline-run-*/*.wandb")):
        content, at, record = path.read_bytes(), 7, b""  # after a header, LevelDB's log format: blocks of 32 KiB
        while at + 7 <= len(content):
            if (left := 32768 - at % 32768) < 7:
                at += left
                continue
            _, size, piece = struct.unpack_from("<IHB", content, at)
            record += content[at + 7 : at + 7 + size]
            at += 7 + size
            if piece in (1, 4):  # a full record, or the last fragment of one
                yield Record.FromString(record)
                record = b""


def wandb_rows(run: Path) -> list[dict[str, object]]:
    rows = []
    for record in wandb_records(run):
        if record_type(record) == "history":
            row = {".".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            rows.append({"_step": record.history.step.num, **row})
    return rows


def wandb_numbers(run: Path) -> Numbers:
    rows = wandb_rows(run)
    return sorted(
        (row["_step"], name, value)
        for row in rows
        for name, value in row.items()
        if not name.startswith(("_", "sample"))
    )


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
    return sorted(
        (row["step"], name, value)
        for row in trackio_rows(run)
        for name, value in row.items()
        if name not in ("step", "timestamp", "sample")
    )


def trackio_samples(run: Path) -> list[tuple[int, str]]:
    return [(row["step"], row["sample"]["_value"]) for row in trackio_rows(run) if "sample" in row]


NUMBERS: dict[str, Callable[[Path], Numbers]] = {
    "tensorboard": tensorboard_numbers,
    "wandb": wandb_numbers,
    "trackio": trackio_numbers,
}


def are_equal(tool: str, numbers: Numbers, expected: Numbers) -> bool:
    is_float32 = tool == "tensorboard"
    return numbers == [(step, name, float(np.float32(v)) if is_float32 else v) for step, name, v in expected]


# Contents


def test_each_logger_has_the_numbers_and_samples_of_the_run() -> None:
    events = run_events(log="tensorboard, wandb,trackio", sample_every=6)
    run = finished_event(events).run
    assert notices(events) == []
    for tool in LOGGERS:
        assert are_equal(tool, NUMBERS[tool](run), metrics(run)), tool
    assert wandb_samples(run) == samples(run)
    assert tensorboard_samples(run) == trackio_samples(run) == [(step, as_code(text)) for step, text in samples(run)]


def test_each_logger_has_the_settings() -> None:
    from trackio.sqlite_storage import SQLiteStorage

    run = finished_event(run_events(log="tensorboard,wandb,trackio")).run
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    assert b"n_embd = 16" in events.Tensors("settings/text_summary")[0].tensor_proto.string_val[0]
    (record,) = [each.run for each in wandb_records(run) if record_type(each) == "run"]
    assert {each.key: each.value_json for each in record.config.update}["n_embd"] == "16"
    assert (record.project, record.display_name) == ("octavo", run.name)
    name = f"{run.name}-{(run / 'trackio' / 'id').read_text().strip()}"
    assert SQLiteStorage.get_run_config("octavo", name)["n_embd"] == 16


@pytest.mark.parametrize("tool", LOGGERS)
def test_a_resumed_run_continues_in_the_same_logger(tool: str) -> None:
    stopped = finished_event(run_events(5, log=tool))
    run = finished_event(run_events(resume=stopped.run)).run
    assert [step for step, name, _ in NUMBERS[tool](run) if name == "loss"] == list(range(1, 13))
    assert are_equal(tool, NUMBERS[tool](run), metrics(run))


@pytest.mark.parametrize("tool", LOGGERS)
def test_steps_repeated_after_a_kill_are_logged_once(tool: str) -> None:
    kill_after(11, training.events(training.plan("text.txt", log=tool, **SMALL)))  # the last checkpoint is of step 8
    run = finished_event(run_events(resume=Path("runs/text-1"))).run
    losses = [number for number in NUMBERS[tool](run) if number[1] == "loss"]
    if tool == "wandb":  # it has two folders for the run; its server merges them
        assert len({each.run.run_id for each in wandb_records(run) if record_type(each) == "run"}) == 1
        assert len(losses) == 12 + 3
        losses = sorted(set(losses))
    assert are_equal(tool, losses, [number for number in metrics(run) if number[1] == "loss"])


def test_trackio_separates_two_runs_of_the_same_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = []
    for name in ("here", "there"):
        (folder / name).mkdir()
        monkeypatch.chdir(folder / name)
        (folder / name / "text.txt").write_text((folder / "text.txt").read_text())
        runs.append(finished_event(run_events(log="trackio")).run.resolve())
    assert [run.name for run in runs] == ["text-1", "text-1"]
    for run in runs:
        assert are_equal("trackio", trackio_numbers(run), metrics(run))


def test_a_resume_can_add_and_remove_a_logger() -> None:
    run = finished_event(run_events(3)).run
    finished_event(run_events(3, resume=run, log="tensorboard"))
    finished_event(run_events(3, resume=run))  # the setting is kept
    finished_event(run_events(resume=run, log="none"))
    assert [step for step, name, _ in tensorboard_numbers(run) if name == "loss"] == [4, 5, 6, 7, 8, 9]


# Failures


def test_a_logger_that_fails_is_closed_with_one_notice_and_training_continues(monkeypatch: pytest.MonkeyPatch) -> None:
    add_scalar = SummaryWriter.add_scalar

    def fail_at_step_5(self: SummaryWriter, name: str, value: float, step: int) -> None:
        if step == 5:
            raise OSError(28, "No space left on device")
        add_scalar(self, name, value, step)

    monkeypatch.setattr(SummaryWriter, "add_scalar", fail_at_step_5)
    events = run_events(log="tensorboard,trackio")
    run = finished_event(events).run
    (notice,) = notices(events)
    assert notice.startswith("tensorboard is off")
    assert "No space left on device" in notice
    assert finished_event(events).step == 12
    assert are_equal("trackio", trackio_numbers(run), metrics(run))


def test_training_continues_without_a_logger_that_cannot_be_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_SERVER_URL", "http://127.0.0.1:9")
    events = run_events(log="trackio")
    assert isinstance(events[0], training.Started)
    assert ["trackio is off" in text and "write token" in text for text in notices(events)] == [True]
    assert finished_event(events).step == 12


def test_finished_is_the_last_event_even_if_a_logger_fails_to_close(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: SummaryWriter) -> None:
        raise RuntimeError

    with monkeypatch.context() as patch:
        patch.setattr(SummaryWriter, "close", fail)
        events = run_events(log="tensorboard")
    assert isinstance(events[-2], training.Notice)
    assert "RuntimeError" in events[-2].text
    assert finished_event(events).reason == "done"


def test_loggers_of_an_interrupted_training_are_closed_as_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    kill_after(3, training.events(training.plan("text.txt", log="wandb", **SMALL)))
    (ended,) = [each for each in wandb_records(Path("runs/text-1")) if record_type(each) == "exit"]
    assert ended.exit.exit_code == 1


@pytest.mark.parametrize(
    ("log", "hint"), [("wanbd", "--log wandb"), ("wandb,tensorbord", "--log tensorboard"), ("?", ", ".join(LOGGERS))]
)
def test_an_unknown_logger_is_an_error_with_the_nearest_name(log: str, hint: str) -> None:
    with pytest.raises(OctavoError, match="logger") as caught:
        training.plan("text.txt", log=log)
    assert hint in str(caught.value.hint)


@pytest.mark.parametrize("tool", LOGGERS)
def test_a_missing_package_is_an_error_before_anything_is_written(
    tool: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == tool else find_spec(name))
    assert cli.main(["train", "text.txt", "--log", tool]) == 2
    error = capsys.readouterr().err
    assert f"log={tool} needs the package {tool}" in error
    assert install_command(tool) in error
    assert [path.name for path in folder.iterdir()] == ["text.txt"]


def test_a_folder_named_like_a_package_is_not_the_package(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "wandb").mkdir()
    monkeypatch.setattr(sys, "path", [str(folder)])
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    with pytest.raises(OctavoError, match="needs the package wandb"):
        run_events(log="wandb")


def test_json_output_is_one_object_also_with_a_logger_that_prints(capsys: pytest.CaptureFixture[str]) -> None:
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items()]
    assert cli.main(["train", "text.txt", "--json", "--log", "trackio", *flags]) == 0
    assert json.loads(capsys.readouterr().out)["step"] == 12


def test_a_logger_that_is_not_used_is_not_imported() -> None:
    script = (
        "import octavo, sys; octavo.train('text.txt', max_steps=1, n_embd=8, n_head=1, device='cpu'); "
        f"print([name for name in {LOGGERS} if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
