"""Copies of runs on other storage: `octavo train --mirror URL` writes one, and a RUN may be the URL of one.

The copy has the layout of a run folder, see `octavo.runs`. Object stores cannot rename a folder, so the order of writes
keeps the copy valid. The manifest.json of a checkpoint is written after its other files, and removed before them;
`last` and `best` are written after that. A reader takes a checkpoint only if every file is as its manifest says. So the
newest complete checkpoint can be loaded at any moment, whatever has failed or was killed. New lines of the logs are
written before the checkpoints, so that the logs have every step up to any checkpoint.
"""

import contextlib
import json
import os
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path

from octavo import checkpoint, files, remote, run_layout
from octavo.checkpoint import FileEntry
from octavo.errors import OctavoError, OctavoWarning
from octavo.remote import MissingError, Storage
from octavo.run_layout import CHECKPOINTS, POINTERS, SETTINGS, is_run, parse_checkpoint_name, parse_pointer

_ORIGIN = ".origin"  # in a run folder that was copied from a URL: the URL


# Writing


def push(run: Path, storage: Storage) -> None:
    """Make the copy of a run equal to the run folder, which another thread may change meanwhile.

    Only checkpoints that differ are copied. Those that the run no longer has are removed from the copy, after the new
    ones are complete. Raises `OctavoError` or `MachineError` if something cannot be copied; another call continues.
    Never changes the run.
    """
    pointers = {name: run_layout.read_pointer(run / name) for name in POINTERS}
    newest_first = [path.name for path in reversed(run_layout.find_checkpoints(run).values())]
    copied_logs = {name: _read(storage, name) or b"" for name in run_layout.LOG_FILES}
    _push_logs(run, storage, copied_logs, may_lose_steps=False)
    copied: set[str] = set()
    for name in dict.fromkeys([pointers["last"], pointers["best"], *newest_first]):
        if name is not None and _push_checkpoint(run / CHECKPOINTS / name, storage):
            copied.add(name)
    if pointers["last"] not in copied:  # not saved yet, or the run folder was removed
        return
    if (run / SETTINGS).exists():
        storage.write(SETTINGS, (run / SETTINGS).read_bytes())
    for pointer, name in pointers.items():
        if name is None:
            storage.remove(pointer)
        elif name in copied:
            storage.write(pointer, f"{name}\n".encode())
    _push_logs(run, storage, copied_logs, may_lose_steps=True)
    kept = copied | {name for pointer in POINTERS if (name := _remote_pointer(storage, pointer))}
    for name in {path.split("/")[1] for path in storage.list_files(CHECKPOINTS)} - kept:
        _remove_checkpoint(storage, name)


def _push_logs(run: Path, storage: Storage, copied: dict[str, bytes], may_lose_steps: bool) -> None:
    """Copy the logs that differ from those `copied`, which is updated.

    When training has returned to an earlier checkpoint, its logs have fewer steps. They `may_lose_steps` only once
    `last` of the copy names that checkpoint: the one that it named before needs the old lines.
    """
    for name in run_layout.LOG_FILES:
        if (run / name).exists():
            content = (run / name).read_bytes()  # training appends to it
            has_fewer_steps = _last_step(content) < _last_step(copied[name])
            if content != copied[name] and (may_lose_steps or not has_fewer_steps):
                storage.write(name, content)
                copied[name] = content


def _last_step(log: bytes) -> int:
    """The step of the last complete line of a log; 0 if no line is complete."""
    for line in reversed(log.splitlines()):
        with contextlib.suppress(ValueError, KeyError, TypeError):  # half a line, or a damaged one
            return int(json.loads(line)["step"])
    return 0


