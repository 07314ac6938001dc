"""A folder with files that are wrong in many ways, and the commands that read them.

`COMMANDS` has a line for each: each must be rejected. `ENVIRONMENTS` has variables that must not lead to a traceback.
"""

import gzip
import json
import os
import pickle
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from backports import zstd

from checkpoints import edit_json, list_in_manifest, remove_octavo_files
from commands import SMALL, last_checkpoint
from folders import flip_bit, truncate
from octavo import cli

DEEP = b"[" * 20_000

# Texts, in texts/: the name of a file, and its bytes.
TEXTS: dict[str, bytes] = {
    "empty.txt": b"",
    "bom.txt": b"\xef\xbb\xbf",
    "one-character.txt": b"a",
    "picture.txt": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" * 20,
    "latin-1.txt": b"caf\xe9 " * 100,
    "cut-within-a-character.txt": ("é" * 100).encode()[:-1],
    "utf-16-without-mark.txt": ("plain text\n" * 50).encode("utf-16-le"),
    "cut-utf-16.txt": ("plain text\n" * 50).encode("utf-16")[:-1],
    "nul.txt": b"plain text\n" * 50 + b"\0",
    "surrogate.txt": b"abc \xed\xa0\x80 def " * 50,
    "overlong.txt": b"abc \xc0\x80 def " * 50,
    "not-json.jsonl": b"hello\n" * 10,
    "array.jsonl": b'["text"]\n' * 10,
    "number.jsonl": b'{"text": 5}\n' * 10,
    "null.jsonl": b'{"text": null}\n' * 10,
    "other-field.jsonl": b'{"story": "abc"}\n' * 10,
    "deep.jsonl": b'{"text": ' + DEEP + b"\n",
    "half-a-pair.jsonl": b'{"text": "\\ud800 abc"}\n' * 10,
    "cut.jsonl": b'{"text": "abc"}\n{"text": "ab',
    "cut.json": b'[{"text": "abc"}, {"text": "ab',
    "cut.csv": b'text\n"abc',
    "other-field.csv": b"story\nabc\n",
    "bomb.txt.zst": zstd.compress(b"a" * (80 << 20)),
    "empty.gz": b"",
    "not-a-gzip.txt.gz": b"plain text\n" * 50,
    "cut.txt.gz": gzip.compress(np.random.default_rng(0).bytes(3000).hex().encode())[:-500],
    "wrong-checksum.txt.gz": gzip.compress(b"plain text\n" * 50)[:-8] + bytes(8),
    "only-a-header.txt.gz": gzip.compress(b"")[:10],
    "not-a-zstd.txt.zst": b"plain text\n" * 50,
    "cut.txt.zst": zstd.compress(np.random.default_rng(0).bytes(3000).hex().encode())[:-500],
    "large-window.txt.zst": b"\x28\xb5\x2f\xfd\x00\xff" + bytes(50),
    "not-a.parquet": b"plain text\n" * 50,
    "cut.parquet": b"PAR1" + bytes(100),
    "footer.parquet": b"PAR1" + bytes(100) + struct.pack("<I", 2**31 - 1) + b"PAR1",
    "table.parquet.gz": gzip.compress(b"PAR1"),
}

# Settings, in config/
CONFIGS: dict[str, bytes] = {
    "misspelled.toml": b"n_layr = 2\n",
    "section.toml": b"[modell]\nn_layer = 2\n",
    "twice.toml": b"n_layer = 2\n[model]\nn_layer = 3\n",
    "duplicate.toml": b"n_layer = 2\nn_layer = 3\n",
    "text.toml": b'n_layer = "two"\n',
    "float.toml": b"n_layer = 2.5\n",
    "boolean.toml": b"n_layer = true\n",
    "list.toml": b"n_layer = [2]\n",
    "table.toml": b"[model.n_layer]\na = 1\n",
    "date.toml": b"n_layer = 2026-11-29\n",
    "nan.toml": b"learning_rate = nan\n",
    "inf.toml": b"grad_clip = inf\n",
    "huge.toml": b"seed = " + b"9" * 5000 + b"\n",
    "deep.toml": b"n_layer = " + DEEP + b"\n",
    "not-toml.toml": b"n_layer: 2\n",
    "binary.toml": bytes(range(256)),
    "latin-1.toml": b'name = "caf\xe9"\n',
    "preset.toml": b'preset = "enormous"\n',
    "preset-of-another-type.toml": b"preset = 5\n",
    "nul.toml": b'source = "a\\u0000b"\n',
    "nanogpt.toml": b"max_iters = 100\n",
}

