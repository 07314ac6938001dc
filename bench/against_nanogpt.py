"""Compare Octavo with nanoGPT on this machine: the same data, both measured in one session, alternating.

    python bench/against_nanogpt.py --nanogpt PATH --text tinyshakespeare.txt [--measure time tokens step texts curve]
                                    [--texts FILE FILE] [--seeds 5] [--rounds 5] [--steps 250] [--json]

PATH is a checkout of nanoGPT. It is copied, and its own `prepare.py` and `train.py` run unmodified, with the flags that
its README gives for a CPU. Every ratio is nanoGPT's figure divided by Octavo's: above 1, Octavo is better.

- `time`: seconds of the whole process. nanoGPT runs its recipe on a text that was prepared before; Octavo runs `octavo
  train TEXT --preset quick` with an empty cache, preparation included. A ratio counts only if Octavo's exact loss is at
  most 1.90 (nanoGPT's own recipe reaches 1.907). Medians over the seeds.
- `tokens`: training tokens that the same model (4 layers, 4 heads, 128 wide, block_size 64) needs for that loss.
  nanoGPT's recipe, 2,000 steps, against the fewest of `TOKENS_STEPS` whose median over the seeds is at most 1.90.
- `step`: milliseconds per step of `nanogpt-tiny`, which is nanoGPT's recipe exactly. Each program's own report, with
  data loading and logging. The first 20 steps of a round warm up; the ratio is that of the medians of the rounds.
- `texts`: `time` on texts that no setting was tuned on, to the loss that nanoGPT's recipe reaches on that text. Octavo
  runs the same command, with the fewest of `TEXT_STEPS` whose median over the seeds is no higher.
- `curve`: validation losses of one run of each recipe, by the seconds that the steps so far have taken, without starts
  and evaluations: nanoGPT's estimates from 20 random batches, and Octavo's losses of the whole split.

The same function scores both sides: the whole validation split, in consecutive sequences of 64, in float32.
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
import time
from pathlib import Path
from typing import Any

import numpy as np

import machine
import octavo
from nanogpt import NanoGPT, step_milliseconds
from octavo.loss import split_loss

TARGET, BLOCK_SIZE = 1.90, 64
NANOGPT_TOKENS_PER_STEP, NANOGPT_STEPS = 12 * 64, 2000
CONFIG = "train_shakespeare_char"
RECIPE = {  # nanoGPT's README, "I only have a macbook"
    "device": "cpu",
    "compile": False,
    "eval_iters": 20,
    "log_interval": 1,
    "block_size": BLOCK_SIZE,
    "batch_size": 12,
    "n_layer": 4,
    "n_head": 4,
    "n_embd": 128,
    "max_iters": NANOGPT_STEPS,
    "lr_decay_iters": NANOGPT_STEPS,
    "dropout": 0.0,
}
QUICK = ["--preset", "quick"]
# Small batches need fewer tokens and more time. Batch size and learning rate were chosen on the training split.
SAME_MODEL = [*QUICK, "--n-layer", "4", "--n-head", "4", "--n-embd", "128", "--batch-size", "12"]
SAME_MODEL += ["--muon-learning-rate", "0.035", "--learning-rate", "4e-3", "--warmup-steps", "10"]
SAME_MODEL += ["--momentum", "0.9", "--beta1", "0.9"]
SAME_MODEL_TOKENS_PER_STEP, TOKENS_STEPS = 12 * 64, (250, 270, 290, 312, 333, 360, 400)
TEXT_STEPS = (120, 140, 160, 180, 210, 240, 300)
WARM_UP_STEPS = 20
MEASURES = ("time", "tokens", "step", "texts", "curve")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shared = Path(os.environ.get("OCTAVO_SHARED", Path(__file__).parents[2] / "shared"))
    parser.add_argument("--nanogpt", type=Path, required=True, help="a checkout of nanoGPT")
    parser.add_argument("--text", type=Path, default=shared / "data" / "tinyshakespeare.txt")
    parser.add_argument("--texts", type=Path, nargs="*", default=[], help="texts that no setting was tuned on")
    parser.add_argument("--measure", nargs="+", choices=MEASURES, default=list(MEASURES))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if "texts" in options.measure and not options.texts:
        print("no --texts given, so the measurement `texts` is skipped", file=sys.stderr)
    report: dict[str, Any] = {"machine": machine.describe()}
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(options.nanogpt, Path(folder), sys.stderr if options.json else sys.stdout)
        bench.print(machine.summary())
        if "time" in options.measure:
            report["time"] = bench.time(options.text, options.seeds, TARGET)
            report["time_to_loss_ratio"] = report["time"]["ratio"]
        if "tokens" in options.measure:
            report["tokens"] = bench.tokens(options.text, options.seeds)
            report["tokens_to_loss_ratio"] = report["tokens"]["ratio"]
        if "step" in options.measure:
            report["step"] = bench.step(options.text, options.rounds, options.steps)
            report["step_time_ratio"] = report["step"]["ratio"]
        if "texts" in options.measure:
            report["texts"] = {text.name: bench.untuned_text(text, min(3, options.seeds)) for text in options.texts}
        if "curve" in options.measure:
            report["curve"] = bench.curve(options.text)
    if options.json:
        print(json.dumps(report))
    return 0


class Bench:
    """A copy of nanoGPT, a folder for the output of both sides, and a stream for the tables."""

    def __init__(self, checkout: Path, folder: Path, stream: Any) -> None:
        self.folder, self.stream = folder, stream
        self.nanogpt = NanoGPT(checkout, folder)
        self.runs = 0

    def print(self, line: str) -> None:
        print(line, file=self.stream, flush=True)

    def untuned_text(self, text: Path, seeds: int) -> dict[str, Any]:
        """`time` to the loss that nanoGPT reaches on this text, with the fewest steps of `TEXT_STEPS` that reach it."""
        val = self.nanogpt.prepare_characters(text)
        self.nanogpt.train(CONFIG, **RECIPE)
        target = split_loss(self.nanogpt.load_model("out-shakespeare-char"), val, BLOCK_SIZE)
        for steps in TEXT_STEPS:
            flags = [*QUICK, "--max-steps", str(steps)]
            losses = [self.loss(self.run_octavo(text, [*flags, "--seed", str(s)]), val) for s in range(1, seeds + 1)]
            if statistics.median(losses) <= target:
                break
        return {"steps": steps} | self.time(text, seeds, target, flags)

    def time(self, text: Path, seeds: int, target: float, flags: list[str] = QUICK) -> dict[str, Any]:
        """Seconds of whole processes, alternating."""
        val = self.nanogpt.prepare_characters(text)
        self.print(f"\nwhole process, {text.name}, {' '.join(flags)}")
        self.print("seed   nanoGPT, s    loss   Octavo, s    loss    ratio")
        rows = []
        for seed in range(1, seeds + 1):
            start = time.perf_counter()
            self.nanogpt.train(CONFIG, **RECIPE)
            theirs = time.perf_counter() - start
            their_loss = split_loss(self.nanogpt.load_model("out-shakespeare-char"), val, BLOCK_SIZE)
            start = time.perf_counter()
            run = self.run_octavo(text, [*flags, "--seed", str(seed)])
            ours, our_loss = time.perf_counter() - start, self.loss(run, val)
            row = {"seed": seed, "nanogpt_seconds": theirs, "nanogpt_loss": their_loss}
            rows.append(row | {"octavo_seconds": ours, "octavo_loss": our_loss})
            self.print(f"{seed:4} {theirs:12.1f} {their_loss:7.4f} {ours:11.2f} {our_loss:7.4f} {theirs / ours:8.2f}")
        medians = {name: statistics.median(row[name] for row in rows) for name in rows[0]}
        ratio = medians["nanogpt_seconds"] / medians["octavo_seconds"]
        reached = sum(row["octavo_loss"] <= target for row in rows)
        self.print(
            f"median {medians['nanogpt_seconds']:10.1f} {medians['nanogpt_loss']:7.4f} "
            f"{medians['octavo_seconds']:11.2f} {medians['octavo_loss']:7.4f} {ratio:8.2f}   "
            f"{reached} of {seeds} seeds reach {target:.4f}"
        )
        is_met = medians["octavo_loss"] <= target
        return {"rows": rows, "ratio": ratio if is_met else None, "target": target, "reached": reached}

    def tokens(self, text: Path, seeds: int) -> dict[str, Any]:
        """The fewest training tokens with which the same model reaches the loss."""
        val = self.nanogpt.prepare_characters(text)
        theirs = NANOGPT_TOKENS_PER_STEP * NANOGPT_STEPS
        self.print(f"\ntokens to {TARGET}, 4/4/128; nanoGPT's recipe: {theirs:,}\n  tokens   losses")
        rows = []
        for steps in TOKENS_STEPS:
            losses = [
                self.loss(self.run_octavo(text, [*SAME_MODEL, "--max-steps", str(steps), "--seed", str(seed)]), val)
                for seed in range(1, seeds + 1)
            ]
            rows.append({"tokens": steps * SAME_MODEL_TOKENS_PER_STEP, "losses": losses})
            self.print(f"{steps * SAME_MODEL_TOKENS_PER_STEP:8,}   {' '.join(f'{loss:.4f}' for loss in losses)}")
            if statistics.median(losses) <= TARGET:
                self.print(f"ratio {theirs / rows[-1]['tokens']:.2f}")
                return {"rows": rows, "ratio": theirs / rows[-1]["tokens"]}
        return {"rows": rows, "ratio": None}

    def step(self, text: Path, rounds: int, steps: int) -> dict[str, Any]:
        """Milliseconds per step of the same model and recipe."""
        self.nanogpt.prepare_characters(text)
        self.print(f"\nms per step, median of {steps} steps\nround    nanoGPT   Octavo    ratio")
        theirs, ours = [], []
        for number in range(1, rounds + 1):
            changes = {"max_iters": steps, "eval_iters": 1, "eval_interval": 10**6}
            output = self.nanogpt.train(CONFIG, **RECIPE | changes)
            theirs.append(statistics.median(step_milliseconds(output)[WARM_UP_STEPS:]))
            flags = ["--preset", "nanogpt-tiny", "--max-steps", str(steps), "--log-every", "1"]
            run = self.run_octavo(
                text, [*flags, "--eval-every", str(steps), "--sample-every", "0", "--keep-checkpoints", "0"]
            )
            rates = [line["tokens_per_second"] for line in octavo.Run(run).lines("metrics")[WARM_UP_STEPS:]]
            ours.append(statistics.median(1000 * NANOGPT_TOKENS_PER_STEP / rate for rate in rates))
            self.print(f"{number:5} {theirs[-1]:10.2f} {ours[-1]:8.2f} {theirs[-1] / ours[-1]:8.2f}")
        step = {"nanogpt": statistics.median(theirs), "octavo": statistics.median(ours)}
        ratio = step["nanogpt"] / step["octavo"]
        self.print(f"median{step['nanogpt']:9.2f} {step['octavo']:8.2f} {ratio:8.2f}")
        return {"step_ms": step, "rounds_ms": {"nanogpt": theirs, "octavo": ours}, "ratio": ratio}

    def curve(self, text: Path) -> dict[str, list[tuple[int, float, float]]]:
        """Steps, seconds and validation losses in the course of each recipe."""
        self.nanogpt.prepare_characters(text)
        output = self.nanogpt.train(CONFIG, **RECIPE | {"eval_interval": 200})
        milliseconds = step_milliseconds(output)
        usual = statistics.median(milliseconds)
        seconds = np.cumsum([0.0, *(min(each, 3 * usual) for each in milliseconds)]) / 1000  # without evaluations
        losses = re.findall(r"^step (\d+): .*val loss ([\d.]+)", output, re.MULTILINE)
        theirs = [(int(step), float(seconds[int(step)]), float(loss)) for step, loss in losses]
        run = self.run_octavo(text, [*QUICK, "--log-every", "1", "--eval-every", "10", "--sample-every", "0"])
        lines = octavo.Run(run).lines("metrics")
        tokens_of_step = lines[0]["tokens"]
        seconds = np.cumsum([tokens_of_step / line["tokens_per_second"] for line in lines])  # without evaluations
        points = [
            (line["step"], float(total), line.get("val_loss")) for line, total in zip(lines, seconds, strict=True)
        ]
        ours = [point for point in points if point[2] is not None]
        self.print("\nprogram   step   seconds     loss")
        for name, points in (("nanoGPT", theirs), ("Octavo", ours)):
            for step, total, loss in points:
                self.print(f"{name:8} {step:5} {total:9.2f} {loss:8.4f}")
        return {"nanogpt": theirs, "octavo": ours}

    def run_octavo(self, text: Path, flags: list[str]) -> Path:
        """Train with an empty cache; the folder of the run."""
        self.runs += 1
        out, cache = self.folder / f"run-{self.runs}", self.folder / f"cache-{self.runs}"
        command = [sys.executable, "-m", "octavo", "train", str(text), *flags, "--device", "cpu", "--out", str(out)]
        subprocess.run(command, check=True, capture_output=True, env={**os.environ, "OCTAVO_CACHE": str(cache)})
        shutil.rmtree(cache)
        return out

    def loss(self, run: Path, val: np.ndarray) -> float:
        """The exact loss of a run's last checkpoint on nanoGPT's token ids.

        The ids of a character are the same in both: its index among the sorted characters.
        """
        last = octavo.Run(run).last
        assert last is not None
        loaded = octavo.load(last)
        characters = [token.decode() for token in loaded.tokenizer.token_bytes][: loaded.tokenizer.end_of_text]
        assert characters == sorted(characters)
        return split_loss(loaded.model, val, BLOCK_SIZE)


if __name__ == "__main__":
    sys.exit(main())
