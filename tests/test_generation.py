"""From logits to a token, from a token to the next, and from tokens to text that is never shown half."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from torch import Tensor, nn

import octavo
from generating import generate_ids
from octavo import tokenizers
from octavo.checkpoint import Checkpoint
from octavo.errors import OctavoError
from octavo.generation.decoder import Batch
from octavo.generation.engine import Engine, Request
from octavo.generation.sampling import Sampling, apply_penalties, probabilities, sample_token
from octavo.generation.stream import Continuation, Sample, continuations, start
from octavo.model import GPT
from octavo.settings import ModelSettings
from octavo.tokenizers import Tokenizer

law = hypothesis.settings(derandomize=True, deadline=None, max_examples=60)
GREEDY = Sampling(temperature=0)
ALL = Sampling(temperature=1, top_k=0)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# Choosing a token


def drawn(logits: list[float], sampling: Sampling, count: int = 20_000) -> Tensor:
    """How often each token came, of `count` draws: (V,)."""
    ids = sample_token(torch.tensor([logits]).expand(count, -1), sampling, seeded())
    assert ids.shape == (count,)
    return torch.bincount(ids, minlength=len(logits))


def softmax(logits: list[float]) -> list[float]:
    weights = [math.exp(each - max(logits)) for each in logits]
    return [weight / sum(weights) for weight in weights]


def kept(logits: list[float], temperature: float, top_k: int, top_p: float) -> dict[int, float]:
    """The tokens that may be drawn, each with its probability: written plainly, from the definitions."""
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
    expected = kept(logits, temperature, top_k, top_p)
    for near in (top_p - 1e-5, top_p + 1e-5):  # there, float32 may decide either way
        hypothesis.assume(top_p == 1 or kept(logits, temperature, top_k, near).keys() == expected.keys())
    counts = drawn(logits, Sampling(temperature=temperature, top_k=top_k, top_p=top_p))
    assert {id for id, count in enumerate(counts.tolist()) if count} == expected.keys()
    for id, probability in expected.items():
        deviation = math.sqrt(20_000 * probability * (1 - probability))
        assert abs(counts[id].item() - 20_000 * probability) <= 5 * deviation + 1e-6


def test_draws_are_as_frequent_as_the_softmax_says() -> None:
    logits = torch.randn(40, generator=seeded(1)).tolist()
    for temperature in (0.5, 1.0, 2.0):
        expected = 200_000 * torch.tensor(softmax([each / temperature for each in logits]))
        counts = drawn(logits, Sampling(temperature=temperature, top_k=0), 200_000)
        chi_square = ((counts - expected) ** 2 / expected).sum().item()
        assert 15 < chi_square < 75  # 39 degrees of freedom: all but one in a thousand on either side


@law
@hypothesis.given(st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=12, unique=True))
def test_without_temperature_or_choice_the_likeliest_is_drawn(logits: list[float]) -> None:
    likeliest = logits.index(max(logits))
    for sampling in (GREEDY, Sampling(temperature=0, top_k=3, top_p=0.1), Sampling(temperature=5, top_k=1)):
        assert sample_token(torch.tensor([logits]), sampling, seeded()).tolist() == [likeliest]


def test_rows_are_drawn_each_from_its_own_logits() -> None:
    logits = torch.full((3, 5), -50.0)
    logits[[0, 1, 2], [4, 0, 2]] = 50.0
    for sampling in (GREEDY, ALL, Sampling(top_k=2, top_p=0.9)):
        assert sample_token(logits, sampling, seeded()).tolist() == [4, 0, 2]


def test_tokens_that_tie_with_the_last_of_top_k_stay_as_in_nanogpt() -> None:
    assert drawn([1.0, 0.0, 0.0, -1.0], Sampling(temperature=1, top_k=2)).bool().tolist() == [True, True, True, False]


@pytest.mark.parametrize("top_p", [1e-9, 0.3])
def test_at_least_one_token_stays_however_small_top_p_is(top_p: float) -> None:
    assert drawn([0.0, 1.0, 0.5], Sampling(temperature=1, top_p=top_p)).bool().tolist() == [False, True, False]


@pytest.mark.parametrize("sampling", [GREEDY, ALL, Sampling(temperature=0.5, top_k=2, top_p=0.5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_logits_passed_in_stay_as_they_are(sampling: Sampling, dtype: torch.dtype) -> None:
    logits = torch.randn(2, 10, generator=seeded()).to(dtype)
    before = logits.clone()
    sample_token(logits, sampling, seeded())
    assert torch.equal(logits, before)


@law
@hypothesis.given(
    seed=st.integers(0, 2**60), rows=st.integers(1, 3), size=st.sampled_from([1, 2, 65, 5000]), top_k=st.integers(0, 40)
)
def test_draws_are_those_of_torch_multinomial(seed: int, rows: int, size: int, top_k: int) -> None:
    """nanoGPT's users know their seeds. Should PyTorch change how it draws, this is where it shows."""
    logits = 4 * torch.randn(rows, size, generator=seeded(seed))
    chances = probabilities(logits, Sampling(temperature=1, top_k=top_k))
    ours, theirs = seeded(seed), seeded(seed)
    for _ in range(3):
        expected = torch.multinomial(chances, 1, generator=theirs).squeeze(-1)
        assert torch.equal(sample_token(logits, Sampling(temperature=1, top_k=top_k), ours), expected)
    assert torch.equal(ours.get_state(), theirs.get_state())


