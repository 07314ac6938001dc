"""The routes, each a few lines, and how a mistake is answered."""

import asyncio
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from octavo.errors import OctavoError
from octavo.runs import Run
from octavo.server import lens_api, responses, runs_api, static_page
from octavo.server.completions import complete
from octavo.server.guard import PROBES, Guard
from octavo.server.limits import Limits
from octavo.server.metrics import Metrics
from octavo.server.protocol import ApiError, CompletionRequest, DetokenizeRequest, TokenizeRequest
from octavo.server.tokens import checked, encode, spelled
from octavo.server.worker import Served
from octavo.tokenizers import END_OF_TEXT


def build(models: Mapping[str, Served], limits: Limits, host: str = "127.0.0.1", *, keys: Collection[str] = (),
          allow_hosts: Collection[str] = (), allow_origins: Collection[str] = (), begun: Collection[str] = (),
          runs: Mapping[str, Run] | None = None, page_root: Path = static_page.ROOT) -> Guard:  # fmt: skip
    """The application, guarded. `begun` are models that are still to come, `runs` are those that were named."""
    metrics = Metrics()
    app = _Api(
        title="Octavo", summary="GPT-2 models over OpenAI's completions API", version="1", docs_url=None,
        redoc_url=None, redirect_slashes=False, responses=responses.refusals(400, 401, 403, 408, 413, 429, 431, 503),
    )  # fmt: skip
    app.keyed = bool(keys)
    guard = Guard(app, limits, metrics, host, allow_hosts, allow_origins, keys)
    app.add_exception_handler(Exception, _refused)
    for kind in (ApiError, OctavoError, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, _refused)

    def named(id: str | None) -> Served:
        """The model of that name; of the one that is served, the name may be left out."""
        known = [*models, *begun]
        if not id and len(known) != 1:
            raise ApiError(400, f"several models are served, so one must be named: {', '.join(known)}", param="model")
        id = id or known[0]
        if id in begun:
            raise ApiError(503, f"{id} has just begun to be trained, and has no checkpoint yet", param="model")
        if id not in models:
            raise ApiError(404, f"there is no model {id[:80]!r} here; there is {', '.join(known)}",
                          param="model", code="model_not_found")  # fmt: skip
        return models[id]

    def described(served: Served) -> responses.Model:
        block_size = served.loaded.model.settings.block_size
        return responses.Model(id=served.id, created=served.created, max_model_len=block_size)

    @app.post(
        "/v1/completions", response_model=responses.CompletionAnswer, responses=_STREAM | responses.refusals(404, 500)
    )
    async def completion(body: CompletionRequest, request: Request) -> Response:
        """Continue one or several prompts."""
        return await complete(named(body.model), body, request.state.share, request, metrics, limits)

    @app.get("/v1/models")
    async def list_models() -> responses.Models:
        """The models that are served."""
        return responses.Models(data=[described(each) for each in list(models.values())])

    @app.get("/v1/models/{model}", responses=responses.refusals(404))
    async def retrieve_model(model: str) -> responses.Model:
        """One of them."""
        return described(named(model))

    @app.post("/tokenize", responses=responses.refusals(404))
    async def tokenize(body: TokenizeRequest) -> responses.Tokens:
        """A text's token ids."""
        served = named(body.model)
        tokenizer, block_size = served.loaded.tokenizer, served.loaded.model.settings.block_size
        if body.prompt == END_OF_TEXT and tokenizer.end_of_text is not None:
            ids = [tokenizer.end_of_text]  # within a text it is text; alone, it is how lm-eval asks for the token's id
        else:
            ids = await asyncio.to_thread(encode, tokenizer, body.prompt)
        strings = [spelled(tokenizer, id) for id in ids] if body.return_token_strs else None
        return responses.Tokens(count=len(ids), max_model_len=block_size, tokens=ids, token_strs=strings)

    @app.post("/detokenize", responses=responses.refusals(404))
    async def detokenize(body: DetokenizeRequest) -> responses.Text:
        """The text of token ids."""
        tokenizer = named(body.model).loaded.tokenizer
        checked(tokenizer, body.tokens)
        return responses.Text(prompt=tokenizer.decode(body.tokens))

    @app.get("/tokenizer_info", responses=responses.refusals(404))
    async def tokenizer_info(model: str | None = None) -> responses.TokenizerInfo:
        """What the tokenizer is."""
        served = named(model)
        tokenizer = served.loaded.tokenizer
        end = END_OF_TEXT if tokenizer.end_of_text is not None else None
        return responses.TokenizerInfo(
            tokenizer_class="PreTrainedTokenizerFast", kind=tokenizer.kind, vocab_size=tokenizer.vocab_size,
            model_max_length=served.loaded.model.settings.block_size, bos_token=end, eos_token=end,
        )  # fmt: skip

    @app.get("/health")
    async def health() -> responses.Status:
        """The server runs."""
        return responses.Status(status="ok")

    @app.get("/ready")
    async def ready() -> responses.Status:
        """The server takes requests."""
        if guard.draining:
            raise ApiError(503, "this server is about to end", headers={"retry-after": "5"})
        if broken := [id for id, served in list(models.items()) if served.worker.broken]:
            raise ApiError(503, f"{', '.join(broken)} failed; the server must be started anew")
        return responses.Status(status="ready")

    @app.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def prometheus() -> Response:
        """Counters, in Prometheus's format."""
        workers = {id: served.worker for id, served in list(models.items())}
        return Response(metrics.page(workers), media_type="text/plain; version=0.0.4")

    for router in (
        lens_api.routes(models, named, lens_api.LensService(limits)),
        runs_api.routes(runs or {}),
        static_page.routes(page_root),
    ):
        app.include_router(router)
    return guard


