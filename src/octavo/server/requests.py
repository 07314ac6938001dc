"""The request bodies, with their bounds.

Bodies are strict: true is not 1, "1" is not 1, NaN is not a number. A null field has its default. An unknown field is
an error, unless ignoring it changes nothing (`foreign_fields.py`). For the lens, every unknown field is an error.

A list's bounds are checked before its items, and validation stops at the first wrong item, so that an absurd body is
rejected at little cost and with one message.
"""

from dataclasses import dataclass
from typing import Annotated, Any, Literal, cast

from annotated_types import Ge, Le, Lt
from pydantic import BaseModel, ConfigDict, Field, GetJsonSchemaHandler, StringConstraints, model_validator
from pydantic.annotated_handlers import GetCoreSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

from octavo.server.foreign_fields import check_unknown_field
from octavo.server.limits import Limits


@dataclass(frozen=True)
class ItemCount:
    """Bounds on the number of items in a list or an object: checked before any item, and stated in the JSON schema.

    Validation of a list stops at its first invalid item, also if the list has no bounds.
    """

    low: int = 0
    high: int | None = None

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        schema = handler(source)
        if schema["type"] == "list":
            schema = cast(CoreSchema, {**schema, "fail_fast": True})
        return core_schema.no_info_before_validator_function(self._check, schema)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        json_schema = handler(schema)
        low, high = ("minItems", "maxItems")
        if json_schema["type"] == "object":
            low, high = ("minProperties", "maxProperties")
            # Otherwise, names that do not match the key pattern would be valid.
            json_schema["additionalProperties"] = False
        if self.low:
            json_schema[low] = self.low
        if self.high is not None:
            json_schema[high] = self.high
        return json_schema

    def _check(self, value: Any) -> Any:
        if isinstance(value, (list, dict)) and not self.low <= len(value) <= (self.high or len(value)):
            bounds = f"at least {self.low}" if self.high is None else f"{self.low} to {self.high:,}"
            raise ValueError(f"expected {bounds} items, not {len(value):,}")
        return value


@dataclass(frozen=True)
class Expected:
    """Report one message if a value is not valid, in place of one for each item and each alternative."""

    message: str

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.custom_error_schema(
            handler(source), custom_error_type="expected", custom_error_message=f"expected {self.message}"
        )


