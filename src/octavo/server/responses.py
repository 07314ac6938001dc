"""What the API answers, for its document: `/openapi.json` states these shapes, and the tests hold answers to it."""

from http import HTTPStatus
from typing import Any, Literal

from pydantic import BaseModel, Field


class ErrorDetail(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str | None
    hint: str = Field("", description="what to do about it, where that is known")


class Error(BaseModel):
    """The body of every answer that is no success."""

    error: ErrorDetail


def refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Of a route in the document: the errors that it answers with."""
    return {status: {"model": Error, "description": HTTPStatus(status).phrase} for status in statuses}


class Logprobs(BaseModel):
    """Log-probabilities, a place in each list for each token. The first token of a prompt has none."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int] = Field(description="in characters, from the beginning of the prompt")


class Choice(BaseModel):
    """A text, and why it ended: `stop` (a stop string, or the end of a text) or `length`."""

    text: str
    index: int
    logprobs: Logprobs | None
    finish_reason: Literal["stop", "length"] | None
    token_ids: list[int] | None = Field(None, description="with `return_token_ids`: of the text")
    prompt_token_ids: list[int] | None = Field(None, description="of the prompt; of a stream in its first chunk")


class CachedTokens(BaseModel):
    """Tokens that needn't be read, for an earlier prompt began alike."""

    cached_tokens: int


class Usage(BaseModel):
    """Tokens of each prompt once, and of all candidates' texts, chosen or not."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens


class CompletionAnswer(BaseModel):
    """The texts."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[Choice]
    usage: Usage


class Model(BaseModel):
    """A model that is served."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["octavo"] = "octavo"
    max_model_len: int


class Models(BaseModel):
    """All models that are served."""

    object: Literal["list"] = "list"
    data: list[Model]


class Tokens(BaseModel):
    """A text's tokens."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class Text(BaseModel):
    """The text of tokens; bytes that are no text have become U+FFFD."""

    prompt: str


class TokenizerInfo(BaseModel):
    """What lm-eval asks before it uses this server's tokenizer for its own."""

    tokenizer_class: str
    kind: str
    vocab_size: int
    model_max_length: int
    bos_token: str | None
    eos_token: str | None
    pad_token: None = None
    unk_token: None = None
    chat_template: None = None


class Status(BaseModel):
    """All is well."""

    status: str


class Shape(BaseModel):
    """The size of a model."""

    n_layer: int
    n_head: int
    n_embd: int
    block_size: int
    vocab_size: int
    parameters: int


class LensModel(BaseModel):
    """A model that can be looked into, and the checkpoints of its run, if it has one."""

    id: str
    model: Shape
    tokenizer: str
    dropout: float = Field(description="in training, where the embeddings are added")
    wte_start: str | None = Field(
        description="how its rows began: normal, N(0, 0.02), or uniform, ±1/sqrt(n_embd); null if that isn't known"
    )
    wpe_start: str | None = Field(description="likewise, or waves: sines and cosines of the position")
    run: bool
    steps: list[int] = Field(description="those whose checkpoints were kept")
    step: int | None = Field(description="the one that is served")


class Lens(BaseModel):
    """What can be looked into, and how."""

    models: list[LensModel]
    views: list[str]


class RunSettings(BaseModel):
    """What a run trains, on what and for how long."""

    n_layer: int
    n_head: int
    n_embd: int
    block_size: int
    vocab_size: int
    max_steps: int
    batch_size: int
    learning_rate: float
    tokenizer: str
    source: str
    preset: str


class Run(BaseModel):
    """A run, and how far it is."""

    name: str
    settings: RunSettings
    parameters: int
    tokens_per_step: int
    last_step: int = Field(description="of the newest line of metrics; 0: none yet")
    running: bool = Field(description="a process trains it")


class Runs(BaseModel):
    """The runs that are served."""

    runs: list[Run]


class Lines(BaseModel):
    """Lines of a run's metrics or samples; ask on from `next`."""

    lines: list[dict[str, Any]]
    next: int
    restarted: bool = Field(description="the run went back, and these are its lines from the first on")
