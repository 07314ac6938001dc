"""The progress of runs over HTTP, while another process trains them."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from octavo import runs
from octavo.files import write_atomic
from octavo.runs import Run
from octavo.server import load_model
from octavo.server.follow import ModelUpdater
from octavo.server.limits import Limits
from octavo.server.runs_api import JsonLines
from serving import SETTINGS, RunningServer, error_message, run_server


@pytest.fixture(scope="module")
def server(bpe_run: Run, native_cache: None) -> Iterator[RunningServer]:
    with run_server({"run": load_model("run", bpe_run, SETTINGS)}, runs={"run": bpe_run}) as running:
        yield running


def test_only_the_served_runs_are_listed(server: RunningServer, bpe_run: Run) -> None:
    [listed] = server.request("GET", "/runs").json["runs"]
    settings = bpe_run.settings
    assert {name: getattr(settings, name) for name in listed["settings"]} == listed["settings"]
    assert {"max_steps", "n_layer", "learning_rate", "batch_size", "tokenizer", "source", "preset"} <= listed[
        "settings"
    ].keys()
    assert (listed["name"], listed["last_step"], listed["running"]) == ("run", 20, False)
    assert listed["tokens_per_step"] == settings.batch_size * settings.block_size
    assert listed["parameters"] == server.request("GET", "/lens").json["models"][0]["model"]["parameters"]
    for name in ("alone", "..", "nothing", "%2e%2e", "run%2f..%2frun"):
        assert server.request("GET", f"/runs/{name}/metrics").status == 404
    assert server.request("GET", "/runs/run/settings").status == 400


def test_after_is_the_number_of_lines_to_skip(server: RunningServer, bpe_run: Run) -> None:
    lines = bpe_run.lines("metrics")
    assert len(lines) == 20
    for after in (0, 7, 20):
        listed = server.request("GET", f"/runs/run/metrics?after={after}").json
        assert listed == {"lines": lines[after:], "next": 20, "restarted": False}
    assert server.request("GET", "/runs/run/metrics").json["lines"] == lines
    assert server.request("GET", "/runs/run/metrics?after=21").json == {"lines": lines, "next": 20, "restarted": True}
    assert server.request("GET", "/runs/run/samples").json == {"lines": [], "next": 0, "restarted": False}
    for after in ("-1", "a", "1.5", "", "1e3", "99999999999999999999"):
        assert server.request("GET", f"/runs/run/metrics?after={after}").status == 400


def test_a_new_run_is_listed_at_once_and_served_from_its_first_checkpoint(
    bpe_run: Run, tmp_path: Path, native_cache: None
) -> None:
    run = Run.create(bpe_run.settings, "new", tmp_path / "<script>")
    pending, models, name = {run.folder.name: run}, {}, "%3Cscript%3E"
    with run_server(models, pending=pending, runs=dict(pending)) as running, run.lock():
        [listed] = running.request("GET", "/runs").json["runs"]
        assert (listed["name"], listed["last_step"], listed["running"]) == ("<script>", 0, True)
        assert running.request("GET", "/lens").json["models"] == []
        assert running.request("GET", f"/runs/{name}/metrics").json == {"lines": [], "next": 0, "restarted": False}
        assert "no checkpoint yet" in error_message(running.post("/lens/next_token", text="a"), 503)
        assert "no checkpoint yet" in error_message(running.post("/v1/completions", model="<script>"), 503)
        run.log("metrics", {"step": 1, "loss": 4.5})
        assert running.request("GET", f"/runs/{name}/metrics").json["lines"] == [{"step": 1, "loss": 4.5}]
        run.log("samples", {"step": 1, "text": "</script><b>\u2028"})
        assert running.request("GET", f"/runs/{name}/samples").json["lines"][0]["text"] == "</script><b>\u2028"
        loaded = runs.load(bpe_run.folder)
        run.save(1, loaded.model, loaded.tokenizer, bpe_run.settings, {"step": 1})
        checkpoint = (run.folder / "checkpoints" / "step-000001").rename(run.folder / "checkpoints" / "step-000002")
        (run.folder / "last").write_text(checkpoint.name, encoding="utf-8")
        ModelUpdater(models, pending, SETTINGS).poll()
        assert running.request("GET", "/lens").json["models"][0]["step"] == 2
        assert running.post("/lens/next_token", text="a").status == 200
        assert running.complete("a").status == 200
        assert 'octavo_slots{model="<script>"}' in running.request("GET", "/metrics").body.decode()
    assert not run.is_locked


def test_a_model_is_found_while_its_first_checkpoint_is_put_in_place(bpe_run: Run, native_cache: None) -> None:
    models = {"run": load_model("run", bpe_run, SETTINGS)}
    with run_server(models, pending={"run": bpe_run}) as running:  # as between two statements of `ModelUpdater`
        assert running.post("/v1/completions", prompt="a").status == 200
        assert running.post("/v1/completions", model="run", prompt="a").status == 200


def test_incomplete_and_invalid_lines_are_skipped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = JsonLines(path)
    assert log.read(0) == ([], 0, False)
    assert log.read(5) == ([], 0, True)
    path.write_bytes(b'{"step": 1}\n{"step": 2, "gr')
    assert log.read(0) == ([{"step": 1}], 1, False)
    with open(path, "ab") as file:
        file.write(
            b'ad": NaN, "x": [1e999, -Infinity]}\nnothing\n[1]\n{"a": "\xff"}\n' + b"[" * 99999 + b'\n\n{"step": 3}\n'
        )
    assert log.read(1) == ([{"step": 2, "grad": None, "x": [None, None]}, {"step": 3}], 8, False)
    assert log.last_step == 3
    with open(path, "ab") as file:
        file.write(b'{"step": "<b>"}\n')
    assert log.last_step == 0


def test_a_run_that_was_reset_is_read_from_the_beginning(tmp_path: Path, bpe_run: Run) -> None:
    run = Run.create(bpe_run.settings, "back", tmp_path / "back")
    for step in range(10):
        run.log("metrics", {"step": step})
    log = JsonLines(run.folder / "metrics.jsonl")
    assert log.read(0)[1:] == (10, False)
    run.truncate_logs(4)
    assert log.read(10) == ([{"step": step} for step in range(5)], 5, True)
    run.log("metrics", {"step": 5, "again": True})
    assert log.read(5) == ([{"step": 5, "again": True}], 6, False)
    (run.folder / "metrics.jsonl").unlink()
    assert log.read(6) == ([], 0, True)


def test_at_most_5000_lines_are_read_at_once_and_huge_lines_are_skipped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(f'{{"step": {step}}}\n' for step in range(12_001)), encoding="utf-8")
    log = JsonLines(path)
    collected, end = [], 0
    for count in (5000, 5000, 2001, 0):
        lines, end, restarted = log.read(end)
        assert (len(lines), restarted) == (count, False)
        collected += lines
    assert [line["step"] for line in collected] == list(range(12_001))
    write_atomic(path, '{"a": 1}\n{"b": "' + "x" * Limits.lines_bytes + '"}\n{"c": 3}\n')
    assert log.read(0) == ([{"a": 1}], 1, False)
    assert log.read(1) == ([], 2, False)
    assert log.read(2) == ([{"c": 3}], 3, False)
