"""Print as JSON what this checkout computes: losses, samples, views, and digests of weights and token shards.

    python scripts/fingerprint.py > before.json      # on the commit before a refactoring
    python scripts/fingerprint.py > after.json       # on the commit after it, same machine
    diff before.json after.json                      # no output: nothing that is computed has changed

The script uses only the command line, in a temporary folder with an empty cache, so the two commits need not share
any name inside the package. It takes about three minutes on two cores.
"""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
MAIN = "import sys; from octavo.cli import main; sys.exit(main(sys.argv[1:]))"
TEXT = ("--text", "The list of arguments is empty")
WORD = ("--word", "the")
VIEWS: dict[str, tuple[str, ...]] = {
    "shapes": TEXT,
    "tokens": TEXT,
    "position": WORD,
    "neighbors": WORD,
    "projection": (),
    "attention": TEXT,
    "flow": TEXT,
    "next_token": TEXT,
    "logit_lens": TEXT,
    "contributions": TEXT,
    "surprisal": TEXT,
    "ablation": TEXT,
}
SENTENCE = "the cat sat on the mat and looked at a bird in the tall tree by the old gray house"


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        os.environ["XDG_CACHE_HOME"] = str(Path(folder) / "cache")
        os.environ["PYTHONPATH"] = str(ROOT / "src")
        os.environ["OMP_NUM_THREADS"] = "2"
        outputs = {"training": training(), "samples": samples(), "shards": shards(), "views": views()}
        print(json.dumps(outputs, indent=1))


def octavo(*arguments: str) -> str:
    """Run a command and return its standard output."""
    process = subprocess.run([sys.executable, "-c", MAIN, *arguments], capture_output=True, text=True)
    if process.returncode not in (0, 1):  # 1: the view `verify` found an error, which its output reports
        raise SystemExit(f"octavo {' '.join(arguments)} exited with {process.returncode}: {process.stderr}")
    return process.stdout


def digest(path: Path) -> str:
    """The first 16 digits of a file's sha256."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def training() -> dict[str, Any]:
    """Losses, gradient norms and weights of short runs, and of one that is stopped and resumed."""
    runs = {
        "tiny": ("--preset", "tiny", "--max-steps", "60"),
        "baby": ("--preset", "baby", "--max-steps", "10"),
        "nanogpt-tiny": ("--preset", "nanogpt-tiny", "--max-steps", "60"),
        "stopped": ("--preset", "tiny", "--max-steps", "30", "--schedule", "constant"),
    }
    for name, options in runs.items():
        octavo("train", "pydocs", "--out", name, "--eval-every", "20", "--log-every", "1", *options)
    octavo("train", "--resume", "stopped", "--max-steps", "60")
    return {name: run_outputs(Path(name)) for name in runs}


def run_outputs(run: Path) -> dict[str, Any]:
    """The metrics of a run, and digests of its samples, weights and optimizer states."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    numbers = ("step", "loss", "learning_rate", "grad_norm", "train_loss", "val_loss", "bits_per_byte")
    return {
        "metrics": [[line.get(name) for name in numbers] for line in lines],
        "samples": digest(run / "samples.jsonl") if (run / "samples.jsonl").exists() else None,
        "weights": {path.parent.name: digest(path) for path in sorted(run.glob("checkpoints/*/model.safetensors"))},
        "trainer": {path.parent.name: digest(path) for path in sorted(run.glob("checkpoints/*/trainer.safetensors"))},
    }


def samples() -> dict[str, Any]:
    """What `octavo sample` generates: with five seeds, int8 weights, each overflow mode and other sampling settings."""
    options = {f"seed {seed}": ("--seed", str(seed)) for seed in range(5)} | {
        "int8": ("--quantize", "int8"),
        "slide": ("--overflow", "slide"),
        "rechunk": ("--overflow", "rechunk"),
        "stop": ("--overflow", "stop"),
        "nucleus": ("--top-p", "0.9", "--min-p", "0.02", "--temperature", "0.8", "--frequency-penalty", "0.3"),
        "best of": ("--best-of", "4", "--num-samples", "2"),
    }
    return {
        name: json.loads(octavo("sample", "tiny", "--prompt", "The ", "--max-new-tokens", "150", "--json", *more))
        for name, more in options.items()
    }


def shards() -> dict[str, Any]:
    """Digests of the token shards and tokenizers of three texts."""
    words = SENTENCE.split()
    documents = [" ".join(words[(i * 7 + j * j) % len(words)] for j in range(20 + i % 50)) for i in range(500)]
    Path("documents.jsonl").write_text("".join(json.dumps({"text": each}) + "\n" for each in documents + documents[:9]))
    Path("poem.txt").write_text("Größe und Maß – naïve café 🦉\n" * 300 + "".join(map(chr, range(32, 900))) * 4)
    datasets = {
        "pydocs": ("pydocs", "--tokenizer", "bpe:600"),
        "documents": ("documents.jsonl", "--tokenizer", "word", "--deduplicate"),
        "poem": ("poem.txt", "--tokenizer", "char"),
        "poem in bytes": ("poem.txt", "--tokenizer", "byte", "--val-fraction", "0.25"),
    }
    digests = {}
    for number, (name, options) in enumerate(datasets.items()):
        folder = Path(f"prepared-{number}")
        octavo("prepare", *options, "--out", str(folder))
        paths = sorted([*folder.glob("*.npy"), folder / "tokenizer.json"])
        digests[name] = {path.name: digest(path) for path in paths}
    return digests


def views() -> dict[str, Any]:
    """The views of the lens, whether `verify` passes, and the exact evaluation."""
    outputs = {name: json.loads(octavo("inspect", "tiny", name, *options, "--json")) for name, options in VIEWS.items()}
    outputs["verify"] = json.loads(octavo("inspect", "tiny", "verify", "--json"))["ok"]
    outputs["eval"] = json.loads(octavo("eval", "tiny", "--json"))
    return outputs


if __name__ == "__main__":
    main()
