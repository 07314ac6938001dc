"""Measure the share of a run that is not training: start, preparation, evaluation, sampling, checkpoints.

    python bench/overhead.py [--text FILE] [--steps 1250] [--rounds 3] [--json]

Runs `octavo train TEXT --preset tiny` as a process with an empty cache (about 45 s of training on two cores), and
compares the time of the steps, as the run reports it, with the time of the whole process. Median of the rounds. The
script fails if the share exceeds the limit.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import machine

LIMIT = 0.20  # of the process time


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shared = Path(os.environ.get("OCTAVO_SHARED", Path(__file__).parents[2] / "shared"))
    parser.add_argument("--text", type=Path, default=shared / "data" / "tinyshakespeare.txt")
    parser.add_argument("--steps", type=int, default=1250)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if not options.json:
        print(machine.summary())
    rows = []
    for _ in range(options.rounds):
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "octavo", "train", str(options.text), "--preset", "tiny", "--json"]
            command += ["--max-steps", str(options.steps), "--out", f"{folder}/run"]
            start = time.perf_counter()
            environment = {**os.environ, "OCTAVO_CACHE": f"{folder}/cache"}
            process = subprocess.run(
                command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
            )
            process_seconds = time.perf_counter() - start
        report = json.loads(process.stdout)
        training_seconds = report["tokens"] / report["tokens_per_second"]
        share = 1 - training_seconds / process_seconds
        row = {"process_seconds": process_seconds, "training_seconds": training_seconds, "overhead_share": share}
        rows.append(row)
        if not options.json:
            print(
                f"process {process_seconds:6.1f} s, training {training_seconds:6.1f} s, overhead {share:.1%}",
                flush=True,
            )
    share = statistics.median(row["overhead_share"] for row in rows)
    met = share < LIMIT
    if options.json:
        print(json.dumps({"machine": machine.describe(), "rounds": rows, "overhead_share": share, "met": met}))
    else:
        print(f"median {share:.1%}, limit {LIMIT:.0%}: {'met' if met else 'MISSED'}")
    return int(not met)


if __name__ == "__main__":
    sys.exit(main())