def test_of_chances_that_tie_with_the_last_of_a_nucleus_the_first_stay() -> None:
    for size in (8, 5000):
        chances = probabilities(torch.zeros(1, size), Sampling(temperature=1, top_k=0, top_p=0.4999))
        assert chances[0].nonzero().squeeze(-1).tolist() == list(range(size // 2))


def test_the_generator_decides_the_draw_and_nothing_else_does() -> None:
    logits = torch.zeros(50, 100)
    torch.manual_seed(1)
    first = sample_token(logits, ALL, seeded(5))
    torch.manual_seed(2)
    assert torch.equal(sample_token(logits, ALL, seeded(5)), first)
    assert not torch.equal(sample_token(logits, ALL, seeded(6)), first)


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("sampling", [GREEDY, ALL, Sampling(top_k=1), Sampling(top_p=0.5)])
def test_logits_that_are_not_finite_are_told(broken: float, sampling: Sampling) -> None:
    logits = torch.zeros(2, 5)
    logits[1, 3] = broken
    with pytest.raises(OctavoError, match="logits are not finite"):
        sample_token(logits, sampling, seeded())


@pytest.mark.parametrize("temperature", [1e-3, 1e-20, 1e-38, 1e-45, 1e-300])
def test_a_temperature_next_to_nothing_draws_the_likeliest(temperature: float) -> None:
    logits = torch.tensor([[1.0, 9.0, 8.0, -200.0]])
    for top_p in (1.0, 0.5):
        assert sample_token(logits, Sampling(temperature=temperature, top_p=top_p), seeded()).item() == 1


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("temperature", value) for value in (-0.1, 100.1, math.nan, math.inf, -math.inf)),
        *(("top_k", value) for value in (-1, -200)),
        *(("top_p", value) for value in (0.0, -0.5, 1.01, math.nan, math.inf)),
    ],
)
def test_a_number_that_makes_no_sense_is_named_with_one_that_does(name: str, value: float) -> None:
    with pytest.raises(OctavoError, match=f"^{name}={value} ") as caught:
        Sampling(**{name: value})
    assert str(caught.value.hint).startswith(f"--{name.replace('_', '-')} ")


# From token to token


TALKATIVE = (9, 5, 18)  # seeds of models that don't soon repeat themselves when greedy; see the test of that


def wide(seed: int = 9, **shape: Any) -> GPT:
    """A small model whose weights lie far enough apart that what came before matters."""
    shape = {"n_layer": 2, "n_head": 2, "n_embd": 16, "block_size": 8, "vocab_size": 11} | shape
    model = GPT(ModelSettings(**shape)).eval()
    generator = seeded(seed)
    for name, parameter in model.named_parameters():
        middle = 1.0 if ".ln_" in name and name.endswith("weight") else 0.0
        std = 1.0 if parameter.dim() == 2 and "wte" not in name else 0.2
        nn.init.normal_(parameter, middle, std, generator=generator)
    return model


