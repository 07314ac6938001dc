"""Texts that are submitted, cancelled, abandoned and finished in any order leak no slot and no cached prefix.

A state machine of hypothesis acts as clients do, at every stage of a text: before it is started, while it waits, during
prefill, between two tokens, from within the delivery of a token, and after its end.
"""

import weakref
from typing import Any

import hypothesis
import hypothesis.strategies as st
import torch
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from generating import random_model
from octavo.generation.decoder import PrefixKV
from octavo.generation.engine import OVERFLOW, Engine
from octavo.generation.native import NativeDecoder
from octavo.generation.prompt import Prompt
from octavo.generation.stream import TextRequest, TextStream
from small_models import ALL, CHARS

SLOTS, BLOCK, PREFIX_BYTES = 3, 64, 20_000  # a prompt of 64 tokens takes 16,640 bytes of the prefix cache
MODEL = random_model(block_size=BLOCK, vocab_size=CHARS.vocab_size)
TEXT = CHARS.decode(torch.randint(CHARS.vocab_size, (200,), generator=torch.Generator().manual_seed(1)).tolist())


class RecordingDecoder(NativeDecoder):
    """A decoder that knows which of the prefixes that it saved are still in memory."""

    def __init__(self) -> None:
        super().__init__(MODEL, SLOTS)
        self.saved: weakref.WeakSet[Any] = weakref.WeakSet()

    def save_prefix(self, slot: int, length: int) -> PrefixKV:
        pairs = super().save_prefix(slot, length)
        for pair in pairs:
            self.saved.update(pair)
        return pairs


@st.composite
def requests(draw: st.DrawFn) -> TextRequest:
    start, length = draw(st.integers(0, 3)), draw(st.integers(1, 100))  # many prompts begin with the same characters
    prompt = TEXT[start : start + length]
    overflow = draw(st.sampled_from(OVERFLOW))
    if overflow == "stop":
        prompt = prompt[:BLOCK]
    return TextRequest(
        prompt=Prompt(prompt, CHARS.encode(prompt).tolist()),
        max_new_tokens=draw(st.sampled_from([0, 1, 2, 5, 200])),
        seed=draw(st.integers(0, 3)),
        stop=draw(st.sampled_from([(), (TEXT[0],), (TEXT[5:7], TEXT[9])])),
        sampling=ALL,
        overflow=overflow,
        logprobs=draw(st.sampled_from([None, 0, 2])),
        echo=draw(st.booleans()),
        cache_scope=draw(st.sampled_from(["", "key"])),
    )


def run_alone(request: TextRequest) -> tuple[str, str | None]:
    stream = TextStream(request, CHARS).start(Engine(MODEL, 1))
    stream.run()
    return stream.text, stream.finish_reason


class Clients(RuleBasedStateMachine):
    """Clients of one engine. A text is `new` until it is started, then `started`."""

    new, started = Bundle("new"), Bundle("started")

    def __init__(self) -> None:
        super().__init__()
        self.decoder = RecordingDecoder()
        self.engine = Engine(MODEL, SLOTS, prefix_bytes=PREFIX_BYTES, decoder=self.decoder)
        self.texts: list[tuple[TextStream, TextRequest]] = []
        self.ends: dict[TextStream, int] = {}
        self.submitted: set[TextStream] = set()
        self.cancelled: set[TextStream] = set()
        self.cancel_at: dict[TextStream, int] = {}

    def on_update(self, stream: TextStream) -> None:
        self.ends[stream] = self.ends.get(stream, 0) + (stream.finish_reason is not None)
        if len(stream.tokens) == self.cancel_at.get(stream):
            self.cancel(stream)

    @rule(target=new, request=requests())
    def arrive(self, request: TextRequest) -> TextStream:
        stream = TextStream(request, CHARS, on_update=self.on_update)
        self.texts.append((stream, request))
        return stream

    @rule(target=started, stream=consumes(new))
    def submit(self, stream: TextStream) -> TextStream:
        self.submitted.add(stream)
        return stream.start(self.engine)

    @rule(stream=st.one_of(new, started))
    def cancel(self, stream: TextStream) -> None:
        if stream.finish_reason is None:
            self.cancelled.add(stream)
        stream.cancel()

    @rule(stream=started, tokens=st.integers(1, 4))
    def cancel_while_a_token_is_delivered(self, stream: TextStream, tokens: int) -> None:
        self.cancel_at[stream] = tokens

    @rule(count=st.integers(1, 8))
    def step(self, count: int) -> None:
        for _ in range(count):
            self.engine.step()

    @rule()
    def finish_all(self) -> None:
        while self.engine.step():
            pass
        assert (self.engine.running, self.engine.waiting) == (0, 0)

    @invariant()
    def no_slot_is_lost(self) -> None:
        assert self.engine.running <= SLOTS
        unfinished = [stream for stream, _ in self.texts if stream.finish_reason is None]
        assert self.engine.running + self.engine.waiting <= len(unfinished)
        assert all(count == 1 for stream, count in self.ends.items() if stream.finish_reason is not None)

    @invariant()
    def no_prefix_outlives_its_eviction(self) -> None:
        in_memory = sum(tensor.nbytes for tensor in self.decoder.saved)
        assert in_memory <= PREFIX_BYTES

    def teardown(self) -> None:
        self.finish_all()
        for stream, request in self.texts:
            assert (stream in self.submitted) == (stream.finish_reason is not None)
            if stream in self.submitted and stream not in self.cancelled:
                assert (stream.text, stream.finish_reason) == run_alone(request)
        # All slots are free: as many texts as there are slots run at once.
        request = TextRequest(prompt=Prompt("", [0]), max_new_tokens=2, overflow="stop")
        for _ in range(SLOTS):
            TextStream(request, CHARS).start(self.engine)
        self.engine.step()
        assert (self.engine.running, self.engine.waiting) == (SLOTS, 0)


Clients.TestCase.settings = hypothesis.settings(
    derandomize=True, deadline=None, max_examples=100, stateful_step_count=25
)
TestClients = Clients.TestCase
