"""The prefix cache: which prefixes it reuses, for which requests, its size, and that it changes no token."""

from typing import Any

import pytest
import torch

from generating import GREEDY, make_request, random_ids, random_model, run, token_ids
from octavo.generation.engine import Engine
from octavo.generation.prefix_cache import PrefixCache


@pytest.mark.parametrize("use_native", [True, False], ids=["C", "PyTorch"])
def test_a_prompt_reuses_the_longest_cached_prefix(use_native: bool) -> None:
    model = random_model(block_size=128)
    first = random_ids(60, 11)
    prompts = [
        first,
        [*first, 1, 2, 3],
        [*first[:40], *random_ids(30, 11, 5)],
        first,
        first[:30],
        random_ids(20, 11, 6),
    ]
    engine = Engine(model, 2, prefix_bytes=1 << 24, use_native=use_native)
    jobs = [run(engine, make_request(n, prompt=prompt, overflow="stop"))[0] for n, prompt in enumerate(prompts)]
    assert [job.cached_tokens for job in jobs] == [0, 60, 40, 59, 29, 0]
    for n, (prompt, job) in enumerate(zip(prompts, jobs, strict=True)):
        [uncached] = run(Engine(model, 1, use_native=use_native), make_request(n, prompt=prompt, overflow="stop"))
        assert token_ids(job) == token_ids(uncached)


def test_a_window_that_slides_onto_a_cached_prompt_does_not_reuse_it() -> None:
    model, prompt = random_model(), random_ids(20, 11)
    fields: dict[str, Any] = dict(prompt=prompt, max_new_tokens=40, sampling=GREEDY, overflow="slide")
    [uncached] = run(Engine(model, 1), make_request(**fields))
    ids = prompt + token_ids(uncached)
    engine = Engine(model, 1, prefix_bytes=1 << 20)
    run(engine, *(make_request(prompt=ids[start : start + 24], max_new_tokens=0) for start in range(3, 20)))
    [job] = run(engine, make_request(**fields))
    assert job.cached_tokens == 0
    assert token_ids(job) == token_ids(uncached)


def test_requests_of_different_cache_scopes_share_no_prefix() -> None:
    engine = Engine(random_model(), 1, prefix_bytes=1 << 20)
    prompt = random_ids(20, 11)
    cached = [
        run(engine, make_request(prompt=prompt, cache_scope=scope))[0].cached_tokens
        for scope in ("a", "b", "a", "", "b")
    ]
    assert cached == [0, 0, 19, 0, 19]


def test_the_cache_keeps_its_size_by_evicting_the_least_recently_used() -> None:
    kv = [(torch.zeros(100), torch.zeros(25))]  # 500 bytes
    cache = PrefixCache(1700)
    prompts = [[n] * 20 for n in range(4)]
    for prompt in prompts[:3]:
        cache.add("", prompt, lambda: kv)
    assert cache.find("", [*prompts[0], 9]) is not None  # makes it the most recently used
    cache.add("", prompts[3], lambda: kv)
    assert [cache.find("", [*prompt, 9]) is not None for prompt in prompts] == [True, False, True, True]
    assert cache.bytes == 1500
    cache.add("", [7] * 20, lambda: [(torch.zeros(1000), torch.zeros(0))])  # larger than the cache
    assert cache.bytes <= 1700


def test_a_cache_of_size_zero_stores_nothing() -> None:
    cache, prompt = PrefixCache(0), [0] * 20
    cache.add("", prompt, lambda: pytest.fail("a prefix was saved"))
    assert cache.find("", prompt) is None
