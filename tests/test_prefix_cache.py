"""The prefix cache: which prefixes which requests reuse, its size, and that it changes no token."""

import collections
from collections.abc import Sequence
from typing import Any

import hypothesis
import hypothesis.strategies as st
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
    kv = [(torch.zeros(100), torch.zeros(5))]  # 420 bytes, and 80 for the ids of the prompt
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


class PlainCache:
    """What `PrefixCache` must do, by a scan of all prompts, which are kept in the order of their last use."""

    def __init__(self, max_prompts: int) -> None:
        self.max_prompts = max_prompts
        self.prompts: collections.OrderedDict[tuple[str, tuple[int, ...]], None] = collections.OrderedDict()

    def longest(self, scope: str, ids: Sequence[int]) -> int:
        """The length of the longest prefix of `ids[:-1]` that a prompt begins with; 0 if it is shorter than 16."""
        lengths = [_common(prompt, ids[:-1]) for each, prompt in self.prompts if each == scope]
        return max((length for length in lengths if length >= 16), default=0)

    def use(self, scope: str, prompt: tuple[int, ...]) -> None:
        self.prompts[scope, prompt] = None
        self.prompts.move_to_end((scope, prompt))
        while len(self.prompts) > self.max_prompts:
            self.prompts.popitem(last=False)


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


# Prompts that often share a beginning: a common one, then ids of which few differ.
PROMPTS = st.builds(
    lambda start, rest: [0] * start + rest,
    st.integers(0, 20),
    st.lists(st.sampled_from([0, 1, 255, 256, 65_536, 50_256]), min_size=1, max_size=6),
)


@hypothesis.settings(derandomize=True, deadline=None, max_examples=300)
@hypothesis.given(
    st.lists(st.tuples(st.booleans(), st.sampled_from(["", "a", "b"]), PROMPTS), max_size=30), st.integers(1, 8)
)
def test_the_cache_finds_what_a_scan_of_all_prompts_finds(
    calls: list[tuple[bool, str, list[int]]], max_prompts: int
) -> None:
    """The keys and values of a prompt are 10,000 bytes, the first of which say which prompt it is."""
    cache, plain, numbers = PrefixCache(10_000 * max_prompts + 2_000), PlainCache(max_prompts), {}
    for is_search, scope, ids in calls:
        if is_search:
            prefix = cache.find(scope, ids)
            assert (prefix.length if prefix else 0) == plain.longest(scope, ids)
            if prefix:
                found = numbers[int(prefix.kv[0][0][0])]
                assert found[0] == scope
                assert found in plain.prompts
                assert _common(found[1], ids[:-1]) == prefix.length
                plain.use(*found)
        else:
            number = len(numbers)
            numbers[number] = key = scope, tuple(ids)
            is_new = len(ids) >= 16 and key not in plain.prompts
            saved = []
            kv = [(torch.tensor([number]), torch.zeros(9_992, dtype=torch.uint8))]
            cache.add(scope, ids, lambda kv=kv, saved=saved: saved.append(kv) or kv)  # type: ignore[misc]
            assert bool(saved) == is_new
            if len(ids) >= 16:
                plain.use(*key)
        assert cache.bytes <= cache.max_bytes
        assert cache.bytes == sum(10_000 + 4 * len(prompt) for _, prompt in plain.prompts)


def test_a_cache_of_size_zero_stores_nothing() -> None:
    cache, prompt = PrefixCache(0), [0] * 20
    cache.add("", prompt, lambda: pytest.fail("a prefix was saved"))
    assert cache.find("", prompt) is None
