"""Large preparations: many shards are one row, documents keep ends and sides, what is interrupted goes on."""

import itertools
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as options
from hypothesis import strategies as st

from octavo.data import build, readers, shard_writer
from octavo.data.build import Preparing, result
from octavo.data.dataset import Dataset, open_dataset
from octavo.data.prepare import dataset, prepare, preparing, preparing_into
from octavo.data.sampler import Sampler
from octavo.data.shards import Shards, npy
from octavo.errors import OctavoError
from octavo.settings import DataSettings
from octavo.tokenizers import END_OF_TEXT

SPLITS = ("train", "val")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards and pieces of a few characters."""
    monkeypatch.setattr(shard_writer, "SHARD", 1000)
    monkeypatch.setattr(shard_writer, "PIECE", 100)
    monkeypatch.setattr(readers, "PIECE", 100)


def sentences(count: int, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    words = ["the", "cat", "sat", "on", "a", "mat", "öäü", "naïve", "end.", "so\nit", "was "]
    return [" ".join(rng.choices(words, k=rng.randint(1, 30))) for _ in range(count)]


def rows(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path


def of(source: Path, tokenizer: str = "bpe:300", **how: Any) -> DataSettings:
    return DataSettings(source=str(source), tokenizer=tokenizer, **how)


def documents(data: Dataset, split: str) -> list[str]:
    """The texts between the ends of documents."""
    ids, end = np.asarray(data.tokens(split)), data.tokenizer.end_of_text
    parts = np.split(ids, np.flatnonzero(ids == end) + 1)
    assert len(parts.pop()) == 0
    return [data.tokenizer.decode(part[:-1].tolist()) for part in parts]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# Many shards, one row


@pytest.fixture(scope="module")
def cut_up(tmp_path_factory: pytest.TempPathFactory) -> tuple[np.ndarray, Shards]:
    folder = tmp_path_factory.mktemp("cut")
    ids = np.random.default_rng(0).integers(0, 1000, 997).astype(np.uint16)
    ends = [0, 1, 2, 300, 301, 640, 996, 997]
    for i, (start, end) in enumerate(itertools.pairwise(ends)):
        np.save(folder / f"{i}.npy", ids[start:end])
    return ids, Shards([npy(folder / f"{i}.npy") for i in range(len(ends) - 1)])


@options(derandomize=True, deadline=None)
@given(start=st.integers(-1100, 1100), stop=st.integers(-1100, 1100))
def test_a_stretch_is_the_same_however_the_row_is_cut(cut_up: tuple[np.ndarray, Shards], start: int, stop: int) -> None:
    ids, shards = cut_up
    assert shards[start:stop].tolist() == ids[start:stop].tolist()


def test_a_row_of_shards_is_read_like_one(cut_up: tuple[np.ndarray, Shards]) -> None:
    ids, shards = cut_up
    assert (len(shards), shards.max()) == (997, int(ids.max()))
    assert list(shards) == np.asarray(shards).tolist() == ids.tolist()
    assert [len(piece) for piece in shards.pieces(400)] == [400, 400, 197]


@pytest.mark.parametrize("block_size", [1, 7, 300])
def test_windows_epochs_and_order_do_not_depend_on_how_many_shards_there_are(
    cut_up: tuple[np.ndarray, Shards], tmp_path: Path, block_size: int
) -> None:
    ids, shards = cut_up
    np.save(tmp_path / "all.npy", ids)
    many, one = (Sampler(each, block_size, 5, seed=3) for each in (shards, Shards([npy(tmp_path / "all.npy")])))
    for step in range(60):
        assert many.batch(step).tolist() == one.batch(step).tolist()


@pytest.mark.parametrize("tokenizer", ["char", "byte", "word:300", "bpe:300"])
def test_the_tokens_do_not_depend_on_shards_and_pieces(
    tmp_path: Path, tokenizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "text.txt").write_text("\n".join(sentences(300)), encoding="utf-8")
    rows(tmp_path / "rows.jsonl", sentences(300))
    sources = [tmp_path / "text.txt", tmp_path / "rows.jsonl"]
    whole = [prepare(of(source, tokenizer), tmp_path / f"whole {source.suffix}") for source in sources]
    for name, value in {"SHARD": 1000, "PIECE": 100}.items():
        monkeypatch.setattr(shard_writer, name, value)
    monkeypatch.setattr(readers, "PIECE", 100)
    parts = [prepare(of(source, tokenizer), tmp_path / f"parts {source.suffix}") for source in sources]
    for one, many in zip(whole, parts, strict=True):
        assert (len(one.shards["train"]), len(many.shards["train"]) > 5) == (1, True)
        assert one.fingerprint == many.fingerprint
        for split in SPLITS:
            assert list(one.tokens(split)) == list(many.tokens(split))
            assert list(open_dataset(many.folder).tokens(split)) == list(many.tokens(split))


# Documents


@pytest.mark.usefixtures("small")
def test_documents_keep_their_ends_and_go_whole_to_one_side(tmp_path: Path) -> None:
    texts = sentences(400)
    data = prepare(of(rows(tmp_path / "a.jsonl", texts), val_fraction=0.2), tmp_path / "out")
    train, val = (documents(data, split) for split in SPLITS)
    assert Counter(train + val) == Counter(texts)
    assert train == [text for text in texts if text in set(train)]  # in their order
    assert set(train).isdisjoint(val)  # copies stand together
    assert 0.19 < len("".join(val)) / len("".join(texts)) <= 0.2
    assert data.info["split"] == {"by": "document", "val_fraction": 0.2}
    assert data.info["text"]["documents"] == 400


def test_a_side_is_as_good_as_drawn_by_lot_and_depends_on_no_order(tmp_path: Path) -> None:
    texts = [f"document number {i}" for i in range(1000)]
    one = prepare(of(rows(tmp_path / "a.jsonl", texts)), tmp_path / "one")
    other = prepare(of(rows(tmp_path / "b.jsonl", texts[::-1])), tmp_path / "other")
    val = documents(one, "val")
    assert 95 <= len(val) <= 105
    assert set(val) == set(documents(other, "val"))
    places = [texts.index(text) for text in val]
    assert 400 < np.mean(places) < 600


def test_of_many_documents_at_least_one_is_for_validation(tmp_path: Path) -> None:
    texts = [f"document number {i}" for i in range(100)]
    data = prepare(of(rows(tmp_path / "a.jsonl", texts), val_fraction=0.0001), tmp_path / "out")
    assert len(documents(data, "val")) == 1


def test_few_documents_are_split_by_position(tmp_path: Path) -> None:
    texts = sentences(99)
    data = prepare(of(rows(tmp_path / "a.jsonl", texts), val_fraction=0.3), tmp_path / "out")
    assert data.info["split"]["by"] == "position"
    train, val = (data.tokenizer.decode(data.tokens(split)).split(END_OF_TEXT) for split in SPLITS)
    assert [*train[:-1], train[-1] + val[0], *val[1:]] == [*texts, ""]
    assert len("".join(train)) == int(0.7 * len("".join(texts)))


@pytest.mark.parametrize("tokenizer", ["char", "byte", "word:300"])
@pytest.mark.parametrize("count", [3, 150])
def test_without_an_end_of_text_documents_stand_on_lines_of_their_own(
    tmp_path: Path, tokenizer: str, count: int
) -> None:
    texts = [text + "\n" * (i % 3 == 0) for i, text in enumerate(sentences(count))]
    data = prepare(of(rows(tmp_path / "a.jsonl", texts), tokenizer), tmp_path / "out")
    train, val = (data.tokenizer.decode(data.tokens(split)) for split in SPLITS)
    lines = [text if text.endswith("\n") else text + "\n" for text in texts]
    if count < 100:
        whole = "".join(lines).removesuffix("" if texts[-1].endswith("\n") else "\n")
        assert train + val == whole
        assert len(train) == int(0.9 * len(whole))
    else:
        rest = train
        for line in lines:
            if rest.startswith(line):
                rest = rest[len(line) :]
        assert rest in ("", lines[-1].rstrip("\n"))
        assert len(train + val) in (len("".join(lines)), len("".join(lines)) - 1)


@pytest.mark.parametrize("count", [30, 300])
def test_copies_are_left_out_where_that_is_asked_for(tmp_path: Path, count: int) -> None:
    texts = [f"document number {i % (count // 2)} and more" for i in range(count)]
    source = rows(tmp_path / "a.jsonl", texts)
    kept = prepare(of(source), tmp_path / "kept")
    data = prepare(of(source, deduplicate=True), tmp_path / "without")
    assert [each.info["text"]["left_out"] for each in (kept, data)] == [0, count // 2]
    assert kept.fingerprint != data.fingerprint
    end = data.tokenizer.end_of_text
    ids = [id for split in SPLITS for id in data.tokens(split)]
    assert ids.count(end) == count // 2
    assert data.tokenizer.decode([id for id in ids if id != end]).count("document") == count // 2


def test_one_text_has_no_end_of_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(" ".join(sentences(50)), encoding="utf-8")
    data = prepare(of(tmp_path / "a.txt"), tmp_path / "out")
    assert data.tokenizer.end_of_text is not None
    assert data.tokenizer.end_of_text not in [id for split in SPLITS for id in data.tokens(split)]


# Interrupted

KILLED = """
import sys
from octavo.data import encoding, readers, shard_writer
from octavo.data.prepare import prepare
from octavo.settings import DataSettings
from octavo.tokenizers import END_OF_TEXT
shard_writer.SHARD, shard_writer.PIECE, readers.PIECE, encoding._FEW = 10_000, 2_000, 2_000, 0  # several processes too
write = shard_writer.shards.write
def telling(path, ids):
    write(path, ids)
    print(path.name, flush=True)
