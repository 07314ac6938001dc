"""Generated tokens equal those of nanoGPT's loop and of full forward passes; every option of `octavo.generate`."""

import math
from typing import Any

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from torch import Tensor

import octavo
from generating import generate_ids
from octavo import tokenizers
from octavo.errors import OctavoError
from octavo.generation.backends import create_decoder
from octavo.generation.decoder import Batch, Decoder
from octavo.generation.engine import Engine, Request
from octavo.generation.generate import start_streams
from octavo.generation.prompt import encode_prompt
from octavo.generation.sampling import Sampling
from octavo.generation.stream import Sample, TextRequest
from octavo.model import GPT
from octavo.settings import ModelSettings
from octavo.tokenizers import choose_start
from small_models import (
    ALL,
    BPE,
    BYTES,
    CHARS,
    GREEDY,
    VARIED,
    seeded,
    small_checkpoint,
    spread_model,
    without_end_of_text,
)

law = hypothesis.settings(derandomize=True, deadline=None, max_examples=60)


# Tokens


@torch.no_grad()
def nanogpt_ids(model: GPT, idx: Tensor, max_new_tokens: int, temperature: float, top_k: int, seed: int) -> list[int]:
    """nanoGPT's `generate`: for each token, crop to the context length and run a full forward pass."""
    generator = seeded(seed)
    block_size = model.settings.block_size
    for _ in range(max_new_tokens):
        idx_cond = idx if idx.size(1) <= block_size else idx[:, -block_size:]
        logits = model(idx_cond)[:, -1, :] / temperature
        v, _ = torch.topk(logits, min(top_k, logits.size(-1)))
        logits[logits < v[:, [-1]]] = -float("inf")
        probabilities = logits.softmax(dim=-1)
        idx = torch.cat((idx, torch.multinomial(probabilities, num_samples=1, generator=generator)), dim=1)
    return idx[0, -max_new_tokens:].tolist()


@law
@hypothesis.given(
    prompt=st.lists(st.integers(0, 10), min_size=1, max_size=20), seed=st.integers(0, 99), top_k=st.integers(1, 12)
)
@hypothesis.example(prompt=[3], seed=0, top_k=1)  # greedy, until the text is much longer than the context
@hypothesis.example(prompt=[1, 2, 3, 4, 5, 6, 7, 8], seed=0, top_k=5)  # the context is full from the start
def test_tokens_equal_those_of_nanogpts_loop_also_beyond_the_context(prompt: list[int], seed: int, top_k: int) -> None:
    model = spread_model(VARIED[seed % 3])
    generated = generate_ids(model, prompt, Sampling(temperature=0.7, top_k=top_k), seeded(seed))
    ours = [next(generated) for _ in range(20)]
    assert ours == nanogpt_ids(model, torch.tensor([prompt]), 20, 0.7, top_k, seed)


def test_the_models_of_these_tests_generate_varied_text() -> None:
    """Otherwise an error in the cache or the window might not show."""
    for seed in VARIED:
        texts = {tuple(nanogpt_ids(spread_model(seed), torch.tensor([[first]]), 20, 1, 1, 0)) for first in range(11)}
        assert len(texts) >= 8
        assert sum(len(set(text)) for text in texts) / len(texts) > 4


@law
@hypothesis.given(prompt=st.lists(st.integers(0, 10), min_size=1, max_size=10))
def test_greedy_decoding_with_a_cache_equals_the_full_forward(prompt: list[int]) -> None:
    for seed in VARIED:
        model, ids = spread_model(seed), list(prompt)
        generated = generate_ids(model, prompt, GREEDY, seeded())
        for _ in range(12):
            with torch.no_grad():
                ids.append(int(model(torch.tensor([ids[-8:]]))[0, -1].argmax()))
            assert next(generated) == ids[-1]


class RecordingDecoder:
    """Records the number of rows of every forward pass."""

    is_batch_invariant = False

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder
        self.row_counts: list[int] = []

    def forward(self, batch: Batch) -> Tensor:
        self.row_counts.append(len(batch.ids))
        return self.decoder.forward(batch)


def test_each_token_is_computed_once_until_the_context_is_full() -> None:
    for overflow, expected in (("slide", [3, 1, 1, 1, 1, 1, 8, 8, 8, 8]), ("rechunk", [3, 1, 1, 1, 1, 1, 4, 1, 1, 1])):
        decoder = RecordingDecoder(create_decoder(spread_model(), 1)[0])
        engine = Engine(spread_model(), 1, decoder=decoder)
        engine.submit(Request(prompt=[1, 2, 3], max_new_tokens=10, sampling=GREEDY, overflow=overflow))
        while engine.step():
            pass
        assert decoder.row_counts == expected


def test_a_context_of_one_token_works() -> None:
    generated = generate_ids(spread_model(block_size=1), [1, 2], GREEDY, seeded())
    assert len([next(generated) for _ in range(5)]) == 5


