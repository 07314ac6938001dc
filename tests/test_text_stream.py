"""Text streams: whole characters, stop strings, finish reasons, log-probabilities."""

from typing import Any

import hypothesis
import hypothesis.strategies as st
import pytest
import torch
from torch import Tensor

from octavo.errors import OctavoError
from octavo.generation.decoder import Batch
from octavo.generation.engine import Engine
from octavo.generation.prompt import Prompt, encode_prompt
from octavo.generation.stream import Sample, TextPiece, TextRequest, TextStream, encode_bad_words, text_streams
from octavo.tokenizers import StreamDecoder, Tokenizer
from small_models import ALL, BPE, BYTES, CHARS, GREEDY, small_checkpoint, spread_model

law = hypothesis.settings(derandomize=True, deadline=None, max_examples=60)


# From tokens to text


class ScriptedDecoder:
    """A decoder with which an engine generates exactly these ids."""

    is_batch_invariant = False

    def __init__(self, ids: list[int], vocab_size: int) -> None:
        self.ids, self.vocab_size, self.calls = iter(ids), vocab_size, 0

    def forward(self, batch: Batch) -> Tensor:
        self.calls += 1
        logits = torch.full((1, self.vocab_size), -1e9)
        logits[0, next(self.ids, 0)] = 1e9
        return logits


def scripted_stream(
    ids: list[int],
    tokenizer: Tokenizer = CHARS,
    *stop: str,
    limit: int | None = None,
    decoder: ScriptedDecoder | None = None,
    **options: Any,
) -> TextStream:
    """A stream that generates exactly these ids, up to `limit`."""
    decoder = decoder or ScriptedDecoder(ids, tokenizer.vocab_size)
    engine = Engine(spread_model(vocab_size=tokenizer.vocab_size), 1, decoder=decoder)
    max_new_tokens = len(ids) if limit is None else limit
    prompt = Prompt("", [0])
    request = TextRequest(prompt=prompt, max_new_tokens=max_new_tokens, sampling=ALL, stop=stop, **options)
    return TextStream(request, tokenizer).start(engine)


def expected_sample(
    tokenizer: Tokenizer, ids: list[int], stop: list[str], min_tokens: int = 0, include: bool = False
) -> Sample:
    """The sample by definition: the text before the first stop string, or up to its end."""
    decoder, text, early = StreamDecoder(tokenizer), "", 0
    for count, id in enumerate(ids, start=1):
        text += decoder.push(id)
        early = len(text) if count <= min_tokens else early
        ends = range(early + 1, len(text) + 1)
        places = [(end - len(each), end) for each in stop for end in ends if text[:end].endswith(each)]
        if places:
            start, end = min(places)
            return Sample(text[: end if include else start], ids[:count], "stop")
    return Sample(text, ids, "length")


@pytest.mark.parametrize("stop", ["", "a\ud83d"])
def test_a_stop_string_that_can_never_be_found_is_an_error(stop: str) -> None:
    with pytest.raises(OctavoError, match="stop="):
        TextRequest(prompt=Prompt("", [0]), stop=("a", stop))


texts_of_two_letters = st.text("ab", max_size=12)


@hypothesis.settings(law, max_examples=300)
@hypothesis.given(generated=texts_of_two_letters, stop=st.lists(st.text("ab", max_size=4), max_size=3))
@hypothesis.example(generated="aaab", stop=["aab"])  # a partial match overlaps the match
@hypothesis.example(generated="ababac", stop=["abac"])
@hypothesis.example(generated="ab", stop=["ab"])  # at the start
@hypothesis.example(generated="aab", stop=["b", "ab"])  # both end at the same place, the longer one begins earlier
@hypothesis.example(generated="aab", stop=["abb"])  # a partial match only
def test_text_ends_before_the_first_stop_string_which_is_never_shown(generated: str, stop: list[str]) -> None:
    ids = CHARS.encode(generated).tolist()
    stop = [each for each in stop if each]
    expected = expected_sample(CHARS, ids, stop)
    stream = scripted_stream(ids, CHARS, *stop)
    shown = ""
    for piece in stream:
        shown += piece
        assert piece
        assert expected.text.startswith(shown)
        assert not any(each in shown for each in stop)
    assert shown == expected.text
    assert stream.sample == expected


