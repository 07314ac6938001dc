"""HEAD, absolute targets and the path prefix of a proxy, reduced to GET and a path.

RFC 9110 and 9112 require servers to accept HEAD and absolute targets.
"""

import re
from urllib.parse import unquote

from starlette.types import ASGIApp, Receive, Scope, Send

_ABSOLUTE = re.compile(rb"https?://([^/]*)(/.*)?", re.IGNORECASE | re.DOTALL)


class RequestLine:
    """Lets the application see `HEAD` as `GET`, and `GET http://HOST/health` as `GET /health`.

    With `root_path`, `/octavo/health` is `/health` too, for a proxy that does not remove the prefix, and `/octavo` is
    redirected to `/octavo/`, because the page's addresses are relative.

    The HTTP/1.1 protocol (connection.py) keeps the request as it came, and sends no body to HEAD. The host of an
    absolute target replaces the Host header, so that `Hosts` checks the one that counts (RFC 9112, 3.2.2).
    """

    def __init__(self, app: ASGIApp, root_path: str = "") -> None:
        self._app, self._root = app, root_path.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] == "HEAD":
            scope = {**scope, "method": "GET"}
        if target := _ABSOLUTE.fullmatch(scope["raw_path"]):
            host, path = target[1], target[2] or b"/"
            headers = [(b"host", host), *(pair for pair in scope["headers"] if pair[0] != b"host")]
            scope = {**scope, "raw_path": path, "path": unquote(path.decode("ascii")), "headers": headers}
        path = scope["raw_path"]
        if self._root and path == self._root:
            headers = [(b"location", self._root + b"/"), (b"content-length", b"0")]
            await send({"type": "http.response.start", "status": 308, "headers": headers})
            await send({"type": "http.response.body", "body": b""})
            return
        if self._root and path.startswith(self._root + b"/"):
            path = path.removeprefix(self._root)
            scope = {**scope, "raw_path": path, "path": unquote(path.decode("ascii"))}
        await self._app(scope, receive, send)
