"""The page at `/`: plain files that lie beside this one in `page/`, and the same in one file that needs no server.

Names are looked up among those that were there at the start; what a client sends never becomes a path.
"""

import base64
import contextlib
import hashlib
import itertools
import json
import re
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from octavo.checkpoint import Checkpoint
from octavo.errors import OctavoError
from octavo.runs import Run
from octavo.server import lens_api, responses
from octavo.server.protocol import ApiError

ROOT = Path(__file__).parents[1] / "page"
_TYPES = {
    ".html": "text/html; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8",
    ".json": "application/json", ".svg": "image/svg+xml", ".png": "image/png",
}  # fmt: skip
_SCRIPT = re.compile(rb"<script\b(?![^>]*\b(?:src|application/json)\b)[^>]*>(.*?)</script>", re.DOTALL | re.IGNORECASE)
_NOTHING = "base-uri 'none'; form-action 'none'"
_SERVED = ("script-src 'self'", "style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; font-src 'self'; "
           f"{_NOTHING}; frame-ancestors 'none'")  # fmt: skip
_STATIC = ("script-src data:", f"style-src data:; img-src data: blob:; {_NOTHING}")  # that loads nothing
_ALL_HEADS = 64  # tokens of a text of which the static page has every head, of longer ones a layer's


def routes(root: Path = ROOT) -> APIRouter:
    """The page. Not in the API's document: it is for people."""
    router = APIRouter(include_in_schema=False)
    files = files_of(root)

    @router.get("/")
    def index(request: Request) -> Response:
        return _answer(files, "index.html", request)

    @router.get("/page/{name:path}")
    def file(name: str, request: Request) -> Response:
        return _answer(files, name, request)

    @router.get("/favicon.ico")
    def favicon() -> Response:
        return Response(status_code=204)

    return router


def files_of(root: Path) -> dict[str, Path]:
    """The page's files by name: those of a known type, none hidden."""
    named = {path.relative_to(root).as_posix(): path for path in sorted(root.rglob("*")) if path.is_file()}
    return {name: path for name, path in named.items() if path.suffix in _TYPES and not re.search(r"(^|/)\.", name)}


def _answer(files: dict[str, Path], name: str, request: Request) -> Response:
    if name not in files:
        raise ApiError(404, f"the page has no {name[:80]!r}")
    content = files[name].read_bytes()
    sent, headers = lens_api.packed(content, request.headers.get("accept-encoding", ""))
    headers |= {
        "etag": f'W/"{hashlib.sha256(content).hexdigest()[:32]}"', "cache-control": "no-cache",
        "content-security-policy": policy(content if name.endswith(".html") else b"", _SERVED),
    }  # fmt: skip
    if headers["etag"] in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(sent, headers=headers | {"content-type": _TYPES[files[name].suffix]})


def policy(html: bytes, sources: tuple[str, str]) -> str:
    """A Content-Security-Policy that lets run what the page is made of, and of scripts within it just these."""
    hashes = [hashlib.sha256(each.replace(b"\r\n", b"\n")).digest() for each in _SCRIPT.findall(html)]
    scripts = "".join(f" 'sha256-{base64.b64encode(each).decode()}'" for each in hashes)
    return f"default-src 'none'; {sources[0]}{scripts}; {sources[1]}"


def static(loaded: Checkpoint, text: str | None = None, *, layer: int = 0, head: int = 0, unknown: str = "error",
           root: Path = ROOT) -> str:  # fmt: skip
    """The page in one file that asks nobody for anything: Walk, Attention and Positions for one text.

    It has every head of a text of up to 64 tokens, of a longer one those of `layer`.
    """
    files = files_of(root)
    if "index.html" not in files:
        raise OctavoError(f"there is no page in {root}", "install Octavo anew")
    html = files["index.html"].read_text(encoding="utf-8")
    html = re.sub(r'"/page/([^"]+)"', lambda found: f'"{_data_url(files[found[1]])}"', html)
    rules = f'<meta http-equiv="Content-Security-Policy" content="{policy(html.encode(), _STATIC)}">'
    # "<" would end the script if a text held "</script>".
    data = _answers(loaded, text, layer, head, unknown, files).replace("<", "\\u003c")
    html = re.sub(r"<head\b[^>]*>", lambda found: f"{found[0]}\n{rules}", html, count=1)
    return html.replace("</head>", f'<script type="application/json" id="octavo-static">{data}</script>\n</head>', 1)


def _data_url(path: Path) -> str:
    return f"data:{_TYPES[path.suffix].replace(' ', '')};base64,{base64.b64encode(path.read_bytes()).decode()}"


def _answers(loaded: Checkpoint, text: str | None, layer: int, head: int, unknown: str, files: dict[str, Path]) -> str:
    """What the server would have answered, as JSON: its model, its views with their options; and the page's words."""
    from octavo import lens
    from octavo.lens.arguments import resolve_index

    settings = loaded.model.settings
    reading = lens.tokens(loaded, text, unknown=unknown)
    ids = [token.id for token in reading.tokens]
    layer, head = resolve_index(layer, settings.n_layer, "layer"), resolve_index(head, settings.n_head, "head")
    layers = range(settings.n_layer) if len(ids) <= _ALL_HEADS else [layer]
    pairs = sorted(itertools.product(layers, range(settings.n_head)), key=lambda pair: pair != (layer, head))
    found: list[tuple[str, dict[str, Any], Any]] = [("tokens", {}, lens.tokens(loaded, ids[: settings.block_size]))]
    for i, h in pairs:
        found.append(("shapes", {"layer": i, "head": h}, lens.shapes(loaded, ids, layer=i, head=h)))
        found.append(("attention", {"layer": i, "head": h}, lens.attention(loaded, ids, layer=i, head=h)))
    found.append(("next_token", {}, lens.next_token(loaded, ids)))
    found += _position(loaded, ["cat", *reading.text.split()[:1], reading.groups[0].text])
    told = [f'{{"view":"{view}","options":{json.dumps(options)},"answer":{lens_api.encoded(seen).decode()}}}'
            for view, options, seen in found]  # fmt: skip
    run = Run.of_checkpoint(loaded.folder)
    name = run.folder.name if run else loaded.folder.name
    models = responses.Lens(models=[lens_api.described(name, loaded)], views=sorted({view for view, _, _ in found}))
    words: dict[str, dict[str, str]] = {}
    for each, path in files.items():
        if each.startswith("i18n/"):
            words.setdefault(path.parent.name, {}).update(json.loads(path.read_text(encoding="utf-8")))
    parts = {"text": json.dumps(reading.text), "models": models.model_dump_json(), "i18n": json.dumps(words),
             "answers": f"[{','.join(told)}]"}  # fmt: skip
    return f"{{{','.join(f'{json.dumps(name)}:{value}' for name, value in parts.items())}}}"


def _position(loaded: Checkpoint, words: list[str]) -> list[tuple[str, dict[str, Any], Any]]:
    """The first of some words that this model can read at two positions."""
    from octavo import lens

    for word, at in itertools.product(words, [(1, 10), (0, 1)]):
        with contextlib.suppress(OctavoError):
            return [("position", {"word": word, "at": list(at)}, lens.position(loaded, word, at=at))]
    return []
