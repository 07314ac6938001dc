"""The routes, and how an exception becomes a response."""

import importlib.metadata
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from octavo import estimate
from octavo.errors import OctavoError
from octavo.generation.worker import EngineFailedError, QueueFullError
from octavo.runs import Run
from octavo.server import chat, completions, docs_page, lens_api, responses, runs_api, static_page
from octavo.server.api_error import ApiError
from octavo.server.client import RateLimits
from octavo.server.limits import Limits
from octavo.server.metrics import Metrics
from octavo.server.middleware import wrap_in_middleware
from octavo.server.middleware.asgi import PROBES
from octavo.server.middleware.drain import Drain
from octavo.server.requests import DetokenizeRequest, TokenizeRequest
from octavo.server.served_model import ServedModel
from octavo.server.tokens import resolve_text, token_string


@dataclass(frozen=True)
class Application:
    """The API, and the ASGI application to serve: the API behind its middleware."""

    api: FastAPI
    asgi: ASGIApp
    drain: Drain


def build_app(
    models: Mapping[str, ServedModel],
    limits: Limits,
    host: str = "127.0.0.1",
    *,
    keys: Mapping[str, str] | None = None,
    rate_limits: RateLimits = RateLimits(),  # noqa: B008
    root_path: str = "",
    allow_hosts: Collection[str] = (),
    allow_origins: Collection[str] = (),
    pending: Collection[str] = (),
    runs: Mapping[str, Run] | None = None,
    docs: bool = False,
    page_root: Path = static_page.ROOT,
) -> Application:
    """Build the application. `pending` has the names of models without a checkpoint yet, `runs` all served runs.

    `keys` maps names to API keys. `root_path`: the path prefix at a proxy. `docs`: describe the API at /docs.

    `models` and `pending` may change while the application runs.
    """
    metrics = Metrics()
    api = _Api(
        title="Octavo",
        summary="GPT-2 models over OpenAI's API",
        version="1",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        responses=responses.errors(400, 401, 403, 408, 413, 415, 429, 431, 503),
    )
    api.needs_key, api.root = bool(keys), root_path
    asgi, drain = wrap_in_middleware(
        api,
        limits,
        metrics,
        host=host,
        allow_hosts=allow_hosts,
        allow_origins=allow_origins,
        keys=keys or {},
        rate_limits=rate_limits,
        root_path=root_path,
    )
    for kind in (ApiError, OctavoError, RequestValidationError, HTTPException, Exception):
        api.add_exception_handler(kind, error_response)

    def find_model(id: str | None, request: Request) -> ServedModel:
        """The model that a request names, in its path or with `id`. If one model is served, no name is needed."""
        # `ModelUpdater` adds a model to `models` before it removes it from `pending`: a model may be in both. `pending`
        # is read first, since otherwise a model could be missing from both.
        unloaded = list(pending)
        names = list(dict.fromkeys([*models, *unloaded]))
        id_of_path = request.path_params.get("served_model")
        if id and id_of_path and id != id_of_path:
            raise ApiError(400, f"the path has the model {id_of_path[:80]!r}, not {id[:80]!r}", param="model")
        id = id or id_of_path
        if not id and len(names) != 1:
            raise ApiError(
                400,
                f"several models are served, so name one: {', '.join(names)}; in the field or query parameter "
                f"`model`, or in the path, as in /models/{names[0] if names else 'NAME'}/v1/completions",
                param="model",
            )
        id = id or names[0]
        if id in models:
            return models[id]
        if id in unloaded:
            raise ApiError(503, f"{id} has no checkpoint yet", param="model")
        raise ApiError(
            404,
            f"no model {id[:80]!r} is served, only {', '.join(names)}",
            param="model",
            code="model_not_found",
        )

    def describe(model: ServedModel) -> responses.Model:
        loaded = model.checkpoint
        return responses.Model(
            id=model.id,
            created=model.created,
            max_model_len=loaded.model.settings.block_size,
            parameters=estimate.parameters(loaded.model.settings),
            tokenizer=loaded.tokenizer.kind,
            has_chat_template=model.chat_template is not None,
            step=model.step,
            train_loss=loaded.info.get("train_loss"),
            val_loss=loaded.info.get("val_loss"),
            bits_per_byte=loaded.info.get("bits_per_byte"),
        )

    model_routes = APIRouter()
    model_routes.include_router(completions.routes(find_model, limits, metrics))
    model_routes.include_router(chat.routes(find_model, limits, metrics))

    @api.get("/v1/models")
    async def list_models() -> responses.Models:
        """The served models."""
        return responses.Models(data=[describe(model) for model in list(models.values())])

    @api.get("/v1/models/{model}", responses=responses.errors(404))
    async def retrieve_model(model: str, request: Request) -> responses.Model:
        """One served model."""
        return describe(find_model(model, request))

    # FastAPI calls the next two in threads, because they are no coroutines: a large text takes a while.
    @model_routes.post("/tokenize", responses=responses.errors(404))
    def tokenize(body: TokenizeRequest, request: Request) -> responses.Tokens:
        """The token ids of a text."""
        checkpoint = find_model(body.model, request).checkpoint
        tokenizer = checkpoint.tokenizer
        if body.prompt == tokenizer.special_tokens_map.get("eos_token") and tokenizer.end_of_text is not None:
            # lm-eval asks for the id of the eos token in this way. Inside a longer prompt, it is ordinary text.
            ids = [tokenizer.end_of_text]
        else:
            prompt = resolve_text(tokenizer, body.prompt, "prompt", body.parse_special)
            ids = [] if prompt.is_empty else prompt.ids
        strings = [token_string(tokenizer, id) for id in ids] if body.return_token_strs else None
        block_size = checkpoint.model.settings.block_size
        return responses.Tokens(count=len(ids), max_model_len=block_size, tokens=ids, token_strs=strings)

    @model_routes.post("/detokenize", responses=responses.errors(404))
    def detokenize(body: DetokenizeRequest, request: Request) -> responses.Text:
        """The text of token ids."""
        tokenizer = find_model(body.model, request).checkpoint.tokenizer
        return responses.Text(prompt=resolve_text(tokenizer, body.tokens, "tokens").text)

    @model_routes.get("/tokenizer_info", responses=responses.errors(404))
    async def tokenizer_info(request: Request, model: str | None = None) -> responses.TokenizerInfo:
        """The tokenizer's kind, size and special tokens."""
        served = find_model(model, request)
        checkpoint, tokenizer = served.checkpoint, served.checkpoint.tokenizer
        special_tokens = {name: token for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)}
        return responses.TokenizerInfo(
            tokenizer_class="PreTrainedTokenizerFast",
            kind=tokenizer.kind,
            vocab_size=tokenizer.vocab_size,
            model_max_length=checkpoint.model.settings.block_size,
            bos_token=special_tokens.get("bos_token"),
            eos_token=special_tokens.get("eos_token"),
            pad_token=special_tokens.get("pad_token"),
            unk_token=special_tokens.get("unk_token"),
            chat_template=served.chat_template,
        )

    api.include_router(model_routes)
    # The same with the model in the path, for clients that send no name to /tokenizer_info, such as lm-eval.
    api.include_router(model_routes, prefix="/models/{served_model}", include_in_schema=False)

    @api.get("/version")
    async def version() -> responses.Version:
        """The version of Octavo."""
        return responses.Version(version=importlib.metadata.version("octavo"))

    @api.get("/health")
    @api.get("/ping", include_in_schema=False)  # vLLM's name for it
    async def health() -> responses.Status:
        """Whether the server runs."""
        return responses.Status(status="ok")

    @api.get("/ready")
    async def ready() -> responses.Status:
        """Whether the server takes requests."""
        if drain.draining:
            raise ApiError(503, "this server is shutting down", headers={"retry-after": "5"})
        if broken := [id for id, model in list(models.items()) if model.worker.broken]:
            raise ApiError(503, f"{', '.join(broken)} failed; the server must be restarted")
        return responses.Status(status="ready")

    @api.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def prometheus() -> Response:
        """Metrics in Prometheus's text format."""
        return Response(metrics.render(dict(models)), media_type="text/plain; version=0.0.4")

    if docs:

        @api.get("/docs", include_in_schema=False)
        def describe_api() -> Response:
            page = docs_page.render(api.openapi())
            return Response(page, media_type="text/html", headers={"content-security-policy": docs_page.POLICY})

    service = lens_api.LensService(limits)
    for router in (
        static_page.routes(find_model, service, page_root),  # before /lens/{view}, which would match its /lens/html
        lens_api.routes(models, find_model, service),
        runs_api.routes(runs or {}),
    ):
        api.include_router(router)
    return Application(api, asgi, drain)


