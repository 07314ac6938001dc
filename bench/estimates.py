"""Compare `octavo estimate` with the runs themselves: peak memory and time.

    python bench/estimates.py [--text FILE] [--only memory|time] [--rounds 3] [--json]

Each comparison starts two processes, `octavo estimate --json` and `octavo train`. The measured memory is the peak of
the second process, as the system reports it; the measured time is the run's own, from reading the text to the last
checkpoint. Memory reaches its peak within a few steps, so the runs that measure it are short, with an evaluation and a
checkpoint at the end; it differs by up to a tenth between repetitions. Time is measured on whole runs of the presets
`tiny` (about a minute on two cores) and `quick`; the machine must be idle otherwise. The script fails if an estimate is
off by more than its tolerance.
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

import machine

TOLERANCE = {"memory": 0.15, "time": 0.20}
# GPT-2's vocabulary size, without downloading its tokenizer.
_GPT2 = "--vocab-size 50257 --tokenizer char --val-fraction 0.01 --sample-every 0"
SHAPES = {
    "tiny": "--preset tiny --max-steps 120 --eval-every 60 --sample-every 60",
    "tiny, fp32": "--preset tiny --max-steps 120 --eval-every 60 --precision fp32",
    "nanogpt-tiny": "--preset nanogpt-tiny --max-steps 200 --eval-every 100",
    "baby": "--preset baby --max-steps 8 --eval-every 8 --sample-every 8 --val-fraction 0.02",
    "baby, micro-batch 4": "--preset baby --max-steps 8 --eval-every 8 --val-fraction 0.02 --micro-batch 4",
    "baby, adamw, fp32": "--preset baby --max-steps 8 --eval-every 8 --val-fraction 0.02 --optimizer adamw "
    "--precision fp32",
    "nanogpt-baby": "--preset nanogpt-baby --max-steps 3 --eval-every 3 --val-fraction 0.02",
    "6 layers of 384, vocabulary 8,000": "--n-layer 6 --n-head 6 --n-embd 384 --block-size 128 --vocab-size 8000 "
    "--max-steps 10 --eval-every 10 --val-fraction 0.03",
    "gpt2-512, 2 layers": f"--preset gpt2-512 --n-layer 2 --batch-size 4 --max-steps 6 {_GPT2}",
    "gpt2-512, 4 layers, muon, micro-batch 1": "--preset gpt2-512 --n-layer 4 --batch-size 4 --micro-batch 1 "
    f"--optimizer muon --max-steps 4 {_GPT2}",
    "gpt2, 3 layers": f"--preset gpt2 --n-layer 3 --batch-size 2 --max-steps 4 {_GPT2}",
}
RUNS = {"tiny": "--preset tiny", "quick": "--preset quick"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shared = Path(os.environ.get("OCTAVO_SHARED", Path(__file__).parents[2] / "shared"))
    parser.add_argument("--text", type=Path, default=shared / "data" / "tinyshakespeare.txt")
    parser.add_argument("--only", choices=("memory", "time"))
    parser.add_argument("--rounds", type=int, default=3, help="their medians are compared")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if not options.json:
        print(machine.summary())
    rows = []
    with tempfile.TemporaryDirectory() as cache:
        if options.only != "time":
            rows += [compare(options, cache, name, flags, "memory") for name, flags in SHAPES.items()]
        if options.only != "memory":
            rows += [compare(options, cache, name, flags, "time") for name, flags in RUNS.items()]
    met = all(row["met"] for row in rows)
    if options.json:
        print(json.dumps({"machine": machine.describe(), "rows": rows, "met": met}))
    else:
        print("met" if met else "MISSED")
    return int(not met)


def compare(options: argparse.Namespace, cache: str, name: str, flags: str, quantity: str) -> dict[str, Any]:
    """A row of the table: the medians of estimate and measurement, and the relative error."""
    rounds = [measure(options.text, cache, flags) for _ in range(options.rounds)]
    estimated, measured = (statistics.median(each[quantity][side] for each in rounds) for side in (0, 1))
    error = estimated / measured - 1
    met = abs(error) <= TOLERANCE[quantity]
    if not options.json:
        shown = [f"{x / 1e6:,.0f} MB" if quantity == "memory" else f"{x:,.1f} s" for x in (estimated, measured)]
        print(f"{quantity:7} {name:40} estimated {shown[0]:>10}, measured {shown[1]:>10}: {error:+.0%}", flush=True)
    return {
        "quantity": quantity,
        "run": name,
        "estimated": estimated,
        "measured": measured,
        "relative_error": error,
        "met": met,
    }


def measure(text: Path, cache: str, flags: str) -> dict[str, tuple[float, float]]:
    """Estimate and train once. For memory (bytes) and time (seconds): the estimate and the measurement."""
    octavo, environment = [sys.executable, "-m", "octavo"], {**os.environ, "OCTAVO_CACHE": cache}
    command = [*octavo, "estimate", str(text), *flags.split(), "--json"]
    estimate = json.loads(subprocess.run(command, check=True, capture_output=True, env=environment).stdout)
    with tempfile.TemporaryDirectory() as folder:
        command = [*octavo, "train", str(text), *flags.split(), "--out", f"{folder}/run", "--json"]
        with open(f"{folder}/output", "w+") as output:
            process = subprocess.Popen(command, stdout=output, stderr=subprocess.DEVNULL, env=environment)
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            assert process.returncode == 0, " ".join(command)
            output.seek(0)
            report = json.load(output)
    peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {"memory": (estimate["memory_bytes"], peak), "time": (estimate["seconds"], report["seconds"])}


if __name__ == "__main__":
    sys.exit(main())
