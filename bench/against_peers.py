"""Octavo's text beside nanoGPT's, transformers', CTranslate2's and llama.cpp's: the same weights, in one go, in turn.

    python bench/against_peers.py --nanogpt PATH [--peers-python PATH] [--figures whole fp32 int8 char streams]
                                  [--rounds 5] [--nanogpt-rounds 1] [--threads N] [--shape-override L H C] [--json]

--nanogpt is a checkout, --peers-python a Python that has torch, safetensors, transformers, ctranslate2, xllamacpp
(llama.cpp's server as a library) and gguf. Each program has a process of its own (`peers.py`), loads the model once
and sleeps while another is timed; all use --threads threads. In a round each has its turn, with the same prompt of
random tokens, a new one every time. Figures are medians over the rounds. In every ratio above 1, Octavo is ahead.

whole 124M, fp32, a prompt of 512 tokens and 256 more: seconds until all are there. nanoGPT, with sample.py's
temperature and top-k, and Octavo with the same; nanoGPT in the first --nanogpt-rounds rounds only, for it is slow.
fp32 124M: prefill, the seconds from a prompt of 512 to the first token; and decode, the tokens a second after it: 255,
in the time for 256 less that for 1. Greedy. int8 the same, weights in int8 (llama.cpp: Q8_0). char the same for
nanoGPT's 10M model of characters, fp32, a prompt of 96 and 150 more, with nanoGPT. streams Octavo alone: 8 requests of
different lengths and samplings, all their tokens a second, at once against one after the other.

The weights are random, the blocks' five times GPT-2's start, which itself writes one token over and over. "same" is
how many of the first 32 tokens come before the first that isn't Octavo's. A near tie ends it sooner, and so may
llama.cpp's f16 cache, or its GELU, which for char is not nanoGPT's. The read limit is what this machine's memory
gives when all threads sum 1 GiB of float32, measured in every round. What a token has to read is all weights but
wpe's, and the cache in float32 (for int8 in bf16), of the prompt and half of the new tokens; what the processor's own
caches hold comes
faster, so a small model may pass it.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from octavo import checkpoint, tokenizers
from octavo.model import GPT
from octavo.settings import Settings

SHAPES: dict[str, dict[str, Any]] = {
    "124M": dict(n_layer=12, n_head=12, n_embd=768, block_size=1024, vocab_size=50257),
    "10M": dict(n_layer=6, n_head=6, n_embd=384, block_size=256, vocab_size=65, activation="gelu"),
}
LENGTHS = {"124M": (512, 256), "10M": (96, 150)}  # of the prompt, and of what is written
SAMPLINGS = ({"temperature": 0}, {}, {"top_p": 0.95}, {"repetition_penalty": 1.1})
PACKAGES = ("torch", "safetensors", "transformers", "ctranslate2", "xllamacpp", "gguf")
INT8, FP32 = ("ctranslate2", "llama.cpp"), ("transformers", "ctranslate2", "llama.cpp")
COMPARED = 32
REST = 0.3  # seconds: the threads of some OpenMPs spin a while after their work


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nanogpt", type=Path, help="a checkout of nanoGPT, for whole and char")
    parser.add_argument("--peers-python", default=sys.executable, help="a Python that has the peers")
    parser.add_argument("--figures", nargs="+", choices=FIGURES, default=list(FIGURES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--nanogpt-rounds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--shape-override", type=int, nargs=3, default=(), metavar=("L", "H", "C"), help="for a trial")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    versions = installed(options.peers_python) if set(options.figures) != {"streams"} else {}
    missing = " ".join(name for name, version in versions.items() if version is None)
    if missing:
        print(f"error: {options.peers_python} has no {missing}\n  try: {options.peers_python} -m pip install {missing}",
              file=sys.stderr)  # fmt: skip
        return 2
    if {"whole", "char"} & {*options.figures} and not (options.nanogpt and (options.nanogpt / "model.py").is_file()):
        print("error: whole and char need nanoGPT\n  try: --nanogpt PATH, a checkout of it", file=sys.stderr)
        return 2
    out: dict[str, Any] = {"threads": options.threads, "octavo's torch": torch.__version__, "peers": versions}
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(options, Path(folder))
        bench.say(", ".join(f"{name} {version}" for name, version in versions.items()))
        bench.say(f"{options.threads} threads, medians of {options.rounds} rounds, Octavo's torch {torch.__version__}")
        for name in options.figures:
            out[name] = FIGURES[name](bench)
    if options.json:
        print(json.dumps(out))
    return 0


class Bench:
    """The models in a folder, prompts for them, and a place to tell what was measured."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.options, self.folder = options, folder
        self.told = sys.stderr if options.json else sys.stdout
        self.generator = np.random.default_rng(0)
        self.models: dict[str, GPT] = {}

    def say(self, line: str) -> None:
        print(line, file=self.told, flush=True)

    def whole(self) -> dict[str, Any]:
        """Seconds until everything is written, nanoGPT's and Octavo's."""
        self.say(f"\n{title('124M', 'fp32')}, sampled: seconds in all")
        seconds: dict[str, list[float]] = {"nanogpt": [], "octavo": []}
        with ExitStack() as stack:
            programs = self.start(stack, seconds, "124M", "fp32")
            for number in range(self.options.rounds):
                prompt = self.prompt("124M")
                for name in seconds if number < self.options.nanogpt_rounds else ["octavo"]:
                    seconds[name].append(programs[name].generate(prompt, LENGTHS["124M"][1], sampled=True)[1])
        theirs, ours = (statistics.median(each) for each in seconds.values())
        self.say(f"nanogpt {theirs:.1f}, octavo {ours:.2f}, ratio {theirs / ours:.1f}")
        return {"seconds": seconds, "ratio": theirs / ours}

    def tokens(self, shape: str, precision: str, peers: tuple[str, ...]) -> dict[str, Any]:
        """Prefill and decode of one stream."""
        self.say(f"\n{title(shape, precision)}, greedy\n{'':12}  prefill, s   ratio   tokens/s   ratio   same of 32")
        new, names, rates = LENGTHS[shape][1], (*peers, "octavo"), []
        prefill, decode, same = ({name: [] for name in names} for _ in range(3))
        with ExitStack() as stack:
            programs = self.start(stack, names, shape, precision)
            for _ in range(self.options.rounds):
                size, seconds = programs["octavo"].ask("read")
                rates.append(size / seconds / 1e9)
                short, long, written = self.prompt(shape), self.prompt(shape), {}
                for name, program in programs.items():
                    first = program.generate(short, 1)[1]
                    written[name], all_of_it = program.generate(long, new)
                    prefill[name].append(first)
                    decode[name].append((new - 1) / (all_of_it - first))
                for name in names:
                    differ = np.not_equal(written[name], written["octavo"])[:COMPARED]
                    same[name].append(int(differ.argmax()) if differ.any() else COMPARED)
        seconds, rate, agreed = ({n: statistics.median(x[n]) for n in names} for x in (prefill, decode, same))
        sooner = {name: seconds[name] / seconds["octavo"] for name in peers}
        faster = {name: rate["octavo"] / rate[name] for name in peers}
        for name in peers:
            self.say(f"{name:12} {seconds[name]:11.4f} {sooner[name]:7.2f} {rate[name]:10.1f} {faster[name]:7.2f} "
                     + (f"{agreed[name]:7.0f}" if precision == "fp32" else "      -"))  # fmt: skip
        read, needed = statistics.median(rates), self.bytes_per_token(shape, precision) / 1e9
        share, best = rate["octavo"] * needed / read, min(faster, key=faster.__getitem__)
        self.say(f"{'octavo':12} {seconds['octavo']:11.4f} {rate['octavo']:18.1f}")
        self.say(f"decode is {faster[best]:.2f} times the best, {best}'s, and {share:.0%} of the read limit: "
                 f"{read:.1f} GB/s, {1000 * needed:.0f} MB a token")  # fmt: skip
        return {"prefill_seconds": prefill, "tokens_per_second": decode, "same": same, "prefill_ratios": sooner,
                "decode_ratios": faster, "best_peer": best, "gigabytes_per_second": rates,
                "share_of_read_limit": share}  # fmt: skip

    def streams(self) -> dict[str, Any]:
        """All tokens a second of 8 mixed requests, one after the other and at once."""
        out = {}
        self.say("\noctavo, fp32, 8 mixed requests: tokens/s")
        for shape, (longest, new) in LENGTHS.items():
            rates: dict[bool, list[float]] = {False: [], True: []}
            with ExitStack() as stack:
                program = self.start(stack, ["octavo"], shape, "fp32")["octavo"]
                for _ in range(self.options.rounds):
                    for at_once, rate in rates.items():
                        requests = [{"prompt": self.prompt(shape, longest * n // 8), "new": new,
                                     "sampling": SAMPLINGS[n % len(SAMPLINGS)]} for n in range(1, 9)]  # fmt: skip
                        texts, seconds = program.ask("streams", requests=requests, at_once=at_once)
                        assert {len(text) for text in texts} == {new}
                        rate.append(8 * new / seconds)
            alone, together = (statistics.median(rate) for rate in rates.values())
            self.say(f"{shape:5} in turn {alone:8.1f}, at once {together:8.1f}, ratio {together / alone:.2f}")
            out[shape] = {"in_turn": rates[False], "at_once": rates[True], "ratio": together / alone}
        return out

    def start(self, stack: ExitStack, names: Any, shape: str, precision: str) -> dict[str, "Program"]:
        """Programs with a model, loaded and warm; they end with the stack."""
        if shape not in self.models:
            override = dict(zip(("n_layer", "n_head", "n_embd"), self.options.shape_override, strict=False))
            self.models[shape] = write(self.folder / shape, **SHAPES[shape] | override)
        programs = {}
        for name in names:
            python = sys.executable if name == "octavo" else self.options.peers_python
            words = [python, name, self.folder / shape, precision, self.options.threads]
            words += [self.options.nanogpt.resolve()] if name == "nanogpt" else []
            programs[name] = stack.enter_context(Program(*map(str, words)))
            for note in programs[name].hello["notes"]:
                self.say(f"{name}: {note}")
            programs[name].generate(self.prompt(shape), 2)
        return programs

    def prompt(self, shape: str, length: int = 0) -> list[int]:
        vocab_size = self.models[shape].settings.vocab_size
        return self.generator.integers(0, vocab_size, length or LENGTHS[shape][0]).tolist()

    def bytes_per_token(self, shape: str, precision: str) -> float:
        """What writing a token can't do without reading."""
        model, (prompt, new) = self.models[shape], LENGTHS[shape]
        weights = sum(p.numel() for name, p in model.named_parameters() if p.dim() == 2 and "wpe" not in name)
        cache = 2 * model.settings.n_layer * model.settings.n_embd * (prompt + new / 2)
        return weights * {"fp32": 4, "int8": 1}[precision] + cache * {"fp32": 4, "int8": 2}[precision]


class Program:
    """A process of `peers.py`, and what to ask of it. What it prints goes to a file, told if it breaks."""

    def __init__(self, python: str, name: str, folder: str, precision: str, threads: str, *more: str) -> None:
        self.name, self.log = name, Path(f"{folder}.{name}.log")
        pinned = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), threads)
        # -P: the other scripts beside peers.py must not be taken for packages of their names.
        words = [python, "-P", str(Path(__file__).with_name("peers.py")), name, folder, precision, threads, *more]
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
                                            env={**os.environ, **pinned, "HF_HUB_OFFLINE": "1"})  # fmt: skip

    def __enter__(self) -> Self:
        self.hello = self._answer()
        return self

    def __exit__(self, *error: object) -> None:
        self.process.communicate()  # at the end of its stdin it ends

    def ask(self, do: str, **given: Any) -> tuple[Any, float]:
        """What came of it, and the seconds that it took."""
        time.sleep(REST)
        self.process.stdin.write(json.dumps({"do": do, **given}) + "\n")
        self.process.stdin.flush()
        answer = self._answer()
        return answer["value"], answer["seconds"]

    def generate(self, prompt: list[int], new: int, **given: Any) -> tuple[list[int], float]:
        ids, seconds = self.ask("generate", prompt=prompt, new=new, **given)
        assert len(ids) == new, f"{self.name} wrote {len(ids)} tokens, not {new}"
        return ids, seconds

    def _answer(self) -> dict[str, Any]:
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"error: {self.name} broke:\n{self.log.read_text()[-2000:]}")
        return json.loads(line)


