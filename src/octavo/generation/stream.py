"""Text in, text out: the one path between text and an engine's tokens.

A `TextRequest` says what to generate. `text_streams` makes a `TextStream` for each text of the request; the engine
delivers tokens to it, and it yields text that can no longer change: whole characters, and nothing that may be
the start of a stop string. The command line, `octavo.generate`, the samples of a training run and every endpoint of the
server generate text with these two classes. Nothing in this module depends on HTTP.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from octavo.errors import OctavoError, UnknownCharactersError
from octavo.generation.detokenizer import StopAwareDetokenizer
from octavo.generation.engine import Engine, Job, Request, Token
from octavo.generation.prompt import Prompt
from octavo.generation.sampling import Sampling
from octavo.tokenizers import StreamDecoder, Tokenizer
from octavo.tokenizers.bytelevel import find_surrogates


@dataclass(frozen=True, kw_only=True)
class TextRequest:
    """What to generate after a prompt: `num_samples` texts, or the `num_samples` most likely of `best_of` texts."""

    prompt: Prompt
    max_new_tokens: int = 500  # 0: only compute the prompt
    num_samples: int = 1
    best_of: int = 0  # 0: draw `num_samples` texts and return them all
    seed: int = 1337  # text i is drawn with (seed + i) modulo 2**63
    stop: tuple[str, ...] = ()  # strings that end the text and are not part of it
    stop_token_ids: frozenset[int] = frozenset()  # the same for tokens, besides the tokenizer's eos token
    include_stop_str_in_output: bool = False  # a stop string or token is the end of the text, rather than left out
    ignore_eos: bool = False  # the eos token is a token like others
    min_tokens: int = 0  # no stop string or token ends the text before it has this many tokens
    bad_words: tuple[tuple[int, ...], ...] = ()  # never generated; from `encode_bad_words`
    sampling: Sampling = field(default_factory=Sampling)
    overflow: str = "slide"
    logprobs: int | None = None  # report each token's log-probability, and those of this many most likely tokens
    prompt_logprobs: int | None = None  # the same for the tokens of the prompt
    echo: bool = False  # begin the text with the prompt; with `logprobs`, report the prompt's tokens too
    cache_scope: str = ""  # the prefix cache is shared only by requests of the same scope

    def __post_init__(self) -> None:
        if not 0 <= self.max_new_tokens <= 10**8:
            raise OctavoError(
                f"max_new_tokens={self.max_new_tokens} is not between 0 and 10**8", "--max-new-tokens 500"
            )
        if not 1 <= self.num_samples <= 10**5:
            raise OctavoError(f"num_samples={self.num_samples} is not between 1 and 100,000", "--num-samples 1")
        if self.best_of and not self.num_samples <= self.best_of <= 10**5:
            raise OctavoError(
                f"best_of={self.best_of} is not between num_samples={self.num_samples} and 100,000",
                f"--best-of {self.num_samples}, or 0",
            )
        if not 0 <= self.min_tokens <= self.max_new_tokens:
            raise OctavoError(
                f"min_tokens={self.min_tokens} is not between 0 and max_new_tokens={self.max_new_tokens}",
                "a smaller min_tokens",
            )
        for string in self.stop:
            if not string or find_surrogates(string):  # it could never be found
                raise OctavoError(f"stop={string!r} is not a text of at least one character", "--stop TEXT")
        if not 0 <= self.seed < 2**63:
            raise OctavoError(f"seed={self.seed} is not an integer from 0 to 2**63 - 1", "--seed 1337")

    @property
    def num_generated(self) -> int:
        """How many texts are generated; with `best_of`, more than are returned."""
        return self.best_of or self.num_samples

    @property
    def reported_prompt_logprobs(self) -> int | None:
        """How many top tokens are reported at each token of the prompt; None: no log-probabilities."""
        wanted = [self.prompt_logprobs, self.logprobs if self.echo else None]
        return None if self.prompt.is_empty else max((n for n in wanted if n is not None), default=None)


class LocatedToken(NamedTuple):
    """A token, and where its text begins: in characters, counted from the beginning of the prompt."""

    token: Token
    offset: int


@dataclass(frozen=True)
class TextPiece:
    """What a stream has added since its previous piece. The last piece has a finish reason."""

    text: str
    prompt_tokens: list[LocatedToken]
    tokens: list[LocatedToken]
    finish_reason: str | None


@dataclass(frozen=True)
class Sample:
    """A generated text, its tokens, and why it ended: `length`, `stop` or `end_of_text`."""

    text: str
    token_ids: list[int]
    finish_reason: str


class TextStream:
    """One text while it is generated. `start` queues it on an engine, which then delivers its tokens.

    Iterating yields text as it becomes certain, and steps the engine while there is no new text; that advances all
    streams of the engine. If another thread steps the engine, `on_update` is called in that thread after each token
    and at the end, and `take` returns what is new.
    """

    def __init__(
        self,
        request: TextRequest,
        tokenizer: Tokenizer,
        index: int = 0,
        *,
        reports_prompt: bool = True,
        on_update: Callable[["TextStream"], object] = lambda stream: None,
    ) -> None:
        """`reports_prompt=False`: another stream reports the prompt's log-probabilities."""
        self.prompt, self._index = request.prompt, index
        self.text = ""  # generated and certain
        self.finish_reason: str | None = None  # `length`, `stop`, `end_of_text`, `cancelled` or `error`
        self.error: OctavoError | None = None
        self._request, self._tokenizer, self._on_update = request, tokenizer, on_update
        self._prompt_logprobs = request.reported_prompt_logprobs if reports_prompt else None
        self._detokenizer = StopAwareDetokenizer(
            tokenizer, request.stop, request.min_tokens, request.include_stop_str_in_output
        )
        self._engine: Engine | None = None
        self._job: Job | None = None
        self._cancelled = False
        self._new_text = request.prompt.text if request.echo else ""
        self._new_prompt_tokens: list[LocatedToken] = []
        self._new_tokens: list[LocatedToken] = []
        self._undecided: list[LocatedToken] = []  # tokens that a stop string may still cut off

    @property
    def tokens(self) -> list[Token]:
        """Every token generated so far, those of a stop string included."""
        return self._job.tokens if self._job else []

    @property
    def stop_reason(self) -> str | int | None:
        """The stop string or the token of `stop_token_ids` that ended the text."""
        if self._detokenizer.stop_string is not None:
            return self._detokenizer.stop_string
        stop_id = self._job.stop_id if self._job else None
        return stop_id if stop_id in self._request.stop_token_ids else None

    @property
    def cached_tokens(self) -> int:
        """How many tokens of the prompt came from the prefix cache."""
        return self._job.cached_tokens if self._job else 0

    @property
    def sample(self) -> Sample:
        return Sample(self.text, [token.id for token in self.tokens], self.finish_reason or "length")

    @property
    def mean_logprob(self) -> float:
        """The mean log-probability per token, by which `best_of` chooses; -inf for a text without tokens."""
        values = [token.logprob for token in self.tokens if token.logprob is not None]
        return sum(values) / len(values) if values else float("-inf")

    @property
    def has_new_text(self) -> bool:
        return bool(self._new_text)

    def start(self, engine: Engine) -> "TextStream":
        """Queue the text on an engine; call it in the thread that steps the engine."""
        # `cancel` sets `_cancelled` and then reads `_job`; here it is the reverse, so no cancellation is lost.
        self._engine = engine
        self._job = engine.submit(self._engine_request(), self._deliver)
        if self._cancelled:
            engine.cancel(self._job)
        return self

    def cancel(self) -> None:
        """End the text, from any thread: its slot is free at the engine's next step."""
        self._cancelled = True
        if self._engine is not None and self._job is not None:
            self._engine.cancel(self._job)

    def fail(self, error: OctavoError) -> None:
        """End the text with an error from outside the engine: it could not be started, or the engine broke."""
        self.finish_reason, self.error = "error", error
        self._on_update(self)

    def take(self) -> TextPiece:
        """Return the text and the tokens that can no longer change, without those of earlier calls."""
        piece = TextPiece(self._new_text, self._new_prompt_tokens, self._new_tokens, self.finish_reason)
        self._new_text, self._new_prompt_tokens, self._new_tokens = "", [], []
        return piece

    def __iter__(self) -> Iterator[str]:
        assert self._engine is not None, "call start(engine) first"
        while True:
            if text := self.take().text:
                yield text
            elif self.finish_reason is None:
                self._engine.step()
            else:
                break
        if self.error:
            raise self.error

    def run(self) -> None:
        """Step the engine until the text is complete. Raises its error, if it has one."""
        for _ in self:
            pass

    def _engine_request(self) -> Request:
        request, eos = self._request, self._tokenizer.end_of_text
        logprobs, stop_token_ids = request.logprobs, request.stop_token_ids
        final_ids = stop_token_ids if request.include_stop_str_in_output else frozenset[int]()
        stop_ids = stop_token_ids | (set() if eos is None or request.ignore_eos else {eos})
        if logprobs is None and request.num_generated > request.num_samples:
            logprobs = 0  # `most_likely` compares the log-probabilities of the generated tokens
        return Request(
            prompt=request.prompt.ids,
            max_new_tokens=request.max_new_tokens,
            sampling=request.sampling,
            generator=torch.Generator().manual_seed((request.seed + self._index) % 2**63),
            overflow=request.overflow,
            logprobs=logprobs,
            prompt_logprobs=self._prompt_logprobs,
            stop_ids=stop_ids - final_ids,
            final_ids=final_ids,
            min_tokens=request.min_tokens,
            bad_words=(*request.bad_words, *((id,) for id in self._tokenizer.untrained_ids)),
            cache_scope=request.cache_scope,
        )

    def _deliver(self, token: Token | None) -> None:
        """Take a token, or None at the end. It is detokenized here, so that a stop string frees the slot at once."""
        assert self._job is not None
        if self._prompt_logprobs is not None:
            self._prompt_logprobs = None
            self._new_prompt_tokens = _locate(self._tokenizer, self._job.prompt_tokens)
        start = len(self.prompt.text)
        if token is not None:
            self._undecided.append(LocatedToken(token, start + self._detokenizer.length))
            self._add(self._detokenizer.push(token.id))
            if self._detokenizer.stop_string is not None:
                self.cancel()
        else:
            self._add(self._detokenizer.finish())
            self.error = self._job.error
            self.finish_reason = self._job.finish_reason if self.stop_reason is None else "stop"
        # A token belongs to the text if it begins before the end of the text that is certain. If the sequence ended
        # without a stop string, all remaining tokens belong to it, also those without text.
        is_complete = self.finish_reason is not None and self._detokenizer.stop_string is None
        end = start + len(self.text)
        count = sum(1 for located in self._undecided if is_complete or located.offset < end)
        self._new_tokens += self._undecided[:count]
        del self._undecided[:count]
        self._on_update(self)

    def _add(self, text: str) -> None:
        self.text += text
        self._new_text += text