class _Api(FastAPI):
    """FastAPI with changes to its OpenAPI document: 400 instead of 422, as OpenAI does, and which routes need a key."""

    needs_key = False
    root = ""

    def openapi(self) -> dict[str, Any]:
        document = super().openapi()
        for path, operations in document["paths"].items():
            for operation in operations.values():
                operation["responses"].pop("422", None)
                if self.needs_key and path not in PROBES:
                    operation["security"] = [{"key": []}]
        if self.root:
            document["servers"] = [{"url": self.root}]
        if self.needs_key:
            document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        for name in ("HTTPValidationError", "ValidationError"):
            document["components"]["schemas"].pop(name, None)
        return document


async def error_response(request: Request, error: Exception) -> Response:
    """The error response for any exception, in OpenAI's form."""
    match error:
        case ApiError():
            return error.response
        case QueueFullError():
            return ApiError(429, error.message, code="rate_limit_exceeded").response
        case EngineFailedError():
            return ApiError(503, f"{error.message}; the server must be restarted").response
        case OctavoError():
            return ApiError(400, error.message, hint=error.hint).response
        case RequestValidationError():
            return _validation_error(request, error).response
        case HTTPException(status_code=404):
            message = f"there is no {request.method} {request.url.path[:200]!r}{_advise(request)}"
            return ApiError(404, message, code="unknown_url").response
        case HTTPException(status_code=405):
            message = f"{request.url.path[:200]!r} does not allow {request.method}"
        case HTTPException(__cause__=UnicodeDecodeError()):
            message = "the body is not UTF-8"
        case HTTPException(__cause__=RecursionError()):
            message = "the body is nested too deeply"
        case HTTPException(__cause__=ValueError()):  # int() refuses thousands of digits, since it takes quadratic time
            message = f"the body has a number of more than {sys.get_int_max_str_digits():,} digits"
        case HTTPException():
            message = str(error.detail)
        case _:  # a bug: Starlette raises it again after this response, and uvicorn prints the traceback
            return ApiError(500, "the server failed").response
    return ApiError(error.status_code, message, headers=error.headers).response