def _push_checkpoint(folder: Path, storage: Storage) -> bool:
    """Copy a checkpoint. False if training has removed it meanwhile: a newer one has replaced it."""
    name = f"{CHECKPOINTS}/{folder.name}"
    with _snapshot(folder) as snapshot:
        try:
            manifest = (snapshot / "manifest.json").read_bytes()
            listed = checkpoint.read_manifest(snapshot).files
        except (OSError, OctavoError):
            return False
        if manifest != _read(storage, f"{name}/manifest.json"):
            if not _has_all(storage, name, listed):
                storage.remove(f"{name}/manifest.json")
                try:
                    for file in listed:
                        storage.upload(snapshot / file, f"{name}/{file}")
                except MissingError:  # it could not be linked, and was removed
                    return False
            storage.write(f"{name}/manifest.json", manifest)
        for path in storage.list_files(name).keys() - {f"{name}/{file}" for file in (*listed, "manifest.json")}:
            storage.remove(path)  # the trainer's state, which training has removed since
    return True


def _has_all(storage: Storage, name: str, listed: dict[str, FileEntry]) -> bool:
    """Whether the copy has all of these files, perhaps with a trainer's state that training has removed since."""
    with contextlib.suppress(OctavoError):
        there = checkpoint.parse_manifest(_read(storage, f"{name}/manifest.json") or b"", name).files
        return listed.items() <= there.items()
    return False


def _remove_checkpoint(storage: Storage, name: str) -> None:
    storage.remove(f"{CHECKPOINTS}/{name}/manifest.json")  # first: without it, the checkpoint is incomplete
    for path in storage.list_files(f"{CHECKPOINTS}/{name}"):
        storage.remove(path)


@contextlib.contextmanager
def _snapshot(folder: Path) -> Iterator[Path]:
    """A folder with links to the files of a checkpoint, which training may remove meanwhile.

    If the file system has no hard links, the checkpoint itself.
    """
    links = folder.with_name(f".{folder.name}.upload.partial")  # `files.remove_leftovers` removes it after a crash
    shutil.rmtree(links, ignore_errors=True)
    try:
        links.mkdir()
        for path in folder.iterdir():
            os.link(path, links / path.name)
    except OSError:
        shutil.rmtree(links, ignore_errors=True)
        yield folder
        return
    try:
        yield links
    finally:
        shutil.rmtree(links, ignore_errors=True)


# Reading


def fetch_weights(url: str) -> Path:
    """A folder in the cache with what a URL names: a run with its best checkpoint, a checkpoint, or a GPT-2 folder.

    The trainer's state is left out. Raises `OctavoError` if there is nothing that can be loaded.
    """
    storage, cached = Storage(url), remote.cache_folder(url)
    root = cached / "copy" / (storage.name or "run")
    if storage.exists(SETTINGS):
        with remote.lock(cached):
            name = _fetch_first(storage, root, _find_checkpoints(storage, ("best", "last")))
            _write_files(storage, root, {"best": name})
            for folder in (root / CHECKPOINTS).glob("step-*"):
                if folder.name != name:  # was the best before
                    files.remove_folder(folder)
        return root
    if storage.exists("manifest.json"):
        with remote.lock(cached):
            _fetch_checkpoint(storage, "", root, with_trainer=False)
        return root
    if storage.exists("config.json"):
        return remote.fetch(url)
    raise OctavoError(f"{url} is neither a run nor a checkpoint", "the URL of --mirror, or of a checkpoint in it")


def fetch_run(url: str, folder: Path) -> None:
    """Copy a run into `folder`, so that training can resume from it there. An incomplete checkpoint is left out.

    If the folder was copied from this URL before, it stays as it is. Raises `OctavoError` if it has something else, or
    if the copy has no complete checkpoint from which training can resume.
    """
    storage = Storage(url)
    with remote.lock(remote.cache_folder(url)):
        _fetch_run(storage, folder)


