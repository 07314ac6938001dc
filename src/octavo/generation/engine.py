"""Many texts at once, a token of each at every step: ids in, ids out.

Each running job has a slot, the memory of its text. A step takes one row from every text under way and a piece of
what prompts still wait to be read, runs the model on all of them together, and draws a token for each text that has
come to its end. Jobs come and go between steps; none changes what another writes.

A text longer than `block_size` has nowhere to stand: positions are learnt, so what was cached at one can't be moved to
another. `overflow` says what then happens: the text ends (`stop`); or the window slides, each further token seeing the
last `block_size` ones run afresh, as nanoGPT does (`slide`); or the older half is dropped, the newer read again once,
and on it goes (`rechunk`).
"""

import collections
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from octavo.errors import OctavoError
from octavo.generation.decoder import decoder
from octavo.generation.prefix_cache import PrefixCache
from octavo.generation.sampling import Sampling, next_token
from octavo.kernels import one_thread
from octavo.model import GPT

OVERFLOW = ("stop", "slide", "rechunk")
# Rows of prompts in one step. Texts under way wait for them; where there are none, twice as many are 4% faster.
_BESIDE_OTHERS, _ALONE = 128, 256


@dataclass(frozen=True, kw_only=True, eq=False)
class Request:
    """A prompt of at least one token, and how to go on."""

    prompt: list[int]
    max_new_tokens: int = 500  # 0: the prompt is read, and no more
    sampling: Sampling = field(default_factory=Sampling)
    generator: torch.Generator = field(default_factory=torch.Generator)  # its own: same seed, same text
    overflow: str = "slide"
    logprobs: int | None = None  # tell each token's log-probability, and those of so many of the likeliest
    echo: bool = False  # with `logprobs`: the prompt's tokens' too
    ends: frozenset[int] = frozenset()  # ids that end the text, and are no part of it
    share: str = ""  # only requests with the same word share what was read of a prompt


class Token(NamedTuple):
    """A token, and what the model thought of it: natural logarithms of probabilities, before any sampling setting."""

    id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()  # the likeliest tokens, likeliest first


class Job:
    """A request under way. Over when `finish_reason` is `length`, `end_of_text`, `cancelled` or `error`."""

    def __init__(self, request: Request, deliver: Callable[[Token | None], None], block_size: int, known: int) -> None:
        self.request, self.deliver = request, deliver
        self.prompt_tokens: list[Token] = []
        self.tokens: list[Token] = []
        self.finish_reason: str | None = None
        self.error: OctavoError | None = None
        self.cached_tokens = 0  # of the prompt, taken from what an earlier request had read
        self.cancelled = False
        self.slot = -1
        self.window = request.prompt[-block_size:]
        self.done = 0  # tokens of the window that the slot holds
        self.seen = self.written = None
        if request.sampling.remembers:
            within = torch.tensor([id for id in request.prompt if id < known], dtype=torch.long)
            self.seen, self.written = torch.bincount(within, minlength=known), torch.zeros(known, dtype=torch.long)

    @property
    def unread(self) -> int:
        """Tokens of the window that the model has yet to see; 1 where a text is under way."""
        return len(self.window) - self.done


