"""Octavo beside nanoGPT on this machine: the same data, both in one go, alternating.

    python bench/against_nanogpt.py --nanogpt PATH --text tinyshakespeare.txt [--measure time tokens step texts]
                                    [--texts FILE FILE] [--seeds 5] [--rounds 5] [--steps 250] [--json]

PATH is a checkout of nanoGPT; it is copied aside and its own `prepare.py` and `train.py` are run as they are, with
the flags that its README gives for a CPU. Every ratio is nanoGPT's figure over Octavo's: above 1, Octavo is ahead.

time the whole process, from the command to its exit. nanoGPT's is its recipe, its text prepared before the clock
starts; Octavo's is `octavo train TEXT --preset quick` with nothing cached, its preparation included. It counts only
if the exact loss is at most 1.90 (nanoGPT's own recipe ends at 1.907). Medians over the seeds. tokens how many
tokens the same model (4/4/128, block 64) is trained on to that loss: nanoGPT's recipe, 2,000 steps, over the fewest
of `TOKENS_STEPS` whose median over the seeds is at most 1.90. step a step of `nanogpt-tiny`, which is nanoGPT's
recipe to the letter; what each program itself reports for it, its batch and its line of log included. The first 20
of a round are warm-up; the ratio is of the rounds' medians. texts time again, on texts that the recipe was not tuned
on, to the loss that nanoGPT's recipe reaches on that text: Octavo's is the same command, with the fewest of
`TEXT_STEPS` whose median over the seeds is no higher.

Both sides' losses are one function's: the whole validation split, in consecutive windows of 64, in float32.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import octavo
from nanogpt import NanoGPT, step_milliseconds
from octavo.loss import split_loss

TARGET, BLOCK = 1.90, 64
NANOGPT_STEP, NANOGPT_STEPS = 12 * 64, 2000
CONFIG = "train_shakespeare_char"
RECIPE = {  # nanoGPT's README, "I only have a macbook"
    "device": "cpu", "compile": False, "eval_iters": 20, "log_interval": 1, "block_size": BLOCK, "batch_size": 12,
    "n_layer": 4, "n_head": 4, "n_embd": 128, "max_iters": NANOGPT_STEPS, "lr_decay_iters": NANOGPT_STEPS,
    "dropout": 0.0,
}  # fmt: skip
QUICK = ["--preset", "quick"]
EQUAL = [*QUICK, "--n-layer", "4", "--n-head", "4", "--n-embd", "128", "--batch-size", "32"]
EQUAL_STEP, TOKENS_STEPS = 32 * 64, (140, 150, 160, 175, 200, 250)
TEXT_STEPS = (120, 140, 160, 180, 210, 240, 300)
WARM_UP = 20
MEASURES = ("time", "tokens", "step", "texts")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shared = Path(os.environ.get("OCTAVO_SHARED", Path(__file__).parents[2] / "shared"))
    parser.add_argument("--nanogpt", type=Path, required=True, help="a checkout of nanoGPT")
    parser.add_argument("--text", type=Path, default=shared / "data" / "tinyshakespeare.txt")
    parser.add_argument("--texts", type=Path, nargs="*", default=[], help="texts that nothing was tuned on")
    parser.add_argument("--measure", nargs="+", choices=MEASURES, default=list(MEASURES))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if "texts" in options.measure and not options.texts:
        print("no --texts given: that ratio is left out", file=sys.stderr)
    out: dict[str, Any] = {"torch": torch.__version__, "threads": torch.get_num_threads()}
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(options.nanogpt, Path(folder), sys.stderr if options.json else sys.stdout)
        bench.say(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
        if "time" in options.measure:
            out["time"] = bench.time(options.text, options.seeds, TARGET)
            out["time_to_loss_ratio"] = out["time"]["ratio"]
        if "tokens" in options.measure:
            out["tokens"] = bench.tokens(options.text, options.seeds)
            out["tokens_to_loss_ratio"] = out["tokens"]["ratio"]
        if "step" in options.measure:
            out["step"] = bench.step(options.text, options.rounds, options.steps)
            out["step_time_ratio"] = out["step"]["ratio"]
        if "texts" in options.measure:
            out["texts"] = {text.name: bench.untuned(text, min(3, options.seeds)) for text in options.texts}
    if options.json:
        print(json.dumps(out))
    return 0


class Bench:
    """A copy of nanoGPT, a folder for what both sides write, and a place to tell what was measured."""

    def __init__(self, checkout: Path, folder: Path, told: Any) -> None:
        self.folder, self.told = folder, told
        self.nanogpt = NanoGPT(checkout, folder)
        self.runs = 0

    def say(self, line: str) -> None:
        print(line, file=self.told, flush=True)

    def untuned(self, text: Path, seeds: int) -> dict[str, Any]:
        """`time` to the loss that nanoGPT reaches on this text, with as many steps as that takes Octavo."""
        val = self.nanogpt.prepare_characters(text)
        self.nanogpt.train(CONFIG, **RECIPE)
        target = split_loss(self.nanogpt.model("out-shakespeare-char"), val, BLOCK)
        for steps in TEXT_STEPS:
            words = [*QUICK, "--max-steps", str(steps)]
            losses = [self.loss(self.run_octavo(text, [*words, "--seed", str(s)]), val) for s in range(1, seeds + 1)]
            if statistics.median(losses) <= target:
                break
        return {"steps": steps} | self.time(text, seeds, target, words)

    def time(self, text: Path, seeds: int, target: float, words: list[str] = QUICK) -> dict[str, Any]:
        """Whole processes, one of each side in turn."""
        val = self.nanogpt.prepare_characters(text)
        self.say(f"\nwhole process, {text.name}, {' '.join(words)}")
        self.say("seed   nanoGPT, s    loss   Octavo, s    loss    ratio")
        rows = []
        for seed in range(1, seeds + 1):
            start = time.perf_counter()
            self.nanogpt.train(CONFIG, **RECIPE)
            theirs = time.perf_counter() - start
            their_loss = split_loss(self.nanogpt.model("out-shakespeare-char"), val, BLOCK)
            start = time.perf_counter()
            run = self.run_octavo(text, [*words, "--seed", str(seed)])
            ours, our_loss = time.perf_counter() - start, self.loss(run, val)
            rows.append({"seed": seed, "nanogpt_seconds": theirs, "nanogpt_loss": their_loss,
                         "octavo_seconds": ours, "octavo_loss": our_loss})  # fmt: skip
            self.say(f"{seed:4} {theirs:12.1f} {their_loss:7.4f} {ours:11.2f} {our_loss:7.4f} {theirs / ours:8.2f}")
        middle = {name: statistics.median(row[name] for row in rows) for name in rows[0]}
        ratio = middle["nanogpt_seconds"] / middle["octavo_seconds"]
        reached = sum(row["octavo_loss"] <= target for row in rows)
        self.say(f"median {middle['nanogpt_seconds']:10.1f} {middle['nanogpt_loss']:7.4f} "
                 f"{middle['octavo_seconds']:11.2f} {middle['octavo_loss']:7.4f} {ratio:8.2f}   "
                 f"{reached} of {seeds} seeds at most {target:.4f}")  # fmt: skip
        met = middle["octavo_loss"] <= target
        return {"rows": rows, "ratio": ratio if met else None, "target": target, "reached": reached}

    def tokens(self, text: Path, seeds: int) -> dict[str, Any]:
        """The fewest tokens of the equal model; nanoGPT's are those of its recipe."""
        val = self.nanogpt.prepare_characters(text)
        theirs = NANOGPT_STEP * NANOGPT_STEPS
        self.say(f"\ntokens to {TARGET}, 4/4/128; nanoGPT's recipe: {theirs:,}\n  tokens   losses")
        rows = []
        for steps in TOKENS_STEPS:
            losses = [
                self.loss(self.run_octavo(text, [*EQUAL, "--max-steps", str(steps), "--seed", str(seed)]), val)
                for seed in range(1, seeds + 1)
            ]
            rows.append({"tokens": steps * EQUAL_STEP, "losses": losses})
            self.say(f"{steps * EQUAL_STEP:8,}   {' '.join(f'{loss:.4f}' for loss in losses)}")
            if statistics.median(losses) <= TARGET:
                self.say(f"ratio {theirs / rows[-1]['tokens']:.2f}")
                return {"rows": rows, "ratio": theirs / rows[-1]["tokens"]}
        return {"rows": rows, "ratio": None}

    def step(self, text: Path, rounds: int, steps: int) -> dict[str, Any]:
        """Milliseconds of a step of the same model and recipe."""
        self.nanogpt.prepare_characters(text)
        self.say(f"\nms a step, median of {steps} steps\nround    nanoGPT   Octavo    ratio")
        theirs, ours = [], []
        for number in range(1, rounds + 1):
            timed = {"max_iters": steps, "eval_iters": 1, "eval_interval": 10**6}
            printed = self.nanogpt.train(CONFIG, **RECIPE | timed)
            theirs.append(statistics.median(step_milliseconds(printed)[WARM_UP:]))
            words = ["--preset", "nanogpt-tiny", "--max-steps", str(steps), "--log-every", "1"]
            run = self.run_octavo(
                text, [*words, "--eval-every", str(steps), "--sample-every", "0", "--keep-checkpoints", "0"]
            )
            lines = octavo.Run(run).lines("metrics")
            ours.append(statistics.median(1000 * NANOGPT_STEP / x["tokens_per_second"] for x in lines[WARM_UP:]))
            self.say(f"{number:5} {theirs[-1]:10.2f} {ours[-1]:8.2f} {theirs[-1] / ours[-1]:8.2f}")
        step = {"nanogpt": statistics.median(theirs), "octavo": statistics.median(ours)}
        ratio = step["nanogpt"] / step["octavo"]
        self.say(f"median{step['nanogpt']:9.2f} {step['octavo']:8.2f} {ratio:8.2f}")
        return {"step_ms": step, "rounds_ms": {"nanogpt": theirs, "octavo": ours}, "ratio": ratio}

    def run_octavo(self, text: Path, words: list[str]) -> Path:
        """Train with an empty cache; the run."""
        self.runs += 1
        out, cache = self.folder / f"run-{self.runs}", self.folder / f"cache-{self.runs}"
        words = [sys.executable, "-m", "octavo", "train", str(text), *words, "--device", "cpu", "--out", str(out)]
        subprocess.run(words, check=True, capture_output=True, env={**os.environ, "OCTAVO_CACHE": str(cache)})
        shutil.rmtree(cache)
        return out

    def loss(self, run: Path, val: np.ndarray) -> float:
        """The exact loss of a run's last checkpoint on nanoGPT's ids, which are those of the sorted characters."""
        last = octavo.Run(run).last
        assert last is not None
        loaded = octavo.load(last)
        characters = [piece.decode() for piece in loaded.tokenizer.token_bytes]
        assert characters == sorted(characters)
        return split_loss(loaded.model, val, BLOCK)


if __name__ == "__main__":
    sys.exit(main())