class _Api(FastAPI):
    """FastAPI, but its document has 400 in place of 422, as OpenAI has, and the key where one is asked for."""

    keyed = False

    def openapi(self) -> dict[str, Any]:
        document = super().openapi()
        for path, operations in document["paths"].items():
            for operation in operations.values():
                operation["responses"].pop("422", None)
                if self.keyed and path not in PROBES:
                    operation["security"] = [{"key": []}]
        if self.keyed:
            document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        for name in ("HTTPValidationError", "ValidationError"):
            document["components"]["schemas"].pop(name, None)
        return document


_STREAM: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}, "description": "the texts, or their stream"}
}


async def _refused(request: Request, error: Exception) -> Response:
    """Every mistake in OpenAI's form."""
    match error:
        case ApiError():
            return error.response
        case OctavoError():
            return ApiError(400, error.message, hint=error.hint).response
        case RequestValidationError():
            return _invalid(request, error).response
        case HTTPException(status_code=404):
            what = f"there is no {request.method} {request.url.path[:200]!r}"
        case HTTPException(status_code=405):
            what = f"{request.url.path} has no {request.method}"
        case HTTPException():
            what = str(error.detail)
        case _:  # a mistake of ours: uvicorn prints its traceback
            return ApiError(500, "the server failed").response
    return ApiError(error.status_code, what, headers=error.headers).response


def _invalid(request: Request, invalid: RequestValidationError) -> ApiError:
    """The first of what is wrong with a body, and with which field."""
    first = invalid.errors()[0]
    param = ".".join(str(part)[:40] for part in first["loc"][1:]) or None
    message = str(first["msg"]).removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        return ApiError(400, f"there is no field {param!r}", param=param)
    if first["type"] == "json_invalid":
        return ApiError(400, f"the body is not JSON: {first['ctx']['error']} at character {param}")
    if "json" not in request.headers.get("content-type", ""):
        return ApiError(400, "the body must be JSON, with content-type: application/json")
    return ApiError(400, f"{param}: {message}" if param else message, param=param)
