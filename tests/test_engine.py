"""The engine: tokens do not depend on other requests; overflow, cancellation, threads, log-probabilities, errors."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch

from generating import GREEDY, SHAPES, generate_ids, make_request, random_ids, random_model, run, token_ids
from octavo.errors import NoTokenLeftError, OctavoError
from octavo.generation.engine import Engine, Job
from octavo.generation.sampling import Sampling
from octavo.model import GPT


@pytest.mark.parametrize("quantize", ["none", "int8"])
@pytest.mark.parametrize("slots", [1, 3, 8, 20])
def test_tokens_do_not_depend_on_the_other_requests(slots: int, quantize: str) -> None:
    model = random_model()
    alone = [run(Engine(model, 1, quantize=quantize), make_request(n))[0] for n in range(15)]
    batched = run(Engine(model, slots, quantize=quantize, prefix_bytes=1 << 20), *(make_request(n) for n in range(15)))
    assert [(token_ids(job), job.finish_reason) for job in batched] == [
        (token_ids(job), job.finish_reason) for job in alone
    ]
    assert len({tuple(token_ids(job)) for job in alone}) == 15


def test_tokens_of_both_decoders_are_the_same() -> None:
    model = random_model()
    alone = [run(Engine(model, 1, use_native=False), make_request(n))[0] for n in range(15)]
    batched = run(Engine(model, 4, use_native=False, prefix_bytes=1 << 20), *(make_request(n) for n in range(15)))
    assert [token_ids(job) for job in batched] == [token_ids(job) for job in alone]
    assert [token_ids(job) for job in batched] == [
        token_ids(run(Engine(model, 1), make_request(n))[0]) for n in range(15)
    ]


def test_requests_join_and_leave_the_batch_between_steps() -> None:
    engine = Engine(random_model(), 2)
    first, second, third = (
        engine.submit(make_request(prompt=[n], max_new_tokens=n, overflow="slide")) for n in (3, 6, 4)
    )
    assert (engine.waiting, engine.running) == (3, 0)
    counts = []
    while engine.step():
        counts.append((len(first.tokens), len(second.tokens), len(third.tokens)))
    assert counts == [(1, 1, 0), (2, 2, 0), (3, 3, 0), (3, 4, 1), (3, 5, 2), (3, 6, 3), (3, 6, 4)]
    assert (engine.waiting, engine.running) == (0, 0)


@torch.no_grad()
def generate_by_recomputing(model: GPT, prompt: list[int], count: int, keep: int) -> list[int]:
    """Greedy tokens, each from a full forward pass. A full window is cut to its last `keep` tokens."""
    window, generated = prompt[-model.settings.block_size :], []
    for _ in range(count):
        generated.append(int(model(torch.tensor([window]))[0, -1].argmax()))
        window = [*window, generated[-1]]
        if len(window) > model.settings.block_size:
            window = window[-keep:]
    return generated


@pytest.mark.parametrize("use_native", [True, False], ids=["C", "PyTorch"])
@pytest.mark.parametrize(("overflow", "keep"), [("slide", 24), ("rechunk", 12)])
@pytest.mark.parametrize("length", [1, 23, 24, 30])
def test_after_an_overflow_tokens_equal_full_recomputation(
    overflow: str, keep: int, length: int, use_native: bool
) -> None:
    for seed in (9, 10, 11):
        model, prompt = random_model(seed), random_ids(length, 11, seed)
        [job] = run(
            Engine(model, 1, use_native=use_native),
            make_request(prompt=prompt, max_new_tokens=60, sampling=GREEDY, overflow=overflow),
        )
        assert token_ids(job) == generate_by_recomputing(model, prompt, 60, keep)
        assert job.finish_reason == "length"


def test_overflow_stop_ends_the_sequence_at_block_size() -> None:
    for length in (1, 20, 24):
        [job] = run(
            Engine(random_model(), 1), make_request(prompt=random_ids(length, 11), max_new_tokens=99, overflow="stop")
        )
        assert job.finish_reason == "length"
        assert len(job.tokens) == 25 - length  # the logits of position 24, the last, give a 25th token


def test_on_token_is_called_in_the_step_that_samples_and_with_none_at_the_end() -> None:
    engine = Engine(random_model(), 1)
    calls: list[Any] = []
    job = engine.submit(make_request(max_new_tokens=3), calls.append)
    counts = []
    while engine.step():
        counts.append(len(calls))
    assert counts == [1, 2, 4]
    assert calls == [*job.tokens, None]


def test_a_stop_id_ends_the_sequence_and_is_not_part_of_it() -> None:
    model = random_model()
    [full] = run(Engine(model, 1), make_request(sampling=GREEDY))
    stop_id = token_ids(full)[5]
    [job] = run(Engine(model, 1), make_request(sampling=GREEDY, stop_ids=frozenset([stop_id])))
    assert token_ids(job) == token_ids(full)[: token_ids(full).index(stop_id)]
    assert job.finish_reason == "end_of_text"


@pytest.mark.parametrize("prompt", [1, 20])
def test_a_cancelled_job_frees_its_slot_at_the_next_step(prompt: int) -> None:
    engine = Engine(random_model(), 1)
    calls: list[Any] = []
    job = engine.submit(make_request(prompt=[1] * prompt, max_new_tokens=99, overflow="slide"), calls.append)
    waiting = [engine.submit(make_request(n)) for n in (1, 2)]
    for _ in range(3):
        engine.step()
    engine.cancel(job)
    engine.cancel(waiting[0])
    engine.step()
    assert job.finish_reason == waiting[0].finish_reason == "cancelled"
    assert len(job.tokens) == 3
    assert calls[-1] is None
    assert len(waiting[1].tokens) == 1
    while engine.step():
        pass
    assert token_ids(waiting[1]) == token_ids(run(Engine(random_model(), 1), make_request(2))[0])


def test_a_job_cancelled_while_another_one_ends_frees_its_slot_too() -> None:
    engine = Engine(random_model(), 2)
    second = engine.submit(make_request(prompt=[1], max_new_tokens=99, overflow="slide"))
    first = engine.submit(
        make_request(prompt=[2], max_new_tokens=99, overflow="slide"),
        lambda token: engine.cancel(second) if token is None else None,
    )
    engine.step()
    engine.cancel(first)
    for _ in range(2):
        engine.step()
    assert first.finish_reason == second.finish_reason == "cancelled"
    jobs = run(engine, make_request(1), make_request(2))
    assert [job.finish_reason for job in jobs] == ["length", "length"]


def test_submit_and_cancel_are_thread_safe() -> None:
    engine = Engine(random_model(), 4)
    jobs: list[tuple[int, Job]] = []
    all_submitted = threading.Event()

    def step() -> None:
        while not all_submitted.is_set() or engine.waiting or engine.running:
            engine.step()

    def submit(first: int) -> None:
        for n in range(first, first + 10):
            job = engine.submit(make_request(n % 15))
            jobs.append((n % 15, job))
            if n % 3 == 0:
                engine.cancel(job)

    stepper = threading.Thread(target=step)
    threads = [threading.Thread(target=submit, args=(10 * n,)) for n in range(5)]
    for thread in (stepper, *threads):
        thread.start()
    for thread in threads:
        thread.join()
    all_submitted.set()
    stepper.join(60)
    assert len(jobs) == 50
    alone = {n: token_ids(run(Engine(random_model(), 1), make_request(n))[0]) for n in range(15)}
    for n, job in jobs:
        assert job.finish_reason in ("length", "cancelled")
        assert token_ids(job) == alone[n][: len(job.tokens)]


def test_prefill_is_chunked_while_another_job_decodes() -> None:
    model = random_model(block_size=400)
    engine = Engine(model, 2)
    decoding = engine.submit(make_request(prompt=[1], max_new_tokens=99, overflow="stop", sampling=GREEDY))
    engine.step()
    prefill = engine.submit(make_request(prompt=random_ids(300, 11), max_new_tokens=1, overflow="stop"))
    steps = 0
    while prefill.finish_reason is None:
        engine.step()
        steps += 1
    assert steps == 3  # at most 128 rows each
    assert len(decoding.tokens) == 1 + steps


# Excluded tokens


def greedy_ids_without(
    model: GPT, prompt: list[int], count: int, excluded: Callable[[list[int]], set[int]]
) -> list[int]:
    """Greedy tokens from full forward passes; `excluded` maps the tokens so far to those that can't be next."""
    output: list[int] = []
    for _ in range(count):
        with torch.no_grad():
            logits = model(torch.tensor([prompt + output]))[0, -1]
        logits[list(excluded(output))] = -torch.inf
        output.append(int(logits.argmax()))
    return output


