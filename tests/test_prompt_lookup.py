"""Draft tokens: the text is the same as without them, and repetitive text takes fewer steps."""

from typing import Any

import pytest

from generating import GREEDY, make_request, random_model, run
from octavo.generation.engine import Engine, Request
from octavo.generation.native import NativeDecoder
from octavo.generation.prompt_lookup import PromptLookup
from octavo.generation.sampling import Sampling

PROMPT = [1, 2, 3, 4, 5, 1, 2, 3, 4, 5, 1, 2]
REQUESTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "log-probabilities": dict(logprobs=2, prompt_logprobs=1),
    "penalties": dict(sampling=Sampling(temperature=0, repetition_penalty=1.3, frequency_penalty=0.2)),
    "stop": dict(overflow="stop"),
    "rechunk": dict(overflow="rechunk"),
    "one token": dict(max_new_tokens=1),
    "an end": dict(final_ids=frozenset((3,)), min_tokens=4),
    "bad words": dict(bad_words=((4,), (1, 2))),
}


class Steps(NativeDecoder):
    """A decoder that counts its calls."""

    calls = 0

    def forward(self, batch: Any) -> Any:
        self.calls += 1
        return super().forward(batch)


class WithoutDrafts(Steps):
    is_batch_invariant = False


def greedy(**fields: Any) -> Request:
    return Request(**{"prompt": PROMPT, "max_new_tokens": 60, "sampling": GREEDY} | fields)


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("name", REQUESTS)
@pytest.mark.parametrize("others", [0, 1, 3])
def test_tokens_are_the_same_with_and_without_drafts(name: str, int8: bool, others: int) -> None:
    for seed in range(3):
        model = random_model(seed)
        requests = [greedy(**REQUESTS[name]), *(make_request(i) for i in range(others))]
        drafted = run(Engine(model, 4, decoder=Steps(model, 4, int8)), *requests)
        requests = [greedy(**REQUESTS[name]), *(make_request(i) for i in range(others))]
        expected = run(Engine(model, 4, decoder=WithoutDrafts(model, 4, int8)), *requests)
        for job, other in zip(drafted, expected, strict=True):
            assert job.tokens == other.tokens
            assert (job.finish_reason, job.stop_id) == (other.finish_reason, other.stop_id)


def test_a_text_that_repeats_itself_takes_fewer_steps() -> None:
    model = random_model(block_size=300)
    for parameter in model.transformer.wpe.parameters():
        parameter.data.zero_()  # without positions the text soon repeats itself
    decoder = Steps(model, 1)
    [job] = run(Engine(model, 1, decoder=decoder), greedy(max_new_tokens=200))
    assert len(job.tokens) == 200
    assert decoder.calls < 120


def test_drafts_follow_the_last_occurrence_and_wait_after_rejected_ones() -> None:
    lookup = PromptLookup([1, 2, 3, 4, 9, 1, 2, 3, 5, 6, 1, 2, 3])
    assert lookup.draft(2) == [5, 6]
    assert lookup.draft(9) == [5, 6, 1, 2, 3]
    lookup.report(0)
    assert lookup.draft(2) == []
    assert lookup.draft(2) == [5, 6]
    lookup.report(0)
    assert [lookup.draft(1) for _ in range(3)] == [[], [], [5]]
    lookup.report(1)
    assert lookup.draft(1) == [5]
    lookup.append(7)
    assert lookup.draft(1) == []
    assert PromptLookup([1, 2]).draft(3) == []