def test_two_interleaved_texts_do_not_affect_each_other() -> None:
    model = spread_model()
    separate = [[next(ids) for _ in range(12)] for ids in (generate_ids(model, [n], ALL, seeded(n)) for n in (1, 2))]
    texts = [generate_ids(model, [n], ALL, seeded(n)) for n in (1, 2)]
    interleaved = [[next(ids) for ids in texts] for _ in range(12)]
    assert [list(each) for each in zip(*interleaved, strict=True)] == separate


def test_a_frequency_penalty_breaks_a_repetition() -> None:
    model = GPT(ModelSettings(n_layer=1, n_head=1, n_embd=8, block_size=16, vocab_size=6), seeded(3))

    def tokens(**penalties: float) -> list[int]:
        generated = generate_ids(model, [1, 2], Sampling(temperature=0, **penalties), seeded())
        return [next(generated) for _ in range(30)]

    plain = tokens()
    assert len(set(plain[10:])) < 6  # it repeats
    assert set(tokens(frequency_penalty=2.0)) == set(range(6))
    assert tokens(frequency_penalty=0.0) == plain
    assert tokens(repetition_penalty=50.0)[0] not in (1, 2)  # the tokens of the prompt


# octavo.generate


def test_sample_i_is_drawn_with_seed_plus_i() -> None:
    model = small_checkpoint(CHARS)
    texts = [each.text for each in octavo.generate(model, "abc", max_new_tokens=40, num_samples=5, seed=7)]
    assert len(set(texts)) == 5
    assert texts == [each.text for each in octavo.generate(model, "abc", max_new_tokens=40, num_samples=5, seed=7)]
    for number in range(5):
        [one] = octavo.generate(model, "abc", max_new_tokens=40, seed=7 + number)
        assert one.text == texts[number]


def test_best_of_returns_the_texts_with_the_highest_mean_logprob() -> None:
    model = small_checkpoint(CHARS, block_size=64)
    samples = octavo.generate(model, "abc", max_new_tokens=20, num_samples=12, temperature=1.5)

    def mean_logprob(sample: Sample) -> float:
        ids = torch.tensor([CHARS.encode("abc").tolist() + sample.token_ids])
        logprobs = model.model(ids)[0, 2:-1, : CHARS.vocab_size].log_softmax(-1)
        return float(logprobs.gather(-1, ids[0, 3:, None]).mean())

    with torch.no_grad():
        ordered = sorted(samples, key=lambda sample: -mean_logprob(sample))
    assert octavo.generate(model, "abc", max_new_tokens=20, num_samples=3, best_of=12, temperature=1.5) == ordered[:3]
    assert octavo.generate(model, "abc", max_new_tokens=20, best_of=1, temperature=1.5) == samples[:1]
    with pytest.raises(OctavoError, match=r"best_of=2 .*num_samples=3"):
        octavo.generate(model, "abc", num_samples=3, best_of=2)


def test_greedy_samples_are_equal_and_follow_argmax() -> None:
    model = small_checkpoint(CHARS)
    samples = octavo.generate(model, "abc", max_new_tokens=20, num_samples=2, temperature=0)
    assert samples[0] == samples[1]
    generated = generate_ids(model.model, CHARS.encode("abc").tolist(), GREEDY, seeded())
    assert samples[0].token_ids == [next(generated) for _ in range(20)]
    assert samples[0].text == CHARS.decode(samples[0].token_ids)
    assert samples[0].finish_reason == "length"


def test_every_option_of_generate_has_an_effect() -> None:
    model = small_checkpoint(CHARS)

    def text(**options: Any) -> str:
        return octavo.generate(model, "abc", **{"max_new_tokens": 60, "temperature": 2.0} | options)[0].text

    [greedy] = octavo.generate(model, "abc", max_new_tokens=60, temperature=0)
    assert text(top_k=1) == text(top_p=1e-6) == text(temperature=0) == greedy.text
    assert len({text(), text(seed=1), text(temperature=0.5), text(top_k=2), text(top_p=0.5)}) == 5
    assert len(text(max_new_tokens=7)) == 7
    full = text()
    end = full.index(full[5])
    [id] = CHARS.encode(full[5]).tolist()
    assert text(stop=[full[5]]) == text(stop_token_ids=[id]) == full[:end]
    assert text(stop_token_ids=[id], include_stop_str_in_output=True) == full[: end + 1]
    assert full[5] not in text(bad_words=[full[5]])
    assert full[5] not in text(stop_token_ids=[id], min_tokens=60)
    assert set(text(allowed_token_ids=[id])) == {full[5]}
    bpe = small_checkpoint(BPE)
    [sample] = octavo.generate(bpe, "the", ignore_eos=True, logit_bias={BPE.end_of_text: 100}, max_new_tokens=2)
    assert sample == Sample("<|endoftext|>" * 2, [BPE.end_of_text] * 2, "length")


