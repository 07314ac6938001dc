"""Prepare a large text: speed compared with nanoGPT's script, the time to train a tokenizer, and peak memory.

    python bench/preparation.py --nanogpt PATH [--texts FILE ...] [--figures speed vocabulary memory]
                                [--gigabytes 1] [--memory-gigabytes 2] [--rounds 3] [--json]

The text is generated from pydocs and --texts: documents of about 4 KB, whose lines are drawn at random. One letter in
300 is replaced at random, so that about every fiftieth word is new, as in real text.

- `speed`: from JSON lines to shards of GPT-2's tokens, `octavo prepare` against nanoGPT's script for openwebtext. Whole
  processes, alternating; medians. The checkout's script is changed in four places: the dataset that it loads, the
  number of processes (all cores), the folder that it writes to, and the size of the validation split (2,000 documents,
  since it needs at least 1,024). It reads JSON lines through `datasets`, which converts them first. That time is also
  reported separately, because nanoGPT's own dataset is downloaded in converted form.
- `vocabulary`: seconds to train `bpe:32768` on 100 MB.
- `memory`: `octavo prepare` on --memory-gigabytes: the peak memory of all its processes together, read every 50 ms.

The script fails if a figure is outside its limit.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil

import machine
from octavo import tokenizers
from octavo.data import pydocs

LIMITS: dict[str, Callable[[dict[str, Any]], bool]] = {
    "speed": lambda result: result["ratio_without_conversion"] >= 2.5,
    "vocabulary": lambda result: result["seconds"] < 120,
    "memory": lambda result: result["peak_bytes"] < 1e9,
}
NANOGPT = """
import os, sys, time
import datasets
script, rows, folder, cores = sys.argv[1:]
source = open(script, encoding="utf-8").read()
assert "num_proc = 8" in source and 'load_dataset("openwebtext", num_proc=num_proc_load_dataset)' in source
assert "test_size=0.0005" in source
source = source.replace("num_proc = 8", f"num_proc = {cores}").replace("test_size=0.0005", "test_size=2000")
def load():
    start = time.perf_counter()
    train = datasets.load_dataset("json", data_files=rows, split="train", cache_dir=folder)
    print("converted", time.perf_counter() - start, flush=True)
    return datasets.DatasetDict(train=train)
source = source.replace('load_dataset("openwebtext", num_proc=num_proc_load_dataset)', "load()")
exec(compile(source, script, "exec"), {"__name__": "__main__", "__file__": os.path.join(folder, "x"), "load": load})
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nanogpt", type=Path, help="a checkout of nanoGPT, for speed")
    parser.add_argument("--texts", type=Path, nargs="*", default=[], help="text files to draw lines from")
    parser.add_argument("--figures", nargs="+", choices=LIMITS, default=list(LIMITS))
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--memory-gigabytes", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if "speed" in options.figures and not (options.nanogpt and (options.nanogpt / "data/openwebtext").is_dir()):
        print("error: speed needs nanoGPT\n  try: --nanogpt PATH, a checkout of it", file=sys.stderr)
        return 2
    texts = [pydocs.text(), *(path.read_text(encoding="utf-8") for path in options.texts)]
    all_lines = [line for text in texts for line in text.splitlines()]
    lines = np.array([line for line in all_lines if line.isascii() and len(line) > 20], dtype=object)
    report: dict[str, Any] = {"machine": machine.describe()}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if "speed" in options.figures:
            rows = write_documents(folder / "speed.jsonl", lines, options.gigabytes)
            report["speed"] = compare_speed(rows, options.nanogpt, options.rounds)
            rows.unlink()
        if "vocabulary" in options.figures:
            report["vocabulary"] = time_tokenizer_training(lines)
        if "memory" in options.figures:
            rows = write_documents(folder / "memory.jsonl", lines, options.memory_gigabytes)
            report["memory"] = measure_memory(rows)
    print(json.dumps(report) if options.json else f"{machine.summary()}\n{format_report(report)}")
    missed = [name for name, is_met in LIMITS.items() if name in report and not is_met(report[name])]
    print(f"MISSED: {', '.join(missed)}" if missed else "met", file=sys.stderr)
    return int(bool(missed))


