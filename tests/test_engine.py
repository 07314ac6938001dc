"""Many texts on one model: each gets, to the bit, what it gets alone, by PyTorch or in C."""

import copy
import dataclasses
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import octavo
from generating import generate_ids
from octavo.checkpoint import Checkpoint
from octavo.data import pydocs
from octavo.errors import OctavoError
from octavo.generation import native
from octavo.generation.backends import create_decoder
from octavo.generation.decoder import Batch, Decoder
from octavo.generation.engine import OVERFLOW, Engine, Job, Request
from octavo.generation.int8 import linears_with_norms, round_to_int8
from octavo.generation.prefix_cache import PrefixCache
from octavo.generation.sampling import Sampling
from octavo.generation.torch_decoder import TorchDecoder
from octavo.loss import split_loss
from octavo.model import GPT
from octavo.settings import ModelSettings

law = hypothesis.settings(derandomize=True, deadline=None, max_examples=30)
GREEDY, ALL = Sampling(temperature=0), Sampling(temperature=1, top_k=0)
# Widths that are no multiple of the 16 numbers that C takes at once, nor of its 16 outputs, and one that is.
SHAPES: dict[str, dict[str, Any]] = {
    "small": dict(n_layer=2, n_head=2, n_embd=16, block_size=24, vocab_size=11),
    "odd": dict(n_layer=2, n_head=3, n_embd=39, block_size=21, vocab_size=37),
    "wide heads": dict(n_layer=1, n_head=2, n_embd=100, block_size=40, vocab_size=16),
    "even": dict(n_layer=2, n_head=2, n_embd=64, block_size=64, vocab_size=64),
    "no bias": dict(n_layer=2, n_head=2, n_embd=32, block_size=32, vocab_size=20, bias=False),
    "exact GELU": dict(n_layer=1, n_head=1, n_embd=48, block_size=16, vocab_size=20, activation="gelu"),
}


def lively(seed: int = 9, **shape: Any) -> GPT:
    """A small model whose weights lie far enough apart that what came before matters."""
    model = GPT(ModelSettings(**SHAPES["small"] | shape)).eval()
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        middle = 1.0 if ".ln_" in name and name.endswith("weight") else 0.0
        std = 3 * parameter.size(-1) ** -0.5 if parameter.dim() == 2 and "wte" not in name else 0.2
        nn.init.normal_(parameter, middle, std, generator=generator)
    return model


