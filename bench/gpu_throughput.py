"""How fast a GPU trains GPT-2: Octavo beside nanoGPT, both compiled, in one run. One command, under 9 minutes.

    python bench/gpu_throughput.py --nanogpt PATH [--rounds 2] [--steps 15] [--json]

Both train GPT-2 124M, block 1024, bf16, 480 sequences a step, on the same tokens; nanoGPT at each of `--micro`
sequences at once, of which its best counts. Each side's process reports its own times, of which the first third,
compiling, is left out. Model FLOPs (6 for each parameter but `wpe`'s, 12 L C T for attention, a token) are set
against the device's data sheet, with the rate of one large bf16 product, measured here, beside it. First of all it
is checked on the device that the fast path's loss and gradients are the plain float32 ones.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import octavo
from nanogpt import NanoGPT, step_milliseconds
from octavo import estimate, kernels
from octavo.data.prepare import prepare
from octavo.device import resolve_runtime
from octavo.loss import next_token_loss
from octavo.model import GPT
from octavo.settings import Settings, resolve
from octavo.training.bf16_weights import Bf16Weights
from octavo.training.step import Trainer

SHAPE = ("n_layer", "n_head", "n_embd", "block_size", "batch_size", "vocab_size")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nanogpt", type=Path, required=True, help="a checkout of nanoGPT")
    parser.add_argument("--micro", type=int, nargs="+", default=[12, 48], help="nanoGPT's sequences at once")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--json", action="store_true")
    for name in SHAPE:  # to try the script where there is no GPU
        parser.add_argument("--" + name.replace("_", "-"), type=int)
    options = parser.parse_args()
    shape = {name: getattr(options, name) for name in SHAPE if getattr(options, name)}
    settings = resolve("gpt2", **{"vocab_size": 50257} | shape)
    runtime = resolve_runtime(settings)
    checks = correctness(settings)
    assert max(checks.values()) < 0.01, checks
    torch.cuda.empty_cache()  # the processes to come want the memory
    rates: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = prepare(resolve(tokenizer="bpe:2048"), folder / "tokens")
        nanogpt = NanoGPT(options.nanogpt, folder)
        nanogpt.put("bench", data.tokens("train"), data.tokens("val"))
        for number in range(options.rounds):
            for micro in options.micro:
                rate = nanogpt_rate(nanogpt, settings, min(micro, settings.batch_size), options.steps)
                rates.setdefault(f"nanoGPT, {micro} at once", []).append(rate)
            run = folder / f"run-{number}"
            rates.setdefault("Octavo", []).append(octavo_rate(settings, folder / "tokens", run, options.steps))
    medians = {side: statistics.median(each) for side, each in rates.items()}
    flops, peak = estimate.flops_per_token(settings), runtime.peak_flops
    out: dict[str, Any] = {
        "device": runtime.name, "torch": torch.__version__, "checks": checks, "rates": rates,
        "tokens_per_second": medians,
        "ratio": medians["Octavo"] / max(rate for side, rate in medians.items() if side != "Octavo"),
        "mfu": medians["Octavo"] * flops / peak if peak else None, "product_flops": product_rate(runtime.device),
    }  # fmt: skip
    if options.json:
        print(json.dumps(out))
        return 0
    print(f"{runtime.name}, torch {torch.__version__}, {runtime.precision}, compiled: {runtime.compile}")
    for side, rate in medians.items():
        print(f"{side:28} {rate:12,.0f} tokens/s" + (f" {rate * flops / peak:7.1%} of peak" if peak else ""))
    print(f"{'ratio to the best nanoGPT':28} {out['ratio']:12.2f}")
    print(f"{'one large bf16 product':28} {out['product_flops'] / 1e12:12.1f} TFLOP/s")
    for check, error in checks.items():
        print(f"{check:28} {error:12.1e}")
    return 0


def correctness(settings: Settings) -> dict[str, float]:
    """How far the fast path's loss and gradients are from the plain float32 ones, on two sequences."""
    runtime = resolve_runtime(settings)
    model = GPT(settings, torch.Generator().manual_seed(0)).to(runtime.device)
    ids = torch.randint(
        0, settings.vocab_size, (2, settings.block_size + 1), generator=torch.Generator().manual_seed(0)
    )
    ids = ids.to(runtime.device)

    def gradients() -> torch.Tensor:
        every = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).double()
        model.zero_grad()
        return every

    loss = next_token_loss(model(ids[:, :-1]), ids[:, 1:])
    loss.backward()
    plain = gradients()
    trainer = Trainer(model, settings, runtime)
    trainer.bf16_weights = Bf16Weights(model)
    trainer.bf16_weights.refresh()
    with kernels.fast_path(runtime.device):
        fast = trainer._forward(ids)
        fast.backward()
    trainer.bf16_weights.accumulate_into_master_weights()
    return {
        "loss, relative error": abs(fast.item() / loss.item() - 1),
        "gradients, 1 - cosine": 1 - torch.cosine_similarity(gradients(), plain, 0).item(),
    }


def product_rate(device: torch.device) -> float:
    """FLOP/s of one large bf16 product."""
    side = 8192 if device.type == "cuda" else 1024
    a = torch.randn(side, side, dtype=torch.bfloat16, device=device)
    for count in (3, 20):  # the first are warm-up
        wait(device)
        start = time.perf_counter()
        for _ in range(count):
            a @ a
        wait(device)
    return count * 2 * side**3 / (time.perf_counter() - start)


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def nanogpt_rate(nanogpt: NanoGPT, settings: Settings, micro: int, steps: int) -> float:
    """Tokens per second of nanoGPT's train.py."""
    shape = {name: getattr(settings, name) for name in ("block_size", "n_layer", "n_head", "n_embd")}
    runtime = resolve_runtime(settings)
    printed = nanogpt.train(
        "train_gpt2", dataset="bench", wandb_log=False, device=runtime.device.type, compile=runtime.compile, **shape,
        batch_size=micro, gradient_accumulation_steps=settings.batch_size // micro, max_iters=steps, eval_iters=1,
        eval_interval=10**9, log_interval=1, out_dir="out-bench",
    )  # fmt: skip
    times = step_milliseconds(printed)[1:]
    tokens = settings.batch_size // micro * micro * settings.block_size
    return 1000 * tokens / statistics.median(times[len(times) // 3 :])


def octavo_rate(settings: Settings, tokens: Path, out: Path, steps: int) -> float:
    """Tokens per second of `octavo train`."""
    words = [f"--{name.replace('_', '-')}={getattr(settings, name)}" for name in SHAPE]
    words += [
        f"--max-steps={steps}",
        "--log-every=1",
        f"--eval-every={steps}",
        "--sample-every=0",
        "--keep-checkpoints=0",
    ]
    words += ["--preset=gpt2", "--tokenizer=auto", f"--out={out}"]
    words = [sys.executable, "-m", "octavo", "train", str(tokens), *words]
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    rates = [line["tokens_per_second"] for line in octavo.Run(out).lines("metrics")][1:]
    return statistics.median(rates[len(rates) // 3 :])


if __name__ == "__main__":
    sys.exit(main())