def compare_speed(rows: Path, nanogpt: Path, rounds: int) -> dict[str, Any]:
    """Seconds of both programs for the same JSON lines, and the number of tokens that each writes."""
    octavo_seconds, nanogpt_seconds, conversion_seconds, tokens = [], [], [], {}
    script, cores = str(nanogpt / "data/openwebtext/prepare.py"), str(len(os.sched_getaffinity(0)))
    for number in range(1, rounds + 1):
        with tempfile.TemporaryDirectory(dir=rows.parent) as folder:
            seconds, _, info = run_octavo(rows, Path(folder) / "out")
            octavo_seconds.append(seconds)
            tokens["octavo"] = sum(info["tokens"].values())
        with tempfile.TemporaryDirectory(dir=rows.parent) as folder:
            seconds, _, output = run_process([sys.executable, "-c", NANOGPT, script, str(rows), folder, cores])
            nanogpt_seconds.append(seconds)
            conversion_seconds.append(
                next(float(line.split()[1]) for line in output.splitlines() if line.startswith("converted"))
            )
            tokens["nanogpt"] = sum((Path(folder) / f"{split}.bin").stat().st_size // 2 for split in ("train", "val"))
        print(
            f"round {number}: octavo {octavo_seconds[-1]:.1f} s, nanoGPT {nanogpt_seconds[-1]:.1f} s, "
            f"of which {conversion_seconds[-1]:.1f} s convert JSON lines",
            file=sys.stderr,
        )
    all_rounds = list(zip(octavo_seconds, nanogpt_seconds, conversion_seconds, strict=True))
    return {
        "bytes": rows.stat().st_size,
        "octavo_seconds": statistics.median(octavo_seconds),
        "nanogpt_seconds": statistics.median(nanogpt_seconds),
        "conversion_seconds": statistics.median(conversion_seconds),
        "ratio": statistics.median(theirs / ours for ours, theirs, _ in all_rounds),
        "ratio_without_conversion": statistics.median(
            (theirs - conversion) / ours for ours, theirs, conversion in all_rounds
        ),
        "tokens": tokens,
    }


def time_tokenizer_training(lines: Sequence[str]) -> dict[str, Any]:
    """Seconds to train `bpe:32768` on 100 MB of documents."""
    rng = np.random.default_rng(1)
    chunks, size = [], 0
    while size < 100_000_000:
        chunks.append("\n".join(random_document(lines, rng) for _ in range(250)))
        size += len(chunks[-1])
    start = time.perf_counter()
    tokenizer = tokenizers.build("bpe:32768", chunks)
    return {"bytes": size, "seconds": time.perf_counter() - start, "vocab_size": tokenizer.vocab_size}


def measure_memory(rows: Path) -> dict[str, Any]:
    """The peak memory of `octavo prepare`."""
    with tempfile.TemporaryDirectory(dir=rows.parent) as folder:
        seconds, peak, info = run_octavo(rows, Path(folder) / "out")
    shards = sum(len(names) for names in info["shards"].values())
    return {"bytes": info["text"]["bytes"], "peak_bytes": peak, "seconds": seconds, "shards": shards}


def run_octavo(rows: Path, out: Path) -> tuple[float, int, dict[str, Any]]:
    """Run `octavo prepare`: seconds, peak memory in bytes, and its report."""
    command = [sys.executable, "-m", "octavo", "prepare", str(rows), "--out", str(out), "--tokenizer", "gpt2"]
    seconds, peak, output = run_process([*command, "--val-fraction", "0.0005", "--json"])
    return seconds, peak, json.loads(output)


def run_process(command: list[str]) -> tuple[float, int, str]:
    """Run a command: seconds, the peak memory of it and its child processes in bytes, and its output."""
    start, peak = time.perf_counter(), 0
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as process,
    ):
        parent = psutil.Process(process.pid)
        while process.poll() is None:
            peak = max(peak, sum(map(resident_memory, [parent, *child_processes(parent)])))
            time.sleep(0.05)
        seconds = time.perf_counter() - start
        assert process.stdout is not None
        output = process.stdout.read()
        if process.returncode:
            errors.seek(0)
            raise SystemExit(f"{' '.join(command)} exited with {process.returncode}: {errors.read()[-2000:]}")
    return seconds, peak, output


def child_processes(process: psutil.Process) -> list[psutil.Process]:
    """All descendants of a process; none if it has exited."""
    try:
        return process.children(recursive=True)
    except psutil.Error:
        return []


def resident_memory(process: psutil.Process) -> int:
    """The memory of a process in bytes; 0 if it has exited."""
    try:
        return process.memory_info().rss
    except psutil.Error:
        return 0


def write_documents(path: Path, lines: Sequence[str], gigabytes: float) -> Path:
    """Write random documents as JSON lines. Each gigabyte after the first is a copy of the first."""
    print(f"generating {gigabytes:g} GB of text", file=sys.stderr)
    rng, size = np.random.default_rng(0), 0
    with open(path, "w", encoding="utf-8") as file:
        while size < min(gigabytes, 1) * 1e9:
            size += file.write(json.dumps({"text": random_document(lines, rng)}) + "\n")
    with open(path, "rb") as first, open(path, "ab") as file:
        for _ in range(round(gigabytes) - 1):
            first.seek(0)
            for _ in range(-(-size // (1 << 24))):
                file.write(first.read(min(1 << 24, size - first.tell())))
    return path


def random_document(lines: Sequence[str], rng: np.random.Generator) -> str:
    """80 random lines, about 4 KB, with one letter in 300 replaced."""
    text = "\n".join(lines[i] for i in rng.integers(0, len(lines), 80)).encode()
    letters = np.frombuffer(text, np.uint8).copy()
    positions = rng.integers(0, len(letters), len(letters) // 300)
    positions = positions[(letters[positions] >= 97) & (letters[positions] <= 122)]  # lowercase letters only
    letters[positions] = rng.integers(97, 123, len(positions))
    return letters.tobytes().decode()


def format_report(report: dict[str, Any]) -> str:
    """One line for each figure."""
    lines = []
    if speed := report.get("speed"):
        lines.append(
            f"speed       {speed['bytes'] / 1e9:.2f} GB: octavo {speed['octavo_seconds']:.1f} s "
            f"({speed['bytes'] / 1e6 / speed['octavo_seconds']:.0f} MB/s), nanoGPT {speed['nanogpt_seconds']:.1f} s; "
            f"ratio {speed['ratio']:.2f}, without its conversion of {speed['conversion_seconds']:.1f} s "
            f"{speed['ratio_without_conversion']:.2f}; tokens {speed['tokens']}"
        )
    if vocabulary := report.get("vocabulary"):
        lines.append(
            f"vocabulary  {vocabulary['vocab_size']:,} tokens from {vocabulary['bytes'] / 1e6:.0f} MB: "
            f"{vocabulary['seconds']:.1f} s"
        )
    if memory := report.get("memory"):
        lines.append(
            f"memory      {memory['bytes'] / 1e9:.2f} GB in {memory['seconds']:.0f} s, {memory['shards']} shards: "
            f"peak {memory['peak_bytes'] / 1e6:.0f} MB"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