def ids_of(count: int, vocab_size: int, seed: int = 0) -> list[int]:
    return torch.randint(vocab_size, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def read(decode: Decoder, ids: list[int], slot: int = 0, cuts: Iterator[int] | tuple[int, ...] = ()) -> Tensor:
    """The logits (T, V) of a text that is read in pieces."""
    ends = [*cuts, len(ids)]
    pieces = []
    for start, end in zip([0, *ends], ends, strict=False):
        count = end - start
        pieces.append(
            decode.forward(Batch(ids[start:end], [slot] * count, list(range(start, end)), list(range(count))))
        )
    return torch.cat(pieces)


# Two decoders


@pytest.mark.parametrize("shape", SHAPES.values(), ids=list(SHAPES))
@pytest.mark.parametrize("use_native", [True, False], ids=["C", "PyTorch"])
def test_cached_decoding_equals_the_full_forward(shape: dict[str, Any], use_native: bool) -> None:
    model = lively(**shape)
    ids = ids_of(model.settings.block_size, model.settings.vocab_size)
    with torch.no_grad():
        full = model(torch.tensor([ids]))[0]
    decode, notes = create_decoder(model, 3, use_native=use_native)
    assert notes == []
    assert isinstance(decode, native.NativeDecoder) == use_native
    for cuts in ((), tuple(range(1, len(ids))), (1, 6, 15)):
        got = read(decode, ids, 1, cuts)
        assert (got - full).abs().max() < 1e-4
        assert torch.equal(got.argmax(-1), full.argmax(-1))


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("int8", [False, True], ids=["float32", "int8"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=list(SHAPES))
def test_in_c_a_row_has_the_same_bits_however_a_text_is_cut_and_whatever_runs_beside_it(
    shape: dict[str, Any], int8: bool, threads: int
) -> None:
    model = lively(**shape)
    V, T = model.settings.vocab_size, model.settings.block_size
    decode = native.NativeDecoder(model, 6, int8)
    texts = [ids_of(T, V, seed) for seed in range(6)]
    alone = [read(decode, ids) for ids in texts]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:

        @law
        @hypothesis.given(st.data())
        def mixed(data: st.DataObject) -> None:
            done = [0] * 6
            for _ in range(4):
                counts = data.draw(st.lists(st.integers(0, 9), min_size=6, max_size=6))
                pieces = [(slot, done[slot], min(T, done[slot] + n)) for slot, n in enumerate(counts)]
                rows = [(texts[slot][at], slot, at) for slot, start, end in pieces for at in range(start, end)]
                if rows:
                    ids, slots, positions = (list(each) for each in zip(*rows, strict=True))
                    logits = decode.forward(Batch(ids, slots, positions, list(range(len(rows)))))
                    for (_, slot, at), got in zip(rows, logits, strict=True):
                        assert torch.equal(got, alone[slot][at])
                done = [end for *_, end in pieces]

        mixed()
    finally:
        torch.set_num_threads(before)


def test_only_the_wanted_logits_are_given_in_their_order() -> None:
    model = lively()
    for use_native in (True, False):
        decode, _ = create_decoder(model, 2, use_native=use_native)
        ids, slots, positions = [1, 2, 3, 4], [0, 0, 0, 1], [0, 1, 2, 0]
        every = decode.forward(Batch(ids, slots, positions, [0, 1, 2, 3]))
        assert torch.allclose(decode.forward(Batch(ids, slots, positions, [3, 1])), every[[3, 1]], atol=1e-6)
        assert decode.forward(Batch(ids, slots, positions, [])).shape == (0, 11)


def test_a_model_that_learns_on_is_read_as_it_is_now() -> None:
    model = lively()
    decode = native.NativeDecoder(model, 1)
    first = read(decode, [1, 2, 3])
    with torch.no_grad():
        model.transformer.h[0].attn.c_attn.weight.mul_(0.5)
        model.lm_head.weight.add_(0.1)
        now = model(torch.tensor([[1, 2, 3]]))[0]
    assert not torch.allclose(first, now, atol=1e-2)
    assert torch.allclose(read(decode, [1, 2, 3]), now, atol=1e-4)


# int8


@pytest.mark.parametrize("shape", SHAPES.values(), ids=list(SHAPES))
def test_int8_computes_with_weights_rounded_to_a_127th_of_each_outputs_largest(shape: dict[str, Any]) -> None:
    model = lively(**shape)
    ids = ids_of(model.settings.block_size, model.settings.vocab_size)
    copy = round_to_int8(model)
    with torch.no_grad():
        expected, exact = copy(torch.tensor([ids]))[0], model(torch.tensor([ids]))[0]
    # In C the inputs of a matrix have 16 bits, keys and values bf16's 8 digits: less than what the weights lose.
    rounding = (expected - exact).abs().max()
    assert (read(native.NativeDecoder(model, 1, int8=True), ids) - expected).abs().max() < rounding / 2
    in_torch, _ = create_decoder(model, 1, "int8", use_native=False)
    assert (read(in_torch, ids) - expected).abs().max() < 1e-3
    assert 1e-4 < (expected - exact).abs().max() < 1.5
    for ours, (linear, norm) in zip(linears_with_norms(copy), linears_with_norms(model), strict=True):
        gain = torch.ones(linear.weight.size(1)) if norm is None else norm.weight
        off = ((ours[0].weight - linear.weight) * gain).abs().amax(1)
        assert (off <= (linear.weight * gain).abs().amax(1) / 127 * 0.501).all()


def test_int8_bears_channels_that_a_norm_makes_large() -> None:
    """The gain of some channels up, the weights that read them down: the same function, and for most int8 its end."""
    model = lively(**SHAPES["even"])
    idx = torch.tensor([ids_of(64, 64)])
    with torch.no_grad():
        exact = model(idx)
        plain = (round_to_int8(model)(idx) - exact).abs().mean()
        for linear, norm in linears_with_norms(model):
            if norm is not None and norm is not model.transformer.ln_f:
                for channel, by in ((3, 100.0), (17, 1000.0), (40, -50.0)):
                    norm.weight[channel] *= by
                    if norm.bias is not None:
                        norm.bias[channel] *= by
                    linear.weight[:, channel] /= by
        assert torch.allclose(model(idx), exact, atol=1e-3)
        assert (round_to_int8(model)(idx) - exact).abs().mean() < 1.2 * plain
        norm.weight.zero_()  # what is switched off has no gain to divide by
        assert torch.isfinite(round_to_int8(model)(idx)).all()


# The engine


def run(engine: Engine, *requests: Request) -> list[Job]:
    jobs = [engine.submit(request) for request in requests]
    while engine.step():
        pass
    return jobs


def request(number: int = 0, **fields: Any) -> Request:
    """Requests that differ in all respects."""
    samplings = (ALL, GREEDY, Sampling(top_k=3), Sampling(top_p=0.7, min_p=0.01),
                 Sampling(repetition_penalty=1.3, presence_penalty=0.5, frequency_penalty=0.2))  # fmt: skip
    usual = dict(prompt=ids_of(1 + 5 * number % 23, 11, number), max_new_tokens=30 + number,
                 sampling=samplings[number % 5], overflow=OVERFLOW[number % 3],
                 generator=torch.Generator().manual_seed(number))  # fmt: skip
    return Request(**usual | fields)


def ids_written(job: Job) -> list[int]:
    return [token.id for token in job.tokens]


@pytest.mark.parametrize("quantize", ["none", "int8"])
@pytest.mark.parametrize("slots", [1, 3, 8, 20])
def test_what_a_request_writes_does_not_depend_on_what_runs_beside_it(slots: int, quantize: str) -> None:
    model = lively()
    alone = [run(Engine(model, 1, quantize=quantize), request(n))[0] for n in range(15)]
    together = run(Engine(model, slots, quantize=quantize, prefix_bytes=1 << 20), *(request(n) for n in range(15)))
    assert [(ids_written(job), job.finish_reason) for job in together] == [
        (ids_written(job), job.finish_reason) for job in alone
    ]
    assert len({tuple(ids_written(job)) for job in alone}) == 15


def test_by_pytorch_too() -> None:
    model = lively()
    alone = [run(Engine(model, 1, use_native=False), request(n))[0] for n in range(15)]
    together = run(Engine(model, 4, use_native=False, prefix_bytes=1 << 20), *(request(n) for n in range(15)))
    assert [ids_written(job) for job in together] == [ids_written(job) for job in alone]
    assert [ids_written(job) for job in together] == [
        ids_written(run(Engine(model, 1), request(n))[0]) for n in range(15)
    ]


def test_requests_join_and_leave_a_running_batch() -> None:
    engine = Engine(lively(), 2)
    first, second, third = (engine.submit(request(prompt=[n], max_new_tokens=n, overflow="slide")) for n in (3, 6, 4))
    assert (engine.waiting, engine.running) == (3, 0)
    seen = []
    while engine.step():
        seen.append((len(first.tokens), len(second.tokens), len(third.tokens)))
    assert seen == [(1, 1, 0), (2, 2, 0), (3, 3, 0), (3, 4, 1), (3, 5, 2), (3, 6, 3), (3, 6, 4)]
    assert (engine.waiting, engine.running) == (0, 0)


@torch.no_grad()
def recomputed(model: GPT, prompt: list[int], count: int, keep: int) -> list[int]:
    """Greedy tokens, the window run afresh for each; once it is full, all but its newest `keep` are dropped."""
    window, written = prompt[-model.settings.block_size :], []
    for _ in range(count):
        written.append(int(model(torch.tensor([window]))[0, -1].argmax()))
        window = [*window, written[-1]]
        if len(window) > model.settings.block_size:
            window = window[-keep:]
    return written


@pytest.mark.parametrize("use_native", [True, False], ids=["C", "PyTorch"])
@pytest.mark.parametrize(("overflow", "keep"), [("slide", 24), ("rechunk", 12)])
@pytest.mark.parametrize("length", [1, 23, 24, 30])
def test_past_the_window_tokens_are_those_of_recomputing_it(
    overflow: str, keep: int, length: int, use_native: bool
) -> None:
    for seed in (9, 10, 11):
        model, prompt = lively(seed), ids_of(length, 11, seed)
        [job] = run(
            Engine(model, 1, use_native=use_native),
            request(prompt=prompt, max_new_tokens=60, sampling=GREEDY, overflow=overflow),
        )
        assert ids_written(job) == recomputed(model, prompt, 60, keep)
        assert job.finish_reason == "length"


def test_a_text_may_stop_where_the_window_is_full() -> None:
    for length in (1, 20, 24):
        [job] = run(Engine(lively(), 1), request(prompt=ids_of(length, 11), max_new_tokens=99, overflow="stop"))
        assert job.finish_reason == "length"
        assert len(job.tokens) == 25 - length  # what the last token of a full window says next is known


def test_each_token_is_delivered_in_the_step_that_draws_it_and_none_at_the_end() -> None:
    engine = Engine(lively(), 1)
    got: list[Any] = []
    job = engine.submit(request(max_new_tokens=3), got.append)
    counts = []
    while engine.step():
        counts.append(len(got))
    assert counts == [1, 2, 4]
    assert got == [*job.tokens, None]


def test_a_token_that_ends_the_text_is_no_part_of_it() -> None:
    model = lively()
    [whole] = run(Engine(model, 1), request(sampling=GREEDY))
    end = ids_written(whole)[5]
    [job] = run(Engine(model, 1), request(sampling=GREEDY, stop_ids=frozenset([end])))
    assert ids_written(job) == ids_written(whole)[: ids_written(whole).index(end)]
    assert job.finish_reason == "end_of_text"


@pytest.mark.parametrize("prompt", [1, 20])
def test_a_cancelled_job_leaves_its_slot_at_the_next_step(prompt: int) -> None:
    engine = Engine(lively(), 1)
    ended: list[Any] = []
    job = engine.submit(request(prompt=[1] * prompt, max_new_tokens=99, overflow="slide"), ended.append)
    waiting = [engine.submit(request(n)) for n in (1, 2)]
    for _ in range(3):
        engine.step()
    engine.cancel(job)
    engine.cancel(waiting[0])
    engine.step()
    assert job.finish_reason == waiting[0].finish_reason == "cancelled"
    assert len(job.tokens) == 3
    assert ended[-1] is None
    assert len(waiting[1].tokens) == 1
    while engine.step():
        pass
    assert ids_written(waiting[1]) == ids_written(run(Engine(lively(), 1), request(2))[0])


def test_requests_may_come_from_many_threads() -> None:
    engine = Engine(lively(), 4)
    jobs: list[tuple[int, Job]] = []
    over = threading.Event()

    def stepping() -> None:
        while not over.is_set() or engine.waiting or engine.running:
            engine.step()

    def submitting(first: int) -> None:
        for n in range(first, first + 10):
            job = engine.submit(request(n % 15))
            jobs.append((n % 15, job))
            if n % 3 == 0:
                engine.cancel(job)

    stepper = threading.Thread(target=stepping)
    threads = [threading.Thread(target=submitting, args=(10 * n,)) for n in range(5)]
    for thread in (stepper, *threads):
        thread.start()
    for thread in threads:
        thread.join()
    over.set()
    stepper.join(60)
    assert len(jobs) == 50
    alone = {n: ids_written(run(Engine(lively(), 1), request(n))[0]) for n in range(15)}
    for n, job in jobs:
        assert job.finish_reason in ("length", "cancelled")
        assert ids_written(job) == alone[n][: len(job.tokens)]


def test_prompts_are_read_in_pieces_while_others_write() -> None:
    model = lively(block_size=400)
    engine = Engine(model, 2)
    writing = engine.submit(request(prompt=[1], max_new_tokens=99, overflow="stop", sampling=GREEDY))
    engine.step()
    long = engine.submit(request(prompt=ids_of(300, 11), max_new_tokens=1, overflow="stop"))
    steps = 0
    while long.finish_reason is None:
        engine.step()
        steps += 1
    assert steps == 3  # of 128 rows at most
    assert len(writing.tokens) == 1 + steps


# What it thought of them


@pytest.mark.parametrize("use_native", [True, False], ids=["C", "PyTorch"])
def test_log_probabilities_are_those_of_the_full_forward(use_native: bool) -> None:
    model = lively(**SHAPES["odd"])
    prompt = ids_of(15, 37)
    [job] = run(Engine(model, 1, use_native=use_native, prefix_bytes=1 << 20),
                request(prompt=prompt, max_new_tokens=6, overflow="stop", sampling=Sampling(temperature=0.5, top_k=2),
                        logprobs=4, echo=True))  # fmt: skip
    written = [*prompt, *ids_written(job)]
    with torch.no_grad():
        expected = model(torch.tensor([written]))[0].double().log_softmax(-1)
    told = [*job.prompt_tokens, *job.tokens]
    assert [token.id for token in told] == written
    assert told[0].logprob is None
    assert told[0].top == ()
    for token, row in zip(told[1:], expected[:-1], strict=True):
        assert token.logprob == pytest.approx(row[token.id].item(), abs=1e-4)
        assert [id for id, _ in token.top] == row.topk(4).indices.tolist()
        assert [logprob for _, logprob in token.top] == pytest.approx(row.topk(4).values.tolist(), abs=1e-4)


def test_log_probabilities_of_a_prompt_that_is_read_in_pieces() -> None:
    model = lively(block_size=400)
    prompt = ids_of(300, 11)
    engine = Engine(model, 2, prefix_bytes=1 << 24)
    [other, job] = run(engine, request(prompt=prompt, max_new_tokens=0),
                       request(prompt=prompt, max_new_tokens=0, logprobs=0, echo=True, overflow="stop"))  # fmt: skip
    assert other.tokens == job.tokens == other.prompt_tokens == []
    with torch.no_grad():
        expected = model(torch.tensor([prompt]))[0].log_softmax(-1)
    assert [token.logprob for token in job.prompt_tokens[1:]] == pytest.approx(
        [expected[at, id].item() for at, id in enumerate(prompt[1:])], abs=1e-4
    )
    assert job.cached_tokens == 0  # whoever wants all logits has to have all of it read
    assert job.finish_reason == "length"


# Prompts that begin alike


@pytest.mark.parametrize("use_native", [True, False], ids=["C", "PyTorch"])
def test_a_prompt_goes_on_from_what_an_earlier_one_left(use_native: bool) -> None:
    model = lively(block_size=128)
    common = ids_of(60, 11)
    prompts = [common, [*common, 1, 2, 3], [*common[:40], *ids_of(30, 11, 5)], common, common[:30], ids_of(20, 11, 6)]
    engine = Engine(model, 2, prefix_bytes=1 << 24, use_native=use_native)
    jobs = [run(engine, request(n, prompt=prompt, overflow="stop"))[0] for n, prompt in enumerate(prompts)]
    assert [job.cached_tokens for job in jobs] == [0, 60, 40, 59, 29, 0]
    for n, (prompt, job) in enumerate(zip(prompts, jobs, strict=True)):
        [alone] = run(Engine(model, 1, use_native=use_native), request(n, prompt=prompt, overflow="stop"))
        assert ids_written(job) == ids_written(alone)


def test_a_window_that_has_slid_onto_a_cached_prompt_is_not_counted_as_one() -> None:
    model, prompt = lively(), ids_of(20, 11)
    how: dict[str, Any] = dict(prompt=prompt, max_new_tokens=40, sampling=GREEDY, overflow="slide")
    [alone] = run(Engine(model, 1), request(**how))
    text = prompt + ids_written(alone)
    engine = Engine(model, 1, prefix_bytes=1 << 20)
    run(engine, *(request(prompt=text[at : at + 24], max_new_tokens=0) for at in range(3, 20)))
    [job] = run(engine, request(**how))
    assert job.cached_tokens == 0
    assert ids_written(job) == ids_written(alone)


def test_a_prompt_is_shared_with_none_but_its_own() -> None:
    engine = Engine(lively(), 1, prefix_bytes=1 << 20)
    prompt = ids_of(20, 11)
    cached = [
        run(engine, request(prompt=prompt, cache_scope=share))[0].cached_tokens for share in ("a", "b", "a", "", "b")
    ]
    assert cached == [0, 0, 19, 0, 19]


def test_prompts_are_kept_within_their_memory_the_longest_unused_going_first() -> None:
    kept = [(torch.zeros(100), torch.zeros(25))]  # 500 bytes
    prefixes = PrefixCache(1700)
    texts = [[n] * 20 for n in range(4)]
    for text in texts[:3]:
        prefixes.add("", text, lambda: kept)
    assert prefixes.find("", [*texts[0], 9]) is not None  # used now
    prefixes.add("", texts[3], lambda: kept)
    assert [prefixes.find("", [*text, 9]) is not None for text in texts] == [True, False, True, True]
    assert prefixes.bytes == 1500
    prefixes.add("", [7] * 20, lambda: [(torch.zeros(1000), torch.zeros(0))])  # more than there is room for
    assert prefixes.bytes <= 1700
    nothing = PrefixCache(0)
    nothing.add("", texts[0], lambda: pytest.fail("kept, though there is no room"))
    assert nothing.find("", texts[0]) is None


# What can't be done


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"prompt": []}, "at least one token"),
        ({"prompt": [1, 11]}, "outside of 0 to 10"),
        ({"prompt": [-1]}, "outside of 0 to 10"),
        ({"overflow": "shift"}, "overflow='shift' is not one of stop, slide, rechunk"),
        ({"prompt": [1] * 25, "overflow": "stop"}, "25 tokens, and the model sees 24"),
    ],
)
def test_a_request_that_can_not_be_run_is_refused(fields: dict[str, Any], said: str) -> None:
    engine = Engine(lively(), 1)
    with pytest.raises(OctavoError, match=said):
        engine.submit(request(**fields))
    assert engine.waiting == 0