_CHAT = "; chats are at /v1/chat/completions"
_PATH_HINTS = {  # by the end of a path that other servers have
    "/chat": _CHAT,
    "/completion": "; completions are at /v1/completions",
    "/embeddings": ": this server computes no embeddings",
    "/generate": "; completions are at /v1/completions",
    "/messages": _CHAT,
    "/responses": _CHAT,
}


def _advise(request: Request) -> str:
    """What a client could have meant by a path that does not exist."""
    path = "/" + request.url.path.strip("/")
    for likely in (path, f"/v1{path}", path.removeprefix("/v1")):
        if likely in request.app.openapi()["paths"]:
            return f"; there is {likely!r}: check the client's base_url"
    if path == "/docs":
        return "; the server was started without --docs"
    return next((advice for end, advice in _PATH_HINTS.items() if path.endswith(end)), "")


def _validation_error(request: Request, invalid: RequestValidationError) -> ApiError:
    """The first validation error of a request, with the field that it concerns."""
    first = invalid.errors()[0]
    param = ".".join(str(part)[:40] for part in first["loc"][1:]) or None
    message = str(first["msg"]).removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        return ApiError(400, f"there is no field {param!r}", param=param)
    if first["type"] == "json_invalid":
        return ApiError(400, f"the body is not JSON: {first['ctx']['error']} at character {param}")
    if first["loc"][0] == "body" and "json" not in request.headers.get("content-type", ""):
        return ApiError(400, "the body must be JSON, with content-type: application/json")
    return ApiError(400, f"{param}: {message}" if param else message, param=param)