@torch.no_grad()
def nanogpt(model: GPT, idx: Tensor, max_new_tokens: int, temperature: float, top_k: int, seed: int) -> list[int]:
    """nanoGPT's `generate`: crop to the block, run all of it afresh, for each token."""
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
@hypothesis.example(prompt=[3], seed=0, top_k=1)  # greedy, and from within the block to far beyond it
@hypothesis.example(prompt=[1, 2, 3, 4, 5, 6, 7, 8], seed=0, top_k=5)  # the block is full from the start
def test_tokens_are_those_of_nanogpts_loop_within_the_block_and_beyond(
    prompt: list[int], seed: int, top_k: int
) -> None:
    model = wide(TALKATIVE[seed % 3])
    steps = generate_ids(model, prompt, Sampling(temperature=0.7, top_k=top_k), seeded(seed))
    ours = [next(steps) for _ in range(20)]
    assert ours == nanogpt(model, torch.tensor([prompt]), 20, 0.7, top_k, seed)


def test_the_models_of_these_tests_have_something_to_say() -> None:
    """Else a wrong cache or window would hardly show."""
    for seed in TALKATIVE:
        said = {tuple(nanogpt(wide(seed), torch.tensor([[first]]), 20, 1, 1, 0)) for first in range(11)}
        assert len(said) >= 8
        assert sum(len(set(each)) for each in said) / len(said) > 4


@law
@hypothesis.given(prompt=st.lists(st.integers(0, 10), min_size=1, max_size=10))
def test_greedy_decoding_on_a_cache_equals_full_recomputation(prompt: list[int]) -> None:
    for seed in TALKATIVE:
        model, ids = wide(seed), list(prompt)
        steps = generate_ids(model, prompt, GREEDY, seeded())
        for _ in range(12):
            with torch.no_grad():
                ids.append(int(model(torch.tensor([ids[-8:]]))[0, -1].argmax()))
            assert next(steps) == ids[-1]


def watch(engine: Engine, told: Callable[[Batch], object]) -> None:
    """Have `told` hear of every forward pass."""
    forward = engine._decoder.forward
    engine._decoder.forward = lambda batch: (told(batch), forward(batch))[1]


def test_within_the_block_each_token_is_run_once() -> None:
    for overflow, rows in (("slide", [3, 1, 1, 1, 1, 1, 8, 8, 8, 8]), ("rechunk", [3, 1, 1, 1, 1, 1, 4, 1, 1, 1])):
        seen: list[int] = []
        engine = Engine(wide(), 1)
        watch(engine, lambda batch, seen=seen: seen.append(len(batch.ids)))
        engine.submit(Request(prompt=[1, 2, 3], max_new_tokens=10, sampling=GREEDY, overflow=overflow))
        while engine.step():
            pass
        assert seen == rows


def test_a_model_whose_block_is_one_token_writes() -> None:
    steps = generate_ids(wide(block_size=1), [1, 2], GREEDY, seeded())
    assert len([next(steps) for _ in range(5)]) == 5


def test_two_continuations_in_turn_do_not_disturb_each_other() -> None:
    model = wide()
    apart = [[next(steps) for _ in range(12)] for steps in (generate_ids(model, [n], ALL, seeded(n)) for n in (1, 2))]
    steps = [generate_ids(model, [n], ALL, seeded(n)) for n in (1, 2)]
    in_turn = [[next(each) for each in steps] for _ in range(12)]
    assert [list(each) for each in zip(*in_turn, strict=True)] == apart


# From tokens to text


def loaded(tokenizer: Tokenizer, **shape: Any) -> Checkpoint:
    """What `octavo.load` gives, without a folder."""
    model = wide(**{"vocab_size": tokenizer.vocab_size} | shape)
    return Checkpoint(model, tokenizer, model.settings, {}, Path("nowhere"))


CHARS = tokenizers.build("char", "abcdefg \n")
BYTES = tokenizers.build("byte", "")
BPE = tokenizers.build("bpe:300", "the cat sat on the mat, किताब 🦉 किताब 🦉, the cat sat on the mat")


class Scripted:
    """A decoder by which the model says just these ids, then no more."""

    def __init__(self, ids: list[int], vocab_size: int) -> None:
        self.ids, self.vocab_size, self.asked = iter(ids), vocab_size, 0

    def forward(self, batch: Batch) -> Tensor:
        self.asked += 1
        logits = torch.full((1, self.vocab_size), -1e9)
        logits[0, next(self.ids, 0)] = 1e9
        return logits


