"""`/lens`: the views of `octavo.lens` over HTTP, on the served models and on the checkpoints of their runs.

Views are computed in threads, a few at a time. If the client disconnects, its view stops at its next PyTorch operation.
`octavo.lens` is imported with the first view, so that the server starts sooner.
"""

import asyncio
import collections
import dataclasses
import math
import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
import orjson
from fastapi import APIRouter, Query, Request
from fastapi.responses import Response
from pydantic import AfterValidator, WithJsonSchema
from starlette.exceptions import HTTPException
from torch.overrides import TorchFunctionMode

from octavo import estimate, runs, views
from octavo.checkpoint import Checkpoint
from octavo.server import responses
from octavo.server.api_error import ApiError
from octavo.server.disconnect import unless_disconnected
from octavo.server.limits import Limits
from octavo.server.requests import LensRequest
from octavo.server.served_model import ServedModel
from octavo.settings import Settings

T = TypeVar("T")
SERVED_VIEWS = tuple(name for name, view in views.VIEWS.items() if view.is_served)
_VIEW_RESPONSE: dict[int | str, dict[str, Any]] = {
    200: {"content": {"application/json": {"schema": {"type": "object"}}}, "description": "the view's fields"}
}


def _check_view_name(name: str) -> str:
    if name not in SERVED_VIEWS:
        raise ValueError(f"expected one of {', '.join(SERVED_VIEWS)}")
    return name


ViewName = Annotated[
    str, AfterValidator(_check_view_name), WithJsonSchema({"type": "string", "enum": list(SERVED_VIEWS)})
]


def routes(
    models: Mapping[str, ServedModel], find_model: Callable[[str, Request], ServedModel], service: "LensService"
) -> APIRouter:
    router = APIRouter()

    @router.get("/lens")
    def list_models_and_views() -> responses.Lens:
        """The served models with their checkpoints, and the views."""
        described = [
            describe_model(model.id, model.checkpoint, model.steps, model.step, model.chat_template is not None)
            for model in list(models.values())
        ]
        return responses.Lens(models=described, views=list(SERVED_VIEWS))

    @router.get("/lens/examples", responses=responses.errors(404))
    async def examples(
        request: Request, model: Annotated[str, Query(max_length=256)] = "", step: int | None = None
    ) -> responses.Examples:
        """Beginnings of sentences of the validation split; none if the dataset is not available."""
        from octavo.lens.examples import examples

        content = await service.compute(find_model(model, request), step, request, examples)
        return responses.Examples(examples=content or [])

    @router.post("/lens/examples", include_in_schema=False)
    def refuse_post() -> None:  # otherwise `examples` would be the name of a view
        raise HTTPException(405, headers={"allow": "GET"})

    @router.post("/lens/{view}", response_class=Response, responses=_VIEW_RESPONSE | responses.errors(404, 500))
    async def view(view: ViewName, body: LensRequest, request: Request) -> Response:
        """A view of what a model does with a text, as `octavo.lens` computes it."""
        return await service.view(find_model(body.model, request), view, body, request)

    return router


def describe_model(
    name: str,
    checkpoint: Checkpoint,
    steps: Iterable[int] = (),
    step: int | None = None,
    has_chat_template: bool = False,
) -> responses.LensModel:
    """A model as the page needs it. `step` is the step of its checkpoint; None if the model belongs to no run."""
    settings = checkpoint.model.settings
    shape = {field: getattr(settings, field) for field in responses.Shape.model_fields.keys() - {"parameters"}}
    training = checkpoint.settings if isinstance(checkpoint.settings, Settings) else None  # None if imported
    wte_init = training.embedding_init if training else None
    return responses.LensModel(
        id=name,
        model=responses.Shape(**shape, parameters=estimate.parameters(settings)),
        tokenizer=checkpoint.tokenizer.kind,
        dropout=settings.dropout,
        wte_init=wte_init,
        wpe_init="sinusoidal" if training and training.weight_init != "noise" else wte_init,
        run=step is not None,
        steps=list(steps),
        step=step,
        has_chat_template=has_chat_template,
    )


class LensService:
    """Computes views: `concurrent_views` at a time, while up to `queued_views` wait."""

    def __init__(self, limits: Limits) -> None:
        self._capacity = limits.concurrent_views + limits.queued_views
        self._threads = ThreadPoolExecutor(limits.concurrent_views, thread_name_prefix="lens")
        self._pending: set[asyncio.Future[Any]] = set()
        self._checkpoints = CheckpointCache()

    async def view(self, model: ServedModel, view: str, body: LensRequest, http: Request) -> Response:
        """A view as JSON. Raises `ApiError` if too many views wait, or the run has no such step."""
        text, block_size = body.text, model.checkpoint.model.settings.block_size
        if isinstance(text, list) and len(text) > block_size:
            raise ApiError(
                400,
                f"the text has {len(text):,} tokens; this model's block_size is {block_size:,}",
                param="text",
                code="context_length_exceeded",
            )

        def compute(checkpoint: Checkpoint) -> bytes:
            from octavo import lens

            return encode_view(lens.inspect(checkpoint, view, **body.options))

        content = await self.compute(model, body.step, http, compute)
        return Response(content, 499 if content is None else 200, media_type="application/json")

    async def compute(
        self, model: ServedModel, step: int | None, http: Request, function: Callable[[Checkpoint], T]
    ) -> T | None:
        """Call a function with the checkpoint of a step, in a thread. Returns None if the client disconnected.

        Raises `ApiError` if too many views wait, or the run has no such step.
        """
        if len(self._pending) >= self._capacity:
            raise ApiError(429, "too many views are requested: try again in a moment", code="rate_limit_exceeded")
        disconnected = threading.Event()

        def run() -> T | None:
            if disconnected.is_set():
                return None
            checkpoint = self._checkpoints.get(model, step)
            with _StopOnDisconnect(disconnected):
                return function(checkpoint)

        future = asyncio.wrap_future(self._threads.submit(run))
        self._pending.add(future)
        future.add_done_callback(self._forget)
        try:
            # If the view itself were cancelled, it would stay in the queue of the threads, and not be counted.
            return await unless_disconnected(http, asyncio.shield(future))
        finally:
            disconnected.set()

    def _forget(self, future: asyncio.Future[Any]) -> None:
        self._pending.discard(future)
        if not future.cancelled():
            future.exception()  # asyncio logs an exception that nobody has looked at


