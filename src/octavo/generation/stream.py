"""Text in, text out: the edge of generation, where a prompt becomes ids and ids become text."""

import collections
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from octavo import runs
from octavo.checkpoint import Checkpoint
from octavo.errors import OctavoError
from octavo.generation.engine import Engine, Request, Token
from octavo.generation.sampling import Sampling
from octavo.settings import unknown_name_error
from octavo.tokenizers import Tokenizer

_AT_ONCE = 8  # samples written side by side, for little more than the time of one
_SAMPLING = [each.name for each in dataclasses.fields(Sampling)]


@dataclass(frozen=True)
class Sample:
    """A continuation: its text, its tokens, and why it ended: `length`, `stop` or `end_of_text`."""

    text: str
    token_ids: list[int]
    finish_reason: str


class Writer:
    """Ids in, pieces of text out as they become certain.

    Pieces never split a character, nor show the beginning of a stop string that may be about to complete.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
        # A model of bytes may write some that are no character; they are left out of the text, not of the ids.
        self._decoder = tokenizer.decoder(errors="ignore")
        self._stop = [each for each in stop if each]
        self._held = ""
        self.stopped = False  # a stop string was found: what comes after it is no part of the text

    def push(self, id: int) -> str:
        """The text that this id makes certain."""
        return self._show(self._decoder.push(id))

    def finish(self, whole: bool = False) -> str:
        """What was held back. `whole`: the text ended by itself; at its length it may be cut within a character."""
        shown = self._show(self._decoder.flush()) if whole else ""
        held, self._held = self._held, ""
        return shown + held

    def _show(self, text: str) -> str:
        if self.stopped:
            return ""
        self._held += text
        found = [at for each in self._stop if (at := self._held.find(each)) >= 0]
        if found:
            self.stopped = True
            shown, self._held = self._held[: min(found)], ""
            return shown
        certain = len(self._held) - _could_begin(self._stop, self._held)
        shown, self._held = self._held[:certain], self._held[certain:]
        return shown


class Continuation:
    """Iterate over it for pieces of text as they become certain; then `sample` is the whole.

    Several may share an engine: whichever is asked for more steps it, and all of them get on.
    """

    def __init__(self, engine: Engine, tokenizer: Tokenizer, request: Request, stop: Sequence[str] = ()) -> None:
        self._engine, self._writer = engine, Writer(tokenizer, stop)
        self._pieces: collections.deque[str] = collections.deque()
        self._shown = ""
        ends = dataclasses.replace(request, stop_ids=request.stop_ids | tokenizer.special_ids)
        self._job = engine.submit(ends, self._deliver)

    @property
    def sample(self) -> Sample:
        """What was written; the whole of it once the iteration has ended."""
        reason = "stop" if self._writer.stopped else self._job.finish_reason or "length"
        return Sample(self._shown, [token.id for token in self._job.tokens], reason)

    @property
    def likelihood(self) -> float:
        """The mean log-probability of its tokens, if that was asked for; a text without any comes last."""
        told = [token.logprob for token in self._job.tokens if token.logprob is not None]
        return sum(told) / len(told) if told else float("-inf")

    def __iter__(self) -> Iterator[str]:
        while self._pieces or self._job.finish_reason is None:
            if self._pieces:
                yield self._pieces.popleft()
            else:
                self._engine.step()
        if self._job.error:
            raise self._job.error

    def _deliver(self, token: Token | None) -> None:
        """A token, or the end: text work at once, so that a job ends with the token that completes a stop string."""
        if token is None:
            piece = self._writer.finish(whole=self._job.finish_reason == "end_of_text")
        else:
            piece = self._writer.push(token.id)
            if self._writer.stopped:
                self._engine.cancel(self._job)
        if piece:
            self._shown += piece
            self._pieces.append(piece)


def _could_begin(stops: list[str], text: str) -> int:
    """The length of the longest end of `text` with which a stop string could begin."""
    longest = min(len(text), max((len(s) for s in stops), default=1) - 1)
    return next((n for n in range(longest, 0, -1) if any(s.startswith(text[-n:]) for s in stops)), 0)


def start(tokenizer: Tokenizer, prompt: str, unknown: str = "error") -> list[int]:
    """The ids of a prompt. An empty one becomes what a text begins after: end-of-text, or a new line."""
    if prompt:
        ids = [int(i) for i in tokenizer.encode(prompt, unknown)]
        if ids:
            return ids
    if tokenizer.end_of_text is not None:
        return [tokenizer.end_of_text]
    return [int(i) for i in tokenizer.encode("\n", "skip")] or [0]


def generate(run: runs.RunLike, prompt: str = "", *, max_new_tokens: int = 500, num_samples: int = 1,
             best_of: int = 0, seed: int = 1337, stop: str | Sequence[str] = (), unknown: str = "error",
             overflow: str = "slide", quantize: str = "none", **sampling: Any) -> list[Sample]:  # fmt: skip
    """Continue a prompt with a RUN, or with what `octavo.load` gave.

        octavo.generate("runs/pydocs-1", "The import statement", max_new_tokens=100)[0].text

    `sampling` is what `Sampling` has: `temperature`, `top_k`, `top_p`, `min_p`, `repetition_penalty`,
    `presence_penalty`, `frequency_penalty`, `logit_bias`. Sample number i is drawn with seed + i; of `best_of`, those
    `num_samples` are given whose tokens are likeliest on average. Past `block_size` the text goes on as `overflow`
    says: `slide`, `rechunk` or `stop`. `quantize="int8"` rounds the weights, on a CPU. Raises `OctavoError` for a RUN
    that can't be loaded, a number out of range, and characters in the prompt that the tokenizer doesn't know
    (`unknown="skip"` or `"replace"`).
    """
    loaded = runs.load(run)
    if misspelt := sampling.keys() - set(_SAMPLING):
        raise unknown_name_error("setting", min(misspelt), _SAMPLING)
    written = continuations(
        loaded, prompt, max_new_tokens=max_new_tokens, num_samples=num_samples, best_of=best_of, seed=seed, stop=stop,
        unknown=unknown, overflow=overflow, quantize=quantize, sampling=Sampling(**sampling),
    )  # fmt: skip
    return [text.sample for text in likeliest(written, num_samples)]


def likeliest(texts: Sequence[Continuation], count: int) -> Sequence[Continuation]:
    """Write all of them to their end; give `count`: in order if those are all, else the likeliest first."""
    for text in texts:
        for _ in text:
            pass
    return texts if count == len(texts) else sorted(texts, key=lambda text: -text.likelihood)[:count]


def continuations(loaded: Checkpoint, prompt: str, *, max_new_tokens: int, sampling: Sampling, seed: int,
                  num_samples: int = 1, best_of: int = 0, stop: str | Sequence[str] = (), unknown: str = "error",
                  overflow: str = "slide", quantize: str = "none",
                  notice: Callable[[str], object] = lambda text: None) -> list[Continuation]:  # fmt: skip
    """`num_samples` continuations of a prompt on one engine, or `best_of`, of which `likeliest` chooses.

    `notice` hears of a prompt that is cropped and of slower ways that are taken.
    """
    if not 0 <= max_new_tokens <= 10**8:
        raise OctavoError(f"max_new_tokens={max_new_tokens} is not a count of tokens", "--max-new-tokens 500")
    if not 1 <= num_samples <= 10**5:
        raise OctavoError(f"num_samples={num_samples} is not a count of samples", "--num-samples 1")
    if best_of and not num_samples <= best_of <= 10**5:
        raise OctavoError(f"best_of={best_of} is fewer than num_samples={num_samples}, or more than 100,000",
                          f"--best-of {num_samples}, or 0")  # fmt: skip
    count = best_of or num_samples
    if not 0 <= seed < 2**63 - count:
        raise OctavoError(f"seed={seed} is not a whole number from 0 to 2**63", "--seed 1337")
    stop = [stop] if isinstance(stop, str) else stop
    ids = start(loaded.tokenizer, prompt, unknown)
    block_size = loaded.model.settings.block_size
    if len(ids) > block_size and overflow != "stop":
        notice(f"the prompt has {len(ids):,} tokens; the model sees the last {block_size:,}")
    engine = Engine(loaded.model, min(count, _AT_ONCE), vocab_size=loaded.tokenizer.vocab_size, quantize=quantize)
    for note in engine.notes:
        notice(note)
    return [
        Continuation(
            engine,
            loaded.tokenizer,
            Request(prompt=ids, max_new_tokens=max_new_tokens, sampling=sampling, overflow=overflow,
                    generator=torch.Generator().manual_seed(seed + i), logprobs=0 if count > num_samples else None),
            stop,
        )
        for i in range(count)
    ]  # fmt: skip
