"""Check that the preset `nanogpt-tiny` reaches the loss of nanoGPT's published CPU recipe.

    python bench/parity.py --text tinyshakespeare.txt [--seeds 1 2 3] [--json]

Trains the whole preset on tiny Shakespeare with each seed, and computes the exact loss over the whole validation split
with block_size 64. nanoGPT's own model, trained by its own script and scored the same way, reached 1.907.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path

import machine
import octavo

EXPECTED, TOLERANCE = 1.90, 0.02  # nats per token


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shared = Path(os.environ.get("OCTAVO_SHARED", Path(__file__).parents[2] / "shared"))
    parser.add_argument("--text", type=Path, default=shared / "data" / "tinyshakespeare.txt")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if not options.json:
        print(machine.summary())
    results = []
    for seed in options.seeds:
        with tempfile.TemporaryDirectory() as folder:
            run = octavo.train(
                options.text,
                preset="nanogpt-tiny",
                seed=seed,
                out=Path(folder) / "run",
                device="cpu",
                sample_every=0,
                eval_every=2000,
            )
            assert run.last is not None
            loss = octavo.evaluate(run.last).loss
            rates = [line["tokens_per_second"] for line in run.lines("metrics")][1:]
        results.append({"seed": seed, "val_loss": loss, "step_ms": 1000 * 12 * 64 / statistics.median(rates)})
        if not options.json:
            print(
                f"seed {seed}: exact validation loss {loss:.4f}, {results[-1]['step_ms']:.1f} ms per step", flush=True
            )
    mean = statistics.mean(result["val_loss"] for result in results)
    met = abs(mean - EXPECTED) <= TOLERANCE
    if options.json:
        print(json.dumps({"machine": machine.describe(), "runs": results, "mean_val_loss": mean, "met": met}))
    else:
        print(f"mean {mean:.4f}, expected {EXPECTED} ± {TOLERANCE}: {'met' if met else 'MISSED'}")
    return int(not met)


if __name__ == "__main__":
    sys.exit(main())
