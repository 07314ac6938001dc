"""The response bodies. `/openapi.json` states these schemas, and the tests check every response against it."""

from http import HTTPStatus
from typing import Any, Literal

from pydantic import BaseModel, Field


class ErrorDetail(BaseModel):
    """An error, for people (`message`, `hint`) and for programs (`type`, `param`, `code`)."""

    message: str
    type: str
    param: str | None
    code: str | None
    hint: str = Field("", description="what to do about it, if that is known")
    request_id: str = Field("", description="the request's id, which the log has too")


class Error(BaseModel):
    """The body of every response that is not a success."""

    error: ErrorDetail


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The error responses of a route, for FastAPI's argument `responses`."""
    return {status: {"model": Error, "description": HTTPStatus(status).phrase} for status in statuses}


STREAM: dict[int | str, dict[str, Any]] = {
    200: {
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
        "description": "the completions, or a stream of their chunks",
    }
}


class Logprobs(BaseModel):
    """Log-probabilities, one item in each list for each token. The first token of a prompt has none."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int] = Field(description="in characters, from the beginning of the prompt")


class PromptLogprob(BaseModel):
    """The log-probability of a token at a position of the prompt, and its rank, 1 for the most likely."""

    logprob: float
    rank: int
    decoded_token: str


class Choice(BaseModel):
    """A text, and why it ended: `stop` (a stop string, a stop token or the eos token) or `length`."""

    text: str
    index: int
    logprobs: Logprobs | None
    finish_reason: Literal["stop", "length"] | None
    stop_reason: str | int | None = Field(description="the stop string or token that ended the text")
    prompt_logprobs: list[dict[str, PromptLogprob] | None] | None = Field(
        None, description="with `prompt_logprobs`: for each token of the prompt, an object whose keys are token ids"
    )
    token_ids: list[int] | None = Field(None, description="with `return_token_ids`: the ids of the text")
    prompt_token_ids: list[int] | None = Field(
        None, description="ids of the prompt; in a stream only in the first chunk"
    )


class CachedTokens(BaseModel):
    """Prompt tokens that came from the prefix cache, because an earlier prompt began with the same tokens."""

    cached_tokens: int


class Usage(BaseModel):
    """Tokens: each prompt counted once, and all generated texts, returned or not."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens


class Completion(BaseModel):
    """OpenAI's completion object."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str = Field(description="the checkpoint that generated the texts")
    choices: list[Choice]
    usage: Usage


class TokenLogprob(BaseModel):
    """A candidate token at a position of the text, and its log-probability."""

    token: str
    logprob: float
    bytes: list[int]


class ChosenTokenLogprob(TokenLogprob):
    """A token of the text, and the most likely tokens at its position."""

    top_logprobs: list[TokenLogprob]


class ChatLogprobs(BaseModel):
    """The log-probabilities of an answer."""

    content: list[ChosenTokenLogprob]
    refusal: None


class AnswerMessage(BaseModel):
    """The answer of the model."""

    role: Literal["assistant"]
    content: str
    refusal: None


class ChatChoice(BaseModel):
    """An answer, and why it ended: `stop` (a stop string, a stop token or the eos token) or `length`."""

    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length"]
    stop_reason: str | int | None = Field(description="the stop string or token that ended the answer")
    token_ids: list[int] | None = Field(None, description="with `return_token_ids`: the ids of the answer")
    prompt_token_ids: list[int] | None = None


class ChatCompletion(BaseModel):
    """OpenAI's chat completion object."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str = Field(description="the checkpoint that generated the answers")
    choices: list[ChatChoice]
    usage: Usage


class Model(BaseModel):
    """A served model. `max_model_len` is its context length. The losses are those of the checkpoint, in nats."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["octavo"] = "octavo"
    max_model_len: int
    parameters: int
    tokenizer: str
    has_chat_template: bool = Field(
        description="whether a chat template formats the conversation; if not, the prompt is a plain transcript"
    )
    step: int | None = Field(description="the training step of the checkpoint; null if it belongs to no run")
    train_loss: float | None
    val_loss: float | None
    bits_per_byte: float | None


class Models(BaseModel):
    """All served models."""

    object: Literal["list"] = "list"
    data: list[Model]


class Tokens(BaseModel):
    """The tokens of a text."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class Text(BaseModel):
    """The text of tokens. Bytes that are not UTF-8 become U+FFFD."""

    prompt: str  # vLLM's name in the response of /detokenize


class TokenizerInfo(BaseModel):
    """What lm-eval needs to use this server's tokenizer."""

    tokenizer_class: str
    kind: str
    vocab_size: int
    model_max_length: int
    bos_token: str | None
    eos_token: str | None
    pad_token: str | None = None
    unk_token: str | None = None
    chat_template: str | None = None


class Version(BaseModel):
    """The version of Octavo."""

    version: str


class Status(BaseModel):
    """`ok` or `ready`; anything else is an error response."""

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
    """A model that the lens can show, and the checkpoints of its run, if it belongs to one."""

    id: str
    model: Shape
    tokenizer: str
    dropout: float = Field(
        description="dropout in training, after the embedding and on the output of attention and MLP"
    )
    wte_init: str | None = Field(
        description="how wte was initialized: normal, N(0, 0.02), or uniform, ±1/sqrt(n_embd); null if unknown"
    )
    wpe_init: str | None = Field(
        description="how wpe was initialized: as wte, or sinusoidal in the position; null if unknown"
    )
    run: bool = Field(description="whether the model belongs to a run")
    steps: list[int] = Field(description="the steps of the checkpoints that the run has")
    step: int | None = Field(description="the step that is served")
    has_chat_template: bool = Field(
        description="whether a chat template formats the conversation; if not, the prompt is a plain transcript"
    )


class Lens(BaseModel):
    """The models that the lens can show, and its views."""

    models: list[LensModel]
    views: list[str]


class Examples(BaseModel):
    """Example texts to inspect."""

    examples: list[str]


class RunSettings(BaseModel):
    """The settings of a run that the page shows."""

    n_layer: int
    n_head: int
    n_embd: int
    block_size: int
    vocab_size: int
    max_steps: int
    batch_size: int
    learning_rate: float
    tokenizer: str
    source: str | list[str]
    preset: str


class Run(BaseModel):
    """A run and its progress."""

    name: str
    settings: RunSettings
    parameters: int
    tokens_per_step: int
    last_step: int = Field(description="the step of the last line of metrics; 0: none yet")
    running: bool = Field(description="whether a process is training it")


class Runs(BaseModel):
    """The served runs."""

    runs: list[Run]


class Lines(BaseModel):
    """Lines of a run's metrics or samples. Continue with `after=next`."""

    lines: list[dict[str, Any]]
    next: int
    restarted: bool = Field(description="the run was reset to an earlier step, and these are its lines from the first")