@pytest.mark.parametrize("quantize", ["none", "int8"])
def test_a_job_whose_logits_are_broken_ends_alone(quantize: str) -> None:
    model = lively()
    model.transformer.wpe.weight.data[10] = torch.nan
    broken, sound = run(
        Engine(model, 2, quantize=quantize),
        request(prompt=[1] * 9, max_new_tokens=9),
        request(prompt=[1], max_new_tokens=5),
    )
    assert broken.finish_reason == "error"
    assert "not finite" in str(broken.error)
    assert len(broken.tokens) == 2
    assert (sound.finish_reason, len(sound.tokens)) == ("length", 5)


def test_without_a_compiler_it_says_so_and_writes_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model = lively()
    [expected] = run(Engine(model, 1, quantize="int8"), request())
    native.load_library.cache_clear()
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CC", raising=False)
    try:
        engine = Engine(model, 1)
        assert engine.notes == [
            "no C compiler was found (gcc or clang); generation falls back to PyTorch, at about half the speed"
        ]
        assert isinstance(engine._decoder, TorchDecoder)
        eight = Engine(model, 1, quantize="int8")
        assert len(eight.notes) == 2
        assert ids_written(run(eight, request())[0]) == ids_written(expected)
    finally:
        native.load_library.cache_clear()


