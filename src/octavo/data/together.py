"""Prepare a text with several processes, on one machine or on many that share a folder: `octavo prepare --together`.

Each of them runs the same command, at any time. What they share is the folder `.NAME.together` next to the result:

    work.json          what is prepared; a process with other files or settings is rejected
    helpers/, claims/  which process does what, see `claims`
    scans/             stage 1, for each unit of the source (consecutive files): its scan, and the lengths of its chunks
    plan/              stage 2, by one process: the tokenizer, the split, and the shards in which each unit begins
    parts/             stage 3, for each unit: its ids, a file for each shard that has some of them
    shards/            stage 4, for each shard that has ids of several units: all its ids
    final/             stage 5, by one process: the dataset, which is then renamed

A stage begins when the one before is complete. The result has the bytes of `prepare_into_folder`: the lengths of all
chunks determine where each shard ends. So the number of processes makes no difference, and any may be killed.
"""

import contextlib
import dataclasses
import functools
import json
import os
import shutil
import time
from array import array
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from octavo import files, schema, tokenizers
from octavo.data import shards
from octavo.data.build import BuildInputs, EmptySplitError, describe, split_error, train_tokenizer
from octavo.data.cache import dataset_fingerprint
from octavo.data.chunks import Chunk
from octavo.data.claims import STALE_SECONDS, Activity, Claims
from octavo.data.dataset import FORMAT, SPLITS, checksum, is_prepared, read_info
from octavo.data.limits import DEFAULT_LIMITS, Limits
from octavo.data.prepare import check_is_empty, resolve_tokenizer_setting
from octavo.data.scan import CorpusScan, ScanSummary, join_scans, scan_chunks, warn_about_source
from octavo.data.shard_writer import PartRecord, Position, ShardRecord, advance, check_disk_space, write_parts
from octavo.data.shards import Shards, open_npy
from octavo.data.sources import Corpus, CorpusHash, open_units
from octavo.data.split import LEFT_OUT, TRAIN, VAL, Split, choose_split, split_chunks
from octavo.errors import OctavoError, SourceChangedError
from octavo.progress import PreparationProgress, preparation
from octavo.settings import DataSettings, list_sources
from octavo.tokenizers import Tokenizer

_Work = Generator[PreparationProgress, None, None]


@preparation
def prepare_together(
    settings: DataSettings,
    out: str | Path,
    limits: Limits = DEFAULT_LIMITS,
    stale_seconds: float = STALE_SECONDS,
) -> Generator[PreparationProgress, None, dict[str, Any]]:
    """Prepare a source into the folder `out`, with all other processes that do the same. Returns its `dataset.json`.

    Ends when the folder is complete. If a process writes no heartbeat for `stale_seconds`, others take its work.
    Raises `OctavoError` if the source is not made of files, or the others prepare something else.
    """
    folder = Path(os.path.abspath(out))
    work = folder.with_name(f".{folder.name}.together")
    if _is_complete(folder, settings):
        _remove(work)  # a process was perhaps killed before it could remove it
        return read_info(folder)
    check_is_empty(folder, out)
    if is_prepared(settings.source):
        raise OctavoError(f"{settings.source_name} is prepared already", f"octavo train {settings.source_name}")
    corpus, units = open_units(settings, limits)
    _check_same_work(work, settings, units, limits)
    try:
        with Claims(work, stale_seconds) as claims:
            yield from _Helper(settings, corpus, units, work, folder, claims, limits).run()
    except (SourceChangedError, EmptySplitError):  # what is in `work` is of no use
        _remove(work)
        raise
    except (OSError, OctavoError) as error:
        if not _is_complete(folder, settings):  # else another process has completed it, and removed `work`
            if not work.exists():
                raise OctavoError(
                    f"another process gave up preparing {out}: its error says why", "the same command again"
                ) from None
            if isinstance(error, OctavoError):
                raise
            with files.translate_disk_errors(work):
                raise
    _remove(work)
    return read_info(folder)


def _remove(work: Path) -> None:
    """Remove what the processes share, if it exists. It is renamed first: the others still write heartbeats."""
    with contextlib.suppress(OctavoError):
        files.remove_folder(work)


def _is_complete(folder: Path, settings: DataSettings) -> bool:
    """Whether the folder has been prepared from this source, with these settings."""
    if not (folder / "dataset.json").is_file():
        return False
    info = read_info(folder)
    if list_sources(info["source"]) != list_sources(settings.source) or settings.tokenizer not in (
        "auto",
        info["tokenizer"],
    ):
        return False
    # The fingerprint depends on the settings and on the hash of the text, which is not read again.
    text = ScanSummary(info["text"]["sha256"], 0, 0, 0, "", 0, 0, {}, {})
    return dataset_fingerprint(text, settings, tokenizers.load(folder)) == str(info["fingerprint"])