def says(ids: list[int], tokenizer: Tokenizer = CHARS, *stop: str, limit: int | None = None) -> Continuation:
    """The continuation by a model that says just these ids."""
    engine = Engine(wide(vocab_size=tokenizer.vocab_size), 1, use_native=False)
    engine._decoder = Scripted(ids, tokenizer.vocab_size)
    request = Request(prompt=[0], max_new_tokens=len(ids) if limit is None else limit, sampling=ALL)
    return Continuation(engine, tokenizer, request, stop)


def ended(tokenizer: Tokenizer, ids: list[int], stop: list[str]) -> Sample:
    """What a continuation should come to, from the definition: the text up to the first stop string."""
    decoder, text = tokenizer.decoder(), ""
    for count, id in enumerate(ids, start=1):
        text += decoder.push(id)
        places = [text.index(each) for each in stop if each in text]
        if places:
            return Sample(text[: min(places)], ids[:count], "stop")
    return Sample(text, ids, "length")


few_letters = st.text("ab", max_size=12)


@hypothesis.settings(law, max_examples=300)
@hypothesis.given(said=few_letters, stop=st.lists(st.text("ab", max_size=4), max_size=3))
@hypothesis.example(said="aaab", stop=["aab"])  # the stop string overlaps its own false start
@hypothesis.example(said="ababac", stop=["abac"])
@hypothesis.example(said="ab", stop=["ab"])  # at the very start
@hypothesis.example(said="aab", stop=["b", "ab"])  # of two that end together, the longer began first
@hypothesis.example(said="aab", stop=["abb"])  # it only looked like one
def test_text_ends_before_the_first_stop_string_and_none_is_ever_shown(said: str, stop: list[str]) -> None:
    ids = CHARS.encode(said).tolist()
    stop = [each for each in stop if each]
    expected = ended(CHARS, ids, stop)
    continuation = says(ids, CHARS, *stop, "")
    shown = ""
    for piece in continuation:
        shown += piece
        assert piece
        assert expected.text.startswith(shown)
        assert not any(each in shown for each in stop)
    assert shown == expected.text
    assert continuation.sample == expected


@pytest.mark.parametrize("tokenizer", [BYTES, BPE], ids=["byte", "bpe"])
@pytest.mark.parametrize(
    ("said", "stop", "text"),
    [
        ("the cat sat", ["t s"], "the ca"),  # across tokens
        ("the cat sat", ["e", "the cat"], "th"),  # `e` is complete first
        ("the cat sat on", [" on", "sat on"], "the cat "),
        ("a किताब 🦉!", ["🦉"], "a किताब "),  # a character of several bytes
        ("किताब", ["ताब"], "कि"),
        ("the cat", ["t sat"], "the cat"),  # begun, not finished
    ],
)
def test_stop_strings_are_found_across_tokens(tokenizer: Tokenizer, said: str, stop: list[str], text: str) -> None:
    ids = tokenizer.encode(said).tolist()
    continuation = says(ids, tokenizer, *stop)
    pieces = list(continuation)
    assert "".join(pieces) == continuation.sample.text == text
    assert continuation.sample == ended(tokenizer, ids, stop)


def test_text_is_shown_as_soon_as_it_can_not_be_part_of_a_stop_string() -> None:
    ids = CHARS.encode("abcabd").tolist()
    assert list(says(ids)) == list("abcabd")
    assert list(says(ids, CHARS, "abd")) == ["abc"]
    assert list(says(ids, CHARS, "bca")) == ["a"]
    assert list(says(CHARS.encode("abcabc").tolist(), CHARS, "abd")) == ["abc", "abc"]
    assert list(says(CHARS.encode("aab").tolist(), CHARS, "ag")) == ["a", "ab"]
    assert list(says(CHARS.encode("abab").tolist(), CHARS, "abd")) == ["ab", "ab"]  # the last, as nothing follows


ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\ufffd"))
SCRIPTS = ["السَّلام عليكم", "हिन्दी में लिखना", "🦉👩‍👩‍👧🇩🇪 emoji", "naïve Straße", "\u2028\x00\r\n"]


