"""Time generation with a model on this machine: prefill, decode, a batch of sequences, and the memory bandwidth used.

Prompts are random tokens, since the time does not depend on them. Decoding one sequence has to read all weights and the
KV cache for each token, so memory bandwidth limits it; the benchmark measures that limit too. Nothing is saved.
"""

import dataclasses
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from octavo.benchmark.training import DEFAULT_VOCAB_SIZE
from octavo.device import Runtime
from octavo.errors import OctavoError
from octavo.generation.engine import Engine, Request
from octavo.generation.sampling import Sampling
from octavo.model import GPT
from octavo.settings import Settings

STREAMS = 8  # sequences generated at once


@dataclass(frozen=True)
class GenerateBenchmark:
    """Generation on this machine. Times are medians, in seconds; rates are per second."""

    device: str
    quantize: str
    parameters: int
    prompt_tokens: int
    new_tokens: int
    prefill_seconds: float  # from the request to the first token
    tokens_per_second: float  # decode throughput of one sequence, without the first token
    streams: int  # sequences at once, with prompts of different lengths and different sampling parameters
    streams_tokens_per_second: float  # throughput of all of them together, prefill included
    bytes_per_token: int  # that decoding one token reads: the weights, and the KV cache of the positions so far
    memory_bandwidth: float  # bytes per second, measured by summing a large array with all threads
    bandwidth_share: float  # the part of the memory bandwidth that decoding one sequence uses


def benchmark_generation(
    model: GPT, quantize: str = "none", rounds: int = 5, report: Callable[[str], None] = lambda line: None
) -> GenerateBenchmark:
    """Time one sequence alone, then `STREAMS` sequences at once, then the memory bandwidth; `rounds` times in turn.

    The prompt fills half of block_size, the new tokens a quarter. `report` receives lines of progress.
    """
    if rounds < 1:
        raise OctavoError(f"{rounds} rounds can't be timed", "--rounds 5")
    settings = model.settings
    runtime = Runtime(model.lm_head.weight.device)
    prompt_tokens, new_tokens = settings.block_size // 2, max(2, settings.block_size // 4)
    engine = Engine(model, STREAMS, quantize=quantize, use_drafts=False)  # one token per step
    for notice in engine.notices:
        report(f"note: {notice}")
    report(
        f"{runtime.name}: {rounds} rounds of {prompt_tokens} prompt tokens and {new_tokens} new ones, "
        f"then of {STREAMS} sequences at once"
    )
    single, throughputs, bandwidths = [], [], []
    for seed in range(rounds + 1):
        single.append(_time_one_sequence(engine, settings.vocab_size, prompt_tokens, new_tokens, seed))
        throughputs.append(_streams_throughput(engine, settings.vocab_size, prompt_tokens, new_tokens, seed))
        bandwidths.append(_memory_bandwidth(runtime))
    del single[0], throughputs[0], bandwidths[0]  # warm-up
    int8 = quantize == "int8"
    weight_size, cache_size = (1, 1 + 4 / settings.head_size) if int8 else (4, 4)  # bytes per number, with scales
    C = settings.n_embd
    matrices = 12 * settings.n_layer * C * C + settings.vocab_size * C
    cached = 2 * settings.n_layer * C * (prompt_tokens + new_tokens // 2)  # keys and values, on average
    bytes_per_token = int(weight_size * matrices + cache_size * cached)
    decode_rate, bandwidth = statistics.median(rate for _, rate in single), statistics.median(bandwidths)
    return GenerateBenchmark(
        device=runtime.name,
        quantize=quantize,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        prefill_seconds=statistics.median(prefill for prefill, _ in single),
        tokens_per_second=decode_rate,
        streams=STREAMS,
        streams_tokens_per_second=statistics.median(throughputs),
        bytes_per_token=bytes_per_token,
        memory_bandwidth=bandwidth,
        bandwidth_share=decode_rate * bytes_per_token / bandwidth,
    )


def untrained_model(settings: Settings, device: torch.device) -> GPT:
    """A model with random weights; its vocabulary size is 66 if the settings leave it to a tokenizer."""
    settings = dataclasses.replace(settings, vocab_size=settings.vocab_size or DEFAULT_VOCAB_SIZE)
    return GPT(settings, torch.Generator().manual_seed(0)).eval().to(device)


def _random_request(vocab_size: int, prompt_tokens: int, new_tokens: int, seed: int, sampling: Sampling) -> Request:
    generator = torch.Generator().manual_seed(seed)
    prompt = torch.randint(vocab_size, (max(1, prompt_tokens),), generator=generator).tolist()
    return Request(prompt=prompt, max_new_tokens=new_tokens, sampling=sampling, generator=generator, overflow="stop")


def _time_one_sequence(
    engine: Engine, vocab_size: int, prompt_tokens: int, new_tokens: int, seed: int
) -> tuple[float, float]:
    """Seconds of the prefill, up to the first token, and the decode's tokens per second after it."""
    job = engine.submit(_random_request(vocab_size, prompt_tokens, new_tokens, seed, Sampling(temperature=0)))
    start = time.perf_counter()
    while not job.tokens:
        engine.step()
    first_token = time.perf_counter()
    while engine.step():
        pass
    return first_token - start, (new_tokens - 1) / (time.perf_counter() - first_token)


def _streams_throughput(engine: Engine, vocab_size: int, prompt_tokens: int, new_tokens: int, seed: int) -> float:
    """Tokens per second of `STREAMS` sequences in one continuous batch, prefill included."""
    samplings = (Sampling(temperature=0), Sampling(), Sampling(top_p=0.95), Sampling(repetition_penalty=1.1))
    start = time.perf_counter()
    jobs = []
    for n in range(STREAMS):
        length, sampling = prompt_tokens * (1 + n) // STREAMS, samplings[n % len(samplings)]
        jobs.append(engine.submit(_random_request(vocab_size, length, new_tokens, seed + n, sampling)))
    while engine.step():
        pass
    return sum(len(job.tokens) for job in jobs) / (time.perf_counter() - start)


def _memory_bandwidth(runtime: Runtime) -> float:
    """Bytes per second of summing an array that is larger than any cache: the best of three."""
    array = torch.ones(1 << 26, device=runtime.device)  # 256 MiB
    best = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        array.sum()
        runtime.synchronize()
        best = min(best, time.perf_counter() - start)
    return array.nbytes / best