def test_a_compiler_that_fails_is_named_with_what_it_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "broken-cc"
    broken.write_text("#!/bin/sh\n[ \"$1\" = --version ] && exit 0\necho 'it broke' >&2\nexit 1\n", encoding="utf-8")
    broken.chmod(0o755)
    monkeypatch.setenv("CC", str(broken))
    native.load_library.cache_clear()
    try:
        with pytest.raises(native.UnavailableError, match=r"can't be compiled with .*broken-cc \(it broke\)"):
            native.load_library()
    finally:
        native.load_library.cache_clear()


def test_it_builds_without_a_warning(tmp_path: Path) -> None:
    flags = ["-O1", "-std=gnu11", "-Wall", "-Wextra", "-Wno-psabi"]
    command = ["cc", *flags, "-c", str(native.SOURCE), "-o", str(tmp_path / "forward.o")]
    made = subprocess.run(command, capture_output=True, text=True)
    assert (made.returncode, made.stderr) == (0, "")


def test_quantize_is_one_of_two_and_for_a_cpu() -> None:
    with pytest.raises(OctavoError, match="quantize='int4' is not one of none, int8"):
        Engine(lively(), 1, quantize="int4")
    with pytest.raises(OctavoError, match="CPU only"):
        Engine(lively().to("meta"), 1, quantize="int8")


