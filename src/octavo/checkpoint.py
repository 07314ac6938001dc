"""Save and load checkpoints. A checkpoint is a Hugging Face GPT-2 folder with a few more files.

    config.json model.safetensors tokenizer.json tokenizer_config.json generation_config.json
    model-0000i-of-0000n.safetensors, model.safetensors.index.json      instead, if the weights have more than 5 GB
    octavo.json                             settings, fingerprint of the dataset, step, losses
    trainer.safetensors, trainer.json       only if training can resume from it: optimizer state, counters, device, ...
    manifest.json                           size and sha256 of every other file; written last

`AutoModelForCausalLM.from_pretrained(folder)` works on it. A folder is written atomically and verified against its
manifest when it is loaded. No pickle is written. Any Hugging Face GPT-2 folder can be loaded too; it has no
`octavo.json` and no manifest.
"""

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from octavo import files, tokenizers
from octavo.errors import OctavoError, translate_setting_errors
from octavo.interop.formats import MAX_FILE_BYTES
from octavo.schema import Count, FileName, check, parse_json, read_json
from octavo.settings import ModelSettings, Settings
from octavo.tokenizers import Tokenizer

if TYPE_CHECKING:  # `octavo list` reads runs without PyTorch
    import torch
    from torch import Tensor

    from octavo.model import GPT

FORMAT = 1
TRAINER_FILES = ("trainer.safetensors", "trainer.json")
_ANOTHER_CHECKPOINT = "another checkpoint of the run, in its folder checkpoints/"  # a hint


@dataclass(frozen=True)
class Checkpoint:
    """A loaded checkpoint: the model in evaluation mode, its tokenizer and its settings."""

    model: "GPT"
    tokenizer: Tokenizer
    settings: ModelSettings  # `Settings` if Octavo trained the model
    info: dict[str, Any]  # all of `octavo.json`; empty if Octavo did not train the model
    folder: Path


@dataclass(frozen=True)
class _InfoSchema:
    """The types that `load` requires of `octavo.json`. Losses are in nats, and None if the step was not evaluated."""

    settings: dict[str, str | int | float | bool | list[str]]  # list[str]: several sources
    step: Count = 0
    tokens: Count = 0
    train_loss: float | None = None
    val_loss: float | None = None
    bits_per_byte: float | None = None
    data: dict[str, Any] | None = None  # `Dataset.origin`; its `source` is the one in the settings


@dataclass(frozen=True)
class TrainerState:
    """What training needs to resume: tensors by name, and values for JSON.

    `octavo.training.trainer_values` checks the values before they are restored.
    """

    tensors: "dict[str, Tensor]"
    values: dict[str, Any] = field(default_factory=dict)


def save(
    folder: Path,
    model: "GPT",
    tokenizer: Tokenizer,
    settings: Settings,
    info: dict[str, Any],
    trainer: TrainerState | None = None,
    max_file_bytes: int = MAX_FILE_BYTES,
) -> None:
    """Write a checkpoint to `folder`, atomically. `info` is added to octavo.json.

    Weights of more than `max_file_bytes` are divided into several files.
    """
    from octavo import weights
    from octavo.interop import gpt2_folder

    with files.atomic_folder(folder) as partial:
        gpt2_folder.write_model(partial, model, tokenizer, max_file_bytes)
        _write_json(partial / "octavo.json", {"format": FORMAT, "settings": asdict(settings), **info})
        if trainer is not None:
            weights.write_tensors(partial / "trainer.safetensors", trainer.tensors)
            _write_json(partial / "trainer.json", trainer.values)
        _write_json(partial / "manifest.json", _manifest(partial))


def load(
    folder: str | Path, device: "torch.device | str" = "cpu", foreign: bool = True, accept_changes: bool = False
) -> Checkpoint:
    """Load a checkpoint, or any Hugging Face GPT-2 folder, onto a device, in float32.

    Weights in float16, bfloat16 and float64 are converted; all other types are rejected, since their numbers mean
    something else: integers and 8-bit floats are quantized weights without their scale.

    Raises `OctavoError` if the folder is incomplete, changed, of another architecture or not a checkpoint. A folder
    without a manifest counts as incomplete, unless `foreign` allows folders that Octavo did not write. With
    `accept_changes`, the folder may be a checkpoint in which another program saved a model: it is read as a folder that
    Octavo did not write.
    """
    from octavo.interop import gpt2_folder

    folder = Path(folder)
    if not accept_changes:
        check_manifest(folder, foreign)
    config = read_json(folder / "config.json", dict[str, Any], _ANOTHER_CHECKPOINT)
    info: dict[str, Any] = {}
    if (folder / "octavo.json").exists() and not accept_changes:
        info = read_json(folder / "octavo.json", dict[str, Any], _ANOTHER_CHECKPOINT)
    settings = _stored_settings(folder, info) if info else gpt2_folder.parse_config(folder, config)
    model, tokenizer = gpt2_folder.load_model(folder, settings, device), tokenizers.load(folder)
    if tokenizer.vocab_size > settings.vocab_size:
        raise OctavoError(
            f"the tokenizer in {folder} has {tokenizer.vocab_size} tokens, the model only {settings.vocab_size}",
            "the tokenizer that the model was trained with",
        )
    return Checkpoint(model, tokenizer, settings, info, folder)


