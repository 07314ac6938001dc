"""Sampling: temperature, top-k, top-p, min-p, penalties, logit bias."""

import math
from fractions import Fraction

import hypothesis
import hypothesis.strategies as st
import pytest
import torch
from torch import Tensor

from octavo.errors import NoTokenLeftError, OctavoError
from octavo.generation.sampling import (
    Sampling,
    apply_penalties,
    exclude_tokens,
    probabilities,
    sample_multinomial,
    sample_token,
)
from small_models import ALL, GREEDY, seeded

law = hypothesis.settings(derandomize=True, deadline=None, max_examples=60)


def draw_counts(logits: list[float], sampling: Sampling, count: int = 20_000) -> Tensor:
    """How often each token was drawn, of `count` draws: (V,)."""
    # The two steps of `sample_token`: the distribution is computed once, not for each of 20,000 equal rows.
    distribution = probabilities(apply_penalties(torch.tensor([logits]), sampling), sampling)  # (1, V)
    ids = sample_multinomial(distribution.expand(count, -1), seeded())
    assert ids.shape == (count,)
    rows = torch.tensor([logits]).expand(100, -1)
    assert torch.equal(
        sample_token(rows, sampling, seeded()), sample_multinomial(distribution.expand(100, -1), seeded())
    )
    return torch.bincount(ids, minlength=len(logits))


def softmax(logits: list[float]) -> list[float]:
    weights = [math.exp(each - max(logits)) for each in logits]
    return [weight / sum(weights) for weight in weights]


def kept_probabilities(logits: list[float], temperature: float, top_k: int, top_p: float) -> dict[int, float]:
    """The tokens that can be drawn and their probabilities, by definition of top-k and top-p."""
    ids = sorted(range(len(logits)), key=lambda id: -logits[id])
    if top_k:
        ids = ids[:top_k]
    probabilities = softmax([logits[id] / temperature for id in ids])
    nucleus: dict[int, float] = {}
    for id, probability in zip(ids, probabilities, strict=True):
        if sum(nucleus.values()) >= top_p:
            break
        nucleus[id] = probability
    return {id: probability / sum(nucleus.values()) for id, probability in nucleus.items()}


distinct_logits = st.lists(st.integers(-32, 32), min_size=1, max_size=8, unique=True).map(
    lambda steps: [step / 32 for step in steps]
)


@law
@hypothesis.given(
    logits=distinct_logits,
    temperature=st.floats(0.5, 4),
    top_k=st.integers(0, 10),
    top_p=st.just(1.0) | st.floats(0.01, 1),
)
@hypothesis.example(logits=[0.0, 1.0, -1.0], temperature=1.0, top_k=2, top_p=0.7)  # 1.0 alone has 0.73 of those two
def test_top_k_and_top_p_keep_exactly_the_right_tokens(
    logits: list[float], temperature: float, top_k: int, top_p: float
) -> None:
    expected = kept_probabilities(logits, temperature, top_k, top_p)
    for nearby in (top_p - 1e-5, top_p + 1e-5):  # rounding in float32 may keep a token more or less
        hypothesis.assume(
            top_p == 1 or kept_probabilities(logits, temperature, top_k, nearby).keys() == expected.keys()
        )
    counts = draw_counts(logits, Sampling(temperature=temperature, top_k=top_k, top_p=top_p))
    assert {id for id, count in enumerate(counts.tolist()) if count} == expected.keys()
    for id, probability in expected.items():
        deviation = math.sqrt(20_000 * probability * (1 - probability))
        assert abs(counts[id].item() - 20_000 * probability) <= 5 * deviation + 1e-6


def test_draws_follow_the_softmax() -> None:
    logits = torch.randn(40, generator=seeded(1)).tolist()
    for temperature in (0.5, 1.0, 2.0):
        expected = 200_000 * torch.tensor(softmax([each / temperature for each in logits]))
        counts = draw_counts(logits, Sampling(temperature=temperature, top_k=0), 200_000)
        chi_square = ((counts - expected) ** 2 / expected).sum().item()
        assert 15 < chi_square < 75  # 39 degrees of freedom: 99.8% of all draws


@law
@hypothesis.given(st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=12, unique=True))
def test_temperature_zero_and_top_k_one_are_greedy(logits: list[float]) -> None:
    best = logits.index(max(logits))
    for sampling in (GREEDY, Sampling(temperature=0, top_k=3, top_p=0.1), Sampling(temperature=5, top_k=1)):
        assert sample_token(torch.tensor([logits]), sampling, seeded()).tolist() == [best]