def _check_same_work(work: Path, settings: DataSettings, units: Sequence[Corpus], limits: Limits) -> None:
    """Record what is prepared. Raises `OctavoError` if other processes prepare something else."""
    sizes = [[(os.path.basename(path), os.path.getsize(path)) for path, _ in unit.files or ()] for unit in units]
    values = dataclasses.asdict(settings) | {"source": units[0].recorded_source}
    content = json.dumps({"format": FORMAT, "settings": values, "limits": dataclasses.asdict(limits), "files": sizes})
    path = work / "work.json"
    with files.translate_disk_errors(work):
        files.make_folder(work)
    if not path.exists():
        files.write_atomic(path, content)
    if path.read_text(encoding="utf-8") != content:
        raise OctavoError(
            f"{work} has the unfinished work of a preparation with other files or settings",
            f"the same files and settings, another --out, or delete {work}",
        )


class _Unit(msgspec.Struct):
    """Where a unit begins: its first document, its first character, and the shard of each split."""

    first_document: int
    first_character: int
    starts: list[Position]


class _Plan(msgspec.Struct):
    """plan.json: what all units have in common, and where each begins."""

    sha256: str  # of the corpus
    tokenizer: str  # the setting, not `auto`
    by: str  # see `Split`
    cut: int
    characters: int  # of the corpus
    folder: str  # in plan/: the tokenizer and the split of each document
    units: list[_Unit]