shard_writer.shards.write = telling
print("ready", flush=True)
prepare(DataSettings(source=sys.argv[1], tokenizer="bpe:600"), sys.argv[2])
"""


def test_a_preparation_killed_at_twenty_moments_ends_with_the_same_bits(tmp_path: Path) -> None:
    source = rows(tmp_path / "a.jsonl", sentences(40_000))
    out, aside = tmp_path / "out", tmp_path / ".out.preparing"
    command = [sys.executable, "-c", KILLED, str(source)]
    whole = subprocess.run([*command, str(tmp_path / "whole")], stdout=subprocess.PIPE, text=True, check=True).stdout
    assert len(whole.splitlines()) > 200  # shards
    rng, went_on = random.Random(1), 0
    for _ in range(20):
        before = set(aside.glob("*.npy"))
        went_on += bool(before)
        with subprocess.Popen([*command, str(out)], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for _ in range(rng.randint(1, 4)):  # lines: "ready", and one for each shard that was written
                process.stdout.readline()
            time.sleep(rng.uniform(0, 0.02))
            process.kill()
        assert before <= set(aside.glob("*.npy"))
        assert not out.exists()
    assert went_on > 10
    last = subprocess.run([*command, str(out)], stdout=subprocess.PIPE, text=True, check=True).stdout
    assert len(last.splitlines()) < len(whole.splitlines())  # what was there was not made again
    assert contents(out) == contents(tmp_path / "whole")
    assert not aside.exists()


def stopped(settings: DataSettings, out: Path, shards: int, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a preparation that ended after so many shards."""
    count = 0
    write = shard_writer.shards.write

    def writing(path: Path, ids: np.ndarray) -> None:
        nonlocal count
        if count == shards:
            raise KeyboardInterrupt
        count += 1
        write(path, ids)

    with monkeypatch.context() as patch:
        patch.setattr(shard_writer.shards, "write", writing)
        with pytest.raises(KeyboardInterrupt):
            prepare(settings, out)
    return out.with_name(f".{out.name}.preparing")


