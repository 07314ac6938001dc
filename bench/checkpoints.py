"""Measure how long a checkpoint delays training: written in the background, and written synchronously.

    python bench/checkpoints.py [--preset gpt2] [--batch-size 2] [--rounds 5] [--every 60] [--folder DIR] [--json]
    python bench/checkpoints.py --preset tiny --rounds 1       # a few seconds, to see that it works

The cost of a checkpoint is the time for which training waits (for the copy, or for the disk), plus the time by which
the steps during the write are longer than the median of undisturbed steps. It is given as a share of the seconds from
one checkpoint to the next (`--every`). The tokens are random, the optimizer is AdamW (the larger state). Medians of
the rounds; the two ways alternate. The script fails if the share of the checkpoint in the background exceeds the limit.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import machine
from octavo import tokenizers
from octavo.checkpoint import TrainerState
from octavo.device import resolve_runtime
from octavo.model import GPT
from octavo.runs import Run
from octavo.settings import resolve
from octavo.training.checkpoint_writer import CheckpointWriter
from octavo.training.step import Trainer

LIMIT = 0.01  # of the time from one checkpoint to the next
UNDISTURBED_STEPS = 5  # before each checkpoint


class Measurement:
    """A model in training, whose checkpoints are saved in a run."""

    def __init__(self, options: argparse.Namespace, folder: str) -> None:
        vocab_size = 50257 if options.preset.startswith("gpt2") else 65
        overrides = {"vocab_size": vocab_size, "batch_size": options.batch_size, "optimizer": "adamw"}
        self.settings = resolve(options.preset, device=options.device, keep_checkpoints=0, **overrides)
        runtime = resolve_runtime(self.settings)
        model = GPT(self.settings, torch.Generator().manual_seed(0)).to(runtime.device)
        self.trainer = Trainer(model, self.settings, runtime)
        self.run = Run.create(self.settings, "bench", out=Path(folder, "run"))
        self.tokenizer = tokenizers.build("byte", "")
        size = (self.settings.batch_size, self.settings.block_size + 1)
        self.ids = np.random.default_rng(0).integers(0, vocab_size, size)
        self.undisturbed: list[float] = []  # seconds of each step while no checkpoint is written
        self.step()  # the first step allocates
        self.writer = CheckpointWriter()
        self.save_in_background()  # the first copy allocates too
        self.writer.wait_result()

    def step(self) -> float:
        """Seconds of one step."""
        start = time.perf_counter()
        self.trainer.update(self.ids)
        self.trainer.runtime.synchronize()
        return time.perf_counter() - start

    def write(self, model: GPT, state: TrainerState | None) -> None:
        self.run.save(self.trainer.step, model, self.tokenizer, self.settings, {"step": self.trainer.step}, state)

    def save_in_background(self) -> None:
        state = self.trainer.state()
        self.writer.copy(self.trainer.tensors(state))
        self.writer.start(self.settings, state, self.write)

    def save_synchronously(self) -> None:
        self.write(self.trainer.model, self.trainer.state())

    def measure(self) -> dict[str, float]:
        """One round: the seconds that a checkpoint costs in each way."""
        self.undisturbed += [self.step() for _ in range(UNDISTURBED_STEPS)]
        start = time.perf_counter()
        self.save_synchronously()
        synchronous = time.perf_counter() - start
        self.undisturbed += [self.step() for _ in range(UNDISTURBED_STEPS)]
        start = time.perf_counter()
        self.save_in_background()
        copy = time.perf_counter() - start
        beside = []
        while self.writer.is_writing:
            beside.append(self.step())
        write = time.perf_counter() - start
        self.writer.wait_result()
        slowdown = sum(seconds - statistics.median(self.undisturbed) for seconds in beside)
        background = {"copy": copy, "slowdown": slowdown, "write": write, "background": copy + slowdown}
        return {"synchronous": synchronous} | background


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="gpt2")
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--every", type=float, default=60.0, help="seconds from one checkpoint to the next")
    parser.add_argument("--folder", help="where to save: a folder on the disk to measure")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if not options.json:
        print(machine.summary())
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        measurement = Measurement(options, folder)
        rounds = []
        for _ in range(options.rounds):
            rounds.append(measurement.measure())
            if not options.json:
                print(", ".join(f"{name} {seconds:.2f} s" for name, seconds in rounds[-1].items()), flush=True)
        last = measurement.run.last
        assert last is not None
        bytes_on_disk = sum(path.stat().st_size for path in last.iterdir())
    report: dict[str, Any] = {
        "machine": machine.describe(),
        "preset": options.preset,
        "checkpoint_bytes": bytes_on_disk,
        "step_seconds": statistics.median(measurement.undisturbed),
        "rounds": rounds,
        "shares": {
            way: statistics.median(each[way] for each in rounds) / options.every
            for way in ("synchronous", "background")
        },
    }
    report["met"] = report["shares"]["background"] < LIMIT
    if options.json:
        print(json.dumps(report))
    else:
        print(f"checkpoint of {bytes_on_disk / 1e9:.2f} GB, step of {report['step_seconds']:.2f} s")
        print(
            f"with a checkpoint every {options.every:g} s, written synchronously: "
            f"{report['shares']['synchronous']:.2%}; in the background: {report['shares']['background']:.2%}; "
            f"limit {LIMIT:.0%}: {'met' if report['met'] else 'MISSED'}"
        )
    return int(not report["met"])


if __name__ == "__main__":
    sys.exit(main())