def test_each_row_is_drawn_from_its_own_logits() -> None:
    logits = torch.full((3, 5), -50.0)
    logits[[0, 1, 2], [4, 0, 2]] = 50.0
    for sampling in (GREEDY, ALL, Sampling(top_k=2, top_p=0.9)):
        assert sample_token(logits, sampling, seeded()).tolist() == [4, 0, 2]


def test_ties_with_the_last_token_of_top_k_are_kept_as_in_nanogpt() -> None:
    counts = draw_counts([1.0, 0.0, 0.0, -1.0], Sampling(temperature=1, top_k=2))
    assert counts.bool().tolist() == [True, True, True, False]


@pytest.mark.parametrize("top_p", [1e-9, 0.3])
def test_top_p_keeps_at_least_one_token(top_p: float) -> None:
    assert draw_counts([0.0, 1.0, 0.5], Sampling(temperature=1, top_p=top_p)).bool().tolist() == [False, True, False]


@pytest.mark.parametrize("sampling", [GREEDY, ALL, Sampling(temperature=0.5, top_k=2, top_p=0.5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_given_logits_are_not_modified(sampling: Sampling, dtype: torch.dtype) -> None:
    logits = torch.randn(2, 10, generator=seeded()).to(dtype)
    before = logits.clone()
    sample_token(logits, sampling, seeded())
    assert torch.equal(logits, before)


@law
@hypothesis.given(
    seed=st.integers(0, 2**60), rows=st.integers(1, 3), size=st.sampled_from([1, 2, 65, 5000]), top_k=st.integers(0, 40)
)
def test_draws_equal_those_of_torch_multinomial(seed: int, rows: int, size: int, top_k: int) -> None:
    """Therefore a seed gives nanoGPT's text. The test fails if PyTorch changes how it draws."""
    logits = 4 * torch.randn(rows, size, generator=seeded(seed))
    probs = probabilities(logits, Sampling(temperature=1, top_k=top_k))
    ours, theirs = seeded(seed), seeded(seed)
    for _ in range(3):
        expected = torch.multinomial(probs, 1, generator=theirs).squeeze(-1)
        assert torch.equal(sample_token(logits, Sampling(temperature=1, top_k=top_k), ours), expected)
    assert torch.equal(ours.get_state(), theirs.get_state())


def test_ties_with_the_last_token_of_a_nucleus_keep_the_first() -> None:
    for size in (8, 5000):
        probs = probabilities(torch.zeros(1, size), Sampling(temperature=1, top_k=0, top_p=0.4999))
        assert probs[0].nonzero().squeeze(-1).tolist() == list(range(size // 2))


def test_ties_at_the_end_of_a_nucleus_keep_the_first_also_below_a_larger_probability() -> None:
    logits = torch.tensor([[2.0, 4.0, 2.0, 2.0]]).log()
    probs = probabilities(logits, Sampling(temperature=1, top_k=0, top_p=0.5))  # 0.4 and one of 0.2
    assert probs[0].nonzero().squeeze(-1).tolist() == [0, 1]


def test_a_draw_depends_on_the_given_generator_only() -> None:
    logits = torch.zeros(50, 100)
    torch.manual_seed(1)
    first = sample_token(logits, ALL, seeded(5))
    torch.manual_seed(2)
    assert torch.equal(sample_token(logits, ALL, seeded(5)), first)
    assert not torch.equal(sample_token(logits, ALL, seeded(6)), first)


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("sampling", [GREEDY, ALL, Sampling(top_k=1), Sampling(top_p=0.5)])
def test_logits_that_are_not_finite_are_an_error(broken: float, sampling: Sampling) -> None:
    logits = torch.zeros(2, 5)
    logits[1, 3] = broken
    with pytest.raises(OctavoError, match="logits are not finite") as caught:
        sample_token(logits, sampling, seeded())
    assert "checkpoint" in str(caught.value.hint)


def test_large_logits_are_finite_even_if_their_sum_is_not() -> None:
    logits = torch.tensor([[3e38, 3e38, 3.1e38]])  # float32 ends at 3.4e38
    assert sample_token(logits, GREEDY).tolist() == [2]


@pytest.mark.parametrize("temperature", [1e-3, 1e-20, 1e-38, 1e-45, 1e-300])
def test_a_tiny_temperature_is_greedy(temperature: float) -> None:
    logits = torch.tensor([[1.0, 9.0, 8.0, -200.0]])
    for top_p in (1.0, 0.5):
        assert sample_token(logits, Sampling(temperature=temperature, top_p=top_p), seeded()).item() == 1


RANGES = {
    "temperature": (0.0, 100.0),
    "top_k": (0, math.inf),
    "top_p": (math.nextafter(0, 1), 1.0),
    "min_p": (0.0, 1.0),
    "repetition_penalty": (0.01, 100.0),
    "presence_penalty": (-2.0, 2.0),
    "frequency_penalty": (-2.0, 2.0),
}


@pytest.mark.parametrize("name", RANGES)
def test_a_number_out_of_range_is_an_error_that_names_it(name: str) -> None:
    low, high = RANGES[name]
    for value in (low, high):
        Sampling(**{name: value})
    outside = [math.nextafter(low, -math.inf), low - 1, -math.inf]
    if name != "top_k":
        outside += [math.nextafter(high, math.inf), high + 1, math.inf, math.nan]
    for value in outside:
        with pytest.raises(OctavoError) as caught:
            Sampling(**{name: value})
        assert caught.value.message.startswith(f"{name}={value} is ")
        assert str(caught.value.hint).startswith(f"--{name.replace('_', '-')} ")


@pytest.mark.parametrize("bias", [-101, -100.1, 100.1, 101, math.nan, math.inf])
def test_a_logit_bias_out_of_range_is_an_error_that_names_the_token(bias: float) -> None:
    Sampling(logit_bias={3: -100, 4: 100})
    with pytest.raises(OctavoError, match=f"the logit_bias {bias} of token 17 ") as caught:
        Sampling(logit_bias={3: 1, 17: bias})
    assert str(caught.value.hint).startswith("17: ")


def test_allowed_ids_that_allow_no_token_are_an_error() -> None:
    with pytest.raises(OctavoError, match=r"^allowed_token_ids has no token") as caught:
        Sampling(allowed_token_ids=[])
    assert "at least one" in str(caught.value.hint)
    assert Sampling().allowed is None


# Rows


@pytest.mark.parametrize("sampling", [ALL, Sampling(top_k=3), Sampling(top_p=0.7), Sampling(min_p=0.3, top_k=0)])
def test_the_distribution_of_a_row_does_not_depend_on_the_other_rows(sampling: Sampling) -> None:
    logits = torch.tensor([[0.1], [1.0], [8.0]]) * torch.randn(3, 5, generator=seeded())
    alone = torch.cat([probabilities(row[None], sampling) for row in logits])
    assert torch.equal(probabilities(logits, sampling), alone)


@pytest.mark.parametrize("size", [3, 10, 49, 1000, 50_000])
def test_the_distribution_without_any_limit_is_the_softmax_bit_for_bit(size: int) -> None:
    for logits in (torch.zeros(1, size), torch.randn(2, size, generator=seeded())):
        assert torch.equal(probabilities(logits, Sampling(temperature=1, top_k=0)), logits.softmax(-1))


# Excluded and allowed ids


def test_excluded_ids_and_those_that_are_not_allowed_get_no_probability() -> None:
    logits = torch.arange(8.0).view(2, 4)

    def possible(allowed: list[int] | None, excluded: list[int]) -> list[int]:
        result = exclude_tokens(logits, None if allowed is None else torch.tensor(allowed), excluded)
        is_kept = result == logits
        assert (result[~is_kept] == -math.inf).all()
        assert torch.equal(is_kept[0], is_kept[1])
        return is_kept[0].nonzero().flatten().tolist()

    assert possible(None, [0, 3]) == [1, 2]
    assert possible(None, [0, 0, 1, 1]) == [2, 3]
    assert possible(None, [-1, 4, 99]) == [0, 1, 2, 3]  # outside the vocabulary
    assert possible([0, 2, 3], []) == [0, 2, 3]
    assert possible([0, 2, 3], [2, -1, 4]) == [0, 3]


def test_excluding_every_token_is_an_error() -> None:
    logits = torch.zeros(2, 4)
    for allowed, excluded in ((None, range(4)), (torch.tensor([1, 2]), [2, 1])):
        with pytest.raises(NoTokenLeftError, match=r"^no token is left") as caught:
            exclude_tokens(logits, allowed, excluded)
        assert "allowed_token_ids" in str(caught.value.hint)


@pytest.mark.parametrize("temperature", [0, 1])
@pytest.mark.parametrize("top_k", [0, 2])
def test_only_allowed_ids_that_are_not_excluded_are_sampled(temperature: float, top_k: int) -> None:
    logits = torch.tensor([4.0, 3.0, 2.0, 1.0, 0.0]).expand(200, 5)

    def sampled_ids(allowed: list[int] | None, excluded: list[int]) -> set[int]:
        sampling = Sampling(temperature=temperature, top_k=top_k, allowed_token_ids=allowed)
        return set(sample_token(logits, sampling, seeded(), excluded_ids=excluded).tolist())

    for allowed, excluded, possible in (
        ([4, 2], [], [2, 4]),
        ([4, 2, 2], [2], [4]),
        (None, [0, 1, 4], [2, 3]),
    ):
        assert sampled_ids(allowed, excluded) == set(possible if temperature else possible[:1])


# Penalties, logit bias, min-p


def count_ids(*ids: int, size: int = 4) -> Tensor:
    return torch.bincount(torch.tensor(ids, dtype=torch.long), minlength=size)


def test_penalties_change_logits_by_their_definitions() -> None:
    logits = torch.tensor([[2.0, -2.0, 1.0, 0.5]])
    sampling = Sampling(repetition_penalty=2.0, presence_penalty=0.5, frequency_penalty=0.25)
    result = apply_penalties(logits, sampling, count_ids(1, 3), count_ids(0, 0, 3))
    # 0: 2 / 2, generated twice; 1: only in the prompt, -2 * 2; 3: 0.5 / 2, once in the prompt, generated once
    assert result.tolist() == [[1.0 - 0.5 - 0.5, -4.0, 1.0, 0.25 - 0.5 - 0.25]]


def test_each_penalty_works_alone() -> None:
    logits = torch.tensor([[2.0, -2.0, 1.0]])
    for name, expected in (
        ("repetition_penalty", [4.0, -1.0, 1.0]),
        ("presence_penalty", [1.5, -2.0, 1.0]),
        ("frequency_penalty", [1.0, -2.0, 1.0]),
    ):
        counts = count_ids(1, size=3), count_ids(0, 0, size=3)
        assert apply_penalties(logits, Sampling(**{name: 0.5}), *counts).tolist() == [expected]
        assert sample_token(logits, Sampling(temperature=0, **{name: 0.5}), None, *counts).item() == 0


def test_default_penalties_change_nothing() -> None:
    logits = torch.randn(3, 9, generator=seeded())
    assert torch.equal(apply_penalties(logits, Sampling()), logits)
    assert not Sampling().has_penalties
    assert all(Sampling(**{name: 0.5}).has_penalties for name in ("repetition_penalty", "presence_penalty"))


def test_logit_bias_is_added_and_ids_outside_the_vocabulary_are_ignored() -> None:
    logits = torch.ones(2, 4)
    result = apply_penalties(logits, Sampling(logit_bias={0: -5, 3: 100, 4: 5, 7: 5, -1: 5}))
    assert result.tolist() == [[-4, 1, 1, 101], [-4, 1, 1, 101]]
    assert (logits == 1).all()  # the given tensor is not modified
    assert draw_counts([5.0, 0.0, 0.0], Sampling(logit_bias={2: 100})).tolist()[2] == 20_000


@pytest.mark.parametrize(("min_p", "count"), [(0.0, 4), (0.1, 3), (0.3, 2), (0.9, 1), (1.0, 1)])
def test_min_p_keeps_tokens_near_the_most_likely(min_p: float, count: int) -> None:
    logits = torch.tensor([[8.0, 4.0, 1.0, 0.5]]).log()
    probs = probabilities(logits, Sampling(temperature=1, top_k=0, min_p=min_p))
    assert probs.count_nonzero() == count
    assert probs.sum().item() == pytest.approx(1)


@pytest.mark.parametrize("size", [10, 1024, 1025, 1500, 5000])
@pytest.mark.parametrize("temperature", [0.1, 1.0, 50.0])  # at 50 the nucleus has more tokens than are sorted first
@pytest.mark.parametrize("top_p", [0.02, 0.9])
def test_a_nucleus_found_by_partial_sorting_equals_the_full_sort(size: int, temperature: float, top_p: float) -> None:
    logits = 5 * torch.randn(3, size, generator=seeded())
    result = probabilities(logits, Sampling(temperature=temperature, top_k=0, top_p=top_p))
    ordered, order = (logits / temperature).softmax(-1).sort(descending=True)
    expected = torch.zeros(3, size).scatter(-1, order, ordered * (ordered.cumsum(-1) - ordered < top_p))
    torch.testing.assert_close(result, expected, atol=1e-6, rtol=1e-4)


def test_a_nucleus_ends_where_it_reaches_top_p_exactly() -> None:
    probs = probabilities(torch.zeros(1, 4), Sampling(temperature=1, top_k=0, top_p=0.5))
    assert probs[0].nonzero().squeeze(-1).tolist() == [0, 1]


def test_the_size_of_a_nucleus_of_many_small_probabilities_is_exact() -> None:
    each = Fraction(float(torch.zeros(50_000).softmax(0)[0]))  # summed in float32, half of them would not be near 0.5
    probs = probabilities(torch.zeros(1, 50_000), Sampling(temperature=1, top_k=0, top_p=0.5))
    assert probs.count_nonzero().item() == math.ceil(Fraction(1, 2) / each)