def _fetch_run(storage: Storage, folder: Path) -> None:
    url = storage.url
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        origin = (folder / _ORIGIN).read_text(encoding="utf-8") if (folder / _ORIGIN).is_file() else None
        if origin != url:
            raise OctavoError(f"{folder} already exists and is not empty", f"--resume {folder}, or another --out")
        if is_run(folder):
            return
    if not storage.exists(SETTINGS):
        raise OctavoError(f"{url} is not a run: it has no settings.toml", "the URL of --mirror")
    with files.translate_disk_errors(folder):
        files.make_folder(folder)
    files.write_atomic(folder / _ORIGIN, storage.url)
    fetched, last = [], None
    for name in _find_checkpoints(storage, ("last",)):
        try:
            _fetch_checkpoint(storage, f"{CHECKPOINTS}/{name}", folder, with_trainer=True)
        except MissingError:
            continue
        except OctavoError as error:
            if error.exit_code != OctavoError.exit_code:  # the network, not the checkpoint
                raise
            warnings.warn(f"{url}: a damaged checkpoint is left out: {error.message}", OctavoWarning, stacklevel=2)
            continue
        fetched.append(name)
        if last is None and checkpoint.has_trainer(folder / CHECKPOINTS / name):
            last = name
    if last is None:
        hint = f"--init {url}, if it has a checkpoint with only weights"
        raise OctavoError(f"{url} has no complete checkpoint to resume from", hint)
    best = _remote_pointer(storage, "best")
    _write_files(storage, folder, {"last": last} | ({"best": best} if best in fetched else {}))


def _fetch_first(storage: Storage, root: Path, names: list[str]) -> str:
    """Fetch the weights of the first of these checkpoints that is complete, and return its name."""
    reason: OctavoError | None = None
    for name in names:
        try:
            _fetch_checkpoint(storage, f"{CHECKPOINTS}/{name}", root, with_trainer=False)
        except OctavoError as error:
            if error.exit_code != OctavoError.exit_code:
                raise
            reason = reason or error
        else:
            if reason is not None:
                warnings.warn(f"{reason.message}; using {storage.url}/{name}", OctavoWarning, stacklevel=2)
            return name
    raise reason or OctavoError(f"{storage.url} has no checkpoint yet", "train it for longer")


def _fetch_checkpoint(storage: Storage, name: str, root: Path, with_trainer: bool) -> None:
    """Copy a checkpoint to `root / name` and verify it. Does nothing if it is there already."""
    prefix = f"{name}/" if name else ""
    manifest = storage.read(f"{prefix}manifest.json")
    listed = checkpoint.parse_manifest(manifest, f"{storage.url}/{prefix}manifest.json").files
    left_out = () if with_trainer else checkpoint.TRAINER_FILES
    target = root / name
    with contextlib.suppress(OctavoError):
        if checkpoint.read_manifest(target).files == {k: v for k, v in listed.items() if k not in left_out}:
            checkpoint.check_manifest(target, foreign=False)
            return
    with files.translate_disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
    with files.atomic_folder(target) as partial:
        (partial / "manifest.json").write_bytes(manifest)
        for file in listed:
            if file not in left_out:
                storage.download(f"{prefix}{file}", partial / file)
        if left_out:
            checkpoint.strip_trainer(partial)
        checkpoint.check_manifest(partial, foreign=False)


def _find_checkpoints(storage: Storage, pointers: tuple[str, ...]) -> list[str]:
    """The names of the checkpoints that have a manifest: those of the pointers first, then the others, newest first."""
    listed = (path.split("/") for path in storage.list_files(CHECKPOINTS))
    complete = {parts[1] for parts in listed if len(parts) == 3 and parts[2] == "manifest.json"}
    steps = {name: step for name in complete if (step := parse_checkpoint_name(name)) is not None}
    newest_first = sorted(steps, key=lambda name: steps[name], reverse=True)
    preferred = [name for pointer in pointers if (name := _remote_pointer(storage, pointer)) in complete]
    return list(dict.fromkeys([*filter(None, preferred), *newest_first]))


def _write_files(storage: Storage, folder: Path, pointers: dict[str, str]) -> None:
    """Copy the settings and the logs of a run, and write its pointers. The settings come last: they make it a run."""
    for name, target in pointers.items():
        files.write_atomic(folder / name, f"{target}\n")
    for name in (*run_layout.LOG_FILES, SETTINGS):
        if (content := _read(storage, name)) is not None:
            files.write_atomic(folder / name, content)


def _read(storage: Storage, name: str) -> bytes | None:
    """A file, or None if it does not exist."""
    with contextlib.suppress(MissingError):
        return storage.read(name)
    return None


def _remote_pointer(storage: Storage, name: str) -> str | None:
    return parse_pointer(_read(storage, name) or b"")
