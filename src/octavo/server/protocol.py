"""What a client may say, in OpenAI's words, and the one form of answer to what it may not.

Strict: true is not 1, "1" is not 1, NaN is not a number. A field that is null has its default. An unknown field is
ignored, unless the text would then be another than the one asked for: one that other servers know and this one
doesn't, or a misspelt name; the lens, whose fields all change what is seen, ignores none. Fields that take lists check
them by hand, since pydantic would tell a million wrong items apart in a million errors.
"""

import difflib
import json
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

from fastapi.responses import Response
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator

from octavo.server.limits import Limits

_TEXT_CHANGING = {
    "suffix": "a GPT-2 writes from left to right: it can't write what comes before a suffix",
    "messages": "this model continues texts and holds no conversations: give it a prompt",
} | dict.fromkeys(
    ("tools", "functions", "response_format", "guided_json", "guided_regex", "guided_choice", "guided_grammar",
     "structured_outputs", "grammar", "json_schema", "min_tokens", "ignore_eos", "stop_token_ids", "bad_words",
     "allowed_token_ids", "use_beam_search", "typical_p", "truncate_prompt_tokens", "prompt_logprobs", "modalities"),
    "this server doesn't have it, and the text would be another",
)  # fmt: skip


class ApiError(Exception):
    """An answer that is no success. `code` and `param` are for programs, `message` and `hint` are for people."""

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None,
                 hint: str | None = None, headers: Mapping[str, str] | None = None) -> None:  # fmt: skip
        super().__init__(message)
        self.status, self.message, self.param, self.code, self.hint = status, message, param, code, hint
        self.headers = dict(headers or {})
        if status in (429, 503):
            self.headers.setdefault("retry-after", "1")

    @property
    def body(self) -> dict[str, Any]:
        """OpenAI's error body, and a hint where there is one."""
        types = {429: "rate_limit_error", 500: "server_error", 503: "server_error"}
        kind = types.get(self.status, "invalid_request_error")
        error = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return {"error": error | ({"hint": self.hint} if self.hint else {})}

    @property
    def response(self) -> Response:
        # In ASCII: a message may quote half a surrogate pair, which has no UTF-8.
        return Response(json.dumps(self.body), self.status, self.headers, "application/json")


def _nullable(schema: dict[str, Any]) -> None:
    """In the API's document as in `_Body`: null means the default."""
    required = schema.get("required", [])
    for name, each in schema["properties"].items():
        if name not in required and each.get("default", 0) is not None:
            schema["properties"][name] = {"anyOf": [each, {"type": "null"}]}