class _Body(BaseModel):
    model_config = ConfigDict(strict=True, allow_inf_nan=False, json_schema_extra=lambda schema: _allow_null(schema))

    @model_validator(mode="before")
    @classmethod
    def _check_names_and_drop_nulls(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            raise ValueError("the body must be a JSON object")
        if len(values) > Limits.fields:
            raise ValueError(f"the body has {len(values)} fields; at most {Limits.fields} are allowed")
        for name, value in values.items():
            if name not in cls.model_fields:
                check_unknown_field(name, value, cls.model_fields)
        return {name: value for name, value in values.items() if value is not None or name not in cls.model_fields}


def _allow_null(schema: dict[str, Any]) -> None:
    """State in the JSON schema that null means the default: `_check_names_and_drop_nulls` removes it."""
    required = schema.get("required", [])
    for name, field in schema["properties"].items():
        allows_null = "default" in field and field["default"] is None
        if name not in required and not allows_null:
            schema["properties"][name] = {"anyOf": [field, {"type": "null"}]}


TokenId = Annotated[int, Ge(0), Lt(1 << 31)]
TokenIds = Annotated[list[TokenId], ItemCount()]
PromptIds = Annotated[list[TokenId], ItemCount(1)]
TokenIdString = Annotated[str, StringConstraints(pattern="^[0-9]{1,9}$")]
Bias = Annotated[float, Ge(-100), Le(100)]
StopString = Annotated[str, StringConstraints(min_length=1, max_length=Limits.stop_characters)]
TokenText = Annotated[str, StringConstraints(max_length=Limits.lens_word_characters)]
WordIds = Annotated[list[TokenId], ItemCount(1, Limits.lens_word_characters)]
LensText = Annotated[str, StringConstraints(max_length=Limits.lens_characters)]


_TOKEN = f"a text of at most {Limits.lens_word_characters} characters or a token id"


class StreamOptions(_Body):
    """Where a stream reports token usage."""

    include_usage: bool = Field(False, description="end with a chunk that has the usage and no choices")
    continuous_usage_stats: bool = Field(
        False, description="with `include_usage`: every chunk has the usage of its text so far"
    )


class GenerationRequest(_Body):
    """The fields that completion and chat requests share. Those that OpenAI does not have are vLLM's."""

    model: str = Field("", max_length=256, description="may be omitted if one model is served")
    n: int = Field(1, ge=1, le=Limits.n)
    stop: Annotated[
        StopString | Annotated[list[StopString], ItemCount(0, Limits.stops)],
        Expected(f"a text or a list of at most {Limits.stops} texts, each of 1 to {Limits.stop_characters} characters"),
    ] = []
    stop_token_ids: Annotated[
        Annotated[list[TokenId], ItemCount(0, Limits.stop_token_ids)],
        Expected(f"a list of at most {Limits.stop_token_ids} token ids"),
    ] = []
    include_stop_str_in_output: bool = Field(False, description="keep the stop string or token as the end of the text")
    ignore_eos: bool = Field(False, description="continue after the eos token")
    min_tokens: int = Field(
        0,
        ge=0,
        le=Limits.max_tokens,
        description="no stop string or token ends the text before it has this many tokens",
    )
    bad_words: Annotated[
        Annotated[list[StopString], ItemCount(0, Limits.bad_words)],
        Expected(f"a list of at most {Limits.bad_words} texts, each of 1 to {Limits.stop_characters} characters"),
    ] = Field([], description="texts whose encoding is never generated; other tokens can still spell them")
    allowed_token_ids: Annotated[
        Annotated[list[TokenId], ItemCount(1, Limits.allowed_token_ids)] | None,
        Expected(f"a list of 1 to {Limits.allowed_token_ids:,} token ids"),
    ] = Field(None, description="sample from these tokens only; null: from all")
    stream: bool = False
    stream_options: StreamOptions | None = Field(None, description="only with `stream`")
    seed: int | None = Field(None, ge=-(2**63), lt=2**63, description="completion i is sampled with seed + i")
    temperature: float = Field(1.0, ge=0, le=2)
    top_p: float = Field(1.0, ge=0, le=1)
    top_k: int = Field(0, ge=-1, le=1 << 24, description="0 and -1: all tokens")
    min_p: float = Field(0.0, ge=0, le=1)
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    repetition_penalty: float = Field(1.0, ge=0.01, le=100)
    logit_bias: Annotated[
        Annotated[dict[TokenIdString, Bias], ItemCount(0, Limits.logit_bias)],
        Expected(f"an object of at most {Limits.logit_bias} token ids, each with a number from -100 to 100"),
    ] = {}
    return_token_ids: bool = Field(False, description="also return the ids of prompt and text")
    user: str = Field("", max_length=1024)

    @property
    def stops(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else self.stop


class CompletionRequest(GenerationRequest):
    """OpenAI's completion request, with fields of vLLM; `parse_special` is llama.cpp's."""

    prompt: Annotated[
        str
        | Annotated[list[str], ItemCount(1, Limits.prompts)]
        | PromptIds
        | Annotated[list[PromptIds], ItemCount(1, Limits.prompts)],
        Expected(
            f"a text, a list of texts, a list of token ids, or a list of such lists; none empty, "
            f"at most {Limits.prompts} prompts"
        ),
    ] = ""
    max_tokens: int = Field(16, ge=0, le=Limits.max_tokens)
    best_of: int | None = Field(None, ge=1, le=Limits.best_of, description="default: `n`")
    echo: bool = False
    logprobs: int | None = Field(
        None,
        ge=0,
        le=Limits.logprobs,
        description="log-probabilities of each token and of this many most likely tokens",
    )
    prompt_logprobs: int | None = Field(
        None, ge=0, le=Limits.logprobs, description="the same for the tokens of the prompt; not in a stream"
    )
    truncate_prompt_tokens: int | None = Field(
        None,
        ge=-1,
        le=1 << 24,
        description="keep only the last N tokens of a prompt; -1: block_size minus `max_tokens`",
    )
    parse_special: bool = Field(
        False,
        description="encode a special token such as <|endoftext|> in the prompt as that token, not as ordinary text",
    )
    return_tokens_as_token_ids: bool = Field(
        False, description="with `logprobs`: write a token as `token_id:5`, rather than as its text"
    )

    @property
    def prompts(self) -> list[str] | list[list[int]]:
        """The prompts as a list, from any of the four forms."""
        is_one = isinstance(self.prompt, str) or isinstance(self.prompt[0], int)
        return cast(list[str] | list[list[int]], [self.prompt] if is_one else self.prompt)


class TextPart(_Body):
    """A part of a message's content. Only text is supported."""

    type: Literal["text"]
    text: str


class ChatMessage(_Body):
    """A message of a conversation. `name` is not used."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Annotated[
        str | Annotated[list[TextPart], ItemCount(0, Limits.message_parts)],
        Expected(f"a text, or a list of at most {Limits.message_parts} parts of type text: this model reads text only"),
    ] = ""
    name: str = Field("", max_length=256)

    @property
    def text(self) -> str:
        return self.content if isinstance(self.content, str) else "\n".join(part.text for part in self.content)


class ChatRequest(GenerationRequest):
    """OpenAI's request for an answer in a conversation."""

    messages: Annotated[list[ChatMessage], ItemCount(1, Limits.messages)]
    max_completion_tokens: int | None = Field(
        None, ge=0, le=Limits.max_tokens, description="default: until the context is full"
    )
    max_tokens: int | None = Field(
        None, ge=0, le=Limits.max_tokens, description="the older name of `max_completion_tokens`"
    )
    logprobs: bool = False
    top_logprobs: int | None = Field(None, ge=0, le=Limits.logprobs, description="only with `logprobs`")


class TokenizeRequest(_Body):
    """vLLM's request. Special tokens are never added: GPT-2 has none to add."""

    prompt: str
    model: str = Field("", max_length=256, description="may be omitted if one model is served")
    add_special_tokens: bool = True
    parse_special: bool = Field(False, description="as in a completion request")
    return_token_strs: bool = False


class DetokenizeRequest(_Body):
    """vLLM's request."""

    tokens: Annotated[TokenIds, Expected("a list of token ids")]
    model: str = Field("", max_length=256, description="may be omitted if one model is served")


class LensRequest(_Body):
    """A view's text and options. A view rejects an option that it does not have; an omitted one has its default."""

    model_config = ConfigDict(extra="forbid")

    model: str = Field("", max_length=256, description="may be omitted if one model is served")
    step: int | None = Field(
        None, ge=0, le=10**9, description="a checkpoint of the model's run; null: the one that is served"
    )
    text: Annotated[
        LensText | TokenIds | None,
        Expected(f"a text of at most {Limits.lens_characters:,} characters, or a list of token ids"),
    ] = Field(None, description="a text, or token ids; null: a text that the model generates")
    layer: int | None = Field(None, ge=-1024, le=1023, description="-1: the last")
    head: int | None = Field(None, ge=-1024, le=1023, description="-1: the last")
    position: int | None = Field(None, ge=-(1 << 20), lt=1 << 20, description="-1: the last")
    positions: Annotated[
        Annotated[list[int], ItemCount(1, Limits.lens_positions)] | None,
        Expected(f"a list of 1 to {Limits.lens_positions:,} integers"),
    ] = None
    token: Annotated[TokenText | TokenId | None, Expected(_TOKEN)] = Field(
        None, description="a token's text, or its id"
    )
    against: Annotated[TokenText | TokenId | None, Expected(_TOKEN)] = Field(
        None, description="another token to compare with: its text, or its id"
    )
    word: Annotated[TokenText | TokenId | WordIds | None, Expected(f"{_TOKEN}, or a list of token ids")] = Field(
        None, description="a word's text, or the ids of its tokens"
    )
    words: Annotated[
        Annotated[list[TokenText | TokenId], ItemCount(0, Limits.lens_words)] | None,
        Expected(f"a list of at most {Limits.lens_words} items, each {_TOKEN}"),
    ] = None
    at: Annotated[
        Annotated[list[int], ItemCount(2, 2)] | None,
        Expected("a list of 2 integers"),
    ] = Field(None, description="two positions")
    top: int | None = Field(None, ge=1, le=100)
    unknown: Literal["error", "skip", "replace"] | None = Field(
        None, description="how to handle characters that are not in the tokenizer's vocabulary"
    )

    @property
    def options(self) -> dict[str, Any]:
        """The fields that were given for the view itself."""
        return self.model_dump(exclude_unset=True, exclude={"model", "step"})


class PageRequest(_Body):
    """The text that the standalone page shows, and the attention head that it opens with."""

    model_config = ConfigDict(extra="forbid")

    model: str = Field("", max_length=256, description="may be omitted if one model is served")
    step: int | None = Field(None, ge=0, le=10**9, description="a checkpoint of the model's run; null: the served one")
    text: Annotated[LensText | None, Expected(f"a text of at most {Limits.lens_characters:,} characters")] = Field(
        None, description="null: a text that the model generates"
    )
    layer: int | None = Field(
        None, ge=-1024, le=1023, description="null: that of the head that attends most to distant tokens"
    )
    head: int | None = Field(None, ge=-1024, le=1023, description="null: the one that attends most to distant tokens")
    unknown: Literal["error", "skip", "replace"] = "error"

    @property
    def options(self) -> dict[str, Any]:
        """The arguments of `static_page.standalone_page`."""
        return self.model_dump(exclude={"model", "step"})
