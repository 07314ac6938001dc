"""Text in, text out: the edge of generation, where a prompt becomes ids and ids become text."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from octavo import runs
from octavo.checkpoint import Checkpoint
from octavo.errors import OctavoError
from octavo.generation.engine import generate_ids
from octavo.generation.sampling import Sampling
from octavo.model import GPT
from octavo.settings import unknown as no_such
from octavo.tokenizers import Tokenizer

_SAMPLING = [each.name for each in dataclasses.fields(Sampling)]


@dataclass(frozen=True)
class Sample:
    """A continuation: its text, its tokens, and why it ended: `length`, `stop` or `end_of_text`."""

    text: str
    token_ids: list[int]
    finish_reason: str


class Continuation:
    """Iterate over it for pieces of text as they become certain; then `sample` is the whole.

    Pieces never split a character, nor show the beginning of a stop string that may be about to complete.
    """

    def __init__(self, model: GPT, tokenizer: Tokenizer, prompt: list[int], max_new_tokens: int, sampling: Sampling,
                 generator: torch.Generator, stop: Sequence[str] = ()) -> None:  # fmt: skip
        self._ids = generate_ids(model, prompt, sampling, generator, tokenizer.vocab_size)
        self._tokenizer, self._left, self._stop = tokenizer, max_new_tokens, [s for s in stop if s]
        self.sample = Sample("", [], "length")

    def __iter__(self) -> Iterator[str]:
        # A model of bytes may write some that are no character; they are left out of the text, not of the ids.
        decoder = self._tokenizer.decoder(errors="ignore")
        shown, held = "", ""
        token_ids: list[int] = []
        reason = "length"
        while reason == "length" and len(token_ids) < self._left:
            token = next(self._ids)
            if token in self._tokenizer.special_ids:
                reason = "end_of_text"
                break
            token_ids.append(token)
            held += decoder.push(token)
            found = [at for s in self._stop if (at := held.find(s)) >= 0]
            if found:
                held, reason = held[: min(found)], "stop"
                break
            certain = len(held) - _could_begin(self._stop, held)
            if certain:
                yield held[:certain]
                shown, held = shown + held[:certain], held[certain:]
        if reason == "end_of_text":  # at its length a text may be cut within a character, which is left out
            held += decoder.flush()
        if held:
            yield held
        self.sample = Sample(shown + held, token_ids, reason)


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


def generate(run: str | Path | Checkpoint, prompt: str = "", *, max_new_tokens: int = 500, num_samples: int = 1,
             seed: int = 1337, stop: str | Sequence[str] = (), unknown: str = "error",
             **sampling: Any) -> list[Sample]:  # fmt: skip
    """Continue a prompt with a RUN, or with what `octavo.load` gave.

        octavo.generate("runs/pydocs-1", "The import statement", max_new_tokens=100)[0].text

    `sampling` is what `Sampling` has: `temperature`, `top_k`, `top_p`, `min_p`, `repetition_penalty`,
    `presence_penalty`, `frequency_penalty`, `logit_bias`. Sample number i is drawn with seed + i. Raises
    `OctavoError` for a RUN that can't be loaded, a number out of range, and characters in the prompt that the
    tokenizer doesn't know (`unknown="skip"` or `"replace"`).
    """
    loaded = run if isinstance(run, Checkpoint) else runs.load(run)
    if misspelt := sampling.keys() - set(_SAMPLING):
        raise no_such("setting", min(misspelt), _SAMPLING)
    how = Sampling(**sampling)
    samples = []
    for text in continuations(loaded, prompt, max_new_tokens, num_samples, how, seed, stop, unknown):
        for _ in text:
            pass
        samples.append(text.sample)
    return samples


def continuations(loaded: Checkpoint, prompt: str, max_new_tokens: int, num_samples: int, sampling: Sampling,
                  seed: int, stop: str | Sequence[str] = (), unknown: str = "error",
                  notice: Callable[[str], object] = lambda text: None) -> list[Continuation]:  # fmt: skip
    """`num_samples` continuations of a prompt, none of them begun. `notice` hears of a prompt that is cropped."""
    if not 0 <= max_new_tokens <= 10**8:
        raise OctavoError(f"max_new_tokens={max_new_tokens} is not a count of tokens", "--max-new-tokens 500")
    if not 1 <= num_samples <= 10**5:
        raise OctavoError(f"num_samples={num_samples} is not a count of samples", "--num-samples 1")
    if not 0 <= seed < 2**63 - num_samples:
        raise OctavoError(f"seed={seed} is not a whole number from 0 to 2**63", "--seed 1337")
    stop = [stop] if isinstance(stop, str) else stop
    ids = start(loaded.tokenizer, prompt, unknown)
    block_size = loaded.model.settings.block_size
    if len(ids) > block_size:
        notice(f"the prompt has {len(ids):,} tokens; the model sees the last {block_size:,}")
    generators = [torch.Generator().manual_seed(seed + i) for i in range(num_samples)]
    return [
        Continuation(loaded.model, loaded.tokenizer, ids, max_new_tokens, sampling, generator, stop)
        for generator in generators
    ]