class _Body(BaseModel):
    model_config = ConfigDict(strict=True, allow_inf_nan=False, json_schema_extra=_nullable)

    @model_validator(mode="before")
    @classmethod
    def _known(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            raise ValueError("the body must be a JSON object")
        if len(values) > Limits.fields:
            raise ValueError(f"the body has {len(values)} fields, {Limits.fields} are allowed")
        for name in values.keys() - cls.model_fields.keys():
            if values[name] and name in _TEXT_CHANGING:
                raise ValueError(f"{name}: {_TEXT_CHANGING[name]}")
            if near := difflib.get_close_matches(name[:40], cls.model_fields, 1, 0.85):
                raise ValueError(f"there is no field {name[:40]!r}; is it {near[0]!r}?")
        return {name: value for name, value in values.items() if value is not None}


def _prompts(value: Any) -> list[str] | list[list[int]]:
    """The prompts, whichever of the four forms they came in: a text, texts, ids, lists of ids."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and value:
        if all(type(each) is int for each in value):
            return [value]
        if len(value) > Limits.prompts:
            raise ValueError(f"{len(value)} prompts, {Limits.prompts} are allowed")
        if all(isinstance(each, str) for each in value):
            return value
        if all(isinstance(each, list) and each and all(type(id) is int for id in each) for each in value):
            return value
    raise ValueError("expected a text, a list of texts, a list of token ids, or a list of such lists; none empty")


def _ids(value: Any) -> list[int]:
    if not isinstance(value, list) or not all(type(id) is int for id in value):
        raise ValueError("expected a list of token ids")
    return value


def _stops(value: Any) -> list[str]:
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or len(stops) > Limits.stops:
        raise ValueError(f"expected a text or a list of at most {Limits.stops} texts")
    if not all(isinstance(each, str) and 0 < len(each) <= Limits.stop_characters for each in stops):
        raise ValueError(f"expected texts of 1 to {Limits.stop_characters} characters")
    return stops


def _biases(value: Any) -> dict[int, float]:
    if not isinstance(value, dict) or len(value) > Limits.logit_bias:
        raise ValueError(f"expected an object of at most {Limits.logit_bias} token ids, each with a number")
    for id, bias in value.items():
        if not (id.isascii() and id.isdigit() and len(id) < 10):
            raise ValueError(f"{id[:40]!r} is not a token id")
        if type(bias) not in (int, float) or not -100 <= bias <= 100:
            raise ValueError(f"the bias of token {id} is not a number from -100 to 100")
    return {int(id): float(bias) for id, bias in value.items()}


_TEXT = {"type": "string"}
_IDS = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}
_MANY = {"minItems": 1, "maxItems": Limits.prompts}
_STOP = {"type": "string", "minLength": 1, "maxLength": Limits.stop_characters}

Prompts = Annotated[Any, BeforeValidator(_prompts), WithJsonSchema({"anyOf": [
    _TEXT, {"type": "array", "items": _TEXT} | _MANY, _IDS, {"type": "array", "items": _IDS} | _MANY,
]})]  # fmt: skip
Ids = Annotated[Any, BeforeValidator(_ids), WithJsonSchema(_IDS | {"minItems": 0})]
Stops = Annotated[Any, BeforeValidator(_stops), WithJsonSchema({"anyOf": [
    _STOP, {"type": "array", "items": _STOP, "maxItems": Limits.stops},
]})]  # fmt: skip
Biases = Annotated[Any, BeforeValidator(_biases), WithJsonSchema({
    "type": "object", "propertyNames": {"pattern": "^[0-9]{1,9}$"}, "maxProperties": Limits.logit_bias,
    "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100},
})]  # fmt: skip


class StreamOptions(_Body):
    """How a stream ends."""

    include_usage: bool = Field(False, description="a last chunk without choices, with the usage")


class CompletionRequest(_Body):
    """OpenAI's completion request. `top_k`, `min_p`, `repetition_penalty`, `return_token_ids` are as vLLM has them."""

    model: str = Field(min_length=1, max_length=256)
    prompt: Prompts = Field([""], description="a text, texts, token ids, or lists of them")
    max_tokens: int = Field(16, ge=0, le=Limits.max_tokens)
    n: int = Field(1, ge=1, le=Limits.n)
    best_of: int | None = Field(None, ge=1, le=Limits.best_of, description="null: as many as `n`")
    echo: bool = False
    logprobs: int | None = Field(None, ge=0, le=Limits.logprobs, description="of each token, and of so many likeliest")
    stop: Stops = Field([])
    stream: bool = False
    stream_options: StreamOptions = StreamOptions(include_usage=False)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63, description="candidate i is drawn with seed + i")
    temperature: float = Field(1.0, ge=0, le=2)
    top_p: float = Field(1.0, ge=0, le=1)
    top_k: int = Field(0, ge=-1, le=1 << 24, description="0 and -1: all")
    min_p: float = Field(0.0, ge=0, le=1)
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    repetition_penalty: float = Field(1.0, ge=0.01, le=100)
    logit_bias: Biases = Field({})
    return_token_ids: bool = Field(False, description="the ids of prompt and text too")
    user: str = Field("", max_length=1024)


