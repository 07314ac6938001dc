"""How many tokens a GPU run needs: the equal model, nanoGPT's recipe for some minutes, then Octavo's on fewer tokens.

    python bench/gpu_convergence.py --nanogpt PATH --text SOURCE [--minutes 3] [--fewer 1.4 2] [--json]

The text (a file, folder or glob; large enough that three minutes are few epochs) is prepared once as BPE. nanoGPT
trains for the steps that fit into the minutes, its schedule ending with them; Octavo then trains the same model on
1/1.4, 1/2, ... of the tokens, each run with a schedule of its own. Both are scored by one exact evaluation of the
validation split. Under 9 minutes in all.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

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
    parser.add_argument("--minutes", type=float, default=3.0, help="of nanoGPT's training, compiling left out")
    parser.add_argument("--fewer", type=float, nargs="+", default=[1.4, 2.0])
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--json", action="store_true")
    for name, value in SHAPE.items():
        parser.add_argument("--" + name.replace("_", "-"), type=int, default=value)
    options = parser.parse_args()
    shape = {name: getattr(options, name) for name in SHAPE}
    runtime = resolve_runtime(resolve())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = prepare(resolve(source=options.text, tokenizer=options.tokenizer), folder / "tokens")
        val = data.tokens("val")
        nanogpt = NanoGPT(options.nanogpt, folder)
        nanogpt.put("bench", data.tokens("train"), val, data.tokenizer.vocab_size)
        recipe: dict[str, Any] = shape | {
            "dataset": "bench", "wandb_log": False, "bias": False, "device": runtime.device.type,
            "compile": runtime.compile,
            "batch_size": options.batch_size, "gradient_accumulation_steps": 1, "dropout": 0.0, "eval_iters": 20,
            "log_interval": 1, "out_dir": "out-bench",
        }  # fmt: skip
        probe = nanogpt.train(CONFIG, **recipe, max_iters=30, eval_interval=10**9)
        steps = int(60_000 * options.minutes / statistics.median(step_milliseconds(probe)[10:]))
        nanogpt.train(CONFIG, **recipe, max_iters=steps, lr_decay_iters=steps, warmup_iters=min(100, steps // 10),
                      eval_interval=max(1, steps // 10))  # fmt: skip
        target = split_loss(nanogpt.model("out-bench").to(runtime.device), val, options.block_size)
        tokens = steps * options.batch_size * options.block_size
        rows = []
        for fewer in options.fewer:
            run = folder / f"run-{fewer}"
            flags = {**shape, "batch_size": options.batch_size, "max_steps": int(steps / fewer), "eval_every": steps,
                     "bias": False, "activation": "gelu", "dropout": 0, "curriculum_splits": 1, "tokenizer": "auto",
                     "sample_every": 0, "keep_checkpoints": 0, "out": run}  # fmt: skip
            words = [sys.executable, "-m", "octavo", "train", str(folder / "tokens"), "--preset=baby"]
            words += [f"--{name}={value}" for name, value in flags.items()]
            subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
            last = octavo.Run(run).last
            assert last is not None
            loss = split_loss(octavo.load(last).model.to(runtime.device), val, options.block_size)
            rows.append({"fewer": fewer, "tokens": int(tokens / fewer), "loss": loss, "reached": loss <= target})
    if options.json:
        print(json.dumps({"device": runtime.name, "nanogpt": {"tokens": tokens, "loss": target}, "octavo": rows}))
        return 0
    print(f"{runtime.name}, {runtime.precision}; {len(val):,} tokens of validation")
    print(f"nanoGPT            {tokens:14,} tokens   loss {target:.4f}")
    for row in rows:
        print(f"Octavo, 1/{row['fewer']:<8} {row['tokens']:14,} tokens   loss {row['loss']:.4f}   "
              f"{'reached' if row['reached'] else 'not reached'}")  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
