"""What `octavo estimate` says beforehand against what the run then takes: memory at its peak, and seconds.

    python bench/estimates.py [--text FILE] [--only memory|time] [--rounds 3] [--json]

Every figure is from two processes of its own, `octavo estimate --json` and `octavo train`: the peak is what the system
says that the second held, the seconds are those that it counts, from reading the text to the last checkpoint. Memory
settles within a few steps, so those runs are short, with an evaluation and a checkpoint at the end; from one to the
next it differs by up to a tenth. Time is that of whole runs of the presets `tiny` (about a minute on two cores) and
`quick`, evaluations, samples and saving included; run it with nothing beside.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

MEMORY, TIME = 0.15, 0.20  # off by so much at most
_GPT2 = "--vocab-size 50257 --tokenizer char --val-fraction 0.01 --sample-every 0"  # no download for a table's size
SHAPES = {
    "tiny": "--preset tiny --max-steps 120 --eval-every 60 --sample-every 60",
    "tiny, fp32": "--preset tiny --max-steps 120 --eval-every 60 --precision fp32",
    "nanogpt-tiny": "--preset nanogpt-tiny --max-steps 200 --eval-every 100",
    "baby": "--preset baby --max-steps 8 --eval-every 8 --sample-every 8 --val-fraction 0.02",
    "baby, 4 at once": "--preset baby --max-steps 8 --eval-every 8 --val-fraction 0.02 --micro-batch 4",
    "baby, adamw, fp32": "--preset baby --max-steps 8 --eval-every 8 --val-fraction 0.02 --optimizer adamw "
    "--precision fp32",
    "nanogpt-baby": "--preset nanogpt-baby --max-steps 3 --eval-every 3 --val-fraction 0.02",
    "6 layers of 384, vocabulary 8,000": "--n-layer 6 --n-head 6 --n-embd 384 --block-size 128 --vocab-size 8000 "
    "--max-steps 10 --eval-every 10 --val-fraction 0.03",
    "gpt2-512, 2 layers": f"--preset gpt2-512 --n-layer 2 --batch-size 4 --max-steps 6 {_GPT2}",
    "gpt2-512, 4 layers, muon, 1 at once": "--preset gpt2-512 --n-layer 4 --batch-size 4 --micro-batch 1 "
    f"--optimizer muon --max-steps 4 {_GPT2}",
    "gpt2, 3 layers": f"--preset gpt2 --n-layer 3 --batch-size 2 --max-steps 4 {_GPT2}",
}
RUNS = {"tiny": "--preset tiny", "quick": "--preset quick"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shared = Path(os.environ.get("OCTAVO_SHARED", Path(__file__).parents[2] / "shared"))
    parser.add_argument("--text", type=Path, default=shared / "data" / "tinyshakespeare.txt")
    parser.add_argument("--only", choices=("memory", "time"))
    parser.add_argument("--rounds", type=int, default=3, help="of which the median counts")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as cache:
        if options.only != "time":
            rows += [compared(options, cache, name, words, "memory") for name, words in SHAPES.items()]
        if options.only != "memory":
            rows += [compared(options, cache, name, words, "time") for name, words in RUNS.items()]
    met = all(row["met"] for row in rows)
    if options.json:
        print(json.dumps({"rows": rows, "met": met}))
    else:
        print("met" if met else "MISSED")
    return int(not met)


def compared(options: argparse.Namespace, cache: str, name: str, words: str, what: str) -> dict[str, Any]:
    """A row: told beforehand, measured, and how far apart they are."""
    rounds = [measured(options.text, cache, words) for _ in range(options.rounds)]
    told, taken = (statistics.median(each[what][side] for each in rounds) for side in (0, 1))
    off, limit = told / taken - 1, MEMORY if what == "memory" else TIME
    row = {"what": what, "run": name, "told": told, "measured": taken, "off": off, "met": abs(off) <= limit}
    if not options.json:
        shown = [f"{each / 1e6:,.0f} MB" if what == "memory" else f"{each:,.1f} s" for each in (told, taken)]
        print(f"{what:7} {name:36} told {shown[0]:>10}, measured {shown[1]:>10}: {off:+.0%}", flush=True)
    return row


def measured(text: Path, cache: str, words: str) -> dict[str, tuple[float, float]]:
    """What is told of a run and what it takes, of memory and of time."""
    octavo, environment = [sys.executable, "-m", "octavo"], {**os.environ, "OCTAVO_CACHE": cache}
    estimate = [*octavo, "estimate", str(text), *words.split(), "--json"]
    told = json.loads(subprocess.run(estimate, check=True, capture_output=True, env=environment).stdout)
    with tempfile.TemporaryDirectory() as folder:
        command = [*octavo, "train", str(text), *words.split(), "--out", f"{folder}/run", "--json"]
        with open(f"{folder}/said", "w+") as said:
            process = subprocess.Popen(command, stdout=said, stderr=subprocess.DEVNULL, env=environment)
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            assert process.returncode == 0, " ".join(command)
            said.seek(0)
            ended = json.load(said)
    held = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {"memory": (told["memory_bytes"], held), "time": (told["seconds"], ended["seconds"])}


if __name__ == "__main__":
    sys.exit(main())
