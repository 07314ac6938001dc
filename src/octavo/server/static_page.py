"""The page at `/`: the files of `octavo/page/`, and the same page as one file that needs no server.

File names are looked up in a table that is built at the start; nothing that a client sends becomes a path.
"""

import base64
import contextlib
import hashlib
import itertools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from octavo.checkpoint import Checkpoint
from octavo.errors import OctavoError
from octavo.runs import Run
from octavo.server import lens_api, responses
from octavo.server.api_error import ApiError
from octavo.server.requests import PageRequest
from octavo.server.served_model import ServedModel

ROOT = Path(__file__).parents[1] / "page"
_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".png": "image/png",
    ".svg": "image/svg+xml",
}
_INLINE_SCRIPT = re.compile(
    rb"<script\b(?![^>]*\b(?:src|application/json)\b)[^>]*>(.*?)</script>", re.DOTALL | re.IGNORECASE
)
# Content security policies, in two parts; the hashes of inline scripts go between them.
_POLICY_COMMON = "base-uri 'none'; form-action 'none'"
_POLICY_SERVED = (
    "script-src 'self'",
    f"style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; font-src 'self'; {_POLICY_COMMON}; "
    "frame-ancestors 'none'",
)
_POLICY_STANDALONE = ("script-src data:", f"style-src data:; img-src data: blob:; {_POLICY_COMMON}")
_HTML_RESPONSE: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/html": {"schema": {"type": "string"}}}, "description": "the page"},
    **responses.errors(404, 500),
}
# The standalone page has the heads of all layers for up to this many tokens, of one layer for more.
_ALL_LAYERS_TOKENS = 64


def routes(
    find_model: Callable[[str, Request], ServedModel], service: lens_api.LensService, root: Path = ROOT
) -> APIRouter:
    """The page's routes; only `/lens/html` is in `/openapi.json`."""
    router = APIRouter(include_in_schema=False)
    files = page_files(root)

    @router.post("/lens/html", include_in_schema=True, response_class=Response, responses=_HTML_RESPONSE)
    async def html(body: PageRequest, request: Request) -> Response:
        """The page for one text as one file that loads nothing, as `octavo inspect --html` writes it."""

        def compute(checkpoint: Checkpoint) -> str:
            return standalone_page(checkpoint, **body.options, root=root)

        content = await service.compute(find_model(body.model, request), body.step, request, compute)
        return Response(content, 499 if content is None else 200, media_type="text/html")

    @router.get("/")
    def index(request: Request) -> Response:
        return _file_response(files, "index.html", request)

    @router.get("/page/{name:path}")
    def file(name: str, request: Request) -> Response:
        return _file_response(files, name, request)

    @router.get("/favicon.ico")
    def favicon() -> Response:
        return Response(status_code=204)

    return router


def page_files(root: Path) -> dict[str, Path]:
    """The page's files by name: those of a known type that are not hidden."""
    files = {path.relative_to(root).as_posix(): path for path in sorted(root.rglob("*")) if path.is_file()}
    return {name: path for name, path in files.items() if path.suffix in _TYPES and not re.search(r"(^|/)\.", name)}


def _file_response(files: dict[str, Path], name: str, request: Request) -> Response:
    if name not in files:
        raise ApiError(404, f"the page has no file {name[:80]!r}")
    content = files[name].read_bytes()
    html = content if name.endswith(".html") else b""
    headers = {
        "etag": f'W/"{hashlib.sha256(content).hexdigest()[:32]}"',
        "vary": "accept-encoding",
        "cache-control": "no-cache",
        "content-security-policy": content_security_policy(html, _POLICY_SERVED),
    }
    if headers["etag"] in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(content, headers=headers | {"content-type": _TYPES[files[name].suffix]})


def content_security_policy(html: bytes, policy: tuple[str, str]) -> str:
    """A policy that allows the page's own files, and its own inline scripts by their hashes, but no other script."""
    scripts = [script.replace(b"\r\n", b"\n") for script in _INLINE_SCRIPT.findall(html)]
    hashes = [base64.b64encode(hashlib.sha256(script).digest()).decode() for script in scripts]
    allowed = "".join(f" 'sha256-{digest}'" for digest in hashes)
    return f"default-src 'none'; {policy[0]}{allowed}; {policy[1]}"


