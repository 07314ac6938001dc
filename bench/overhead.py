"""How much of a run is not training: start, preparation, evaluation, sampling, checkpoints.

    python bench/overhead.py [--text FILE] [--steps 1250] [--rounds 3] [--json]

Runs `octavo train TEXT --preset tiny` as a process, with nothing cached, for the steps given (some 45 s of training
on two cores), and sets the time spent in steps, as the run reports it, against the whole process's. Median of the
rounds.
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

CEILING = 0.20  # of the whole


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shared = Path(os.environ.get("OCTAVO_SHARED", Path(__file__).parents[2] / "shared"))
    parser.add_argument("--text", type=Path, default=shared / "data" / "tinyshakespeare.txt")
    parser.add_argument("--steps", type=int, default=1250)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = []
    for _ in range(options.rounds):
        with tempfile.TemporaryDirectory() as folder:
            words = [sys.executable, "-m", "octavo", "train", str(options.text), "--preset", "tiny", "--json"]
            words += ["--max-steps", str(options.steps), "--out", f"{folder}/run"]
            start = time.perf_counter()
            ran = subprocess.run(words, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
                                 env={**os.environ, "OCTAVO_CACHE": f"{folder}/cache"})  # fmt: skip
            whole = time.perf_counter() - start
        ended = json.loads(ran.stdout)
        trained = ended["tokens"] / ended["tokens_per_second"]
        rows.append({"whole_seconds": whole, "training_seconds": trained, "share": 1 - trained / whole})
        if not options.json:
            print(f"{whole:6.1f} s in all, {trained:6.1f} s of training: {rows[-1]['share']:.1%} besides", flush=True)
    share = statistics.median(row["share"] for row in rows)
    met = share < CEILING
    if options.json:
        print(json.dumps({"rounds": rows, "share": share, "met": met}))
    else:
        print(f"median {share:.1%}, ceiling {CEILING:.0%}: {'met' if met else 'MISSED'}")
    return int(not met)


if __name__ == "__main__":
    sys.exit(main())
