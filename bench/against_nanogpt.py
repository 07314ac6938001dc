"""Octavo beside nanoGPT on this machine: the same model, recipe and data, both in one go, alternating.

    python bench/against_nanogpt.py --nanogpt PATH --text tinyshakespeare.txt [--rounds 5] [--steps 300] [--json]

PATH is a checkout of nanoGPT; it is copied aside and its own `prepare.py` and `train.py` are run as they are, with
the flags that its README gives for a CPU. A step's time is what each program itself reports for it, batch and
logging included; the first 20 of each round are warm-up. The ratio is of medians, above 1 where Octavo is faster.
"""

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

import octavo

WARM_UP = 20
TOKENS = 12 * 64  # a step of the recipe
RECIPE = {  # nanoGPT's README, "I only have a macbook", with its 2,000-step schedule
    "device": "cpu", "compile": False, "eval_iters": 1, "eval_interval": 10**6, "log_interval": 1, "block_size": 64,
    "batch_size": 12, "n_layer": 4, "n_head": 4, "n_embd": 128, "lr_decay_iters": 2000, "dropout": 0.0,
}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shared = Path(os.environ.get("OCTAVO_SHARED", Path(__file__).parents[2] / "shared"))
    parser.add_argument("--nanogpt", type=Path, required=True, help="a checkout of nanoGPT")
    parser.add_argument("--text", type=Path, default=shared / "data" / "tinyshakespeare.txt")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        theirs = prepared_nanogpt(options.nanogpt, options.text, Path(folder))
        medians: dict[str, list[float]] = {"nanogpt": [], "octavo": []}
        for number in range(options.rounds):
            medians["nanogpt"].append(statistics.median(nanogpt_steps(theirs, options.steps)))
            medians["octavo"].append(statistics.median(octavo_steps(options.text, options.steps, Path(folder), number)))
    step = {side: statistics.median(values) for side, values in medians.items()}
    ratio = step["nanogpt"] / step["octavo"]
    if options.json:
        print(json.dumps({"step_ms": step, "rounds_ms": medians, "step_time_ratio": ratio}))
    else:
        print(
            f"torch {torch.__version__}, {torch.get_num_threads()} threads; ms a step, median of {options.steps} steps"
        )
        print("round    nanoGPT   Octavo    ratio")
        for number, (a, b) in enumerate(zip(medians["nanogpt"], medians["octavo"], strict=True), 1):
            print(f"{number:5} {a:10.2f} {b:8.2f} {a / b:8.2f}")
        print(f"median{step['nanogpt']:9.2f} {step['octavo']:8.2f} {ratio:8.2f}")
    return 0


def prepared_nanogpt(checkout: Path, text: Path, folder: Path) -> Path:
    """A copy of nanoGPT whose own script has prepared the text."""
    copy = Path(shutil.copytree(checkout, folder / "nanogpt", ignore=shutil.ignore_patterns(".git")))
    data = copy / "data" / "shakespeare_char"
    shutil.copy(text, data / "input.txt")
    subprocess.run([sys.executable, "prepare.py"], cwd=data, check=True, stdout=subprocess.DEVNULL)
    return copy


def nanogpt_steps(checkout: Path, steps: int) -> list[float]:
    """Milliseconds of each step, as nanoGPT's train.py prints them."""
    flags = [f"--{name}={value}" for name, value in RECIPE.items()]
    ran = subprocess.run(
        [sys.executable, "train.py", "config/train_shakespeare_char.py", *flags, f"--max_iters={steps}"],
        cwd=checkout, check=True, capture_output=True, text=True,
    )  # fmt: skip
    return [float(ms) for ms in re.findall(r"iter \d+: loss [\d.]+, time ([\d.]+)ms", ran.stdout)][WARM_UP:]


def octavo_steps(text: Path, steps: int, folder: Path, number: int) -> list[float]:
    """Milliseconds of each step, from a run's metrics."""
    out = folder / f"run-{number}"
    words = ["--preset", "nanogpt-tiny", "--max-steps", str(steps), "--log-every", "1", "--device", "cpu"]
    words += ["--eval-every", str(steps), "--sample-every", "0", "--keep", "0", "--out", str(out), "--json"]
    subprocess.run([sys.executable, "-m", "octavo.cli", "train", str(text), *words], check=True, capture_output=True)
    lines = octavo.Run(out).lines("metrics")
    return [1000 * TOKENS / line["tokens_per_second"] for line in lines][WARM_UP:]


if __name__ == "__main__":
    sys.exit(main())