def write(folder: Path, **shape: Any) -> GPT:
    """A checkpoint of random weights, and its model. No text is read or shown: any distinct tokens will do."""
    tokenizer = tokenizers.build("char", "".join(map(chr, range(0x10000, 0x10000 + shape["vocab_size"]))))
    settings = Settings(**shape, tokenizer="char")
    model = GPT(settings, torch.Generator().manual_seed(0))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".h." in name and parameter.dim() == 2:
                parameter.mul_(5)
    checkpoint.save(folder, model, tokenizer, settings, {})
    return model


def installed(python: str) -> dict[str, str | None]:
    """The versions of the packages there; None for one that is missing."""
    code = """import json, sys
from importlib.metadata import distributions
print(json.dumps({name: next((d.version for d in distributions(name=name)), None) for name in sys.argv[1:]}))"""
    return json.loads(subprocess.run([python, "-c", code, *PACKAGES], check=True, capture_output=True).stdout)


def title(shape: str, precision: str) -> str:
    prompt, new = LENGTHS[shape]
    return f"{shape}, {precision}, {prompt} tokens and {new} more"


FIGURES = {
    "whole": Bench.whole,
    "fp32": lambda bench: bench.tokens("124M", "fp32", FP32),
    "int8": lambda bench: bench.tokens("124M", "int8", INT8),
    "char": lambda bench: bench.tokens("10M", "fp32", ("nanogpt", *FP32)),
    "streams": Bench.streams,
}

if __name__ == "__main__":
    sys.exit(main())