class TokenizeRequest(_Body):
    """vLLM's. Special tokens are never added: GPT-2 has none to add."""

    prompt: str
    model: str = Field("", max_length=256, description="may be left out where one model is served")
    add_special_tokens: bool = True
    return_token_strs: bool = False


class DetokenizeRequest(_Body):
    """vLLM's."""

    tokens: Ids
    model: str = Field("", max_length=256, description="may be left out where one model is served")


def _listed(kind: type, low: int, most: int, longest: int = 0) -> Callable[[Any], Any]:
    """A check for lists of so many whole numbers, or texts, which have at least a character and at most `longest`."""

    def check(value: Any) -> Any:
        if (
            not isinstance(value, list)
            or not low <= len(value) <= most
            or not all(type(each) is kind for each in value)
        ):
            count = str(low) if low == most else f"{low} to {most:,}"
            raise ValueError(f"expected a list of {count} {'whole numbers' if kind is int else 'texts'}")
        if kind is str and not all(0 < len(each) <= longest for each in value):
            raise ValueError(f"expected texts of 1 to {longest} characters")
        return value

    return check


def _text(value: Any) -> Any:
    """A text to look at, or its ids."""
    if isinstance(value, str) and len(value) > Limits.lens_characters:
        raise ValueError(f"the text has {len(value):,} characters, {Limits.lens_characters:,} are looked at")
    return value if isinstance(value, str) else _ids(value)


_INT = {"type": "integer"}

Text = Annotated[Any, BeforeValidator(_text), WithJsonSchema({"anyOf": [
    {"type": "string", "maxLength": Limits.lens_characters}, _IDS | {"minItems": 0}, {"type": "null"},
]})]  # fmt: skip
Positions = Annotated[Any, BeforeValidator(_listed(int, 1, Limits.lens_positions)), WithJsonSchema({"anyOf": [
    {"type": "array", "items": _INT, "minItems": 1, "maxItems": Limits.lens_positions}, {"type": "null"},
]})]  # fmt: skip
Pair = Annotated[Any, BeforeValidator(_listed(int, 2, 2)), WithJsonSchema({"anyOf": [
    {"type": "array", "items": _INT, "minItems": 2, "maxItems": 2}, {"type": "null"},
]})]  # fmt: skip
TokenText = Annotated[str, Field(max_length=Limits.lens_word)]
TokenId = Annotated[int, Field(ge=0)]
WordIds = Annotated[list[TokenId], Field(min_length=1, max_length=Limits.lens_word)]


class LensRequest(_Body):
    """What to look at. A view takes some of these, and refuses the others; what is left out has the view's default."""

    model_config = ConfigDict(extra="forbid")

    model: str = Field("", max_length=256, description="may be left out where one model is served")
    step: int | None = Field(None, ge=0, le=10**9, description="a checkpoint of the model's run; null: what is served")
    text: Text = Field(None, description="a text, or token ids; null: what the model itself writes")
    layer: int | None = Field(None, ge=-1024, le=1023)
    head: int | None = Field(None, ge=-1024, le=1023)
    position: int | None = Field(None, ge=-(1 << 20), lt=1 << 20)
    positions: Positions = None
    token: TokenText | TokenId | None = Field(None, description="a token's text, or its id")
    against: TokenText | TokenId | None = Field(None, description="a token's text, or its id")
    word: TokenText | TokenId | WordIds | None = Field(None, description="a word's text, or the ids of its tokens")
    words: Annotated[list[TokenText | TokenId], Field(max_length=Limits.lens_words)] | None = None
    at: Pair = Field(None, description="two positions")
    top: int | None = Field(None, ge=1, le=100)
    unknown: Literal["error", "skip", "replace"] | None = None

    @property
    def options(self) -> dict[str, Any]:
        """What is said of the view itself."""
        return self.model_dump(exclude_unset=True, exclude={"model", "step"})