def load_trainer(folder: Path) -> TrainerState:
    """Load the trainer state of a checkpoint. Raises `OctavoError` if the manifest lists only weights."""
    from octavo import weights

    listed = read_manifest(folder).files  # a crash in `strip_trainer` leaves files that are not listed
    if not has_trainer(folder) or any(name not in listed for name in TRAINER_FILES):
        raise OctavoError(
            f"{folder} holds only weights, so training can't resume from it",
            f"--init {folder}, which starts a new run from these weights",
        )
    values = read_json(folder / "trainer.json", dict[str, Any], _ANOTHER_CHECKPOINT)
    tensors = weights.read_tensors(folder / "trainer.safetensors")
    weights.check_types(folder / "trainer.safetensors", tensors, _ANOTHER_CHECKPOINT)
    return TrainerState(tensors, values)


def has_trainer(folder: Path) -> bool:
    """Whether the folder has the files of a trainer state. Does not verify them."""
    return all((folder / name).is_file() for name in TRAINER_FILES)


def strip_trainer(folder: Path) -> None:
    """Remove the trainer state from a checkpoint. The manifest is replaced first: a crash leaves a valid checkpoint."""
    manifest = read_manifest(folder)
    for name in TRAINER_FILES:
        manifest.files.pop(name, None)
    files.write_atomic(folder / "manifest.json", json.dumps(msgspec.to_builtins(manifest), indent=2) + "\n")
    with files.translate_disk_errors(folder):
        for name in TRAINER_FILES:
            (folder / name).unlink(missing_ok=True)


def check_manifest(folder: Path, foreign: bool) -> None:
    """Compare the files of a folder with its manifest. Raises `OctavoError` that names those that differ.

    With `foreign`, the folder may be one that Octavo did not write, which has no manifest.
    """
    if not (folder / "config.json").is_file():
        raise OctavoError(
            f"{folder} is not a checkpoint: it has no config.json",
            "a run folder, one of its checkpoints, or a Hugging Face GPT-2 folder",
        )
    if not (folder / "manifest.json").is_file():
        if not foreign or (folder / "octavo.json").exists():
            raise OctavoError(f"{folder} has no manifest.json, so it is incomplete", _ANOTHER_CHECKPOINT)
        return
    from octavo.interop import gpt2_folder

    entries = read_manifest(folder).files
    for name in entries:
        if not (folder / name).is_file():
            raise OctavoError(f"{folder / name} is missing", _ANOTHER_CHECKPOINT)
    changed = [name for name, entry in entries.items() if not _is_unchanged(folder / name, entry)]
    weight_files = [path.name for path in gpt2_folder.safetensors_files(folder)]
    unlisted = sorted({*_FILES, *weight_files} - entries.keys())
    changed += [name for name in unlisted if (folder / name).exists()]
    if changed:
        others = f", and so were {', '.join(changed[1:])}" if changed[1:] else ""
        raise OctavoError(
            f"{folder / changed[0]} was changed or added after the checkpoint was written{others}",
            f"{_ANOTHER_CHECKPOINT}; or, if another program saved a model there, "
            f"octavo convert {folder} OUT --to hf --accept-changes",
        )


class FileEntry(msgspec.Struct):
    """The size and the hash of a file in the manifest."""

    bytes: Count
    sha256: str


def _is_unchanged(path: Path, entry: FileEntry) -> bool:
    return path.stat().st_size == entry.bytes and files.sha256(path) == entry.sha256


class Manifest(msgspec.Struct):
    """The contents of manifest.json."""

    format: int
    files: dict[FileName, FileEntry]


def read_manifest(folder: Path) -> Manifest:
    """The contents of a folder's manifest.json. Raises `OctavoError` if it is missing or damaged."""
    return read_json(folder / "manifest.json", Manifest, _ANOTHER_CHECKPOINT)


def parse_manifest(content: bytes, name: str) -> Manifest:
    """The manifest in the bytes of a manifest.json. Errors call it `name`."""
    return parse_json(content, Manifest, name, _ANOTHER_CHECKPOINT)


# The files that `load` reads, besides the shards of the weights: the manifest must list those that exist.
# `TRAINER_FILES` may be unlisted: `strip_trainer` unlists them first, and a crash can leave the files.
_FILES = (
    "added_tokens.json",
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "merges.txt",
    "model.safetensors",
    "model.safetensors.index.json",
    "octavo.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
)


def _stored_settings(folder: Path, info: dict[str, Any]) -> Settings:
    if info.get("format") != FORMAT:
        raise OctavoError(
            f"{folder} has format {info.get('format')!r}; this version of Octavo reads format {FORMAT}",
            "a newer version of Octavo",
        )
    check(info, _InfoSchema, str(folder / "octavo.json"), _ANOTHER_CHECKPOINT)
    unknown = sorted(info["settings"].keys() - {setting_field.name for setting_field in fields(Settings)})
    if unknown:  # ignoring one that changes what the model computes would give wrong results without a warning
        raise OctavoError(
            f"{folder} was trained with the setting {unknown[0]}, which this version of Octavo does not know",
            "the version of Octavo that wrote it",
        )
    with translate_setting_errors(folder / "octavo.json"):
        return Settings(**info["settings"])


def _manifest(folder: Path) -> dict[str, Any]:
    entries = {p.name: {"bytes": p.stat().st_size, "sha256": files.sha256(p)} for p in sorted(folder.iterdir())}
    return {"format": FORMAT, "files": entries}


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