@pytest.mark.parametrize("tokenizer", [BYTES, BPE], ids=["byte", "bpe"])
def test_a_stream_shows_whole_characters_and_joined_it_is_the_text(tokenizer: Tokenizer) -> None:
    @law
    @hypothesis.given(ANY_TEXT | st.sampled_from(SCRIPTS))
    def stream(said: str) -> None:
        ids = tokenizer.encode(said).tolist()
        continuation = says(ids, tokenizer)
        pieces = list(continuation)
        assert "".join(pieces) == continuation.sample.text == said
        assert not any("\ufffd" in piece for piece in pieces)
        assert tokenizer is BPE or pieces == list(said)  # each as soon as it is whole

    stream()


@pytest.mark.parametrize("said", SCRIPTS, ids=["Arabic", "Hindi", "emoji", "Latin", "control"])
def test_a_text_cut_off_within_a_character_ends_before_it(said: str) -> None:
    ids = BYTES.encode(said).tolist()
    for limit in range(len(ids)):
        continuation = says(ids, BYTES, limit=limit)
        shown = "".join(continuation)
        assert shown == continuation.sample.text == said.encode()[:limit].decode(errors="ignore")
        assert continuation.sample.token_ids == ids[:limit]
        assert continuation.sample.finish_reason == "length"


def test_bytes_that_are_no_text_are_left_out_of_it() -> None:
    said = b"a\xff\xc3(b"  # what the model wrote, not where it was cut
    continuation = says(list(said), BYTES)
    assert "".join(continuation) == continuation.sample.text == "a(b"
    assert continuation.sample.token_ids == list(said)


# Why it ended


def test_a_text_ends_at_its_length_a_stop_string_or_the_end_of_text() -> None:
    the, cat = BPE.encode("the").tolist(), BPE.encode(" cat").tolist()
    ids = [*the, *cat, BPE.end_of_text, *the]

    def sample(*stop: str, limit: int = len(ids)) -> Sample:
        continuation = says(ids, BPE, *stop, limit=limit)
        assert "".join(continuation) == continuation.sample.text
        return continuation.sample

    assert sample(limit=len(the)) == Sample("the", the, "length")
    assert sample(limit=0) == Sample("", [], "length")
    assert sample(" cat") == Sample("the", the + cat, "stop")
    assert sample() == Sample("the cat", the + cat, "end_of_text")
    assert sample("cats") == Sample("the cat", the + cat, "end_of_text")
    assert sample("cat", limit=len(the + cat)) == Sample("the ", the + cat, "stop")  # at its very length


def test_no_more_tokens_are_asked_for_than_are_needed() -> None:
    for stop, limit, needed in ((["cd"], 99, 4), ([], 2, 2), (["a"], 99, 1)):
        continuation = says(CHARS.encode("abcdef").tolist(), CHARS, *stop, limit=limit)
        list(continuation)
        assert continuation._engine._decoder.asked == needed


# The whole way


def test_the_same_seed_writes_the_same_and_each_sample_has_a_seed_of_its_own() -> None:
    model = loaded(CHARS)
    texts = [each.text for each in octavo.generate(model, "abc", max_new_tokens=40, num_samples=5, seed=7)]
    assert len(set(texts)) == 5
    assert texts == [each.text for each in octavo.generate(model, "abc", max_new_tokens=40, num_samples=5, seed=7)]
    for number in range(5):
        [one] = octavo.generate(model, "abc", max_new_tokens=40, seed=7 + number)
        assert one.text == texts[number]


def test_the_best_are_those_whose_tokens_are_likeliest_on_average() -> None:
    model = loaded(CHARS, block_size=64)
    all_of_them = octavo.generate(model, "abc", max_new_tokens=20, num_samples=12, temperature=1.5)

    def likelihood(sample: Sample) -> float:
        ids = torch.tensor([CHARS.encode("abc").tolist() + sample.token_ids])
        chances = model.model(ids)[0, 2:-1, : CHARS.vocab_size].log_softmax(-1)
        return float(chances.gather(-1, ids[0, 3:, None]).mean())

    with torch.no_grad():
        ordered = sorted(all_of_them, key=lambda sample: -likelihood(sample))
    assert octavo.generate(model, "abc", max_new_tokens=20, num_samples=3, best_of=12, temperature=1.5) == ordered[:3]
    assert octavo.generate(model, "abc", max_new_tokens=20, best_of=1, temperature=1.5) == all_of_them[:1]
    with pytest.raises(OctavoError, match="best_of=2 is fewer than num_samples=3"):
        octavo.generate(model, "abc", num_samples=3, best_of=2)