@pytest.mark.usefixtures("small")
def test_finished_shards_are_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = of(rows(tmp_path / "a.jsonl", sentences(300)))
    whole = contents(prepare(settings, tmp_path / "whole").folder)
    folder = stopped(settings, tmp_path / "out", 4, monkeypatch)
    times = {path: path.stat().st_mtime_ns for path in folder.glob("*.npy")}
    assert len(times) == 4
    monkeypatch.setattr(build.tokenizers, "build", None)  # nor is the tokenizer learnt again
    moved = tmp_path / "out"
    prepare(settings, moved)
    assert contents(moved) == whole
    assert {path: (moved / path.name).stat().st_mtime_ns for path in times} == times


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("damage", ["cut", "gone", "empty"])
def test_it_goes_on_at_the_first_shard_that_is_missing_or_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    settings = of(rows(tmp_path / "a.jsonl", sentences(300)))
    whole = contents(prepare(settings, tmp_path / "whole").folder)
    folder = stopped(settings, tmp_path / "out", 6, monkeypatch)
    shard = folder / "train-00001.npy"
    match damage:
        case "cut":
            os.truncate(shard, shard.stat().st_size // 2)
        case "gone":
            shard.unlink()
        case _:
            shard.write_bytes(b"")
    assert contents(prepare(settings, tmp_path / "out").folder) == whole


@pytest.mark.usefixtures("small")
def test_another_text_begins_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = rows(tmp_path / "a.jsonl", sentences(300))
    stopped(of(source), tmp_path / "out", 4, monkeypatch)
    rows(source, sentences(300, seed=1))
    data = prepare(of(source), tmp_path / "out")
    assert Counter(text for split in SPLITS for text in documents(data, split)) == Counter(sentences(300, seed=1))


@pytest.mark.usefixtures("small")
@pytest.mark.skipif(os.name == "nt", reason="Windows has no such limit")
def test_a_disk_that_fills_keeps_what_was_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = of(rows(tmp_path / "a.jsonl", sentences(300)))
    whole = contents(prepare(settings, tmp_path / "whole").folder)
    write, count = shard_writer.shards.write, 0

    def full(path: Path, ids: np.ndarray) -> None:
        nonlocal count
        count += 1
        if count > 5:
            import resource

            before = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
            try:
                write(path, ids)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, before)
        write(path, ids)

    with monkeypatch.context() as patch:
        patch.setattr(shard_writer.shards, "write", full)
        with pytest.raises(OctavoError, match="the disk is full"):
            prepare(settings, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert len(list((tmp_path / ".out.preparing").glob("*.npy"))) == 5
    assert contents(prepare(settings, tmp_path / "out").folder) == whole


def test_a_disk_with_too_little_room_is_told_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = of(rows(tmp_path / "a.jsonl", sentences(300)))
    monkeypatch.setattr(shard_writer.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(OctavoError, match=r"the disk of .* has 0 MB free"):
        prepare(settings, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


def test_two_processes_do_not_write_the_same_folder(tmp_path: Path, own_cache: Path) -> None:
    import filelock

    settings = of(rows(tmp_path / "a.jsonl", sentences(30)))
    prepare(settings, tmp_path / "out")
    (lock,) = (own_cache / "locks").iterdir()
    shutil.rmtree(tmp_path / "out")
    with filelock.FileLock(lock), pytest.raises(OctavoError, match="another process prepares"):
        prepare(settings, tmp_path / "out")
    prepare(settings, tmp_path / "out")


def test_a_training_waits_for_another_that_prepares_the_same_text(tmp_path: Path, own_cache: Path) -> None:
    import filelock

    settings = of(rows(tmp_path / "a.jsonl", sentences(30)))
    made = dataset(settings)
    (lock,) = (own_cache / "locks").iterdir()
    other = made.folder.rename(tmp_path / "aside")
    held = filelock.FileLock(lock)
    held.acquire()
    steps = preparing(settings)
    while not next(steps).doing.startswith("waiting"):
        pass
    other.rename(made.folder)  # the other has finished
    held.release()
    assert result(steps).folder == made.folder


def test_what_came_while_the_text_was_read_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "_TELL_EVERY", 0.0)
    steps = preparing_into(of(rows(tmp_path / "a.jsonl", sentences(30))), tmp_path / "out")
    next(steps)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(OctavoError, match="already holds something"):
        result(steps)
    assert (tmp_path / "out" / "precious.txt").read_text(encoding="utf-8") == "mine"


@pytest.mark.parametrize("later", [sentences(31), sentences(29), sentences(30, seed=1), [*sentences(29), "x" * 40]])
def test_a_text_that_changes_while_it_is_prepared_is_told(
    tmp_path: Path, later: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = rows(tmp_path / "a.jsonl", sentences(30))
    begun = build._begun

    def changing(*given: Any) -> Any:
        rows(source, later)
        return (yield from begun(*given))

    monkeypatch.setattr(build, "_begun", changing)
    monkeypatch.setattr(shard_writer, "SHARD", 500)
    monkeypatch.setattr(shard_writer, "PIECE", 100)
    with pytest.raises(OctavoError, match="changed while it was read"):
        prepare(of(source, "byte"), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]  # no shard of another text is gone on from


def test_a_shard_that_was_damaged_while_it_lay_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_writer, "SHARD", 1000)
    monkeypatch.setattr(shard_writer, "PIECE", 100)
    settings = of(rows(tmp_path / "a.jsonl", sentences(300)))
    whole = contents(prepare(settings, tmp_path / "whole").folder)
    shard = stopped(settings, tmp_path / "out", 6, monkeypatch) / "train-00001.npy"
    content = bytearray(shard.read_bytes())
    content[-3] ^= 1
    shard.write_bytes(content)
    assert contents(prepare(settings, tmp_path / "out").folder) == whole


def test_rows_without_a_line_end_can_have_characters(tmp_path: Path) -> None:
    data = dataset(of(rows(tmp_path / "a.jsonl", ["emma", "olivia", "ava"] * 9), "auto"))
    text = "".join(data.tokenizer.decode(data.tokens(split)) for split in SPLITS)
    assert text == "\n".join(["emma", "olivia", "ava"] * 9)


def test_a_document_larger_than_all_that_validates_is_for_training(tmp_path: Path) -> None:
    texts = [*sentences(150), "a whole book. " * 60_000]
    for edition in range(5):
        data = prepare(of(rows(tmp_path / "a.jsonl", [*texts, f"{edition}"])), tmp_path / f"out {edition}")
        assert "a whole book" in "".join(documents(data, "train"))
        assert documents(data, "val")


def test_copies_alone_are_told(tmp_path: Path) -> None:
    with pytest.raises(OctavoError, match="copies of one another"):
        prepare(of(rows(tmp_path / "a.jsonl", ["the same"] * 200)), tmp_path / "out")


def test_a_preparation_tells_how_far_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "_TELL_EVERY", 0.0)
    told: list[Preparing] = list(preparing(of(rows(tmp_path / "a.jsonl", sentences(300)))))
    assert list(dict.fromkeys(each.doing for each in told)) == ["reading", "learning the tokenizer", "writing tokens"]
    for doing in ("reading", "writing tokens"):
        counts = [each.done for each in told if each.doing == doing]
        assert counts == sorted(counts)
    assert told[-1].done == told[-1].total == sum(map(len, sentences(300)))


def test_a_vocabulary_is_learnt_from_all_over_a_large_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "_LEARNT_FROM", 3000)
    monkeypatch.setattr(readers, "PIECE", 100)
    parts = [("alpha beta " * 200) + "\n", ("gamma delta " * 200) + "\n", ("omega sigma " * 200) + "\n"]
    (tmp_path / "a.txt").write_text("".join(parts), encoding="utf-8")
    data = dataset(of(tmp_path / "a.txt", "word:300"))
    known = {token.decode() for token in data.tokenizer.token_bytes[256:]}
    assert {"alpha", "gamma", "omega"} <= known


def test_a_result_is_what_a_preparation_ends_with(tmp_path: Path) -> None:
    settings = of(rows(tmp_path / "a.jsonl", sentences(30)))
    assert result(preparing(settings)).fingerprint == dataset(settings).fingerprint
