"""Continuous batching: many requests share one model. Token ids in, token ids out; no text here.

`Engine.step` runs the model once. A job is a request in progress; a running job holds a slot, the KV cache of its
sequence. A job's window is the tokens that the model sees, at most `block_size`. The batch of a step has one row for
every job that decodes, and a limited number of rows for prompts in prefill (chunked prefill, as in vLLM). Then every
job whose window is completely computed samples one token. Jobs join and leave between steps. A job's tokens do not
depend on the other jobs.

Greedy jobs may sample several tokens in a step (speculative decoding): rows for draft tokens follow the last token, and
the draft is accepted up to its first token that the model would not have chosen.

GPT-2's position embeddings are absolute, so keys and values cached at one position can't move to another. When a
sequence reaches `block_size`, `overflow` decides what happens: `stop` ends it; `slide` recomputes the last
`block_size` tokens for every further token, as nanoGPT does (exact and slow); `rechunk` drops the older half of the
window, recomputes the newer half once and continues.

Axis letters: `W` rows whose logits are computed, `V` vocabulary.
"""

import collections
import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from octavo.device import is_out_of_memory
from octavo.errors import MachineError, OctavoError
from octavo.generation.backends import create_decoder
from octavo.generation.decoder import Batch, Decoder
from octavo.generation.prefix_cache import PrefixCache
from octavo.generation.prompt_lookup import PromptLookup
from octavo.generation.sampling import Sampling, sample_token
from octavo.kernels import one_thread
from octavo.model import GPT

OVERFLOW = ("stop", "slide", "rechunk")
# Prefill rows per step. The jobs that decode in a step wait for its prefill rows, so the first limit is smaller. If no
# job decodes, 256 rows are 4% faster.
_PREFILL_ROWS_WHILE_DECODING, _PREFILL_ROWS = 128, 256
_MAX_ROWS_WITH_DRAFTS = 4  # decode rows and draft rows in a step: 4 rows take little longer than 1


@dataclass(frozen=True, kw_only=True, eq=False)
class Request:
    """A prompt of at least one token, and how to continue it."""

    prompt: list[int]
    max_new_tokens: int = 500  # 0: only compute the prompt
    sampling: Sampling = field(default_factory=Sampling)
    generator: torch.Generator = field(default_factory=torch.Generator)  # one per request: a seed determines its text
    overflow: str = "slide"
    logprobs: int | None = None  # report log-probabilities: of each token, and of this many top tokens
    prompt_logprobs: int | None = None  # the same for the tokens of the prompt
    stop_ids: frozenset[int] = frozenset()  # these tokens end the sequence and are not part of it
    final_ids: frozenset[int] = frozenset()  # these tokens end the sequence and are its last token
    min_tokens: int = 0  # no token of `stop_ids` and `final_ids` is sampled before this many others
    bad_words: tuple[tuple[int, ...], ...] = ()  # the output never has one of these sequences of ids
    cache_scope: str = ""  # only requests of the same scope share cached prefixes


class Token(NamedTuple):
    """A token and its natural log-probability under the model, before temperature, penalties and truncation."""

    id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()  # (id, log-probability) of the top tokens, most likely first
    rank: int | None = None  # 1 for the most likely token