@hypothesis.settings(law, max_examples=200)
@hypothesis.given(
    generated=texts_of_two_letters,
    stop=st.lists(st.text("ab", min_size=1, max_size=4), max_size=3),
    min_tokens=st.integers(0, 6),
    include=st.booleans(),
)
@hypothesis.example(generated="aab", stop=["aa"], min_tokens=2, include=False)  # complete too early
@hypothesis.example(generated="aaa", stop=["aa"], min_tokens=2, include=True)  # begins early
@hypothesis.example(generated="aabab", stop=["aaba", "ab"], min_tokens=3, include=False)  # the early one is held back
@hypothesis.example(generated="aab", stop=["b", "ab"], min_tokens=0, include=True)
def test_stop_strings_end_after_min_tokens_and_can_be_kept(
    generated: str, stop: list[str], min_tokens: int, include: bool
) -> None:
    ids = CHARS.encode(generated).tolist()
    min_tokens = min(min_tokens, len(ids))
    options: dict[str, Any] = {"min_tokens": min_tokens, "include_stop_str_in_output": include}
    expected = expected_sample(CHARS, ids, stop, min_tokens, include)
    stream = scripted_stream(ids, CHARS, *stop, **options)
    shown = ""
    for piece in stream:
        shown += piece
        assert expected.text.startswith(shown)
    assert shown == expected.text
    assert stream.sample == expected
    assert (stream.stop_reason in stop) == (expected.finish_reason == "stop")


@pytest.mark.parametrize("tokenizer", [BYTES, BPE], ids=["byte", "bpe"])
@pytest.mark.parametrize(
    ("generated", "stop", "text"),
    [
        ("the cat sat", ["t s"], "the ca"),  # across tokens
        ("the cat sat", ["e", "the cat"], "th"),  # `e` is complete first
        ("the cat sat on", [" on", "sat on"], "the cat "),
        ("a किताब 🦉!", ["🦉"], "a किताब "),  # a character of several bytes
        ("किताब", ["ताब"], "कि"),
        ("the cat", ["t sat"], "the cat"),  # a partial match at the end
    ],
)
def test_stop_strings_are_found_across_tokens(tokenizer: Tokenizer, generated: str, stop: list[str], text: str) -> None:
    ids = tokenizer.encode(generated).tolist()
    stream = scripted_stream(ids, tokenizer, *stop)
    pieces = list(stream)
    assert "".join(pieces) == stream.sample.text == text
    assert stream.sample == expected_sample(tokenizer, ids, stop)


def test_text_is_shown_as_soon_as_it_cannot_be_part_of_a_stop_string() -> None:
    ids = CHARS.encode("abcabd").tolist()
    assert list(scripted_stream(ids)) == list("abcabd")
    assert list(scripted_stream(ids, CHARS, "abd")) == ["abc"]
    assert list(scripted_stream(ids, CHARS, "bca")) == ["a"]
    assert list(scripted_stream(CHARS.encode("abcabc").tolist(), CHARS, "abd")) == ["abc", "abc"]
    assert list(scripted_stream(CHARS.encode("aab").tolist(), CHARS, "ag")) == ["a", "ab"]
    # The last piece may be shown, because the text ends.
    assert list(scripted_stream(CHARS.encode("abab").tolist(), CHARS, "abd")) == ["ab", "ab"]


ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\ufffd"))
SCRIPTS = ["السَّلام عليكم", "हिन्दी में लिखना", "🦉👩‍👩‍👧🇩🇪 emoji", "naïve Straße", "\u2028\x00\r\n"]