@dataclass
class _Helper:
    """The work of one process, stage by stage."""

    settings: DataSettings
    corpus: Corpus
    units: list[Corpus]
    work: Path
    out: Path
    claims: Claims
    limits: Limits

    def __post_init__(self) -> None:
        self._characters: dict[str, int] = {}  # of each unit that is scanned
        for name in ("scans", "plan", "parts", "shards"):
            with files.translate_disk_errors(self.work):
                files.make_folder(self.work / name)

    def run(self) -> _Work:
        names = [f"{number:05d}" for number in range(len(self.units))]
        yield from self._run_stage("reading", names, lambda: self._finished("scans", "*.npz"), self._scan)
        yield from self._run_stage("planning", ["plan"], lambda: self._finished("plan", "plan.json"), self._plan)
        yield from self._run_stage("writing tokens", names, lambda: self._finished("parts", "*.json"), self._encode)
        shared = [name for name, parts in self._parts().items() if len(parts) > 1]
        yield from self._run_stage("joining shards", shared, lambda: self._finished("shards", "*.json"), self._join)
        yield from self._run_stage("finishing", ["final"], self._finished_dataset, self._finish)

    def _finished(self, folder: str, pattern: str) -> set[str]:
        return {path.stem for path in (self.work / folder).glob(pattern) if not path.name.startswith(".")}

    def _finished_dataset(self) -> set[str]:
        return {"final"} if (self.out / "dataset.json").exists() else set()

    def _run_stage(
        self, stage: str, units: Sequence[str], finished: Callable[[], set[str]], act: Callable[[str], _Work]
    ) -> _Work:
        """Do units until all are finished, by this process or another. Yields the progress of all processes."""
        start = shown = time.perf_counter()
        while missing := [unit for unit in units if unit not in (done := finished())]:
            unit = next((unit for unit in missing if self.claims.take(f"{stage}-{unit}")), None)
            if unit is None:
                yield self._progress(stage, done, time.perf_counter() - start)
                time.sleep(self.limits.progress_seconds)
                continue
            for progress in act(unit) if unit not in finished() else ():
                self.claims.activity = Activity(f"{stage}-{unit}", progress.done)
                if time.perf_counter() - shown >= self.limits.progress_seconds:
                    yield self._progress(stage, done, time.perf_counter() - start)
                    shown = time.perf_counter()
            self.claims.activity = Activity()
            self.claims.release(f"{stage}-{unit}")

    def _progress(self, stage: str, finished: set[str], seconds: float) -> PreparationProgress:
        """What all processes together have done of a stage."""
        others, done = self.claims.other_activities(), 0
        if stage in ("reading", "writing tokens"):
            done = sum(self._count_characters(unit) for unit in finished)
            for activity in (self.claims.activity, *others):
                of_stage, _, unit = activity.unit.rpartition("-")
                done += activity.done if of_stage == stage and unit not in finished else 0
        total = self._loaded_plan[0].characters if stage == "writing tokens" else None
        processes = f", {len(others) + 1} processes" if others else ""
        return PreparationProgress(stage + processes, done, total, seconds)

    def _count_characters(self, unit: str) -> int:
        if unit not in self._characters:
            self._characters[unit] = self._load_scan(unit)[0].characters
        return self._characters[unit]

    # Stage 1: scans

    def _scan(self, unit: str) -> _Work:
        lengths = array("q")

        def chunks() -> Iterator[Chunk]:
            for chunk in self.units[int(unit)].chunks():
                lengths.append(len(chunk.text))
                yield chunk

        scan = yield from scan_chunks(self.units[int(unit)], self.limits, chunks())
        summary = {field.name: getattr(scan, field.name) for field in dataclasses.fields(ScanSummary)}
        with files.atomic_file(self.work / "scans" / f"{unit}.npz") as file:
            np.savez(
                file,
                summary=np.frombuffer(json.dumps(summary).encode(), np.uint8),
                lengths=np.frombuffer(scan.lengths, np.int64),
                digests=np.frombuffer(scan.digests, np.uint8),
                lacks_newline=np.frombuffer(scan.lacks_newline, np.uint8),
                chunk_lengths=np.frombuffer(lengths, np.int64),
            )

    def _load_scan(self, unit: str) -> tuple[CorpusScan, np.ndarray]:
        """The scan of a unit, and the lengths of its chunks, (chunks,)."""
        with np.load(self.work / "scans" / f"{unit}.npz", allow_pickle=False) as arrays:
            scan = CorpusScan(
                **json.loads(arrays["summary"].tobytes()),
                lengths=array("q", arrays["lengths"].tobytes()),
                digests=arrays["digests"].tobytes(),
                lacks_newline=arrays["lacks_newline"].tobytes(),
            )
            return scan, arrays["chunk_lengths"]

    def _join_scans(self, sha256: str) -> tuple[CorpusScan, list[CorpusScan], list[np.ndarray]]:
        """The scan of the corpus, and the scan and the lengths of the chunks of each unit."""
        loaded = [self._load_scan(f"{number:05d}") for number in range(len(self.units))]
        scans = [scan for scan, _ in loaded]
        return join_scans(scans, sha256), scans, [lengths for _, lengths in loaded]

    # Stage 2: the plan

    def _plan(self, _: str) -> _Work:
        scan, scans, chunk_lengths = self._join_scans("")
        if not scan.documents:
            hint = "a source with text, or --text-field NAME if another field has the text"
            raise EmptySplitError(f"{self.corpus.source_name} has no text in it", hint)
        warn_about_source(self.corpus, scan, self.settings)
        settings = resolve_tokenizer_setting(self.settings, scan)
        tokenizer, sha256 = yield from self._train_tokenizer(scan, settings)
        split = choose_split(scan, settings.val_fraction, settings.deduplicate, insert_newlines=False)
        units, first_document, first_character, starts = [], 0, 0, [Position(), Position()]
        for unit, lengths in zip(scans, chunk_lengths, strict=True):
            units.append(_Unit(first_document, first_character, starts))
            part = _part_of(split, units[-1], unit.documents)
            document = np.searchsorted(np.cumsum(np.frombuffer(unit.lengths, np.int64)), np.cumsum(lengths))
            splits = np.frombuffer(part.document_splits, np.uint8)[document]  # (chunks,)
            lengths, splits = lengths[splits != LEFT_OUT], splits[splits != LEFT_OUT]
            by_split = [lengths * (splits == TRAIN), lengths * (splits == VAL)]
            if split.by == "position":  # one chunk may be cut in two
                train = np.clip(part.cut - (np.cumsum(lengths) - lengths), 0, lengths)
                by_split = [train, lengths - train]
            starts = [
                advance(start, of_split[of_split > 0], self.limits.shard_characters)
                for start, of_split in zip(starts, by_split, strict=True)
            ]
            first_document, first_character = first_document + unit.documents, first_character + int(lengths.sum())
        folder = self.work / "plan" / self.claims.name
        with files.translate_disk_errors(folder):
            files.make_folder(folder)
            tokenizer.save(folder)
        files.write_atomic(self.work / "plan" / f"{self.claims.name}.splits", split.document_splits)
        plan = _Plan(sha256, settings.tokenizer, split.by, split.cut, scan.characters, self.claims.name, units)
        files.write_atomic(self.work / "plan" / "plan.json", msgspec.json.encode(plan))

    def _train_tokenizer(
        self, scan: CorpusScan, settings: DataSettings
    ) -> Generator[PreparationProgress, None, tuple[Tokenizer, str]]:
        """The tokenizer, and the sha256 of the corpus: both need all of the text in its order, so it is read once."""
        digests: list[str] = []

        def read() -> Iterator[Chunk]:
            corpus_hash, characters = CorpusHash(), 0
            for chunk in self.corpus.chunks():
                corpus_hash.update(chunk.text.encode(), chunk.ends_document)
                characters += len(chunk.text)
                yield chunk
            if characters != scan.characters:
                raise SourceChangedError(
                    f"{self.corpus.source_name} changed while it was read", "the same command again"
                )
            digests.append(corpus_hash.hexdigest())

        corpus = dataclasses.replace(self.corpus, read=read)
        inputs = BuildInputs(corpus, scan, settings, None, self.limits)
        tokenizer = yield from train_tokenizer(inputs)
        if not digests:  # this kind of tokenizer needs no text, or not all of it
            characters = 0
            for text, *_ in corpus.chunks():
                characters += len(text)
                yield PreparationProgress("planning", characters, scan.characters, 0.0)
        return tokenizers.choose_start(tokenizer, scan.shows_end_of_text(settings)), digests[0]

    @functools.cached_property
    def _loaded_plan(self) -> tuple[_Plan, Split, Tokenizer]:
        plan = schema.read_json(self.work / "plan" / "plan.json", _Plan, f"delete {self.work}")
        splits = (self.work / "plan" / f"{plan.folder}.splits").read_bytes()
        return plan, Split(plan.by, plan.cut, splits), tokenizers.load(self.work / "plan" / plan.folder)

    # Stage 3: the ids of each unit

    def _encode(self, unit: str) -> _Work:
        plan, split, tokenizer = self._loaded_plan
        scan, _ = self._load_scan(unit)
        begin = plan.units[int(unit)]
        part = _part_of(split, begin, scan.documents)
        uses_end_of_text = len(split.document_splits) > 1 and tokenizer.end_of_text is not None
        chunks = split_chunks(self.units[int(unit)], scan, part, insert_newlines=False)
        with contextlib.closing(chunks):
            records = yield from write_parts(
                self.work / "parts",
                unit,
                chunks,
                tokenizer,
                uses_end_of_text,
                begin.starts,
                plan.characters - sum(map(self._count_characters, self._finished("parts", "*.json"))),
                self.limits,
                self.settings.special_tokens,
            )
        files.write_atomic(self.work / "parts" / f"{unit}.json", msgspec.json.encode(records))

    def _parts(self) -> dict[str, list[PartRecord]]:
        """The files with ids of each shard, by its name, in the order of the corpus."""
        found: dict[str, list[PartRecord]] = {}
        for number in range(len(self.units)):
            path = self.work / "parts" / f"{number:05d}.json"
            for record in schema.read_json(path, list[PartRecord], f"delete {self.work}"):
                if record.length:
                    found.setdefault(f"{record.split}-{record.shard:05d}", []).append(record)
        return found

    # Stage 4: shards with ids of several units

    def _join(self, shard: str) -> _Work:
        parts = self._parts()[shard]
        ids = Shards([open_npy(self.work / "parts" / part.name) for part in parts])[:]
        path = self.work / "shards" / f"{shard}.npy"
        check_disk_space(path.parent, ids.nbytes)  # the parts stay until all shards are joined
        shards.write_npy(path, ids)
        record = PartRecord(parts[0].split, parts[0].shard, path.name, files.sha256(path), len(ids))
        files.write_atomic(path.with_suffix(".json"), msgspec.json.encode(record))
        yield from ()

    # Stage 5: the dataset

    def _finish(self, _: str) -> _Work:
        plan, split, tokenizer = self._loaded_plan
        scan = self._join_scans(plan.sha256)[0]
        settings = dataclasses.replace(self.settings, tokenizer=plan.tokenizer)
        final = self.work / "final"
        with files.translate_disk_errors(final):
            files.make_folder(final)
            files.remove_leftovers(final)  # of a process that was killed here
            (final / "dataset.json").unlink(missing_ok=True)
            records: dict[str, list[ShardRecord]] = {name: [] for name in SPLITS}
            for name, parts in sorted(self._parts().items()):
                record, folder = parts[0], self.work / "parts"
                if len(parts) > 1:
                    folder = self.work / "shards"
                    record = schema.read_json(folder / f"{name}.json", PartRecord, f"delete {self.work}")
                if not (final / f"{name}.npy").exists():
                    os.replace(folder / record.name, final / f"{name}.npy")
                records[record.split].append(ShardRecord(f"{name}.npy", record.sha256, record.length, ""))
            for path in (self.work / "plan" / plan.folder).iterdir():
                shutil.copy(path, final)
        tokens = {name: sum(record.length for record in records[name]) for name in SPLITS}
        if min(tokens.values()) < 2:
            raise split_error(scan, split, tokens)
        inputs = BuildInputs(self.corpus, scan, settings, None, self.limits)
        info = describe(final, inputs, tokenizer, split, records, tokens)
        info["checksum"] = checksum(info)
        with files.translate_disk_errors(self.out):
            (final / "dataset.json").write_text(json.dumps(info, indent=2) + "\n", encoding="utf-8")
            files.commit_folder(final, self.out)
        yield from ()


def _part_of(split: Split, unit: _Unit, documents: int) -> Split:
    """The split of the documents of a unit."""
    document_splits = split.document_splits[unit.first_document : unit.first_document + documents]
    return Split(split.by, split.cut - unit.first_character, document_splits)