# Token files in nanogpt/NAME/: changes of the files train.bin, val.bin and meta.pkl.
NANOGPT: dict[str, dict[str, bytes]] = {
    "odd": {"train.bin": bytes(201)},
    "empty": {"train.bin": b""},
    "one-id": {"val.bin": bytes(2)},
    "beyond": {"train.bin": b"\xff" * 200},
    "no-stoi": {"meta.pkl": pickle.dumps({"itos": {}})},
    "no-dict": {"meta.pkl": pickle.dumps([1, 2])},
    "no-characters": {"meta.pkl": pickle.dumps({"stoi": {}})},
    "float-ids": {"meta.pkl": pickle.dumps({"stoi": {"a": 0.0}})},
    "negative-zero": {"meta.pkl": pickle.dumps({"stoi": {"a": -0.0}})},
    "true-ids": {"meta.pkl": pickle.dumps({"stoi": {"a": False, "b": True}})},
    "gap": {"meta.pkl": pickle.dumps({"stoi": {"a": 0, "b": 2}})},
    "words": {"meta.pkl": pickle.dumps({"stoi": {"the": 0}})},
    "surrogate": {"meta.pkl": pickle.dumps({"stoi": {"\ud800": 0}})},
    "list-of-pairs": {"meta.pkl": pickle.dumps({"stoi": [("a", 0)]})},
    "cut-pickle": {"meta.pkl": pickle.dumps({"stoi": {"a": 0}})[:-5]},
    "no-pickle": {"meta.pkl": b"stoi"},
    "imports": {"meta.pkl": pickle.dumps(np.float64(1))},
    "memo": {"meta.pkl": b"\x80\x02}r" + struct.pack("<I", 200_000_000) + b"."},
    "deep-pickle": {"meta.pkl": b"\x80\x02" + b"(" * 200_000 + b"t" * 200_000 + b"."},
    "deep-key": {"meta.pkl": b"\x80\x02}" + b")" + b"\x85" * 1_000_000 + b"K\x00s."},
    "many-lists": {"meta.pkl": b"\x80\x02(" + b"]" * (5 << 20) + b"l."},
}


def edit(**changes: Any) -> Callable[[Path], None]:
    """A change of values in a JSON file, which its manifest then lists."""

    def apply(path: Path) -> None:
        edit_json(path, **changes)

    return apply


def write(content: bytes) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        path.write_bytes(content)

    return apply