@pytest.mark.parametrize("tokenizer", [BYTES, BPE], ids=["byte", "bpe"])
def test_pieces_are_whole_characters_and_join_to_the_text(tokenizer: Tokenizer) -> None:
    @law
    @hypothesis.given(ANY_TEXT | st.sampled_from(SCRIPTS))
    def stream(generated: str) -> None:
        ids = tokenizer.encode(generated).tolist()
        stream = scripted_stream(ids, tokenizer)
        pieces = list(stream)
        assert "".join(pieces) == stream.sample.text == generated
        assert not any("\ufffd" in piece for piece in pieces)
        assert tokenizer is BPE or pieces == list(generated)  # each as soon as it is complete

    stream()


@pytest.mark.parametrize("generated", SCRIPTS, ids=["Arabic", "Hindi", "emoji", "Latin", "control"])
def test_an_incomplete_character_at_the_end_is_omitted(generated: str) -> None:
    ids = BYTES.encode(generated).tolist()
    for limit in range(len(ids)):
        stream = scripted_stream(ids, BYTES, limit=limit)
        shown = "".join(stream)
        assert shown == stream.sample.text == generated.encode()[:limit].decode(errors="ignore")
        assert stream.sample.token_ids == ids[:limit]
        assert stream.sample.finish_reason == "length"


def test_bytes_that_are_not_utf8_are_omitted() -> None:
    generated = b"a\xff\xc3(b"  # generated so by the model
    stream = scripted_stream(list(generated), BYTES)
    assert "".join(stream) == stream.sample.text == "a(b"
    assert stream.sample.token_ids == list(generated)


# Finish reasons


def test_finish_reasons_are_length_stop_and_end_of_text() -> None:
    the, cat = BPE.encode("the").tolist(), BPE.encode(" cat").tolist()
    ids = [*the, *cat, BPE.end_of_text, *the]

    def sample(*stop: str, limit: int = len(ids)) -> Sample:
        stream = scripted_stream(ids, BPE, *stop, limit=limit)
        assert "".join(stream) == stream.sample.text
        return stream.sample

    assert sample(limit=len(the)) == Sample("the", the, "length")
    assert sample(limit=0) == Sample("", [], "length")
    assert sample(" cat") == Sample("the", the + cat, "stop")
    assert sample() == Sample("the cat", the + cat, "end_of_text")
    assert sample("cats") == Sample("the cat", the + cat, "end_of_text")
    # The last token that the limit allows completes the stop string.
    assert sample("cat", limit=len(the + cat)) == Sample("the ", the + cat, "stop")


def test_a_stop_token_ends_the_text_and_can_be_kept() -> None:
    ids = BPE.encode("the cat sat").tolist()
    cat = BPE.encode(" cat").tolist()
    assert len(cat) == 1
    for include, text in ((False, "the"), (True, "the cat")):
        stream = scripted_stream(ids, BPE, stop_token_ids=frozenset(cat), include_stop_str_in_output=include)
        stream.run()
        assert stream.sample == Sample(text, BPE.encode(text).tolist(), "stop")
        assert stream.stop_reason == cat[0]


def test_the_eos_token_can_be_ignored() -> None:
    the, eos = BPE.encode("the").tolist(), BPE.end_of_text
    ids = [*the, eos, *the]
    for options, expected, reason in (
        ({"include_stop_str_in_output": True}, Sample("the", the, "end_of_text"), None),  # not a string of the request
        ({"ignore_eos": True}, Sample("the<|endoftext|>the", ids, "length"), None),
        ({"ignore_eos": True, "stop_token_ids": frozenset([eos])}, Sample("the", the, "stop"), eos),
    ):
        stream = scripted_stream(ids, BPE, **options)
        stream.run()
        assert (stream.sample, stream.stop_reason) == (expected, reason)