class Engine:
    """Runs jobs on a model. `submit` and `cancel` may be called from any thread, `step` from one at a time."""

    def __init__(self, model: GPT, slots: int = 8, *, known: int | None = None, quantize: str = "none",
                 prefix_bytes: int = 0, use_native: bool = True) -> None:  # fmt: skip
        """`known`: ids from there on stand for no token. `prefix_bytes`: memory for prompts that were read."""
        self.slots = slots
        self.block_size, self.known = model.settings.block_size, known or model.settings.vocab_size
        self._decoder, self.notes = decoder(model, slots, quantize, use_native)
        self._prefixes = PrefixCache(prefix_bytes)
        self._queue: collections.deque[Job] = collections.deque()
        self._running: list[Job] = []
        self._free = set(range(slots))
        self._lock = threading.Lock()

    @property
    def waiting(self) -> int:
        """Jobs that have no slot yet."""
        return len(self._queue)

    @property
    def running(self) -> int:
        """Jobs that have one."""
        return len(self._running)

    def submit(self, request: Request, deliver: Callable[[Token | None], None] = lambda token: None) -> Job:
        """Queue a request. `deliver` gets each token as it is drawn, and None when the job is over.

        It is called in the thread that steps. Raises `OctavoError` for a prompt that no model can be given.
        """
        if not request.prompt:
            raise OctavoError(
                "a prompt needs at least one token", "start(tokenizer, '') gives what a text begins after"
            )
        if not all(0 <= id < self.known for id in request.prompt):
            raise OctavoError(f"the prompt has ids outside of 0 to {self.known - 1}", "the ids of this tokenizer")
        if request.overflow not in OVERFLOW:
            raise OctavoError(f"overflow={request.overflow!r} is not one of {', '.join(OVERFLOW)}", "--overflow slide")
        if request.overflow == "stop" and len(request.prompt) > self.block_size:
            raise OctavoError(f"the prompt has {len(request.prompt):,} tokens, and the model sees {self.block_size:,}",
                              "a shorter prompt, or --overflow slide")  # fmt: skip
        job = Job(request, deliver, self.block_size, self.known)
        with self._lock:
            self._queue.append(job)
        return job

    def cancel(self, job: Job) -> None:
        """End a job; its slot is free at the next step."""
        job.cancelled = True

    def step(self) -> bool:
        """Run the model once for all jobs. False: there was nothing to do."""
        self._admit()
        rows = list(self._rows())
        if not rows:
            return False
        read: list[tuple[Job, int, int]] = []  # a job, how many rows it has here, and of how many the logits
        ids: list[int] = []
        slots: list[int] = []
        positions: list[int] = []
        wanted: list[int] = []
        for job, count in rows:
            end = job.done + count
            ids += job.window[job.done : end]
            slots += [job.slot] * count
            positions += range(job.done, end)
            tell = count if _echoes(job) else int(end == len(job.window))
            wanted += range(len(ids) - tell, len(ids))
            read.append((job, count, tell))
        logits = self._decoder.forward(ids, slots, positions, wanted)[:, : self.known]  # (W, V)
        at = 0
        with one_thread():
            for job, count, tell in read:
                self._advance(job, count, logits[at : at + tell])
                at += tell
        self._running = [job for job in self._running if job.finish_reason is None]
        return True

    def _admit(self) -> None:
        """Let go of what was cancelled, and give free slots to those that wait."""
        with self._lock:
            waiting = [job for job in self._queue if not job.cancelled]
            over = [job for job in [*self._queue, *self._running] if job.cancelled]
            self._queue = collections.deque(waiting)
        for job in over:
            self._end(job, "cancelled")
        self._running = [job for job in self._running if not job.cancelled]
        while self._queue and self._free:
            job = self._queue.popleft()
            job.slot = min(self._free)
            self._free.remove(job.slot)
            self._running.append(job)

    def _rows(self) -> Iterator[tuple[Job, int]]:
        """The jobs of this step, each with how many of its tokens are read: first come, first served."""
        left = _BESIDE_OTHERS if any(job.unread == 1 for job in self._running) else _ALONE
        for job in self._running:
            if job.done == 0 and not job.tokens and job.unread > 1 and left > 0 and not _echoes(job):
                kept = self._prefixes.find(job.request.share, job.window)
                if kept is not None:
                    job.done = job.cached_tokens = kept.length
                    self._decoder.restore(job.slot, kept.tensors)
            count = 1 if job.unread == 1 else min(job.unread, left)
            left -= count if job.unread > 1 else 0
            if count:
                yield job, count

    def _advance(self, job: Job, count: int, logits: Tensor) -> None:
        """Take note of what was read; where that was all of the window, go on by a token."""
        if _echoes(job):
            self._tell_prompt(job, count, logits)
        job.done += count
        if job.unread:
            return
        if not job.tokens and len(job.request.prompt) <= self.block_size:
            self._prefixes.add(job.request.share, job.window, lambda: self._decoder.keep(job.slot, job.done))
        reason = self._grow(job, logits[-1:])
        if reason:
            self._end(job, reason)

    def _grow(self, job: Job, logits: Tensor) -> str | None:
        """Draw a token from logits (1, V). Gives the reason if the text is over."""
        request = job.request
        if not request.max_new_tokens:
            return "length"
        try:
            id = int(next_token(logits, request.sampling, request.generator, job.seen, job.written))
        except OctavoError as error:
            job.error = error
            return "error"
        if id in request.ends:
            return "end_of_text"
        if job.written is not None:
            job.written[id] += 1
        token = _token(id, logits[0], request.logprobs)
        job.tokens.append(token)
        full = len(job.window) == self.block_size
        job.window = [*job.window, id]
        if full and request.overflow != "stop":
            keep = self.block_size if request.overflow == "slide" else max(1, self.block_size // 2)
            job.window, job.done = job.window[-keep:], 0
        job.deliver(token)
        over = len(job.tokens) == request.max_new_tokens or len(job.window) > self.block_size
        return "length" if over else None

    def _tell_prompt(self, job: Job, count: int, logits: Tensor) -> None:
        """The prompt's tokens with their log-probabilities; of the first there is none."""
        if not job.prompt_tokens:
            job.prompt_tokens.append(Token(job.window[0]))
        following = job.window[job.done + 1 : job.done + count + 1]
        job.prompt_tokens += [_token(id, row, job.request.logprobs) for id, row in zip(following, logits, strict=False)]

    def _end(self, job: Job, reason: str) -> None:
        job.finish_reason = reason
        if job.slot >= 0:
            self._free.add(job.slot)
        job.deliver(None)


def generate_ids(model: GPT, prompt: list[int], sampling: Sampling, generator: torch.Generator,
                 known: int | None = None, overflow: str = "slide") -> Iterator[int]:  # fmt: skip
    """Draw tokens after a prompt of at least one, without end where `overflow` knows none: whoever asks stops."""
    engine = Engine(model, 1, known=known)
    job = engine.submit(Request(prompt=prompt, max_new_tokens=1 << 62, sampling=sampling, generator=generator,
                                overflow=overflow))  # fmt: skip
    given = 0
    while engine.step():
        if job.error:
            raise job.error
        for token in job.tokens[given:]:
            given += 1
            yield token.id


def _echoes(job: Job) -> bool:
    """Whether the log-probabilities of the prompt are still to be told."""
    return job.request.echo and job.request.logprobs is not None and not job.tokens


def _token(id: int, logits: Tensor, logprobs: int | None) -> Token:
    """A token with what the logits (V,) say of it."""
    if logprobs is None:
        return Token(id)
    chances = logits.double().log_softmax(-1)
    top = chances.topk(min(logprobs, len(chances)))
    return Token(id, float(chances[id]), tuple(zip(top.indices.tolist(), top.values.tolist(), strict=True)))
