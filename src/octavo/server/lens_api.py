"""`/lens`: the views of `octavo.lens` over HTTP, on the models that are served and on the checkpoints along their runs.

Views run in threads of their own, few at a time; of a client that leaves, the view ends at its next operation of
PyTorch. `octavo.lens` is imported with the first view: a server that nobody looks into need not wait for it.
"""

import asyncio
import collections
import dataclasses
import functools
import gzip
import json
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import AfterValidator, WithJsonSchema
from torch.overrides import TorchFunctionMode

from octavo import estimate, runs, views
from octavo.checkpoint import Checkpoint
from octavo.server import responses
from octavo.server.completions import unless_gone
from octavo.server.limits import Limits
from octavo.server.protocol import ApiError, LensRequest
from octavo.server.worker import Served
from octavo.settings import Settings

VIEWS = tuple(name for name, view in views.VIEWS.items() if view.is_served)
_LARGE = 200_000_000  # parameters: of such models one checkpoint is kept in memory, of others two
_WORTH_PACKING = 2048  # bytes
_AT_ONCE = 1000  # items of a list that become JSON while other threads wait
_VIEW: dict[int | str, dict[str, Any]] = {
    200: {"content": {"application/json": {"schema": {"type": "object"}}}, "description": "the view's fields"}
}


def _served_view(name: str) -> str:
    if name not in VIEWS:
        raise ValueError(f"expected one of {', '.join(VIEWS)}")
    return name


ViewName = Annotated[str, AfterValidator(_served_view), WithJsonSchema({"type": "string", "enum": list(VIEWS)})]


def routes(models: Mapping[str, Served], named: Callable[[str], Served], looker: "LensService") -> APIRouter:
    """The lens's part of the API."""
    router = APIRouter()

    @router.get("/lens")
    def lens() -> responses.Lens:
        """The models that can be looked into, and the views."""
        known = [described(each.id, each.loaded, each.steps, each.step) for each in list(models.values())]
        return responses.Lens(models=known, views=list(VIEWS))

    @router.post("/lens/{view}", response_class=Response, responses=_VIEW | responses.refusals(404, 500))
    async def look(view: ViewName, body: LensRequest, request: Request) -> Response:
        """What the model does with a text: a view as `octavo.lens` has it."""
        return await looker.look(named(body.model), view, body, request)

    return router


def described(name: str, loaded: Checkpoint, steps: Iterable[int] = (), step: int | None = None) -> responses.LensModel:
    """A model, as the page wants to know it."""
    settings = loaded.model.settings
    shape = {each: getattr(settings, each) for each in responses.Shape.model_fields.keys() - {"parameters"}}
    ours = loaded.settings if isinstance(loaded.settings, Settings) else None
    start = ours.embedding_init if ours else None
    return responses.LensModel(
        id=name, model=responses.Shape(**shape, parameters=estimate.parameters(settings)),
        tokenizer=loaded.tokenizer.kind, dropout=settings.dropout, wte_start=start,
        wpe_start="waves" if ours and ours.weight_init != "noise" else start,
        run=step is not None, steps=list(steps), step=step,
    )  # fmt: skip


class LensService:
    """Makes views. At most `lens_at_once` are under way, and `lens_waiting` wait for it."""

    def __init__(self, limits: Limits) -> None:
        self._most = limits.lens_at_once + limits.lens_waiting
        self._threads = ThreadPoolExecutor(limits.lens_at_once, thread_name_prefix="lens")
        self._asked: set[Future[Response]] = set()
        self._steps = Steps()

    async def look(self, served: Served, view: str, body: LensRequest, http: Request) -> Response:
        """A view as JSON. Raises `ApiError` where too many wait, or there is no such step."""
        if len(self._asked) >= self._most:
            raise ApiError(429, "many views are asked for: try again in a moment", code="rate_limit_exceeded")
        gone = threading.Event()
        accepted = http.headers.get("accept-encoding", "")
        future = self._threads.submit(self._answer, served, view, body, gone, accepted)
        self._asked.add(future)
        future.add_done_callback(self._asked.discard)
        try:
            answer = await unless_gone(http, asyncio.wrap_future(future))
        finally:
            gone.set()
        return answer or Response(status_code=499)

    def _answer(self, served: Served, view: str, body: LensRequest, gone: threading.Event, accepted: str) -> Response:
        from octavo import lens

        ids, block_size = body.text, served.loaded.model.settings.block_size
        if isinstance(ids, list) and len(ids) > block_size:
            raise ApiError(400, f"the text has {len(ids):,} tokens; this model's block_size is {block_size:,}",
                           param="text", code="context_length_exceeded")  # fmt: skip
        loaded = self._steps.at(served, body.step)
        with _Until(gone):
            content, headers = packed(encoded(lens.inspect(loaded, view, **body.options)), accepted)
        return Response(content, headers=headers, media_type="application/json")