class Job:
    """A request in progress, until it has a `finish_reason`: `length`, `end_of_text`, `cancelled` or `error`."""

    def __init__(
        self, request: Request, on_token: Callable[[Token | None], None], block_size: int, vocab_size: int
    ) -> None:
        self.request, self.on_token = request, on_token
        self.prompt_tokens: list[Token] = []  # with `prompt_logprobs`
        self.tokens: list[Token] = []
        self.finish_reason: str | None = None
        self.error: OctavoError | None = None
        self.stop_id: int | None = None  # the token that ended the sequence
        self.cached_tokens = 0  # tokens of the prompt that the prefix cache had
        self.cancelled = False
        self.slot = -1  # -1: the job waits for one
        self.window = request.prompt[-block_size:]  # the tokens that the model sees
        self.computed = 0  # tokens of the window whose keys and values are in the slot
        self.prompt_counts: Tensor | None = None  # (V,) how often each token occurs; penalties need it
        self.output_counts: Tensor | None = None
        if request.sampling.has_penalties:
            ids = torch.tensor([id for id in request.prompt if id < vocab_size], dtype=torch.long, device="cpu")
            self.prompt_counts = torch.bincount(ids, minlength=vocab_size).int()  # half the memory to read
            self.output_counts = torch.zeros(vocab_size, dtype=torch.int, device="cpu")
        self.lookup: PromptLookup | None = None  # drafts the tokens of a greedy job

    @property
    def pending(self) -> int:
        """Tokens of the window that are still to be computed; 1 for a sequence that decodes."""
        return len(self.window) - self.computed

    @property
    def needs_prompt_logprobs(self) -> bool:
        return self.request.prompt_logprobs is not None and not self.tokens

    def excluded_ids(self) -> set[int]:
        """The ids that the next token can't have, because of `min_tokens` and `bad_words`."""
        request, excluded = self.request, set[int]()
        if len(self.tokens) < request.min_tokens:
            excluded |= request.stop_ids | request.final_ids
        for *before, last in request.bad_words:
            if [token.id for token in self.tokens[len(self.tokens) - len(before) :]] == before:
                excluded.add(last)
        return excluded


class Chunk(NamedTuple):
    """A job's part of one step: tokens `start` to `end` of its window. The last `n_logits` of them need logits.

    `draft` has tokens that may follow. They need logits too.
    """

    job: Job
    start: int
    end: int
    n_logits: int
    draft: Sequence[int] = ()

    @property
    def ids(self) -> list[int]:
        return [*self.job.window[self.start : self.end], *self.draft]


