"""Compare how many tokens Octavo and nanoGPT need for the same loss on a GPU, with the same model.

    python bench/gpu_convergence.py --nanogpt PATH --text SOURCE [--minutes 3] [--fewer 1.4 2] [--json]

The text (a file, folder or glob, large enough that three minutes are only a few epochs) is prepared once with BPE.
nanoGPT trains for as many steps as fit into the minutes, with a learning-rate schedule of that length. Octavo then
trains the same model on 1/1.4, 1/2, ... of those tokens, each run with its own schedule. The same exact
evaluation of the validation split scores both. Takes less than 9 minutes in all.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import machine
import octavo
from nanogpt import NanoGPT, step_milliseconds
from octavo.data.prepare import prepare
from octavo.device import resolve_runtime
from octavo.loss import split_loss
from octavo.settings import resolve

SHAPE = {"block_size": 256, "n_layer": 12, "n_head": 12, "n_embd": 768}
CONFIG = "train_gpt2"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nanogpt", type=Path, required=True, help="a checkout of nanoGPT")
    parser.add_argument("--text", required=True, help="a file, a folder, a glob or a named corpus")
    parser.add_argument("--tokenizer", default="bpe:8192")
    parser.add_argument("--minutes", type=float, default=3.0, help="of nanoGPT's training, without compilation")
    parser.add_argument("--fewer", type=float, nargs="+", default=[1.4, 2.0], help="divide nanoGPT's tokens by these")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--json", action="store_true")
    for name, value in SHAPE.items():
        parser.add_argument("--" + name.replace("_", "-"), type=int, default=value)
    options = parser.parse_args()
    shape = {name: getattr(options, name) for name in SHAPE}
    runtime = resolve_runtime(resolve())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = prepare(options.text, folder / "tokens", tokenizer=options.tokenizer)
        val = data.tokens["val"]
        nanogpt = NanoGPT(options.nanogpt, folder)
        nanogpt.write_tokens("bench", data.tokens["train"], val, data.tokenizer.vocab_size)
        recipe: dict[str, Any] = shape | {
            "dataset": "bench",
            "wandb_log": False,
            "bias": False,
            "device": runtime.device.type,
            "compile": runtime.compile,
            "batch_size": options.batch_size,
            "gradient_accumulation_steps": 1,
            "dropout": 0.0,
            "eval_iters": 20,
            "log_interval": 1,
            "out_dir": "out-bench",
        }
        probe = nanogpt.train(CONFIG, **recipe, max_iters=30, eval_interval=10**9)
        steps = int(60_000 * options.minutes / statistics.median(step_milliseconds(probe)[10:]))
        schedule = {"max_iters": steps, "lr_decay_iters": steps, "warmup_iters": min(100, steps // 10)}
        nanogpt.train(CONFIG, **recipe, **schedule, eval_interval=max(1, steps // 10))
        target = split_loss(nanogpt.load_model("out-bench").to(runtime.device), val, options.block_size)
        tokens = steps * options.batch_size * options.block_size
        rows = []
        for fewer in options.fewer:
            run = folder / f"run-{fewer}"
            settings = shape | {
                "batch_size": options.batch_size,
                "max_steps": int(steps / fewer),
                "eval_every": steps,
                "bias": False,
                "activation": "gelu",
                "dropout": 0,
                "curriculum_splits": 1,
                "tokenizer": "auto",
                "sample_every": 0,
                "keep_checkpoints": 0,
                "out": run,
            }
            command = [sys.executable, "-m", "octavo", "train", str(folder / "tokens"), "--preset=baby"]
            command += [f"--{name}={value}" for name, value in settings.items()]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            last = octavo.Run(run).last
            assert last is not None
            loss = split_loss(octavo.load(last).model.to(runtime.device), val, options.block_size)
            rows.append({"fewer": fewer, "tokens": int(tokens / fewer), "loss": loss, "reached": loss <= target})
    if options.json:
        report = {"machine": machine.describe(), "device": runtime.name}
        print(json.dumps(report | {"nanogpt": {"tokens": tokens, "loss": target}, "octavo": rows}))
        return 0
    print(machine.summary())
    print(f"{runtime.name}, {runtime.precision}; {len(val):,} validation tokens")
    print(f"nanoGPT            {tokens:14,} tokens   loss {target:.4f}")
    for row in rows:
        reached = "reached" if row["reached"] else "not reached"
        print(f"Octavo, 1/{row['fewer']:<8} {row['tokens']:14,} tokens   loss {row['loss']:.4f}   {reached}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
