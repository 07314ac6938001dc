"""Compare the training throughput of Octavo and nanoGPT on a GPU: GPT-2, both compiled. Takes less than 9 minutes.

    python bench/gpu_throughput.py --nanogpt PATH [--rounds 2] [--steps 15] [--json]

Both train GPT-2 124M with block_size 1024, bf16, 480 sequences per step, on the same tokens; nanoGPT with each of the
`--micro` micro-batches, and its best result counts. Each process reports its own step times; the first third, which
includes compilation, is dropped. MFU is model FLOPs per second, divided by the peak in the device's data sheet; a token
takes 6 FLOPs for each parameter except `wpe`, and `12 L C T` for attention. The script also prints the measured
throughput of one large bf16 matmul.

Before that, the script checks on the device that the fast path computes the same loss and gradients as plain float32.
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

import machine
import octavo
from nanogpt import NanoGPT, step_milliseconds
from octavo import estimate, kernels
from octavo.data.prepare import prepare
from octavo.device import Runtime, resolve_runtime
from octavo.loss import next_token_loss
from octavo.model import GPT
from octavo.settings import Settings, resolve
from octavo.training.bf16_weights import Bf16Weights
from octavo.training.step import Trainer

SHAPE = ("n_layer", "n_head", "n_embd", "block_size", "batch_size", "vocab_size")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nanogpt", type=Path, required=True, help="a checkout of nanoGPT")
    parser.add_argument("--micro", type=int, nargs="+", default=[12, 48], help="nanoGPT's micro-batches to try")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--json", action="store_true")
    for name in SHAPE:  # for a trial without a GPU
        parser.add_argument("--" + name.replace("_", "-"), type=int)
    options = parser.parse_args()
    shape = {name: getattr(options, name) for name in SHAPE if getattr(options, name)}
    settings = resolve("gpt2", **{"vocab_size": 50257} | shape)
    runtime = resolve_runtime(settings)
    errors = fast_path_errors(settings)
    assert max(errors.values()) < 0.01, errors
    torch.cuda.empty_cache()  # leave the memory to the processes that follow
    rates: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = prepare("pydocs", folder / "tokens", tokenizer="bpe:2048")
        nanogpt = NanoGPT(options.nanogpt, folder)
        nanogpt.write_tokens("bench", data.tokens["train"], data.tokens["val"])
        for number in range(options.rounds):
            for micro_batch in options.micro:
                rate = nanogpt_throughput(nanogpt, settings, min(micro_batch, settings.batch_size), options.steps)
                rates.setdefault(f"nanoGPT, micro-batch {micro_batch}", []).append(rate)
            run = folder / f"run-{number}"
            rates.setdefault("Octavo", []).append(octavo_throughput(settings, folder / "tokens", run, options.steps))
    medians = {side: statistics.median(each) for side, each in rates.items()}
    flops, peak = estimate.flops_per_token(settings), runtime.peak_flops
    report: dict[str, Any] = {
        "machine": machine.describe(),
        "device": runtime.name,
        "errors": errors,
        "rates": rates,
        "tokens_per_second": medians,
        "ratio": medians["Octavo"] / max(rate for side, rate in medians.items() if side != "Octavo"),
        "mfu": medians["Octavo"] * flops / peak if peak else None,
        "matmul_flops_per_second": matmul_throughput(runtime),
    }
    if options.json:
        print(json.dumps(report))
        return 0
    print(machine.summary())
    print(f"{runtime.name}, {runtime.precision}, compiled: {runtime.compile}")
    for side, rate in medians.items():
        print(f"{side:28} {rate:12,.0f} tokens/s" + (f" {rate * flops / peak:7.1%} MFU" if peak else ""))
    print(f"{'ratio to the best nanoGPT':28} {report['ratio']:12.2f}")
    print(f"{'one large bf16 matmul':28} {report['matmul_flops_per_second'] / 1e12:12.1f} TFLOP/s")
    for quantity, error in errors.items():
        print(f"{quantity:28} {error:12.1e}")
    return 0


def fast_path_errors(settings: Settings) -> dict[str, float]:
    """Errors of the fast path's loss and gradients against plain float32, on two sequences."""
    runtime = resolve_runtime(settings)
    model = GPT(settings, torch.Generator().manual_seed(0)).to(runtime.device)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, settings.vocab_size, (2, settings.block_size + 1), generator=generator).to(runtime.device)

    def take_gradients() -> torch.Tensor:
        gradients = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).double()
        model.zero_grad()
        return gradients

    loss = next_token_loss(model(ids[:, :-1]), ids[:, 1:])
    loss.backward()
    plain = take_gradients()
    trainer = Trainer(model, settings, runtime)
    trainer.bf16_weights = Bf16Weights(model)
    trainer.bf16_weights.refresh()
    with kernels.fast_path(runtime.device):
        fast = trainer._forward(ids)
        fast.backward()
    trainer.bf16_weights.accumulate_master_gradients()
    return {
        "loss, relative error": abs(fast.item() / loss.item() - 1),
        "gradients, 1 - cosine": 1 - torch.cosine_similarity(take_gradients(), plain, 0).item(),
    }


def matmul_throughput(runtime: Runtime) -> float:
    """FLOP/s of one large bf16 matmul."""
    side = 8192 if runtime.device.type == "cuda" else 1024
    a = torch.randn(side, side, dtype=torch.bfloat16, device=runtime.device)
    for count in (3, 20):  # the first three warm up
        runtime.synchronize()
        start = time.perf_counter()
        for _ in range(count):
            a @ a
        runtime.synchronize()
    return count * 2 * side**3 / (time.perf_counter() - start)


def nanogpt_throughput(nanogpt: NanoGPT, settings: Settings, micro_batch: int, steps: int) -> float:
    """Tokens per second of nanoGPT's train.py."""
    shape = {name: getattr(settings, name) for name in ("block_size", "n_layer", "n_head", "n_embd")}
    runtime = resolve_runtime(settings)
    output = nanogpt.train(
        "train_gpt2",
        **shape,
        dataset="bench",
        wandb_log=False,
        device=runtime.device.type,
        compile=runtime.compile,
        batch_size=micro_batch,
        gradient_accumulation_steps=settings.batch_size // micro_batch,
        max_iters=steps,
        eval_iters=1,
        eval_interval=10**9,
        log_interval=1,
        out_dir="out-bench",
    )
    times = step_milliseconds(output)[1:]
    tokens = settings.batch_size // micro_batch * micro_batch * settings.block_size
    return 1000 * tokens / statistics.median(times[len(times) // 3 :])


def octavo_throughput(settings: Settings, tokens: Path, out: Path, steps: int) -> float:
    """Tokens per second of `octavo train`."""
    command = [sys.executable, "-m", "octavo", "train", str(tokens), "--preset=gpt2", "--tokenizer=auto"]
    command += [f"--{name.replace('_', '-')}={getattr(settings, name)}" for name in SHAPE]
    command += [f"--max-steps={steps}", "--log-every=1", f"--eval-every={steps}", "--sample-every=0"]
    command += ["--keep-checkpoints=0", f"--out={out}"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    rates = [line["tokens_per_second"] for line in octavo.Run(out).lines("metrics")][1:]
    return statistics.median(rates[len(rates) // 3 :])


if __name__ == "__main__":
    sys.exit(main())