@pytest.mark.parametrize("use_native", [True, False], ids=["C", "PyTorch"])
def test_excluded_tokens_are_never_sampled(use_native: bool) -> None:
    model, prompt = random_model(), random_ids(4, 11)

    def generate(**fields: Any) -> list[int]:
        engine = Engine(model, 1, use_native=use_native)
        sampling = Sampling(temperature=0, allowed_token_ids=fields.pop("allowed_token_ids", None))
        return token_ids(run(engine, make_request(prompt=prompt, max_new_tokens=12, sampling=sampling, **fields))[0])

    free = generate()
    words = ((free[0],), (free[3], free[4]), (free[7], free[7], free[8]))

    def completes_a_word(output: list[int]) -> set[int]:
        return {word[-1] for word in words if tuple(output[len(output) - len(word) + 1 :]) == word[:-1]}

    assert generate(bad_words=words) == greedy_ids_without(model, prompt, 12, completes_a_word)
    assert generate(bad_words=words) != free
    assert generate(allowed_token_ids=[3, 5]) == greedy_ids_without(
        model, prompt, 12, lambda _: set(range(11)) - {3, 5}
    )
    stop_ids = frozenset(free[2:4])
    assert generate(stop_ids=stop_ids) == free[:2]
    assert generate(final_ids=stop_ids) == free[:3]
    for n in range(8):
        ids = greedy_ids_without(model, prompt, 12, lambda output, n=n: set(stop_ids) if len(output) < n else set())
        end = next((i for i, id in enumerate(ids) if id in stop_ids), 12)
        assert generate(min_tokens=n, stop_ids=stop_ids) == ids[:end]
        assert generate(min_tokens=n, final_ids=stop_ids) == ids[: end + 1]