def standalone_page(
    checkpoint: Checkpoint,
    text: str | None = None,
    *,
    layer: int | None = None,
    head: int | None = None,
    unknown: str = "error",
    root: Path = ROOT,
) -> str:
    """The page as one file that loads nothing, with the tabs "Model", "Walk", "Attention", "Positions and words".

    It opens on a head, by default the one that attends most to distant tokens. It has all heads for a text of up to 64
    tokens, and those of the same layer for a longer one.
    """
    files = page_files(root)
    if "index.html" not in files:
        raise OctavoError(f"there is no page in {root}", "reinstall Octavo")
    html = files["index.html"].read_text(encoding="utf-8")
    html = re.sub(r'"(?:\./)?page/([^"]+)"', lambda match: f'"{_data_url(files[match[1]])}"', html)
    policy = content_security_policy(html.encode(), _POLICY_STANDALONE)
    meta = f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
    # A "<" would end the script if the text has "</script>".
    data = _page_data(checkpoint, text, layer, head, unknown, files).replace("<", "\\u003c")
    html = re.sub(r"<head\b[^>]*>", lambda match: f"{match[0]}\n{meta}", html, count=1)
    return html.replace("</head>", f'<script type="application/json" id="octavo-static">{data}</script>\n</head>', 1)


def _data_url(path: Path) -> str:
    return f"data:{_TYPES[path.suffix].replace(' ', '')};base64,{base64.b64encode(path.read_bytes()).decode()}"


def _page_data(
    checkpoint: Checkpoint, text: str | None, layer: int | None, head: int | None, unknown: str, files: dict[str, Path]
) -> str:
    """What the page would request from a server, as JSON: the model, views with their options, and translations."""
    from octavo import lens

    settings = checkpoint.model.settings
    tokens = lens.tokens(checkpoint, text, unknown=unknown)
    ids = [token.id for token in tokens.tokens]
    first = lens.attention(checkpoint, ids, layer=layer, head=head)
    layer, head = first.layer, first.head
    layers = range(settings.n_layer) if len(ids) <= _ALL_LAYERS_TOKENS else [layer]
    # The page takes the first response that matches its request, so the requested head comes first.
    heads = sorted(itertools.product(layers, range(settings.n_head)), key=lambda pair: pair != (layer, head))
    shown: list[tuple[str, dict[str, Any], Any]] = []  # each view's name, options and content
    shown.append(("tokens", {}, lens.tokens(checkpoint, ids[: settings.block_size])))
    shown.append(("flow", {}, lens.flow(checkpoint, ids)))
    for i, h in heads:
        shown.append(("shapes", {"layer": i, "head": h}, lens.shapes(checkpoint, ids, layer=i, head=h)))
        shown.append(("attention", {"layer": i, "head": h}, lens.attention(checkpoint, ids, layer=i, head=h)))
    shown.append(("next_token", {}, lens.next_token(checkpoint, ids)))
    # `cat` is the view's own default word; the words of the text are for a tokenizer that does not know it.
    shown += _position_view(checkpoint, ["cat", *tokens.text.split()[:1], tokens.groups[0].text])
    answers = [
        f'{{"view":"{view}","options":{json.dumps(options)},"answer":{lens_api.encode_view(content).decode()}}}'
        for view, options, content in shown
    ]
    run = Run.of_checkpoint(checkpoint.folder)
    model = lens_api.describe_model(run.folder.name if run else checkpoint.folder.name, checkpoint)
    models = responses.Lens(models=[model], views=sorted({view for view, _, _ in shown}))
    translations: dict[str, dict[str, str]] = {}
    for name, path in files.items():
        if name.startswith("i18n/"):
            translations.setdefault(path.parent.name, {}).update(json.loads(path.read_text(encoding="utf-8")))
    data = {
        "text": json.dumps(tokens.text),
        "models": models.model_dump_json(),
        "i18n": json.dumps(translations),
        "answers": f"[{','.join(answers)}]",
    }
    # Joined as text, because the values are JSON already.
    return f"{{{','.join(f'{json.dumps(name)}:{value}' for name, value in data.items())}}}"


def _position_view(checkpoint: Checkpoint, words: list[str]) -> list[tuple[str, dict[str, Any], Any]]:
    """The `position` view of the first of these words that the tokenizer knows and that fits at two positions."""
    from octavo import lens

    for word, at in itertools.product(words, [(1, 10), (0, 1)]):
        with contextlib.suppress(OctavoError):
            return [("position", {"word": word, "at": list(at)}, lens.position(checkpoint, word, at=at))]
    return []