def test_bad_words_are_encoded_with_and_without_a_space_before_them() -> None:
    assert encode_bad_words(BPE, ["cat", " sat"]) == tuple(
        tuple(BPE.encode(text).tolist()) for text in ("cat", " cat", " sat")
    )
    assert encode_bad_words(CHARS, ["\n"]) == ((CHARS.encode("\n").item(),),)
    assert encode_bad_words(CHARS, ["Z"]) == ()  # it cannot be generated
    assert encode_bad_words(BPE, "cat") == encode_bad_words(BPE, ["cat"])
    with pytest.raises(OctavoError, match="bad_words"):
        encode_bad_words(CHARS, [""])


def test_a_bad_word_without_tokens_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    encode = CHARS.encode
    monkeypatch.setattr(CHARS, "encode", lambda text: encode(text.strip()))  # like a normalizer of tokenizer.json
    assert encode_bad_words(CHARS, [" ", "a"]) == ((encode("a").item(),),)


def test_generation_stops_at_the_last_token_that_is_needed() -> None:
    for stop, limit, needed in ((["cd"], 99, 4), ([], 2, 2), (["a"], 99, 1)):
        ids = CHARS.encode("abcdef").tolist()
        decoder = ScriptedDecoder(ids, CHARS.vocab_size)
        stream = scripted_stream(ids, CHARS, *stop, limit=limit, decoder=decoder)
        stream.run()
        assert decoder.calls == needed


# Pieces for another thread


def run_engine(stream: TextStream, engine: Engine) -> None:
    stream.start(engine)
    while engine.step():
        pass


def test_pieces_have_the_echo_tokens_and_offsets() -> None:
    checkpoint = small_checkpoint(CHARS, block_size=32)
    prompt = encode_prompt(CHARS, "abc")
    request = TextRequest(prompt=prompt, max_new_tokens=5, sampling=GREEDY, logprobs=2, echo=True)
    pieces: list[TextPiece] = []
    [stream] = text_streams(request, CHARS, incremental=True, on_update=lambda stream: pieces.append(stream.take()))
    run_engine(stream, Engine(checkpoint.model, 1))
    assert "".join(piece.text for piece in pieces) == "abc" + stream.text
    assert [piece.finish_reason for piece in pieces] == [None] * 5 + ["length"]
    prompt_tokens, *others = [piece.prompt_tokens for piece in pieces]
    assert [token.id for token, _ in prompt_tokens] == prompt.ids
    assert not any(others)
    tokens = [located for piece in pieces for located in piece.tokens]
    assert [offset for _, offset in [*prompt_tokens, *tokens]] == list(range(8))
    assert all(len(token.top) == 2 for token, _ in tokens)
    assert stream.mean_logprob == pytest.approx(sum(token.logprob for token, _ in tokens) / 5)


def test_unless_incremental_only_the_first_text_scores_the_echoed_prompt() -> None:
    request = TextRequest(prompt=encode_prompt(CHARS, "abc"), num_samples=3, max_new_tokens=2, logprobs=0, echo=True)
    for incremental, counts in ((False, [3, 0, 0]), (True, [3, 3, 3])):
        engine = Engine(small_checkpoint(CHARS).model, 3)
        streams = text_streams(request, CHARS, incremental=incremental)
        for stream in streams:
            run_engine(stream, engine)
        assert [len(stream.take().prompt_tokens) for stream in streams] == counts


def test_a_text_can_be_cancelled_before_and_after_it_starts() -> None:
    request = TextRequest(prompt=encode_prompt(CHARS, "abc"), max_new_tokens=100)
    unstarted, started = TextStream(request, CHARS), TextStream(request, CHARS)
    engine = Engine(small_checkpoint(CHARS).model, 2)
    unstarted.cancel()
    unstarted.start(engine)
    started.start(engine)
    engine.step()
    started.cancel()
    engine.step()
    assert (unstarted.finish_reason, started.finish_reason) == ("cancelled", "cancelled")
    assert (len(unstarted.tokens), len(started.tokens)) == (0, 1)
