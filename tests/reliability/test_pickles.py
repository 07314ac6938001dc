"""Pickles that run code are put in place of every file that Octavo reads: none runs.

CI tries one payload in each file, and every payload somewhere; `make torture` tries every payload in every file.
"""

import contextlib
import gzip
import io
import json
import os
import pickle
import shutil
import sys
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from checkpoints import CHECKPOINT_FILES, list_in_manifest, remove_octavo_files
from commands import SMALL, RunCommand, last_checkpoint
from octavo import cli
from reliability.payloads import NAMES, OPCODES, PLACES, calls
from reliability.torture import IS_TORTURE, Report

pytestmark = pytest.mark.skipif(os.name == "nt", reason="some payloads run commands of Unix")


def payload(index: int, marker: Path) -> bytes:
    """The payload with this number, which creates `marker`. Numbers that differ by 30 differ in opcode and place."""
    round, number = divmod(index, len(NAMES))
    place = list(PLACES.values())[(round + number) % len(PLACES)]
    opcode = OPCODES[(round + number // len(PLACES)) % len(OPCODES)]
    return place(calls(str(marker))[NAMES[number]], opcode)


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # some payloads open a file and leave it to be closed
@pytest.mark.parametrize("number", range(len(NAMES)), ids=lambda number: NAMES[number])
def test_the_payloads_run_if_they_are_unpickled(number: int, tmp_path: Path) -> None:
    for round in range(len(OPCODES)):
        marker = tmp_path / f"marker-{round}"
        with contextlib.suppress(TypeError):  # as a key: what the call returns may not be hashable
            pickle.loads(payload(number + round * len(NAMES), marker))
        assert os.path.lexists(marker)


# Containers that hold a pickle


def in_npy(content: bytes) -> bytes:
    """A .npy file of objects, which are a pickle after the header."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": (1,)})
    return file.getvalue() + content


def in_npz(content: bytes) -> bytes:
    return in_zip({"arr_0.npy": in_npy(content)})


def in_torch_file(content: bytes) -> bytes:
    """What torch.save writes since PyTorch 1.6."""
    return in_zip({"archive/data.pkl": content, "archive/version": b"3\n", "archive/byteorder": b"little"})


def in_old_torch_file(content: bytes) -> bytes:
    """What torch.save wrote before: pickles of a magic number, a version, a machine and the content."""
    magic_number = 0x1950A86A20F9469CFC6C
    return b"".join(map(pickle.dumps, (magic_number, 1001, {"little_endian": True}))) + content


def in_zip(members: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, member in members.items():
            archive.writestr(name, member)
    return file.getvalue()


def in_tar(content: bytes) -> bytes:
    """A WebDataset, as the library datasets reads it."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name in ("a.pkl", "a.pth", "a.txt"):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


# Targets


@dataclass(frozen=True)
class Target:
    """A file that the payload replaces, and a command that reads it."""

    path: str
    command: list[object]
    container: Callable[[bytes], bytes] = bytes

    def __str__(self) -> str:
        return f"{self.command[0]} {self.path} {self.container.__name__}"


INIT = ["train", "text.txt", "--max-steps", 1, "--device", "cpu", "--init"]
CHECKPOINT = "runs/mine/checkpoints/step-000004"
ELSEWHERE = "192.0.2.1"  # no machine has this address (RFC 5737), so `serve` ends after it has read the keys
TARGETS = [
    # A nanoGPT folder
    Target("nanogpt/meta.pkl", ["prepare", "nanogpt", "--verify"]),
    Target("nanogpt/meta.pkl", ["train", "nanogpt", *SMALL]),
    Target("nanogpt/meta.pkl", ["eval", "runs/mine", "nanogpt"]),
    Target("nanogpt/meta.pkl", ["estimate", "nanogpt", *SMALL]),
    Target("nanogpt/meta.pkl", ["prepare", "nanogpt", "--verify"], gzip.compress),
    Target("nanogpt/train.bin", ["prepare", "nanogpt", "--verify"]),
    # A file of PyTorch or NumPy as a RUN, or in a folder that is given as one
    *(
        Target(path, command, container)
        for path, run in (("ckpt.pt", "ckpt.pt"), ("out/ckpt.pt", "out"), ("bare/pytorch_model.bin", "bare"))
        for container in (bytes, in_torch_file, in_old_torch_file)
        for command in ([*INIT, run], ["train", "--resume", run], ["sample", run])
    ),
    *(
        Target("ckpt.pt", command, in_torch_file)
        for command in (
            ["eval", "ckpt.pt", "text.txt"],
            ["inspect", "ckpt.pt", "shapes"],
            ["inspect", "ckpt.pt", "--html", "page.html"],
            ["bench", "generate", "ckpt.pt"],
            ["serve", "ckpt.pt", "--port", 0],
            ["train", "ckpt.pt", *SMALL],
        )
    ),
    *(Target("model.npz", command, in_npz) for command in (["sample", "model.npz"], ["train", "model.npz", *SMALL])),
    # A folder of Hugging Face
    *(
        Target(f"hf/{name}", ["sample", "hf", "--max-new-tokens", 2])
        for name in (
            "pytorch_model.bin",  # not read, because there is a model.safetensors
            "training_args.bin",
            "optimizer.pt",
            "model.safetensors",
            "config.json",
            "tokenizer.json",
            "tokenizer_config.json",
            "special_tokens_map.json",
            "added_tokens.json",
            "generation_config.json",
        )
    ),
    *(Target(f"old/{name}", ["sample", "old", "--max-new-tokens", 2]) for name in ("vocab.json", "merges.txt")),
    # A run
    *(Target(f"{CHECKPOINT}/{name}", ["train", "--resume", CHECKPOINT]) for name in sorted(CHECKPOINT_FILES)),
    *(
        Target(f"{CHECKPOINT}/{name}", ["sample", CHECKPOINT, "--max-new-tokens", 2])
        for name in sorted(CHECKPOINT_FILES)
    ),
    *(
        Target(f"runs/mine/{name}", ["train", "--resume", "runs/mine"])
        for name in ("settings.toml", "metrics.jsonl", "samples.jsonl", "last", "best", ".lock")
    ),
    Target("runs/mine/metrics.jsonl", ["inspect", "runs/mine", "losses"]),
    # A prepared dataset and the cache
    *(
        Target("tokens/train-00000.npy", ["prepare", "tokens", "--verify"], container)
        for container in (bytes, in_npy, in_npz, in_torch_file)
    ),
    Target("tokens/dataset.json", ["prepare", "tokens", "--verify"]),
    Target("tokens/tokenizer.json", ["prepare", "tokens", "--verify"]),
    *(Target(f"cache/{pattern}", ["train", "text.txt", *SMALL]) for pattern in ("*/*.json", "*/*/*")),
    # A text
    *(
        Target(f"payload{suffix}", ["stats", f"payload{suffix}"], container)
        for suffix in (".pkl", ".txt", ".jsonl", ".json", ".csv", ".parquet", ".npy", ".gz", ".jsonl.zst")
        for container in ((bytes, in_npy, gzip.compress) if suffix in (".npy", ".gz") else (bytes,))
    ),
    Target("-", ["stats", "-"]),
    # Options
    Target("payload.toml", ["train", "text.txt", *SMALL, "--config", "payload.toml"]),
    Target("prompt", ["sample", "runs/mine", "--prompt-file", "prompt", "--max-new-tokens", 2]),
    Target("-", ["sample", "runs/mine", "--prompt-file", "-", "--max-new-tokens", 2]),
    Target("text", ["inspect", "runs/mine", "tokens", "--text-file", "text"]),
    Target("keys", ["serve", "runs/mine", "--api-key-file", "keys", "--host", ELSEWHERE]),
]
if IS_TORTURE:  # importing the library datasets takes seconds
    TARGETS += [
        Target("rows/train.pkl", ["stats", "hf:./rows"]),
        Target("rows/train.tar", ["stats", "hf:./rows"], in_tar),
    ]


@pytest.fixture(scope="module")
def template(trained_folder: Path, built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with everything that the commands of `TARGETS` name."""
    folder = tmp_path_factory.mktemp("targets")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("OCTAVO_CACHE", str(folder / "cache"))
        shutil.copy(trained_folder / "text.txt", "text.txt")
        os.utime("text.txt", (1, 1))  # an older file is recognized by the cache
        assert cli.main(["prepare", "text.txt", "--out", "tokens"]) == 0
    (folder / "cache" / "native").symlink_to(built)
    run = Path(shutil.copytree(trained_folder / "run", folder / "runs" / "mine"))
    foreign = remove_octavo_files(Path(shutil.copytree(last_checkpoint(run), folder / "hf")))
    old = Path(shutil.copytree(foreign, folder / "old", ignore=shutil.ignore_patterns("tokenizer.json")))
    (old / "vocab.json").write_text(json.dumps({"a": 0}), encoding="utf-8")
    (old / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    shutil.copytree(foreign, folder / "bare", ignore=shutil.ignore_patterns("model.safetensors"))
    for name in ("nanogpt", "out", "rows"):
        (folder / name).mkdir()
    for split in ("train", "val"):
        np.zeros(200, np.uint16).tofile(folder / "nanogpt" / f"{split}.bin")
    (folder / "nanogpt" / "meta.pkl").write_bytes(pickle.dumps({"stoi": {"a": 0}, "itos": {0: "a"}}))
    return folder


@pytest.fixture
def workspace(template: Path, workdir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of `template`, the working directory."""
    shutil.copytree(template, workdir, symlinks=True, dirs_exist_ok=True)
    monkeypatch.setenv("OCTAVO_CACHE", str(workdir / "cache"))
    return workdir


@pytest.mark.parametrize("index", range(len(TARGETS)), ids=lambda index: str(TARGETS[index]))
def test_no_payload_runs(
    index: int, workspace: Path, run_command: RunCommand, monkeypatch: pytest.MonkeyPatch, report: Report
) -> None:
    target, marker = TARGETS[index], workspace / "marker"
    numbers = range(index, index + len(NAMES)) if IS_TORTURE else [index]
    for number in numbers:
        content = target.container(payload(number, marker))
        if target.path == "-":
            monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
        if "*" in target.path:
            for path in [path for path in workspace.glob(target.path) if path.is_file() and path.suffix != ".so"]:
                path.write_bytes(content)
        else:
            (workspace / target.path).write_bytes(content)
            list_in_manifest(workspace / target.path)  # as an attacker would
        result = run_command(*target.command)
        assert not os.path.lexists(marker), number
        assert result.code in (0, 2), result.err
        assert "Traceback" not in result.err
    report("a payload of pickle in a file that a command reads", len(numbers), run=0)
