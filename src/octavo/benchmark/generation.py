"""How fast this machine writes with this model, beside what reading its weights allows. No text is needed."""

import dataclasses
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from octavo.benchmark.training import VOCABULARY
from octavo.device import Runtime
from octavo.errors import OctavoError
from octavo.generation.engine import Engine, Request
from octavo.generation.sampling import Sampling
from octavo.model import GPT
from octavo.settings import Settings

STREAMS = 8


@dataclass(frozen=True)
class GenerateBenchmark:
    """Writing here. Times are medians, in seconds; rates are per second."""

    device: str
    quantize: str
    parameters: int
    prompt_tokens: int
    new_tokens: int
    prefill_seconds: float  # from the request to the first token
    tokens_per_second: float  # of one text, after the first token
    streams: int  # texts at once, of different lengths and samplings
    streams_tokens_per_second: float  # of all of them together
    bytes_per_token: int  # that have to be read: the weights, and the keys and values of the positions seen
    memory_bandwidth: float  # of a plain sum with all threads
    bandwidth_share: float  # of that limit reached by one text


def benchmark_generation(model: GPT, quantize: str = "none", rounds: int = 5,
             tell: Callable[[str], None] = lambda line: None) -> GenerateBenchmark:  # fmt: skip
    """Time a prompt of half the block and texts of a quarter after it, alone and `STREAMS` at once, in turn."""
    if rounds < 1:
        raise OctavoError(f"{rounds} rounds can't be timed", "--rounds 5")
    settings = model.settings
    runtime = Runtime(model.lm_head.weight.device)
    prompt, new = settings.block_size // 2, max(2, settings.block_size // 4)
    engine = Engine(model, STREAMS, quantize=quantize)
    for note in engine.notes:
        tell(f"note: {note}")
    tell(f"{runtime.name}: {rounds} rounds of {prompt} tokens and {new} more, and of {STREAMS} texts at once")
    alone, together, reading = [], [], []
    for number in range(rounds + 1):  # the first is to warm up
        alone.append(_one(engine, prompt, new, number))
        together.append(_streams(engine, prompt, new, number))
        reading.append(_reading(runtime))
    weight, cached = (1, 2) if quantize == "int8" else (4, 4)  # bytes of a number
    C = settings.n_embd
    matrices = 12 * settings.n_layer * C * C + settings.vocab_size * C
    seen = 2 * cached * settings.n_layer * C * (prompt + new // 2)
    rate, limit = statistics.median(r for _, r in alone[1:]), statistics.median(reading[1:])
    return GenerateBenchmark(
        device=runtime.name, quantize=quantize, parameters=sum(p.numel() for p in model.parameters()),
        prompt_tokens=prompt, new_tokens=new, prefill_seconds=statistics.median(p for p, _ in alone[1:]),
        tokens_per_second=rate, streams=STREAMS, streams_tokens_per_second=statistics.median(together[1:]),
        bytes_per_token=weight * matrices + seen, memory_bandwidth=limit,
        bandwidth_share=rate * (weight * matrices + seen) / limit,
    )  # fmt: skip


def untrained_model(settings: Settings, device: torch.device) -> GPT:
    """A model of these settings; with 65 tokens, tiny Shakespeare's, where they leave that to a tokenizer."""
    settings = dataclasses.replace(settings, vocab_size=settings.vocab_size or VOCABULARY)
    return GPT(settings, torch.Generator().manual_seed(0)).eval().to(device)


def _request(model_vocab: int, length: int, new: int, seed: int, sampling: Sampling) -> Request:
    generator = torch.Generator().manual_seed(seed)
    prompt = torch.randint(model_vocab, (max(1, length),), generator=generator).tolist()
    return Request(prompt=prompt, max_new_tokens=new, sampling=sampling, generator=generator, overflow="stop")


def _one(engine: Engine, prompt: int, new: int, seed: int) -> tuple[float, float]:
    """Seconds to the first token, and tokens a second after it."""
    job = engine.submit(_request(engine.known, prompt, new, seed, Sampling(temperature=0)))
    start = time.perf_counter()
    while not job.tokens:
        engine.step()
    first = time.perf_counter()
    while engine.step():
        pass
    return first - start, (new - 1) / (time.perf_counter() - first)


def _streams(engine: Engine, prompt: int, new: int, seed: int) -> float:
    """Tokens a second of several texts together, their prompts' reading included."""
    samplings = (Sampling(temperature=0), Sampling(), Sampling(top_p=0.95), Sampling(repetition_penalty=1.1))
    start = time.perf_counter()
    jobs = [
        engine.submit(_request(engine.known, prompt * (1 + n) // STREAMS, new, seed + n, samplings[n % len(samplings)]))
        for n in range(STREAMS)
    ]
    while engine.step():
        pass
    return sum(len(job.tokens) for job in jobs) / (time.perf_counter() - start)


def _reading(runtime: Runtime) -> float:
    """Bytes a second that a sum of more than any cache holds reads."""
    numbers = torch.ones(1 << 26, device=runtime.device)  # 256 MiB
    best = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        numbers.sum()
        runtime.synchronize()
        best = min(best, time.perf_counter() - start)
    return numbers.nbytes / best