def become_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def become_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def become_link_to_itself(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


def replace_by_trainer_state(path: Path) -> None:
    shutil.copy(path.with_name("trainer.safetensors"), path)
    list_in_manifest(path)


def change_tensors(change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Callable[[Path], None]:
    """A change of the tensors of a file, which its manifest then lists."""

    def apply(path: Path) -> None:
        tensors = change(safetensors.torch.load_file(path))
        safetensors.torch.save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
        list_in_manifest(path)

    return apply


Damage = Callable[[Path], object]

# Prepared datasets in datasets/NAME/: a file of a copy, and its damage.
DATASETS: dict[str, tuple[str, Damage]] = {
    "empty-json": ("dataset.json", write(b"")),
    "list": ("dataset.json", write(b"[]")),
    "deep": ("dataset.json", write(DEEP)),
    "not-utf-8": ("dataset.json", write(b'{"name": "\xff"}')),
    "folder": ("dataset.json", become_folder),
    "newer": ("dataset.json", edit(format=99)),
    "name-leads-out": ("dataset.json", edit(name="../../escaped")),
    "shard-leads-out": ("dataset.json", edit(shards={"train": ["../../text.txt"], "val": ["val-00000.npy"]})),
    "absolute-shard": ("dataset.json", edit(shards={"train": ["/etc/passwd"], "val": ["val-00000.npy"]})),
    "no-shards": ("dataset.json", edit(shards={"train": [], "val": []})),
    "unlisted": ("dataset.json", edit(files={})),
    "no-tokens": ("dataset.json", edit(tokens={"train": 0, "val": 0})),
    "negative-tokens": ("dataset.json", edit(tokens={"train": -5, "val": 5})),
    "text-is-a-number": ("dataset.json", edit(text=5)),
    "vocab-is-a-text": ("dataset.json", edit(vocab_size="12")),
    "other-vocab": ("dataset.json", edit(vocab_size=7)),
    "cut-shard": ("train-00000.npy", truncate),
    "no-shard": ("train-00000.npy", Path.unlink),
    "pipe": ("train-00000.npy", become_pipe),
    "cut-tokenizer": ("tokenizer.json", truncate),
}

# Checkpoints in checkpoints/NAME/, which is a Hugging Face folder without a manifest: a file of a copy, and its damage.
FOREIGN: dict[str, tuple[str, Damage]] = {
    "empty-config": ("config.json", write(b"")),
    "config-list": ("config.json", write(b"[]")),
    "deep-config": ("config.json", write(DEEP)),
    "config-pipe": ("config.json", become_pipe),
    "config-folder": ("config.json", become_folder),
    "llama": ("config.json", edit(model_type="llama")),
    "list-type": ("config.json", edit(model_type=["gpt2"])),
    "huge-width": ("config.json", edit(n_embd=10**30)),
    "text-width": ("config.json", edit(n_embd="8")),
    "zero-heads": ("config.json", edit(n_head=0)),
    "many-layers": ("config.json", edit(n_layer=1000)),
    "nan-dropout": ("config.json", edit(resid_pdrop=float("nan"))),
    "inner-list": ("config.json", edit(n_inner=[32])),
    "no-weights": ("model.safetensors", Path.unlink),
    "empty-weights": ("model.safetensors", write(b"")),
    "cut-weights": ("model.safetensors", truncate),
    "huge-header": ("model.safetensors", write(struct.pack("<Q", 2**63) + b"{}")),
    "deep-header": ("model.safetensors", write(struct.pack("<Q", len(DEEP)) + DEEP)),
    "weights-folder": ("model.safetensors", become_folder),
    "weights-loop": ("model.safetensors", become_link_to_itself),
    "no-tensors": ("model.safetensors", write(struct.pack("<Q", 2) + b"{}")),
    "no-tokenizer": ("tokenizer.json", Path.unlink),
    "cut-tokenizer": ("tokenizer.json", truncate),
    "deep-tokenizer": ("tokenizer.json", write(DEEP)),
    "tokenizer-list": ("tokenizer.json", write(b"[]")),
    "tokenizer-loop": ("tokenizer.json", become_link_to_itself),
    "wordpiece": ("tokenizer.json", write(b'{"model": {"type": "WordPiece", "vocab": {}, "unk_token": "u"}}')),
}

# Runs in runs/NAME/: a file of a copy, and its damage. {checkpoint} is its only checkpoint.
RUNS: dict[str, tuple[str, Damage]] = {
    "empty-settings": ("settings.toml", write(b"")),
    "deep-settings": ("settings.toml", write(b"a = " + DEEP)),
    "settings-of-another-shape": ("settings.toml", write(b'source = "text.txt"\n[model]\nn_layer = 3\n')),
    "no-checkpoint": ("last", lambda path: shutil.rmtree(path.with_name("checkpoints"))),
    "manifest-list": ("{checkpoint}/manifest.json", write(b"[]")),
    "manifest-deep": ("{checkpoint}/manifest.json", write(DEEP)),
    "manifest-empty": ("{checkpoint}/manifest.json", write(b'{"format": 1, "files": {}}')),
    "manifest-leads-out": (
        "{checkpoint}/manifest.json",
        write(b'{"format": 1, "files": {"../../../settings.toml": {"bytes": 1, "sha256": ""}}}'),
    ),
    "manifest-long-name": (
        "{checkpoint}/manifest.json",
        write(json.dumps({"format": 1, "files": {"a" * 5000: {"bytes": 1, "sha256": ""}}}).encode()),
    ),
    "no-manifest": ("{checkpoint}/manifest.json", Path.unlink),
    "newer": ("{checkpoint}/octavo.json", edit(format=99)),
    "settings-list": ("{checkpoint}/octavo.json", edit(settings=[])),
    "unknown-setting": ("{checkpoint}/octavo.json", edit(settings={"rotary": True})),
    "data-list": ("{checkpoint}/octavo.json", edit(data=[])),
    "data-without-a-text": ("{checkpoint}/octavo.json", edit(data={"name": "text"})),
    "step-text": ("{checkpoint}/octavo.json", edit(step="four")),
    "flipped-weights": ("{checkpoint}/model.safetensors", flip_bit),
    "swapped": ("{checkpoint}/model.safetensors", replace_by_trainer_state),
}
# Damage of what only resuming reads.
TRAINERS: dict[str, tuple[str, Damage]] = {
    "negative-step": ("{checkpoint}/trainer.json", edit(step=-1)),
    "step-none": ("{checkpoint}/trainer.json", edit(step=None)),
    "zero-micro-batch": ("{checkpoint}/trainer.json", edit(micro_batch=0)),
    "loss-text": ("{checkpoint}/trainer.json", edit(best_val_loss="x")),
    "negative-seconds": ("{checkpoint}/trainer.json", edit(elapsed_seconds=-1.0)),
    "scaler-list": ("{checkpoint}/trainer.json", edit(scaler=[])),
    "trainer-list": ("{checkpoint}/trainer.json", write(b"[]")),
    "other-shapes": (
        "{checkpoint}/trainer.safetensors",
        change_tensors(lambda tensors: {name: tensor.flatten()[:1] for name, tensor in tensors.items()}),
    ),
    "other-names": (
        "{checkpoint}/trainer.safetensors",
        change_tensors(lambda tensors: {f"x{name}": tensor for name, tensor in tensors.items()}),
    ),
    "integers": (
        "{checkpoint}/trainer.safetensors",
        change_tensors(lambda tensors: {name: tensor.int() for name, tensor in tensors.items()}),
    ),
}


def build(folder: Path, run: Path) -> None:
    """Write all files into `folder`, the working directory. `run` is a run in it, which is copied and damaged."""
    for name, files in {"texts": TEXTS, "config": CONFIGS}.items():
        (folder / name).mkdir()
        for file, content in files.items():
            (folder / name / file).write_bytes(content)
    for name, files in NANOGPT.items():
        (folder / "nanogpt" / name).mkdir(parents=True)
        meta = pickle.dumps({"stoi": {"a": 0, "b": 1}, "itos": {0: "a", 1: "b"}})
        for file, content in ({"train.bin": bytes(200), "val.bin": bytes(200), "meta.pkl": meta} | files).items():
            (folder / "nanogpt" / name / file).write_bytes(content)
    assert cli.main(["prepare", "text.txt", "--out", "dataset"]) == 0
    copy_and_damage(folder / "dataset", folder / "datasets", DATASETS)
    shutil.copytree(last_checkpoint(run), folder / "foreign")
    remove_octavo_files(folder / "foreign")
    copy_and_damage(folder / "foreign", folder / "checkpoints", FOREIGN)
    copy_and_damage(run, folder / "runs", RUNS | TRAINERS)
    for name, content in OTHERS.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    for name in ("nothing", "hidden"):
        (folder / "folders" / name).mkdir(parents=True)
    (folder / "folders/hidden/.text.txt").write_text("a hidden text\n" * 50, encoding="utf-8")
    (folder / "loop.txt").symlink_to("loop.txt")
    (folder / "dangling.txt").symlink_to("nowhere.txt")


def copy_and_damage(source: Path, target: Path, damages: dict[str, tuple[str, Damage]]) -> None:
    for name, (file, damage) in damages.items():
        copy = Path(shutil.copytree(source, target / name, ignore=shutil.ignore_patterns("step-00000[0-3]")))
        damage(copy / file.format(checkpoint=last_checkpoint(copy).relative_to(copy) if "{" in file else ""))


OTHERS: dict[str, bytes] = {
    "prompts/latin-1": b"caf\xe9",
    "prompts/greek": "ω".encode(),
    "prompts/nul": b"the\0cat",
    "keys/empty": b"",
    "keys/comment": b"# no key\n",
    "keys/latin-1": b"caf\xe9\n",
    "keys/spaces": b"a key\n",
    "keys/control": b"a\x07key\n",
}

_TRAIN = "train text.txt " + " ".join(SMALL)
_SAMPLE = "sample runs/mine"
_INSPECT = "inspect runs/mine"

# Each line is rejected with exit code 2 or 3, and changes nothing. Words are separated as in a shell.
COMMANDS: list[str] = [
    # Settings on the command line
    *(
        f"{_TRAIN} {flags}"
        for flags in (
            "--n-layer 0",
            "--n-layer -1",
            "--n-layer 99999999999999999999999999",
            "--n-layer ''",
            "--n-layer 2.0",
            "--n-layer ٣x",
            "--n-embd 10 --n-head 3",
            "--dropout 1",
            "--dropout nan",
            "--learning-rate inf",
            "--learning-rate 1e999",
            "--learning-rate -1",
            "--learning-rate 1,5",
            "--min-learning-rate 1",
            "--batch-size 0",
            "--max-steps -1",
            "--max-epochs nan",
            "--val-fraction 0",
            "--val-fraction 1",
            "--tokenizer bpe",
            "--tokenizer bpe:10",
            "--tokenizer bpe:1e4",
            "--tokenizer word:99999999999",
            "--tokenizer ''",
            "--tokenizer gpt-2",
            "--vocab-size 3",
            "--optimizer sgd",
            "--precision fp8",
            "--device tpu",
            "--device cuda:99",
            "--device ''",
            "--compile maybe",
            "--seed -1",
            "--seed 18446744073709551616",
            "--block-size 100000",
            "--curriculum-splits 3",
            "--log mlflow",
            "--preset enormous",
            "--encoding utf-9",
            "--encoding rot13",
            "--encoding base64",
            "--errors maybe",
            "--name ../escaped",
            "--name .hidden",
            "--name ''",
            "--name 'a/b'",
            "--out text.txt",
            "--out texts",
            "--out text.txt/run",
            "--out loop.txt/run",
            f"--out {'a' * 300}",
            "--init runs/mine --n-layer 2",
            "--init runs/mine --resume runs/mine",
            "--resume runs/mine --name other",
            "--config",
            "--config nowhere.toml",
            "--config texts",
            "--config loop.txt",
        )
    ),
    *(f"train --max-steps 1 --device cpu --config config/{name}" for name in CONFIGS),
    "train --resume runs/mine --n-layer 2",
    "train --resume runs/mine --tokenizer byte",
    "train --resume runs/mine --optimizer adamw",
    "train --resume foreign",
    "train --resume text.txt",
    "train --resume nowhere",
    "train --resume folders/nothing",
    # Texts
    *(f"train texts/{name} " + " ".join(SMALL) for name in TEXTS),
    *(f"stats {source}" for source in ("loop.txt", "dangling.txt", "nowhere.txt", "'*.missing'", "''", "/dev/null")),
    *(f"stats folders/{name}" for name in ("nothing", "hidden", "nowhere")),
    *(
        f"stats {source}"
        for source in ("hf:", "hf:../x", "hf:a/b/c", "-", "text.txt/text.txt", "text.txt --encoding utf-16")
    ),
    "prepare text.txt --out texts",
    "prepare text.txt --out text.txt",
    "prepare text.txt --out ''",
    "prepare texts/empty.txt --out tokens",
    "prepare texts/cut.txt.gz --out tokens",
    "prepare nowhere --verify",
    "prepare text.txt --verify",
    "eval runs/mine texts/latin-1.txt",
    "eval runs/mine prompts/greek",
    "eval runs/mine --block-size 0",
    "eval runs/mine --block-size 1000",
    "eval runs/mine text.txt --device tpu",
    "eval foreign",
    # Token files
    *(f"prepare nanogpt/{name} --verify" for name in NANOGPT),
    *(f"prepare datasets/{name} --verify" for name in DATASETS),
    # Checkpoints and runs
    *(f"sample checkpoints/{name}" for name in FOREIGN),
    *(f"train --resume runs/{name}/checkpoints/step-000004 --max-steps 6" for name in RUNS | TRAINERS),
    # Prompts and sampling
    *(
        f"{_SAMPLE} {flags}"
        for flags in (
            "--prompt ω",
            "--prompt 'a\tb'",
            "--prompt-file prompts/latin-1",
            "--prompt-file prompts/greek",
            "--prompt-file prompts/nul",
            "--prompt-file prompts",
            "--prompt-file nowhere",
            "--prompt-file loop.txt",
            "--prompt a --prompt-file text.txt",
            "--temperature -1",
            "--temperature nan",
            "--temperature 101",
            "--top-k -1",
            "--top-p 0",
            "--top-p 1.1",
            "--top-p nan",
            "--min-p 2",
            "--repetition-penalty 0",
            "--presence-penalty 3",
            "--frequency-penalty inf",
            "--max-new-tokens -1",
            "--max-new-tokens 99999999999999999999",
            "--num-samples 0",
            "--num-samples 99999999999",
            "--best-of -1",
            "--best-of 1 --num-samples 2",
            "--seed -1",
            "--seed 99999999999999999999999",
            "--overflow wrap",
            "--quantize int4",
            "--unknown guess",
            "--device cuda:99",
            "more",
        )
    ),
    # Views
    *(
        f"{_INSPECT} {words}"
        for words in (
            "attenton",
            "attention --text ''",
            "attention --text ω",
            "attention --text the --layer 9",
            "attention --text the --layer -9",
            "attention --text the --layer 99999999999999999999",
            "attention --text the --head 9",
            "attention --text the --text-file text.txt",
            "attention --text-file nowhere",
            "attention --text-file prompts/latin-1",
            "neighbors --word ''",
            "neighbors --word ω",
            "neighbors --word-id 99999",
            "neighbors --word-id -99999",
            "attention --text the --plot plot.xyz",
            "attention --text the --plot nowhere/plot",
            "--html texts",
            "--html text.txt/page.html",
            "shapes more",
        )
    ),
    "inspect --preset tiny",
    "inspect --preset tiny attention",
    "inspect",
    # Serving
    *(
        f"serve runs/mine {flags}"
        for flags in (
            "--port -1",
            "--port 65536",
            "--port http",
            "--host ''.''",
            "--host 999.1.1.1",
            "--host 0.0.0.0 --port 0",
            f"--host {'a' * 300}",
            "--slots 0",
            "--queue -1",
            "--prefix-cache -1",
            "--quantize int4",
            "--device tpu --port 0",
            *(f"--api-key-file keys/{Path(name).name}" for name in OTHERS if name.startswith("keys/")),
            "--api-key-file keys",
            "--api-key-file nowhere",
            "runs/mine",
            "nowhere --port 0",
        )
    ),
    # Estimates and benchmarks
    "estimate --n-layer 0",
    "estimate nowhere.txt",
    "estimate text.txt --price cheap",
    "bench train --rounds 0",
    "bench generate nowhere",
    "bench everything",
    "unknown-verb",
]

_PREPARE = "prepare text.txt --out tokens"
# Variables of the environment that make a command fail; each command would succeed otherwise.
ENVIRONMENTS: list[tuple[dict[str, str], str]] = [
    *(
        ({"OCTAVO_CACHE": cache}, _PREPARE)
        for cache in ("text.txt", "text.txt/cache", "loop.txt", "/dev/null/cache", "/proc/nowhere", "c" * 300)
    ),
    ({"OCTAVO_NATIVE": "avx1024"}, "sample runs/mine"),
    ({"OCTAVO_API_KEY": "a key"}, "serve runs/mine --port 0"),
    ({"OCTAVO_API_KEY": "caf\xe9"}, "serve runs/mine --port 0"),
    ({"OCTAVO_API_KEY": "a\x07key"}, "serve runs/mine --port 0"),
]
# Variables that must not matter.
ODD_ENVIRONMENT = {
    "COLUMNS": "0",
    "LINES": "x",
    "TERM": "",
    "LANG": "xx_YY",
    "LC_ALL": "xx_YY.klingon",
    "HOME": "/nowhere",
    "TMPDIR": "/nowhere",
    "CC": "/nowhere/cc",
    "OMP_NUM_THREADS": "many",
    "CUDA_VISIBLE_DEVICES": "x",
    "PYTHONIOENCODING": "ascii",
    "FORCE_COLOR": "x",
    "NO_COLOR": "x",
}
