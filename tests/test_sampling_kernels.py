"""Sampling in C computes what the plain functions compute: the same tokens, and the same state of the generator."""

import math
from collections.abc import Collection, Iterator
from types import SimpleNamespace

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from torch import Tensor

from octavo.errors import OctavoError
from octavo.generation import sampling as plain
from octavo.generation.sampling import Sampling, sample_token
from octavo.kernels.sampling import SamplingKernels, load_sampling_kernels
from octavo.native_library import Library, UnavailableError, load_library
from small_models import GREEDY, seeded

pytestmark = pytest.mark.usefixtures("instruction_set")

law = hypothesis.settings(
    derandomize=True,
    deadline=None,
    max_examples=100,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)


@pytest.fixture(scope="module")
def kernels(instruction_set: None) -> SamplingKernels:
    return SamplingKernels(load_library().functions)


@pytest.fixture
def without_c(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Run the test as on a machine without a C compiler."""

    def load_nothing() -> Library:
        raise UnavailableError("no C compiler was found")

    monkeypatch.setattr("octavo.kernels.sampling.load_library", load_nothing)
    load_sampling_kernels.cache_clear()
    yield
    load_sampling_kernels.cache_clear()


# The k largest logits

LOGITS = {
    "normal": lambda V: 3 * torch.randn(V, generator=seeded(V)),
    "rounded": lambda V: torch.randn(V, generator=seeded(V)).round(),  # many ties
    "ascending": lambda V: torch.randn(V, generator=seeded(V)).sort().values,
    "descending": lambda V: torch.randn(V, generator=seeded(V)).sort(descending=True).values,
    "constant": lambda V: torch.full((V,), -1.5),
    "neighbors": lambda V: torch.from_numpy(  # their quotients have ties where they have none
        (np.float32(1.7).view(np.int32) + np.arange(V, dtype=np.int32)[::-1]).view(np.float32)
    ),
    "tiny": lambda V: 1e-44 * torch.randn(V, generator=seeded(V)),  # their quotients have fewer bits, or are zeros
    "huge": lambda V: 1e38 * torch.randn(V, generator=seeded(V)).clamp(-3, 3),  # their quotients can be infinite
    "excluded": lambda V: torch.randn(V, generator=seeded(V)).where(torch.arange(V) % 7 == 3, torch.tensor(-math.inf)),
    "zeros of both signs": lambda V: torch.tensor([0.0, -0.0, -1.0]).repeat(V)[:V],
}


def assert_same_top_tokens(kernels: SamplingKernels, logits: Tensor, temperature: float, k: int) -> None:
    before = logits.clone()
    ids, values = kernels.top_tokens(logits, temperature, k)
    expected_ids, expected_values = plain.top_tokens(logits, temperature, k)
    assert ids.tolist() == expected_ids.tolist()
    assert torch.equal(values, expected_values)
    assert torch.equal(logits, before)


@pytest.mark.parametrize("form", LOGITS)
def test_the_top_tokens_are_those_of_a_partition(kernels: SamplingKernels, form: str) -> None:
    for V in (1, 2, 15, 16, 17, 64, 65, 300, 1000, 4099, 50257):
        logits = LOGITS[form](V)
        for k in {1, 2, 8, 50, 200, V // 10, V // 2, V - 1, V}:
            if 1 <= k <= V:
                assert_same_top_tokens(kernels, logits, 0.8, k)


@law
@hypothesis.given(
    form=st.sampled_from(list(LOGITS)),
    V=st.integers(1, 3000) | st.integers(1, 100_000),
    fraction=st.floats(0, 1),
    temperature=st.sampled_from([1e-6, 0.1, 0.8, 1.0, 1.3, 100.0]) | st.floats(1e-6, 100),
)
def test_the_top_tokens_of_any_logits_are_those_of_a_partition(
    kernels: SamplingKernels, form: str, V: int, fraction: float, temperature: float
) -> None:
    k = max(1, round(V * fraction**4))
    assert_same_top_tokens(kernels, LOGITS[form](V), temperature, k)


@law
@hypothesis.given(
    logits=st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=200),
    k=st.integers(1, 200),
    temperature=st.floats(1e-6, 100),
)
def test_the_top_tokens_of_any_floats_are_those_of_a_partition(
    kernels: SamplingKernels, logits: list[float], k: int, temperature: float
) -> None:
    assert_same_top_tokens(kernels, torch.tensor(logits), temperature, min(k, len(logits)))


def test_logits_that_are_not_contiguous_are_selected_too(kernels: SamplingKernels) -> None:
    assert_same_top_tokens(kernels, torch.randn(1000, 3, generator=seeded())[:, 1], 0.8, 50)


# The exponential race


def draw_words(count: int, *generators: torch.Generator) -> None:
    """Draw random numbers of 32 bits."""
    for generator in generators:
        torch.empty(count, dtype=torch.int32).random_(generator=generator)


def choose_ids(K: int, V: int, seed: int) -> np.ndarray:
    return torch.randperm(V, generator=seeded(seed))[:K].sort().values.numpy()


def assert_same_race(
    kernels: SamplingKernels, probs: Tensor, V: int, ids: np.ndarray | None, ours: torch.Generator
) -> None:
    theirs = ours.clone_state()
    expected = plain.run_race(probs, theirs, V, ids)
    assert kernels.run_race(probs, ours, V, ids) == expected
    assert torch.equal(ours.get_state(), theirs.get_state())


@law
@hypothesis.given(
    V=st.integers(1, 2000) | st.integers(1, 100_000),
    fraction=st.floats(0, 1),
    words=st.integers(0, 1300),
    seed=st.integers(0, 2**63 - 1),
)
@hypothesis.example(V=1, fraction=1, words=0, seed=0)
@hypothesis.example(V=312, fraction=1, words=624, seed=0)  # exactly one block of the generator
@hypothesis.example(V=312, fraction=1, words=1, seed=0)
@hypothesis.example(V=2500, fraction=0, words=623, seed=0)
def test_a_race_has_the_winner_and_the_final_state_of_pytorchs_random_bits(
    kernels: SamplingKernels, V: int, fraction: float, words: int, seed: int
) -> None:
    generator = seeded(seed)
    draw_words(words, generator)
    K = max(1, round(V * fraction**4))
    for ids in (choose_ids(K, V, seed % 1000), None):
        size = V if ids is None else K
        for scale in (0.0, 1.0, 20.0):
            probs = (scale * torch.randn(size, generator=seeded(seed))).softmax(0)
            assert_same_race(kernels, probs, V, ids, generator)


def test_races_follow_each_other_at_every_place_of_a_block(kernels: SamplingKernels) -> None:
    generator, probs = seeded(3), torch.full((5,), 0.2)
    for draw in range(1500):
        assert_same_race(kernels, probs, 5, None, generator)
        draw_words(draw % 2, generator)


def test_every_token_of_a_race_can_win(kernels: SamplingKernels) -> None:
    generator, ids = seeded(), choose_ids(20, 1000, 1)
    wins = np.bincount(
        [kernels.run_race(torch.full((20,), 0.05), generator, 1000, ids) for _ in range(4000)], minlength=20
    )
    deviation = math.sqrt(4000 * 0.05 * 0.95)
    assert (abs(wins - 200) < 5 * deviation).all()


@pytest.mark.parametrize(
    "probs",
    [
        [0.0, 0.0, 1.0],
        [0.0, 0.0, 0.0],
        [0.5, 0.0, 0.5],
        [0.1, math.nan, math.nan, 0.9],
        [math.nan] * 3,
        [1e-45, 1e-45, 0.0],
    ],
)
def test_tokens_without_a_probability_take_part_as_in_numpy(kernels: SamplingKernels, probs: list[float]) -> None:
    for seed in range(20):
        assert_same_race(kernels, torch.tensor(probs), len(probs), None, seeded(seed))


def edit_state(generator: torch.Generator, left: int, next_word: int, word: int | None = None) -> None:
    state = generator.get_state().numpy()
    state[8:12].view(np.int32)[0] = left
    state[16:24].view(np.int64)[0] = next_word
    if word is not None:
        state[24 : 24 + 8 * 624].view(np.int64)[:] = word
    generator.set_state(torch.from_numpy(state))


def test_a_random_number_of_zero_wins_the_race(kernels: SamplingKernels) -> None:
    for probs in ([0.0, 0.1, 0.9], [0.3, 0.3, 0.4]):
        generator = seeded()
        edit_state(generator, left=624, next_word=1, word=0)  # the next 623 words are zeros
        assert_same_race(kernels, torch.tensor(probs), 3, None, generator)


def test_a_state_that_is_not_understood_is_left_to_pytorch(
    kernels: SamplingKernels, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = seeded(), seeded()
    for generator in (ours, theirs):
        edit_state(generator, left=10, next_word=5)
    before, probs = ours.get_state(), torch.full((3,), 1 / 3)
    assert kernels.run_race(probs, ours, 3, None) is None
    assert torch.equal(ours.get_state(), before)
    logits = torch.randn(1, 3, generator=seeded())
    ids = []
    for each, generator in ((kernels, ours), (None, theirs)):
        monkeypatch.setattr("octavo.generation.sampling.load_sampling_kernels", lambda each=each: each)
        ids.append(sample_token(logits, Sampling(), generator).item())
    assert ids[0] == ids[1]
    assert torch.equal(ours.get_state(), theirs.get_state())


def test_a_pytorch_with_another_generator_is_noticed() -> None:
    """Its generator would have another state: here the C code gives other winners, and other final states."""

    def run_race(state: int, V: int, ids: int | None, K: int, probs: int) -> int:
        return 0

    def top_tokens() -> None: ...

    kernels, generator = (
        SamplingKernels(SimpleNamespace(octavo_run_race=run_race, octavo_top_tokens=top_tokens)),
        seeded(),
    )
    before = generator.get_state()
    assert kernels.run_race(torch.full((3,), 1 / 3), generator, 3, None) is None
    assert torch.equal(generator.get_state(), before)


def test_the_default_generator_is_left_to_pytorch(kernels: SamplingKernels) -> None:
    """Other threads may draw from it."""
    assert kernels.run_race(torch.full((3,), 1 / 3), None, 3, None) is None


# Whole tokens


def sample(
    patch: pytest.MonkeyPatch, kernels: SamplingKernels | None, logits: Tensor, sampling: Sampling, **others: object
) -> tuple[list[list[int]], list[int]]:
    """The ids (draws, B) of five draws, and the final state of the generator."""
    generator = seeded(int(1000 * sampling.temperature) + logits.size(-1))
    with patch.context() as choice:
        choice.setattr("octavo.generation.sampling.load_sampling_kernels", lambda: kernels)
        ids = [sample_token(logits, sampling, generator, **others).tolist() for _ in range(5)]
    return ids, generator.get_state().tolist()


SAMPLINGS = {
    "greedy": GREEDY,
    "default": Sampling(),
    "all tokens": Sampling(temperature=1, top_k=0),
    "one token": Sampling(top_k=1),
    "many tokens": Sampling(temperature=1.2, top_k=900),
    "nucleus": Sampling(top_p=0.9),
    "nucleus of all": Sampling(top_k=0, top_p=0.9),
    "min-p": Sampling(temperature=1.5, min_p=0.05, top_k=50),
    "penalties": Sampling(repetition_penalty=1.3, presence_penalty=0.5, frequency_penalty=0.2),
    "bias": Sampling(logit_bias={3: 5, 7: -100}, top_k=4),
    "allowed": Sampling(allowed_token_ids=[0, 2, 5, 6], top_k=3),
}


@pytest.mark.parametrize("name", SAMPLINGS)
@pytest.mark.parametrize("V", [10, 65, 1000, 50257])
def test_tokens_are_the_same_with_and_without_c(
    kernels: SamplingKernels, monkeypatch: pytest.MonkeyPatch, V: int, name: str
) -> None:
    counts = dict(prompt_counts=torch.arange(V) % 5 // 3, output_counts=torch.arange(V) % 7 // 5)
    for logits in (3 * torch.randn(1, V, generator=seeded(V)), torch.randn(3, V, generator=seeded(V)).round()):
        for excluded_ids in ((), (1, 4)):
            results = [
                sample(monkeypatch, each, logits, SAMPLINGS[name], **counts, excluded_ids=excluded_ids)
                for each in (kernels, None)
            ]
            assert results[0] == results[1]


@pytest.mark.parametrize("allowed", [[3], [3, 900], range(0, 1000, 2)])
def test_fewer_allowed_tokens_than_top_k_are_sampled_alone(
    kernels: SamplingKernels, monkeypatch: pytest.MonkeyPatch, allowed: Collection[int]
) -> None:
    sampling = Sampling(temperature=3, top_k=600, allowed_token_ids=allowed)
    logits = torch.randn(1, 1000, generator=seeded())
    results = [sample(monkeypatch, each, logits, sampling) for each in (kernels, None)]
    assert results[0] == results[1]
    assert {id for (id,) in results[0][0]} <= set(allowed)


@pytest.mark.usefixtures("without_c")
def test_without_the_c_code_pytorch_samples(monkeypatch: pytest.MonkeyPatch, kernels: SamplingKernels) -> None:
    assert load_sampling_kernels() is None
    logits = torch.randn(1, 1000, generator=seeded())
    generator = seeded(int(1000 * Sampling().temperature) + 1000)
    ids = [sample_token(logits, Sampling(), generator).tolist() for _ in range(5)]
    assert (ids, generator.get_state().tolist()) == sample(monkeypatch, kernels, logits, Sampling())


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_logits_that_are_not_finite_are_an_error(broken: float) -> None:
    logits = torch.zeros(1, 1000)
    logits[0, 500] = broken
    with pytest.raises(OctavoError, match="logits are not finite"):
        sample_token(logits, Sampling(), seeded())