class Engine:
    """Runs jobs on a model. `submit` and `cancel` are thread-safe; only one thread at a time may call `step`."""

    def __init__(
        self,
        model: GPT,
        slots: int = 8,
        *,
        vocab_size: int | None = None,
        quantize: str = "none",
        prefix_bytes: int = 0,
        use_native: bool = True,
        decoder: Decoder | None = None,
        use_drafts: bool = True,
    ) -> None:
        """`vocab_size`: the tokenizer's, if the model's is padded. `prefix_bytes`: size of the prefix cache.

        `use_drafts`: whether a greedy job may sample several tokens in a step.

        `decoder` runs the model. If it is None, `quantize` and `use_native` choose one; if that is a slower one,
        `notices` says why.
        """
        self.slots = slots
        self.block_size, self.vocab_size = model.settings.block_size, vocab_size or model.settings.vocab_size
        self.notices: list[str] = []
        if decoder is None:
            with _translate_out_of_memory():
                decoder, self.notices = create_decoder(model, slots, quantize, use_native)
        self.decoder = decoder
        self._use_drafts = use_drafts and decoder.is_batch_invariant
        self._prefixes = PrefixCache(prefix_bytes)
        self._queue: collections.deque[Job] = collections.deque()
        self._running_jobs: list[Job] = []
        self._free_slots = set(range(slots))
        self._lock = threading.Lock()

    @property
    def waiting(self) -> int:
        """The number of jobs without a slot."""
        return len(self._queue)

    @property
    def running(self) -> int:
        """The number of jobs with a slot."""
        return len(self._running_jobs)

    def submit(self, request: Request, on_token: Callable[[Token | None], None] = lambda token: None) -> Job:
        """Queue a request. Raises `OctavoError` for a request that the model can't take.

        `on_token` is called with each token as it is sampled, and with None when the job is over, in the thread that
        calls `step`.
        """
        if not request.prompt:
            hint = "encode_prompt(tokenizer, ''), which returns a start token"
            raise OctavoError("a prompt needs at least one token", hint)
        if not all(0 <= id < self.vocab_size for id in request.prompt):
            raise OctavoError(f"the prompt has ids outside of 0 to {self.vocab_size - 1}", "the ids of this tokenizer")
        allowed = request.sampling.allowed  # sorted
        if allowed is not None and not 0 <= allowed[0] <= allowed[-1] < self.vocab_size:
            raise OctavoError(
                f"allowed_token_ids are from {allowed[0]} to {allowed[-1]}; this model has {self.vocab_size} tokens",
                f"ids from 0 to {self.vocab_size - 1}",
            )
        if request.overflow not in OVERFLOW:
            raise OctavoError(f"overflow={request.overflow!r} is not one of {', '.join(OVERFLOW)}", "--overflow slide")
        if request.overflow == "stop" and len(request.prompt) > self.block_size:
            raise OctavoError(
                f"the prompt has {len(request.prompt):,} tokens, and the model sees {self.block_size:,}",
                "a shorter prompt, or --overflow slide",
            )
        job = Job(request, on_token, self.block_size, self.vocab_size)
        if self._use_drafts and request.sampling.is_greedy:
            job.lookup = PromptLookup(request.prompt)
        with self._lock:
            self._queue.append(job)
        return job

    def cancel(self, job: Job) -> None:
        """End a job. Its slot is free at the next step."""
        job.cancelled = True

    def step(self) -> bool:
        """Run the model once for all jobs. Returns False if there was nothing to do."""
        self._admit()
        chunks = list(self._schedule())
        if not chunks:
            return False
        batch = Batch()
        for chunk in chunks:
            batch.add(chunk.ids, chunk.job.slot, chunk.start, chunk.n_logits + len(chunk.draft))
        with _translate_out_of_memory():
            logits = self.decoder.forward(batch)[:, : self.vocab_size]  # (W, V)
        with one_thread():
            sizes = [chunk.n_logits + len(chunk.draft) for chunk in chunks]
            for chunk, rows in zip(chunks, torch.split(logits, sizes), strict=True):
                self._advance(chunk, rows)
        self._running_jobs = [job for job in self._running_jobs if job.finish_reason is None]
        return True

    def _admit(self) -> None:
        """Drop cancelled jobs, then give free slots to waiting jobs."""
        with self._lock:
            # Each job's `cancelled` is read once: a job that another thread cancels from here on ends in the next step.
            cancelled = {job: None for job in [*self._queue, *self._running_jobs] if job.cancelled}
            self._queue = collections.deque(job for job in self._queue if job not in cancelled)
        self._running_jobs = [job for job in self._running_jobs if job not in cancelled]
        for job in cancelled:
            self._finish(job, "cancelled")
        while self._queue and self._free_slots:
            job = self._queue.popleft()
            job.slot = min(self._free_slots)
            self._free_slots.remove(job.slot)
            self._running_jobs.append(job)

    def _schedule(self) -> Iterator[Chunk]:
        """Yield what each job computes in this step.

        Every decoding job computes one row, and also rows for draft tokens if few jobs decode. The rows of prefill are
        limited; jobs get them in order of arrival.
        """
        decoding = sum(job.pending == 1 for job in self._running_jobs)
        draft_rows = _MAX_ROWS_WITH_DRAFTS // max(decoding, 1) - 1
        budget = _PREFILL_ROWS_WHILE_DECODING if decoding else _PREFILL_ROWS
        for job in self._running_jobs:
            if job.pending > 1 and budget > 0:
                self._reuse_prefix(job)
            count = 1 if job.pending == 1 else min(job.pending, budget)
            budget -= count if job.pending > 1 else 0
            if count:
                end = job.computed + count
                n_logits = count if job.needs_prompt_logprobs else int(end == len(job.window))
                yield Chunk(job, job.computed, end, n_logits, self._draft(job, draft_rows))

    def _draft(self, job: Job, count: int) -> list[int]:
        """At most `count` tokens that may come next in a greedy job. They must fit into its window."""
        if job.lookup is None or job.pending != 1 or not job.tokens:
            return []
        count = min(count, self.block_size - len(job.window), job.request.max_new_tokens - len(job.tokens) - 1)
        return job.lookup.draft(count) if count > 0 else []

    def _reuse_prefix(self, job: Job) -> None:
        """Start a prompt from the prefix cache. A prompt whose log-probabilities are needed is computed in full."""
        if job.computed or job.tokens or job.needs_prompt_logprobs:
            return
        prefix = self._prefixes.find(job.request.cache_scope, job.window)
        if prefix is not None:
            self.decoder.restore_prefix(job.slot, prefix.kv)
            job.computed = job.cached_tokens = prefix.length

    def _advance(self, chunk: Chunk, logits: Tensor) -> None:
        """Record what was computed; if that completes the window, sample a token, and more if the draft is accepted."""
        job = chunk.job
        if job.needs_prompt_logprobs:
            self._record_prompt_logprobs(chunk, logits)
        job.computed = chunk.end
        if job.pending:
            return
        if not job.tokens and len(job.request.prompt) <= self.block_size:
            scope = job.request.cache_scope
            self._prefixes.add(scope, job.window, lambda: self.decoder.save_prefix(job.slot, job.computed))
        accepted = 0
        for row, draft_id in zip(logits[-1 - len(chunk.draft) :], [*chunk.draft, None], strict=True):
            if reason := self._append_token(job, row[None]):
                self._finish(job, reason)
                return
            if job.tokens[-1].id != draft_id or job.cancelled:
                break
            accepted += 1
            job.computed += 1  # the row of the draft token was computed
        if job.lookup is not None and chunk.draft:
            job.lookup.report(accepted)

    def _append_token(self, job: Job, logits: Tensor) -> str | None:
        """Sample a token from logits (1, V). Returns the finish reason if the sequence is over."""
        request = job.request
        if not request.max_new_tokens:
            return "length"
        try:
            id = int(
                sample_token(
                    logits,
                    request.sampling,
                    request.generator,
                    job.prompt_counts,
                    job.output_counts,
                    job.excluded_ids() if request.min_tokens or request.bad_words else (),
                )
            )
        except OctavoError as error:
            job.error = error
            return "error"
        if id in request.stop_ids:
            job.stop_id = id
            return "end_of_text"
        if job.output_counts is not None:
            job.output_counts[id] += 1
        token = _token(id, logits[0], request.logprobs)
        job.tokens.append(token)
        if job.lookup is not None:
            job.lookup.append(id)
        window_is_full = len(job.window) == self.block_size
        job.window = [*job.window, id]
        if window_is_full and request.overflow != "stop":
            keep = self.block_size if request.overflow == "slide" else max(1, self.block_size // 2)
            job.window, job.computed = job.window[-keep:], 0
        job.on_token(token)
        if id in request.final_ids:
            job.stop_id = id
            return "end_of_text"
        is_over = len(job.tokens) == request.max_new_tokens or len(job.window) > self.block_size
        return "length" if is_over else None

    def _record_prompt_logprobs(self, chunk: Chunk, logits: Tensor) -> None:
        """Logits at a position predict the next token; the first token of the prompt has no log-probability."""
        job = chunk.job
        if not job.prompt_tokens:
            job.prompt_tokens.append(Token(job.window[0]))
        following = job.window[chunk.start + 1 : chunk.end + 1]
        job.prompt_tokens += [
            _token(id, row, job.request.prompt_logprobs) for id, row in zip(following, logits, strict=False)
        ]

    def _finish(self, job: Job, reason: str) -> None:
        job.finish_reason = reason
        if job.slot >= 0:
            self._free_slots.add(job.slot)
        job.on_token(None)


@contextlib.contextmanager
def _translate_out_of_memory() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if is_out_of_memory(error):
            message = "there is not enough memory for the model's weights and KV cache"
            raise MachineError(message, "fewer slots or samples at once, or --quantize int8") from error
        raise


def _token(id: int, logits: Tensor, logprobs: int | None) -> Token:
    """A token with its log-probability under logits (V,), if requested."""
    if logprobs is None:
        return Token(id)
    log_probabilities = logits.double().log_softmax(-1)
    top = log_probabilities.topk(min(logprobs, len(log_probabilities)))
    pairs = zip(top.indices.tolist(), top.values.tolist(), strict=True)
    logprob = log_probabilities[id]
    return Token(id, float(logprob), tuple(pairs), 1 + int((log_probabilities > logprob).sum()))