class _StopOnDisconnect(TorchFunctionMode):
    """A context in which PyTorch operations raise once the client has disconnected."""

    def __init__(self, disconnected: threading.Event) -> None:
        super().__init__()
        self._disconnected = disconnected

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self._disconnected.is_set():
            raise ApiError(499, "the client disconnected")
        return func(*args, **(kwargs or {}))


class CheckpointCache:
    """An LRU cache of checkpoints: of two, or of one if the model has over `large` parameters."""

    def __init__(self, large: int = 200_000_000) -> None:
        self._large = large
        self._cache: collections.OrderedDict[tuple[Path, int], Checkpoint] = collections.OrderedDict()
        self._lock = threading.Lock()

    def get(self, model: ServedModel, step: int | None) -> Checkpoint:
        """The served checkpoint, or that of a step of its run, on the CPU. Raises `ApiError` if it does not exist."""
        if step is None or step == model.step:
            if model.checkpoint.model.lm_head.weight.device.type == "cpu":
                return _drop_dataset_unless_cached(model.checkpoint)
            folder = model.checkpoint.folder  # the lens computes on the CPU, so the model is loaded once more
        elif step in (steps := model.steps):
            folder = steps[step]
        else:
            raise ApiError(
                404, f"{model.id} has no checkpoint of step {step}", param="step", hint=", ".join(map(str, steps))
            )
        capacity = 1 if estimate.parameters(model.checkpoint.settings) > self._large else 2
        with self._lock:
            return self._load(folder, capacity)

    def _load(self, folder: Path, capacity: int) -> Checkpoint:
        try:
            manifest = folder / "manifest.json"  # rewritten with the checkpoint; other programs' checkpoints have none
            key = folder, manifest.stat().st_mtime_ns if manifest.exists() else 0
            if key not in self._cache:
                while len(self._cache) >= capacity:
                    self._cache.popitem(last=False)
                self._cache[key] = _drop_dataset_unless_cached(runs.load(folder))
        except FileNotFoundError:
            raise ApiError(404, f"{folder.name} is gone: training has deleted it", param="step") from None
        self._cache.move_to_end(key)
        return self._cache[key]


def _drop_dataset_unless_cached(checkpoint: Checkpoint) -> Checkpoint:
    """Remove `info["data"]` from a checkpoint unless the dataset is cached: a view would read the source again."""
    from octavo.data.prepare import is_cached

    dataset = checkpoint.info.get("data")
    if dataset is None or (isinstance(checkpoint.settings, Settings) and is_cached(checkpoint.settings, dataset)):
        return checkpoint
    info = {name: value for name, value in checkpoint.info.items() if name != "data"}
    return dataclasses.replace(checkpoint, info=info)


def encode_view(view: Any) -> bytes:
    """A view's `to_dict()` as JSON; rows of attention weights end at the diagonal, since all later weights are 0.

    Raises `ApiError` if a number is not finite.
    """
    weights = getattr(view, "weights", None)
    if weights is not None:
        view = dataclasses.replace(view, weights=np.zeros(0))  # `to_dict` would round them one by one
    fields = view.to_dict()
    if not _is_finite(fields) or (weights is not None and not np.isfinite(weights).all()):
        raise ApiError(
            400, "the model's numbers are not all finite: its weights are broken", hint="an earlier checkpoint"
        )
    if weights is not None:
        fields["weights"] = orjson.Fragment(encode_attention(weights))
    return orjson.dumps(fields)


def _is_finite(value: Any) -> bool:
    """Whether a JSON value has neither NaN nor infinity, which orjson would write as null."""
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, dict):
        return all(map(_is_finite, value.values()))
    if isinstance(value, list):
        if set(map(type, value)) == {float}:  # a loop in C: 20 times as fast on the long lists of numbers
            return all(map(math.isfinite, value))
        return all(map(_is_finite, value))
    return True


def encode_attention(weights: np.ndarray) -> bytes:
    """Attention weights (T, T) as JSON: rows up to the diagonal, with 6 decimals up to 256 rows, and 5 beyond.

    So 512 rows fit into 1 MB. Each row still sums to 1, by the largest-remainder method: weights are rounded down to
    integer units of the last decimal. If n units are missing in the sum, the n weights with the largest remainders get
    one more each. A number is written as an integer with an exponent, the shortest form there is.
    """
    decimals = 6 if len(weights) <= 256 else 5
    units_per_row = 10**decimals
    rows = []
    for t, row in enumerate(weights.astype(np.float64) * units_per_row):
        floors = np.floor(row[: t + 1])
        missing = max(0, units_per_row - int(floors.sum()))
        floors[np.argsort(floors - row[: t + 1], kind="stable")[:missing]] += 1
        rows.append(",".join([f"{units}e-{decimals}" if units else "0" for units in floors.astype(int).tolist()]))
    return f"[[{'],['.join(rows)}]]".encode()