class _Until(TorchFunctionMode):
    """The context in which PyTorch does nothing more once the client has gone."""

    def __init__(self, gone: threading.Event) -> None:
        super().__init__()
        self._gone = gone

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self._gone.is_set():
            raise ApiError(499, "the client has left")
        return func(*args, **(kwargs or {}))


class Steps:
    """Checkpoints along training, loaded when they are looked at. The last ones stay in memory."""

    def __init__(self) -> None:
        self._kept: collections.OrderedDict[tuple[Path, int], Checkpoint] = collections.OrderedDict()
        self._lock = threading.Lock()

    def at(self, served: Served, step: int | None) -> Checkpoint:
        """The model that is served, or of its run that of a step. Raises `ApiError` where none was kept."""
        if step is None or step == served.step:
            if served.loaded.model.lm_head.weight.device.type == "cpu":
                return _with_prepared_text_only(served.loaded)
            folder = served.loaded.folder  # the lens looks on a CPU
        elif (found := served.steps) and step in found:
            folder = found[step]
        else:
            raise ApiError(404, f"{served.id} has no checkpoint of step {step}", param="step",
                           hint=", ".join(map(str, found)))  # fmt: skip
        with self._lock:
            return self._loaded(folder, 1 if estimate.parameters(served.loaded.settings) > _LARGE else 2)

    def _loaded(self, folder: Path, room: int) -> Checkpoint:
        try:
            manifest = folder / "manifest.json"  # written anew with a checkpoint; folders from elsewhere have none
            key = folder, manifest.stat().st_mtime_ns if manifest.exists() else 0
            if key not in self._kept:
                while len(self._kept) >= room:
                    self._kept.popitem(last=False)
                self._kept[key] = _with_prepared_text_only(runs.load(folder))
        except FileNotFoundError:
            raise ApiError(404, f"{folder.name} is no longer there: training let go of it", param="step") from None
        self._kept.move_to_end(key)
        return self._kept[key]


def _with_prepared_text_only(loaded: Checkpoint) -> Checkpoint:
    """A checkpoint that doesn't tell of its text unless that is prepared: a server neither reads nor fetches texts."""
    from octavo.data.prepare import is_cached

    known = loaded.info.get("data")
    if known is None or (isinstance(loaded.settings, Settings) and is_cached(loaded.settings, known)):
        return loaded
    return dataclasses.replace(loaded, info={name: each for name, each in loaded.info.items() if name != "data"})


def encoded(view: Any) -> bytes:
    """A view's `plain()` as JSON. Of attention's weights, whose upper half is 0, the rows end at the diagonal.

    Raises `ApiError` where a number is none.
    """
    weights = getattr(view, "weights", None)
    if weights is not None:
        view = dataclasses.replace(view, weights=np.zeros(0))  # `plain` would take its time with them
    try:
        values = {name: "".join(_pieces(value)) for name, value in view.plain().items()}
        if weights is not None:
            values["weights"] = triangle(weights)
    except ValueError:
        raise ApiError(400, "the model's numbers are not all finite: its weights are broken",
                       hint="an earlier checkpoint") from None  # fmt: skip
    return f"{{{','.join(f'{json.dumps(name)}:{value}' for name, value in values.items())}}}".encode()


def packed(content: bytes, accepted: str) -> tuple[bytes, dict[str, str]]:
    """What is sent of a large answer to a client that accepts gzip, or any other; and the headers that say so."""
    headers = {"vary": "accept-encoding"}
    if len(content) < _WORTH_PACKING or not re.search(r"\bgzip\b(?!\s*;\s*q=0(\.0*)?\s*(,|$))", accepted):
        return content, headers
    return gzip.compress(content, 5), headers | {"content-encoding": "gzip"}


def _pieces(value: Any) -> Iterator[str]:
    """JSON in pieces: for as long as one call takes, all other threads wait."""
    dumps = functools.partial(json.dumps, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    if not isinstance(value, list) or not value:
        yield dumps(value)
        return
    yield "["
    if isinstance(value[0], list):
        for at, row in enumerate(value):
            yield "," if at else ""
            yield from _pieces(row)
    else:
        for at in range(0, len(value), _AT_ONCE):
            yield ("," if at else "") + dumps(value[at : at + _AT_ONCE])[1:-1]
    yield "]"


def triangle(weights: np.ndarray) -> str:
    """Rows of shares (T, T) up to the diagonal, to so many decimals that all fit into 1 MB up to 512 positions.

    Rounded so that each row's sum stays 1: what flooring took from a row goes to those that lost most.
    """
    if not np.isfinite(weights).all():
        raise ValueError("shares that are no numbers")
    decimals = 6 if len(weights) <= 256 else 5
    one = 10**decimals
    rows = []
    for t, row in enumerate(weights.astype(np.float64) * one):
        floors = np.floor(row[: t + 1])
        lost = max(0, one - int(floors.sum()))
        floors[np.argsort(floors - row[: t + 1], kind="stable")[:lost]] += 1
        rows.append(",".join([f"{each}e-{decimals}" if each else "0" for each in floors.astype(int).tolist()]))
    return f"[[{'],['.join(rows)}]]"