def test_ids_are_written_without_end_until_the_asker_stops() -> None:
    steps = generate_ids(lively(), [1, 2], GREEDY, torch.Generator())
    assert len([next(steps) for _ in range(100)]) == 100
    assert len(list(generate_ids(lively(), [1, 2], GREEDY, torch.Generator(), overflow="stop"))) == 23
    model = lively()
    model.lm_head.weight.data[0] = torch.inf
    with pytest.raises(OctavoError, match="not finite"):
        next(generate_ids(model, [1], GREEDY, torch.Generator()))
    assert dataclasses.is_dataclass(Request)


# int8 on a model that has learnt something


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A small model after a few seconds of training."""
    return octavo.load(octavo.train("pydocs", preset="quick", max_steps=60, out=tmp_path_factory.mktemp("run")).folder)


def as_it_is(model: GPT) -> None:
    """No outliers."""


def large_gains(model: GPT) -> None:
    """Channels that a norm makes large, and the weights after it small: the same function."""
    for linear, norm in linears_with_norms(model):
        if norm is not None and norm is not model.transformer.ln_f:
            for channel, by in ((3, 100.0), (17, 1000.0), (40, -50.0)):
                norm.weight[channel] *= by
                norm.bias[channel] *= by
                linear.weight[:, channel] /= by


def large_values(model: GPT) -> None:
    """Values that are large, and the projection that reads them small: the same function."""
    C = model.settings.n_embd
    for block in model.transformer.h:
        for channel in (5, 30, 70):
            block.attn.c_attn.weight[2 * C + channel] *= 100
            block.attn.c_attn.bias[2 * C + channel] *= 100
            block.attn.c_proj.weight[:, channel] /= 100


def large_weights(model: GPT) -> None:
    """One weight of a thousand twenty times as large: another function, which int8 has to follow."""
    generator = torch.Generator().manual_seed(0)
    for linear, _ in linears_with_norms(model):
        linear.weight[torch.rand(linear.weight.shape, generator=generator) < 0.001] *= 20


@pytest.mark.parametrize("outliers", [as_it_is, large_gains, large_values, large_weights])
@torch.no_grad()
def test_int8_loses_at_most_a_50th_of_a_nat_also_with_outliers(
    outliers: Callable[[GPT], None], trained: Checkpoint
) -> None:
    model = copy.deepcopy(trained.model)
    model.tie()
    outliers(model)
    ids = trained.tokenizer.encode(pydocs.text()[-20_000:]).astype(np.uint16)
    block_size = model.settings.block_size
    exact = split_loss(model, ids, block_size)
    assert exact < 4  # it has learnt; 4.9 is to know nothing
    assert 1e-6 < abs(split_loss(round_to_int8(model), ids, block_size) - exact) < 0.02
    decode = native.NativeDecoder(model, 1, int8=True)
    windows = [ids[at : at + block_size + 1].astype(np.int64) for at in range(0, len(ids) - block_size, block_size)]
    losses = [F.cross_entropy(read(decode, w[:-1].tolist()), torch.from_numpy(w[1:])) for w in windows]
    assert (
        1e-6
        < abs(torch.stack(losses).mean() - split_loss(model, ids[: len(windows) * block_size + 1], block_size))
        < 0.02
    )