def test_greedy_samples_are_all_alike_and_what_argmax_gives() -> None:
    model = loaded(CHARS)
    samples = octavo.generate(model, "abc", max_new_tokens=20, num_samples=2, temperature=0)
    assert samples[0] == samples[1]
    steps = generate_ids(model.model, CHARS.encode("abc").tolist(), GREEDY, seeded())
    assert samples[0].token_ids == [next(steps) for _ in range(20)]
    assert samples[0].text == CHARS.decode(samples[0].token_ids)
    assert samples[0].finish_reason == "length"


def test_every_option_of_generate_reaches_the_draw() -> None:
    model = loaded(CHARS)

    def text(**options: Any) -> str:
        return octavo.generate(model, "abc", **{"max_new_tokens": 60, "temperature": 2.0} | options)[0].text

    [likeliest] = octavo.generate(model, "abc", max_new_tokens=60, temperature=0)
    assert text(top_k=1) == text(top_p=1e-6) == text(temperature=0) == likeliest.text
    assert len({text(), text(seed=1), text(temperature=0.5), text(top_k=2), text(top_p=0.5)}) == 5
    assert len(text(max_new_tokens=7)) == 7
    whole = text()
    assert text(stop=[whole[5]]) == whole[: whole.index(whole[5])]


def test_an_empty_prompt_starts_where_a_text_starts() -> None:
    assert start(BPE, "") == [BPE.end_of_text]
    assert start(CHARS, "") == CHARS.encode("\n").tolist()
    assert start(BYTES, "") == [10]
    assert start(tokenizers.build("char", "xyz"), "") == [0]
    for tokenizer in (BPE, CHARS, BYTES):
        assert octavo.generate(loaded(tokenizer), max_new_tokens=5)[0].token_ids


def test_a_prompt_longer_than_the_block_is_cropped_with_a_word_about_it() -> None:
    model = loaded(CHARS)
    said: list[str] = []

    def written(prompt: str) -> str:
        [continuation] = continuations(model, prompt, max_new_tokens=20, sampling=ALL, seed=3, notice=said.append)
        return "".join(continuation)

    assert written("abcabcab") == written("abcabcab")
    assert said == []  # it fits
    assert written("gggggggggabcabcab") == written("abcabcab")
    assert said == ["the prompt has 17 tokens; the model sees the last 8"]
    assert written("abcabcaba") != written("abcabcab")


def test_unknown_characters_of_a_prompt_are_named_skipped_or_replaced() -> None:
    model = loaded(CHARS)
    with pytest.raises(OctavoError, match=r"unknown characters 'X', 'é'.*\n.*--unknown skip"):
        octavo.generate(model, "aéXb")
    assert start(CHARS, "aéXb", "skip") == CHARS.encode("ab").tolist()
    assert start(CHARS, "aéXb", "replace") == CHARS.encode("a  b").tolist()
    assert start(CHARS, "éX", "skip") == start(CHARS, "")  # nothing of it is left
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
def test_a_number_out_of_range_is_named_before_anything_is_written(name: str, value: int) -> None:
    with pytest.raises(OctavoError, match=f"^{name}={value} ") as caught:
        octavo.generate(loaded(CHARS), "abc", **{name: value})
    assert f"--{name.replace('_', '-')} " in str(caught.value.hint)


def test_a_model_with_broken_weights_is_told() -> None:
    model = loaded(CHARS)
    model.model.transformer.wpe.weight.data[2] = math.nan
    [continuation] = continuations(model, "a", max_new_tokens=9, sampling=ALL, seed=0)
    shown = []
    with pytest.raises(OctavoError, match="not finite"):
        shown.extend(continuation)
    assert shown == [] or len("".join(shown)) <= 2


def test_room_to_spare_in_the_vocabulary_is_never_written() -> None:
    """A vocabulary rounded up (to 50,304, say) has rows that stand for no token."""
    model = loaded(CHARS, vocab_size=64)
    for temperature in (0.0, 1.0):
        samples = octavo.generate(model, "abc", max_new_tokens=30, num_samples=3, temperature=temperature, top_k=0)
        for sample in samples:
            assert np.max(sample.token_ids) < CHARS.vocab_size
            assert sample.text == CHARS.decode(sample.token_ids)