def test_a_sequence_in_which_no_token_can_follow_is_an_error() -> None:
    engine = Engine(random_model(), 2)
    sampling = Sampling(allowed_token_ids=[3])
    jobs = run(engine, make_request(sampling=sampling, bad_words=((3, 3),)), make_request(1))
    assert isinstance(jobs[0].error, NoTokenLeftError)
    assert token_ids(jobs[0]) == [3]
    assert jobs[1].finish_reason == "length"
    with pytest.raises(OctavoError, match="11 tokens"):
        engine.submit(make_request(sampling=Sampling(allowed_token_ids=[11])))
    with pytest.raises(OctavoError, match="allowed_token_ids"):
        Sampling(allowed_token_ids=[])


# Log-probabilities


@pytest.mark.parametrize("use_native", [True, False], ids=["C", "PyTorch"])
def test_log_probabilities_are_those_of_the_full_forward(use_native: bool) -> None:
    model = random_model(**SHAPES["odd"])
    prompt = random_ids(15, 37)
    [job] = run(
        Engine(model, 1, use_native=use_native, prefix_bytes=1 << 20),
        make_request(
            prompt=prompt,
            max_new_tokens=6,
            overflow="stop",
            sampling=Sampling(temperature=0.5, top_k=2),
            logprobs=4,
            prompt_logprobs=4,
        ),
    )
    ids = [*prompt, *token_ids(job)]
    with torch.no_grad():
        expected = model(torch.tensor([ids]))[0].double().log_softmax(-1)
    tokens = [*job.prompt_tokens, *job.tokens]
    assert [token.id for token in tokens] == ids
    assert tokens[0].logprob is None
    assert tokens[0].top == ()
    for token, row in zip(tokens[1:], expected[:-1], strict=True):
        assert token.logprob == pytest.approx(row[token.id].item(), abs=1e-4)
        assert token.rank == 1 + row.argsort(descending=True).tolist().index(token.id)
        assert [id for id, _ in token.top] == row.topk(4).indices.tolist()
        assert [logprob for _, logprob in token.top] == pytest.approx(row.topk(4).values.tolist(), abs=1e-4)


def test_prompt_log_probabilities_in_chunked_prefill_do_not_use_the_prefix_cache() -> None:
    model = random_model(block_size=400)
    prompt = random_ids(300, 11)
    engine = Engine(model, 2, prefix_bytes=1 << 24)
    [other, job] = run(
        engine,
        make_request(prompt=prompt, max_new_tokens=0),
        make_request(prompt=prompt, max_new_tokens=0, prompt_logprobs=0, overflow="stop"),
    )
    assert other.tokens == job.tokens == other.prompt_tokens == []
    with torch.no_grad():
        expected = model(torch.tensor([prompt]))[0].log_softmax(-1)
    assert [token.logprob for token in job.prompt_tokens[1:]] == pytest.approx(
        [expected[t, id].item() for t, id in enumerate(prompt[1:])], abs=1e-4
    )
    assert job.cached_tokens == 0  # the log-probabilities of cached positions are unknown
    assert job.finish_reason == "length"


# Errors


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prompt": []}, "at least one token"),
        ({"prompt": [1, 11]}, "outside of 0 to 10"),
        ({"prompt": [-1]}, "outside of 0 to 10"),
        ({"overflow": "shift"}, "overflow='shift'"),
        ({"prompt": [1] * 25, "overflow": "stop"}, "25 tokens.* 24"),
    ],
)
def test_an_invalid_request_raises(fields: dict[str, Any], message: str) -> None:
    engine = Engine(random_model(), 1)
    with pytest.raises(OctavoError, match=message):
        engine.submit(make_request(**fields))
    assert engine.waiting == 0


@pytest.mark.parametrize("quantize", ["none", "int8"])
def test_a_job_with_logits_that_are_not_finite_fails_alone(quantize: str) -> None:
    model = random_model()
    model.transformer.wpe.weight.data[10] = torch.nan
    failed, completed = run(
        Engine(model, 2, quantize=quantize),
        make_request(prompt=[1] * 9, max_new_tokens=9),
        make_request(prompt=[1], max_new_tokens=5),
    )
    assert failed.finish_reason == "error"
    assert "not finite" in str(failed.error)
    assert len(failed.tokens) == 2
    assert (completed.finish_reason, len(completed.tokens)) == ("length", 5)


def test_generation_ends_only_with_overflow_stop() -> None:
    steps = generate_ids(random_model(), [1, 2], GREEDY, torch.Generator())
    assert len([next(steps) for _ in range(100)]) == 100
    assert len(list(generate_ids(random_model(), [1, 2], GREEDY, torch.Generator(), overflow="stop"))) == 23
    model = random_model()
    model.lm_head.weight.data[0] = torch.inf
    with pytest.raises(OctavoError, match="not finite"):
        next(generate_ids(model, [1], GREEDY, torch.Generator()))