def text_streams(
    request: TextRequest,
    tokenizer: Tokenizer,
    *,
    incremental: bool = False,
    on_update: Callable[[TextStream], object] = lambda stream: None,
) -> list[TextStream]:
    """The texts of a request, to be started on an engine.

    The log-probabilities of a prompt are costly, so only the first stream reports them. With `incremental`, every
    stream does, because its pieces are used before the others are complete.
    """
    return [
        TextStream(request, tokenizer, index, reports_prompt=incremental or index == 0, on_update=on_update)
        for index in range(request.num_generated)
    ]


def encode_bad_words(tokenizer: Tokenizer, words: str | Sequence[str]) -> tuple[tuple[int, ...], ...]:
    """The token ids of words that are not to be generated: each as it is, and with a space before it.

    A word that has no tokens, or that the tokenizer cannot encode, is left out. Other tokens can spell the same word,
    and are not excluded.
    """
    sequences = []
    for word in (words,) if isinstance(words, str) else words:
        if not word:
            raise OctavoError("bad_words has an empty text", "texts of at least one character")
        for text in (word,) if word[0].isspace() else (word, f" {word}"):
            with contextlib.suppress(UnknownCharactersError):
                sequences.append(tuple(int(id) for id in tokenizer.encode(text)))
    return tuple(dict.fromkeys(ids for ids in sequences if ids))


def _locate(tokenizer: Tokenizer, tokens: Sequence[Token]) -> list[LocatedToken]:
    """A prompt's tokens, each with its offset."""
    decoder, offset, located = StreamDecoder(tokenizer), 0, []
    for token in tokens:
        located.append(LocatedToken(token, offset))
        offset += len(decoder.push(token.id))
    return located