# Penalties, bias and the smallest probability


def counts(*ids: int, size: int = 4) -> Tensor:
    return torch.bincount(torch.tensor(ids, dtype=torch.long), minlength=size)


def test_penalties_change_logits_as_their_sources_define_them() -> None:
    logits = torch.tensor([[2.0, -2.0, 1.0, 0.5]])
    sampling = Sampling(repetition_penalty=2.0, presence_penalty=0.5, frequency_penalty=0.25)
    found = apply_penalties(logits, sampling, counts(1), counts(0, 0, 3))
    # 0: seen, 2 / 2, written twice; 1: seen in the prompt alone, -2 * 2; 3: seen, 0.5 / 2, written once
    assert found.tolist() == [[1.0 - 0.5 - 0.5, -4.0, 1.0, 0.25 - 0.5 - 0.25]]


def test_a_penalty_of_nothing_changes_nothing() -> None:
    logits = torch.randn(3, 9, generator=seeded())
    assert torch.equal(apply_penalties(logits, Sampling()), logits)
    assert not Sampling().has_penalties
    assert all(Sampling(**{name: 0.5}).has_penalties for name in ("repetition_penalty", "presence_penalty"))


def test_a_bias_is_added_and_ids_beyond_the_vocabulary_are_left_out() -> None:
    logits = torch.zeros(2, 3)
    found = apply_penalties(logits, Sampling(logit_bias={1: 100, 7: 5, -1: 5}))
    assert found.tolist() == [[0, 100, 0], [0, 100, 0]]
    assert not logits.any()  # the caller's are untouched
    assert drawn([5.0, 0.0, 0.0], Sampling(logit_bias={2: 100})).tolist()[2] == 20_000


@pytest.mark.parametrize(("min_p", "left"), [(0.0, 4), (0.1, 3), (0.3, 2), (0.9, 1), (1.0, 1)])
def test_min_p_keeps_what_is_near_the_likeliest(min_p: float, left: int) -> None:
    logits = torch.tensor([[8.0, 4.0, 1.0, 0.5]]).log()
    chances = probabilities(logits, Sampling(temperature=1, top_k=0, min_p=min_p))
    assert chances.count_nonzero() == left
    assert chances.sum().item() == pytest.approx(1)


@pytest.mark.parametrize("size", [10, 1024, 1025, 5000])
@pytest.mark.parametrize("temperature", [0.1, 1.0, 50.0])  # at 50 the nucleus is wider than what is sorted first
def test_a_nucleus_is_found_without_sorting_all_and_is_the_same(size: int, temperature: float) -> None:
    logits = 5 * torch.randn(3, size, generator=seeded())
    found = probabilities(logits, Sampling(temperature=temperature, top_k=0, top_p=0.9))
    ordered, order = (logits / temperature).softmax(-1).sort(descending=True)
    expected = torch.zeros(3, size).scatter(-1, order, ordered * (ordered.cumsum(-1) - ordered < 0.9))
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize(("name", "value"), [
    ("min_p", -0.1), ("min_p", 1.1), ("repetition_penalty", 0.0), ("presence_penalty", 2.1), ("frequency_penalty", -3),
    ("logit_bias", {3: 101}), ("logit_bias", {3: math.nan}), ("min_p", math.nan), ("repetition_penalty", math.inf),
])  # fmt: skip
def test_what_no_sampling_can_be_is_refused(name: str, value: Any) -> None:
    with pytest.raises(OctavoError) as caught:
        Sampling(**{name: value})
    assert caught.value.hint


def test_a_penalty_keeps_a_model_from_writing_one_token_for_ever() -> None:
    model = GPT(ModelSettings(n_layer=1, n_head=1, n_embd=8, block_size=16, vocab_size=6), seeded(3))

    def written(**penalties: float) -> list[int]:
        steps = generate_ids(model, [1, 2], Sampling(temperature=0, **penalties), seeded())
        return [next(steps) for _ in range(30)]

    plain = written()
    assert len(set(plain[10:])) < 6  # it goes round and round
    assert set(written(frequency_penalty=2.0)) == set(range(6))
    assert written(frequency_penalty=0.0) == plain
    assert written(repetition_penalty=50.0)[0] not in (1, 2)  # the prompt was seen
