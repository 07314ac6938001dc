"""A byte is flipped, or the end is missing, in any file: that is detected, or it changes nothing that is read.

Two kinds of files have no checksum. A changed digit in metrics.jsonl or samples.jsonl is not detected; nothing is
computed from them. `last` and `best` may name another checkpoint of the run, which is then verified and read.
"""

import random
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import octavo
from octavo import checkpoint
from octavo.checkpoint import Checkpoint, TrainerState
from octavo.data.dataset import open_dataset
from octavo.data.prepare import prepare, prepare_dataset
from octavo.errors import OctavoError, OctavoWarning
from octavo.settings import resolve
from octavo.training import plan
from octavo.training.setup import set_up
from reliability.torture import IS_TORTURE, SMALL, TEXT, Report, newest_intact

DAMAGES = {"checkpoint": 300, "run": 400, "dataset": 200, "cache": 100}  # 1,000
SETTINGS = SMALL | dict(
    max_steps=6,
    warmup_steps=2,
    eval_every=2,
    sample_every=3,
    log_every=1,
    keep_checkpoints=3,
    precision="fp32",
)


def tensors(named: dict[str, torch.Tensor]) -> dict[str, bytes]:
    return {name: value.detach().reshape(-1).view(torch.uint8).numpy().tobytes() for name, value in named.items()}


def values_of(loaded: Checkpoint, state: TrainerState | None = None) -> dict[str, Any]:
    """Everything that was read from a checkpoint."""
    return {
        "weights": tensors(dict(loaded.model.named_parameters())),
        "tokenizer": loaded.tokenizer.fingerprint,
        "settings": loaded.settings,
        "info": loaded.info,
        "trainer": (tensors(state.tensors), state.values) if state else None,
    }


def read_checkpoint(folder: Path) -> dict[str, Any]:
    """What `octavo sample` and `--resume` read from a checkpoint."""
    return values_of(checkpoint.load(folder, foreign=False), checkpoint.load_trainer(folder))


def read_run(folder: Path) -> dict[str, Any]:
    """What `--resume` and `octavo sample` read from a run, with their notices."""
    setup = set_up(plan(resume=folder)).result
    newest = newest_intact(octavo.Run(folder))
    assert newest is not None
    return {
        "resumed": (setup.settings, tensors(dict(setup.model.named_parameters()))),
        "newest": values_of(*newest),
        "best": values_of(octavo.load(folder)),
        "manifests": [checkpoint.check_manifest(path, False) for path in octavo.Run(folder).checkpoints.values()],
        "logs": [octavo.Run(folder).lines(kind) for kind in ("metrics", "samples")],
        "notices": setup.notices,
    }


def read_dataset(folder: Path) -> dict[str, Any]:
    """What training reads from a prepared folder."""
    data = open_dataset(folder)
    ids = {split: data.tokens[split][:].tobytes() for split in ("train", "val")}
    return {"ids": ids, "info": data.info, "tokenizer": data.tokenizer.fingerprint}


def read_cache(folder: Path) -> dict[str, Any]:
    """What training on a text reads, from the cache or by preparing it again."""
    data = prepare_dataset(resolve(source=str(folder.parent / "text.txt"))).result
    ids = {split: data.tokens[split][:].tobytes() for split in ("train", "val")}
    return {"ids": ids, "info": data.info, "tokenizer": data.tokenizer.fingerprint}


def damage(content: bytes, generator: random.Random) -> tuple[bytes, str]:
    """Change the content in one place. Returns the new content and a description of the change."""
    position = generator.randrange(len(content))
    match generator.choice(["bit", "byte", "end"]):
        case "bit":
            mask = 1 << generator.randrange(8)
        case "byte":
            mask = generator.randrange(1, 256)
        case _:
            return content[:position], f"only {position} of {len(content)} bytes are left"
    changed = bytearray(content)
    changed[position] ^= mask
    return bytes(changed), f"byte {position} is {changed[position]:#x} instead of {content[position]:#x}"


def outcome(read: Callable[[Path], dict[str, Any]], folder: Path, expected: dict[str, Any]) -> tuple[str, str]:
    """Whether damage was detected, harmless or silent, and the messages or the names of what changed."""
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", OctavoWarning)
            actual = read(folder)
    except OctavoError as error:
        return "detected", str(error)
    messages = [*actual.get("notices", ()), *(str(warning.message) for warning in caught)]
    different = [name for name in expected if actual[name] != expected[name]]
    if messages:
        return "detected", str(messages)
    if not different:
        return "harmless", ""
    return ("log_lines" if different == ["logs"] else "silent"), str(different)


@pytest.mark.parametrize("target", DAMAGES)
def test_damage_is_detected_or_harmless(
    target: str, tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch, report: Report
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    match target:
        case "cache":
            folder, read = own_cache, read_cache
            shutil.move(tmp_path / "text.txt", own_cache.parent / "text.txt")
        case "dataset":
            folder, read = tmp_path / "tokens", read_dataset
            prepare("text.txt", folder, tokenizer="bpe:300")
        case "run":
            folder, read = octavo.train("text.txt", out="run", **SETTINGS).folder, read_run
        case _:
            last = octavo.train("text.txt", out="run", **SETTINGS).last
            assert last is not None
            folder, read = last, read_checkpoint
    expected = read(folder)
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.stat().st_size]
    generator = random.Random(f"damage to a {target}")
    counts = dict.fromkeys(("detected", "harmless", "log_lines", "other_checkpoint"), 0)
    count = DAMAGES[target] if IS_TORTURE else DAMAGES[target] // 20
    for number in range(count):
        file = files[number % len(files)]
        content = file.read_bytes()
        changed, description = damage(content, generator)
        file.write_bytes(changed)
        kind, detail = outcome(read, folder, expected)
        if kind == "silent" and file.name in ("last", "best"):
            kind = "other_checkpoint"
        assert kind != "silent", f"{file.relative_to(folder)}: {description}, and {detail} changed"
        counts[kind] += 1
        if target == "cache":  # what was damaged may have been replaced
            shutil.rmtree(folder)
            read(folder)
        else:
            file.write_bytes(content)
    assert counts["detected"] or target == "cache"
    report(f"a flipped bit or byte, or a missing end, in any file of a {target}", count, silent=0, **counts)


def test_a_changed_digit_in_settings_toml_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    run = octavo.train("text.txt", out="run", **SETTINGS)
    assert set_up(plan(resume=run)).result.notices == []
    path = run.folder / "settings.toml"
    content = path.read_text(encoding="utf-8")
    path.write_text(content.replace("warmup_steps = 2", "warmup_steps = 3"), encoding="utf-8")
    (notice,) = set_up(plan(resume=run)).result.notices
    assert "warmup_steps = 3" in notice
