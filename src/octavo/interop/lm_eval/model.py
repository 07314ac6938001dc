"""A checkpoint as a model of lm-eval. Its log-likelihoods and texts equal those of lm-eval's own model `hf`.

That holds for texts longer than the block size too. An empty context is replaced by a start token.

Axis letters: `B` sequences in a batch, `T` positions, `C` width, `N` tokens whose log-likelihood is computed, `V`
vocabulary.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from torch import Tensor
from tqdm import tqdm

from octavo import kernels
from octavo.checkpoint import Checkpoint
from octavo.errors import OctavoError
from octavo.generation.engine import Engine
from octavo.generation.prompt import encode_prompt
from octavo.generation.sampling import Sampling
from octavo.generation.stream import TextRequest, text_streams
from octavo.loss import default_tokens_per_batch
from octavo.model import GPT

_SLOTS = 16  # texts generated in one batch
_MAX_GENERATED = 256  # tokens, if a task does not say how many: lm-eval's default
_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")


class OctavoModel(TemplateLM):  # type: ignore[misc]  # lm-eval has no types
    """A loaded checkpoint as a model of lm-eval: `lm_eval.simple_evaluate(OctavoModel(octavo.load(run)), ...)`."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        block_size: int | None = None,
        unknown: str = "error",
        special_tokens: bool = False,
    ) -> None:
        """`block_size`, at most the model's and by default the same, is the context length to use."""
        super().__init__()
        longest = checkpoint.model.settings.block_size
        self.max_length = longest if block_size is None else block_size
        if not 1 <= self.max_length <= longest:
            raise OctavoError(
                f"block_size={block_size}: expected 1 to {longest}, the model's own block_size",
                f"--block-size {longest}",
            )
        self.model, self.unknown, self.special_tokens = checkpoint.model, unknown, special_tokens
        self._tokenizer = checkpoint.tokenizer
        [self._start] = encode_prompt(self._tokenizer, "").ids
        self.inputs = self.truncated = 0

    @property
    def eot_token_id(self) -> int:
        """Required by the base class, which uses it only for `prefix_token_id`."""
        return self._start

    @property
    def prefix_token_id(self) -> int:
        """The start token, which the model sees in place of an empty context."""
        return self._start

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: object) -> list[int]:
        return [int(id) for id in self._tokenizer.encode(string, self.unknown, self.special_tokens)]

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """The log-likelihood of each text, of any length. Every token has the longest possible context."""
        owners, windows = [], []
        for number, request in enumerate(requests):
            [text] = request.args
            ids = self.tok_encode(text)
            for window in get_rolling_token_windows(ids, self._start, self.max_length, context_len=1):
                owners.append(number)
                windows.append((None, *make_disjoint_window(window)))
        totals = [0.0] * len(requests)
        for owner, (value, _) in zip(owners, self._loglikelihood_tokens(windows, disable_tqdm), strict=True):
            totals[owner] += value
        return totals

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **_: object
    ) -> list[tuple[float, bool]]:
        """For each (text, context, continuation): the log-likelihood of the continuation, and whether it is greedy."""
        requests_by_input: dict[tuple[int, ...], list[int]] = {}  # the choices of an item often share an input
        for number, (_text, context, continuation) in enumerate(requests):
            if not continuation:
                raise OctavoError(
                    "a continuation has no tokens, so there is nothing to score",
                    "--unknown replace, if its characters were skipped, or a task without empty continuations",
                )
            if len(continuation) > self.max_length:
                raise OctavoError(
                    f"a continuation has {len(continuation):,} tokens; the model scores at most {self.max_length:,}",
                    "a model with a larger block_size, or a task with shorter continuations",
                )
            ids = (context or [self._start]) + continuation
            self.truncated += len(ids) > self.max_length + 1
            requests_by_input.setdefault(tuple(ids[-self.max_length - 1 : -1]), []).append(number)
        self.inputs += len(requests)
        results = [(0.0, False)] * len(requests)
        device = self.model.lm_head.weight.device
        budget = default_tokens_per_batch(device, self.model.settings.vocab_size)
        with tqdm(total=len(requests), desc="scoring", unit=" texts", disable=disable_tqdm or None) as progress:
            for batch in _batches(sorted(requests_by_input, key=len, reverse=True), budget):
                numbers = [requests_by_input[ids] for ids in batch]
                continuations = [[requests[number][2] for number in each] for each in numbers]
                scores = _score(self.model, batch, continuations)
                for number, score in zip([number for each in numbers for number in each], scores, strict=True):
                    results[number] = score
                progress.update(len(scores))
        return results

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Continue each text until one of its stop strings, greedily unless the task says otherwise."""
        engine = Engine(self.model, _SLOTS, vocab_size=self._tokenizer.vocab_size)
        streams, stops = [], []
        for number, request in enumerate(requests):
            context, options = request.args
            text_request = self._text_request(context, options, seed=number)
            streams += [stream.start(engine) for stream in text_streams(text_request, self._tokenizer)]
            stops.append(list(text_request.stop))
        texts = []
        for stream, stop in zip(tqdm(streams, desc="generating", disable=disable_tqdm or None), stops, strict=True):
            stream.run()
            ids = [id for id in stream.sample.token_ids if id not in self._tokenizer.special_ids]
            texts.append(postprocess_generated_text(self._tokenizer.decode(ids), stop, None))
        return texts

    def _text_request(self, context: str, options: dict[str, Any], seed: int) -> TextRequest:
        options = normalize_gen_kwargs(options, _MAX_GENERATED)
        eos_token = self._tokenizer.special_tokens_map.get("eos_token")
        stop = [text for text in handle_stop_sequences(options.pop("until", None), eos_token) if text]
        max_new_tokens, is_random = options.pop("max_gen_toks"), options.pop("do_sample")
        if max_new_tokens >= self.max_length:
            raise OctavoError(
                f"a task generates {max_new_tokens} tokens, and the model's context has {self.max_length}",
                f"generation_kwargs: {{max_gen_toks: {max(1, self.max_length // 2)}}} in the task's file",
            )
        if unknown := options.keys() - set(_SAMPLING):
            raise OctavoError(
                f"generation_kwargs of a task has {min(unknown)}, which Octavo does not have",
                f"until, max_gen_toks, do_sample, {', '.join(_SAMPLING)}",
            )
        if not is_random:
            options["temperature"] = 0.0
        prompt = encode_prompt(self._tokenizer, context, self.unknown, self.special_tokens)
        max_prompt = self.max_length - max_new_tokens
        self.inputs += 1
        self.truncated += len(prompt.ids) > max_prompt
        return TextRequest(
            prompt=dataclasses.replace(prompt, ids=prompt.ids[-max_prompt:]),
            max_new_tokens=max_new_tokens,
            seed=seed,
            stop=tuple(stop),
            sampling=Sampling(**{"top_k": 0} | options),
        )


def _batches(inputs: list[tuple[int, ...]], budget: int) -> Iterator[list[tuple[int, ...]]]:
    """Split inputs, the longest first, into batches of at most `budget` tokens with padding, but at least one input."""
    start = 0
    while start < len(inputs):
        rows = max(1, budget // len(inputs[start]))
        yield inputs[start : start + rows]
        start += rows


@torch.inference_mode()
def _score(model: GPT, batch: list[tuple[int, ...]], continuations: list[list[list[int]]]) -> list[tuple[float, bool]]:
    """The score of each continuation of each input; the last tokens of an input predict the continuation.

    Inputs are padded at the end, where no earlier position sees it.
    """
    device = model.lm_head.weight.device
    ids = torch.zeros(len(batch), len(batch[0]), dtype=torch.long)  # (B, T)
    for row, each in enumerate(batch):
        ids[row, : len(each)] = torch.tensor(each)
    with kernels.fast_path(device):
        hidden = model.hidden(ids.to(device))  # (B, T, C)
        parts: list[Tensor] = []
        targets: list[list[int]] = []
        for row, (each, choices) in enumerate(zip(batch, continuations, strict=True)):
            parts += [hidden[row, len(each) - len(choice) : len(each)] for choice in choices]
            targets += choices
        logprobs = model.unembed(torch.cat(parts)).float().log_softmax(-1)  # (N, V)
    flat = torch.tensor([id for choice in targets for id in choice], device=device)  # (N,)
    values = logprobs.gather(-1, flat[:, None])[:, 0]  # (N,)
    greedy = logprobs.argmax(-1) == flat  # (N,)
    lengths = [len(choice) for choice in targets]
    pairs = zip(torch.split(values.double(), lengths), torch.split(greedy, lengths), strict=True)
    return [(float(value.sum()), bool(is_greedy.all())) for value, is_greedy in pairs]
