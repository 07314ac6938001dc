"""What the API answers, for its document: `/openapi.json` states these shapes, and the tests hold answers to it."""

from typing import Literal

from pydantic import BaseModel, Field


class ErrorDetail(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class Error(BaseModel):
    """The body of every answer that is no success."""

    error: ErrorDetail


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
