"""Log files of a run: metrics.jsonl and samples.jsonl, their lines, damage, and what is cut from them."""

import json
import os
import shutil
from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import pytest

from folders import file_size_limit
from octavo.runs import Run
from preparing import error_of
from run_folders import SETTINGS, law

pytestmark = pytest.mark.usefixtures("empty_workdir")


ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20) | st.sampled_from(
    ["a\u2028b", "\x85", "\x0b\x1c\r\n", "कितاب🦉", '{"step": 1}\n']
)


@hypothesis.settings(law, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
@hypothesis.given(written=st.lists(ANY_TEXT, max_size=4), data=st.data())
def test_complete_lines_are_read_and_an_incomplete_one_is_not(
    written: list[str], data: st.DataObject, empty_workdir: Path
) -> None:
    shutil.rmtree(empty_workdir / "run", ignore_errors=True)
    run = Run.create(SETTINGS, "corpus", out=empty_workdir / "run")
    lines = [{"step": step, "text": text} for step, text in enumerate(written)]
    ends = [0]
    for line in lines:
        run.log("samples", line)
        ends.append((run.folder / "samples.jsonl").stat().st_size)
    assert run.lines("samples") == lines
    assert run.lines("metrics") == []
    if lines:
        whole = (run.folder / "samples.jsonl").read_bytes()
        cut = data.draw(st.integers(0, len(whole)), label="bytes that reached the disk")
        (run.folder / "samples.jsonl").write_bytes(whole[:cut])
        complete = sum(end <= cut for end in ends[1:])
        assert run.lines("samples") == lines[:complete]
        run.truncate_logs(len(lines))
        run.log("samples", {"step": 99})  # starts a new line
        assert run.lines("samples") == [*lines[:complete], {"step": 99}]


def test_a_log_has_one_json_object_per_line() -> None:
    run = Run.create(SETTINGS, "corpus")
    for step in (1, 2):
        run.log("samples", {"step": step, "text": "zwei\nZeilen: किताब"})
    raw = (run.folder / "samples.jsonl").read_bytes().decode()
    assert [json.loads(line)["step"] for line in raw.split("\n")[:-1]] == [1, 2]
    assert "किताब" in raw  # not escaped, because people read this file


@pytest.mark.parametrize(
    "damaged", [b"", b"{}", b"[1]", b"{", b'{"step": "1"}', b'{"step": true}', b"\xff", b"[" * 50_000]
)
def test_damaged_lines_are_left_out(damaged: bytes) -> None:
    run = Run.create(SETTINGS, "corpus")
    for step in (1, 2):
        run.log("metrics", {"step": step})
    first, second = (run.folder / "metrics.jsonl").read_bytes().splitlines()
    (run.folder / "metrics.jsonl").write_bytes(b"\n".join((first, damaged, second, b"")))
    assert run.lines("metrics") == [{"step": 1}, {"step": 2}]
    run.truncate_logs(1)
    assert (run.folder / "metrics.jsonl").read_bytes() == first + b"\n"


def test_truncating_the_logs_removes_later_lines_and_an_incomplete_one() -> None:
    run = Run.create(SETTINGS, "corpus")
    for step in (1, 10, 20, 30):
        run.log("metrics", {"step": step, "loss": 1 / step})
        run.log("samples", {"step": step, "text": "abc"})
    with open(run.folder / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write('{"step": 31, "lo')
    run.truncate_logs(20)
    for kind in ("metrics", "samples"):
        assert [line["step"] for line in run.lines(kind)] == [1, 10, 20]
    run.log("metrics", {"step": 21})
    assert run.lines("metrics")[-1] == {"step": 21}
    run.truncate_logs(0)
    assert run.lines("metrics") == run.lines("samples") == []


def test_a_log_that_is_cut_keeps_its_text_and_the_other_log() -> None:
    run = Run.create(SETTINGS, "corpus")
    for step in (1, 2):
        run.log("samples", {"step": step, "text": "किताब"})
    run.truncate_logs(1)  # there is no metrics.jsonl
    raw = (run.folder / "samples.jsonl").read_bytes().decode()
    assert "किताब" in raw
    assert run.lines("samples") == [{"step": 1, "text": "किताब"}]
    assert not (run.folder / "metrics.jsonl").exists()


@pytest.mark.skipif(os.name == "nt", reason="Windows has no limit on file size")
def test_a_line_that_the_disk_has_no_room_for_leaves_no_part_of_it() -> None:
    run = Run.create(SETTINGS, "corpus")
    run.log("metrics", {"step": 1})
    before = (run.folder / "metrics.jsonl").read_bytes()
    with file_size_limit(len(before) + 5):
        error = error_of(lambda: run.log("metrics", {"step": 2}))
    assert "disk is full" in error.message
    assert str(run.folder) in error.message
    assert (run.folder / "metrics.jsonl").read_bytes() == before
    run.log("metrics", {"step": 2})
    assert run.lines("metrics") == [{"step": 1}, {"step": 2}]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="only Linux has a device that is always full")
def test_a_line_that_can_be_neither_written_nor_cut_is_reported_as_a_full_disk() -> None:
    run = Run.create(SETTINGS, "corpus")
    (run.folder / "metrics.jsonl").symlink_to("/dev/full")
    assert "disk is full" in error_of(lambda: run.log("metrics", {"step": 1})).message
