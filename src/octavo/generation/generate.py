"""`octavo.generate`, and what it shares with `octavo sample`: a new engine that runs the streams of a request.

`octavo.server` keeps its engines and takes only `most_likely` from here.
"""

import dataclasses
from collections.abc import Callable, Collection, Sequence
from typing import Any

from octavo.checkpoint import Checkpoint
from octavo.generation.engine import Engine
from octavo.generation.prompt import encode_prompt
from octavo.generation.sampling import Sampling
from octavo.generation.stream import Sample, TextRequest, TextStream, encode_bad_words, text_streams
from octavo.runs import RunLike, load
from octavo.settings import unknown_name_error

_SLOTS = 8  # texts generated in one batch; one text alone takes nearly as long as eight together
_SAMPLING = [field.name for field in dataclasses.fields(Sampling)]


def generate(
    run: RunLike,
    prompt: str = "",
    *,
    max_new_tokens: int = 500,
    num_samples: int = 1,
    best_of: int = 0,
    seed: int = 1337,
    stop: str | Sequence[str] = (),
    stop_token_ids: Collection[int] = (),
    include_stop_str_in_output: bool = False,
    ignore_eos: bool = False,
    min_tokens: int = 0,
    bad_words: str | Sequence[str] = (),
    unknown: str = "error",
    special_tokens: bool = False,
    overflow: str = "slide",
    quantize: str = "none",
    **sampling: Any,
) -> list[Sample]:
    """Continue a prompt with a run, its folder, or a loaded checkpoint.

        octavo.generate("runs/pydocs-1", "The import statement", max_new_tokens=100)[0].text

    `sampling` takes the fields of `Sampling`: `temperature`, `top_k`, `top_p`, `min_p`, `repetition_penalty`,
    `presence_penalty`, `frequency_penalty`, `logit_bias`, `allowed_token_ids`. Sample i is drawn with seed + i. With
    `best_of`, that many texts are drawn, and the `num_samples` with the highest mean log-probability per token are
    returned.

    A text ends before a string of `stop`, a token of `stop_token_ids` or the eos token (unless `ignore_eos`), but not
    before it has `min_tokens` tokens. With `include_stop_str_in_output`, the string or token is the end of the text.
    The tokens of `bad_words` are never generated in sequence. `overflow` says what happens when the context is full:
    `slide`, `rechunk` or `stop`.

    `quantize="int8"` rounds the weights (CPU only). With `special_tokens`, `<|endoftext|>` in the prompt is that token,
    not ordinary text. Raises `OctavoError` if the run cannot be loaded, a number is out of range, or the tokenizer does
    not know a character of the prompt (unless `unknown` is "skip" or "replace"), and `NoTokenLeftError` if every token
    is excluded.
    """
    checkpoint = load(run)
    if misspelled := sampling.keys() - set(_SAMPLING):
        raise unknown_name_error("setting", min(misspelled), _SAMPLING)
    request = TextRequest(
        prompt=encode_prompt(checkpoint.tokenizer, prompt, unknown, special_tokens),
        max_new_tokens=max_new_tokens,
        num_samples=num_samples,
        best_of=best_of,
        seed=seed,
        stop=(stop,) if isinstance(stop, str) else tuple(stop),
        stop_token_ids=frozenset(stop_token_ids),
        include_stop_str_in_output=include_stop_str_in_output,
        ignore_eos=ignore_eos,
        min_tokens=min_tokens,
        bad_words=encode_bad_words(checkpoint.tokenizer, bad_words),
        sampling=Sampling(**sampling),
        overflow=overflow,
    )
    streams = start_streams(checkpoint, request, quantize=quantize)
    for stream in streams:
        stream.run()
    return [stream.sample for stream in most_likely(streams, num_samples)]


def start_streams(
    checkpoint: Checkpoint,
    request: TextRequest,
    *,
    quantize: str = "none",
    on_notice: Callable[[str], object] = lambda text: None,
) -> list[TextStream]:
    """The texts of a request, started on a new engine.

    `on_notice` is called if the prompt is truncated or has unknown characters, and for each fallback of the engine.
    """
    if request.prompt.unknown is not None:
        on_notice(f"the prompt had {request.prompt.unknown}, which the model does not see")
    length, block_size = len(request.prompt.ids), checkpoint.model.settings.block_size
    if length > block_size and request.overflow != "stop":
        on_notice(f"the prompt has {length:,} tokens; the model sees the last {block_size:,}")
    engine = Engine(
        checkpoint.model,
        min(request.num_generated, _SLOTS),
        vocab_size=checkpoint.tokenizer.vocab_size,
        quantize=quantize,
    )
    for notice in engine.notices:
        on_notice(notice)
    return [stream.start(engine) for stream in text_streams(request, checkpoint.tokenizer)]


def most_likely(streams: Sequence[TextStream], count: int) -> list[TextStream]:
    """The `count` texts with the highest mean log-probability, best first; unsorted if there are no more."""
    if count == len(streams):
        return list(streams)
    return sorted(streams, key=lambda stream: -stream.mean_logprob)[:count]