def test_an_empty_prompt_starts_after_end_of_text_or_a_line_break() -> None:
    assert encode_prompt(BPE, "").ids == [BPE.end_of_text]
    assert encode_prompt(CHARS, "").ids == CHARS.encode("\n").tolist()
    assert encode_prompt(BYTES, "").ids == [10]
    chars, one_line = tokenizers.build("char", "xy\nz"), tokenizers.build("char", "xyz")
    assert encode_prompt(chars, "").ids == encode_prompt(one_line, "").ids == [0]
    assert encode_prompt(without_end_of_text(one_line), "").ids == [0]
    assert encode_prompt(choose_start(chars, trained_on_end_of_text=True), "").ids == [chars.end_of_text]
    for tokenizer in (BPE, CHARS, BYTES):
        assert octavo.generate(small_checkpoint(tokenizer), max_new_tokens=5)[0].token_ids


def test_a_token_that_the_model_has_never_seen_does_not_end_a_text() -> None:
    """A model of one text has never seen `<|endoftext|>`, but its weights give it some probability."""
    tokenizer = tokenizers.build("char", "abcdefg \n")
    reasons = {
        is_trained: {
            sample.finish_reason
            for sample in octavo.generate(
                small_checkpoint(choose_start(tokenizer, trained_on_end_of_text=is_trained)),
                "a",
                max_new_tokens=20,
                num_samples=20,
                temperature=1,
                top_k=0,
            )
        }
        for is_trained in (True, False)
    }
    assert "end_of_text" in reasons[True]
    assert reasons[False] == {"length"}


def test_a_prompt_longer_than_the_context_is_truncated_with_a_notice() -> None:
    model = small_checkpoint(CHARS)
    notices: list[str] = []

    def generate(prompt: str) -> str:
        request = TextRequest(prompt=encode_prompt(CHARS, prompt), max_new_tokens=20, sampling=ALL, seed=3)
        [stream] = start_streams(model, request, on_notice=notices.append)
        return "".join(stream)

    assert generate("abcabcab") == generate("abcabcab")
    assert notices == []  # the prompt fits
    assert generate("gggggggggabcabcab") == generate("abcabcab")
    assert len(notices) == 1
    assert "17" in notices[0]
    assert "last 8" in notices[0]
    assert generate("abcabcaba") != generate("abcabcab")


def test_unknown_characters_in_a_prompt_are_an_error_or_skipped_or_replaced() -> None:
    model = small_checkpoint(CHARS)
    with pytest.raises(OctavoError, match=r"'X', 'é'.*\n.*--unknown skip"):
        octavo.generate(model, "aéXb")
    assert encode_prompt(CHARS, "aéXb", "skip").ids == CHARS.encode("ab").tolist()
    assert encode_prompt(CHARS, "aéXb", "replace").ids == CHARS.encode("a  b").tolist()
    assert encode_prompt(CHARS, "éX", "skip").ids == encode_prompt(CHARS, "").ids  # no character is known
    skipped, plain = (octavo.generate(model, prompt, max_new_tokens=9, unknown="skip")[0] for prompt in ("aéXb", "ab"))
    assert skipped == plain


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("max_new_tokens", value) for value in (-1, 10**9)),
        *(("num_samples", value) for value in (0, -1, 10**6)),
        *(("seed", value) for value in (-1, 2**63, 10**30)),
        ("temperature", -1),
        ("top_k", -1),
        ("top_p", 0),
    ],
)
def test_a_number_out_of_range_is_an_error_that_names_it(name: str, value: int) -> None:
    with pytest.raises(OctavoError, match=f"^{name}={value} ") as caught:
        octavo.generate(small_checkpoint(CHARS), "abc", **{name: value})
    assert f"--{name.replace('_', '-')} " in str(caught.value.hint)


def test_weights_that_are_not_finite_are_an_error() -> None:
    model = small_checkpoint(CHARS)
    model.model.transformer.wpe.weight.data[2] = math.nan
    request = TextRequest(prompt=encode_prompt(CHARS, "a"), max_new_tokens=9, sampling=ALL, seed=0)
    [stream] = start_streams(model, request)
    with pytest.raises(OctavoError, match="not finite"):
        stream.run()
    assert len(stream.text) <= 2
    assert stream.finish_reason == "error"


def test_padded_rows_of_the_vocabulary_are_never_generated() -> None:
    """A padded vocabulary, of 50,304 rows for example, has rows without a token."""
    model = small_checkpoint(CHARS, vocab_size=64)
    for temperature in (0.0, 1.0):
        samples = octavo.generate(model, "abc", max_new_tokens=30, num_samples=3, temperature=temperature, top_k=0)
        for sample in samples:
            assert np.max(sample.token_ids) < CHARS.vocab_size
            assert sample.text == CHARS.decode(sample.token_ids)
