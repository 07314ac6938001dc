"""HEAD and absolute targets, which RFC 9110 and 9112 require of a server, reduced to GET and a path."""

import re
from urllib.parse import unquote

from starlette.types import ASGIApp, Receive, Scope, Send

_ABSOLUTE = re.compile(rb"https?://([^/]*)(/.*)?", re.IGNORECASE | re.DOTALL)


class RequestLine:
    """Lets the application see `HEAD` as `GET`, and `GET http://HOST/health` as `GET /health`.

    The HTTP/1.1 protocol (connection.py) keeps the request as it came, and sends no body to HEAD. The host of an
    absolute target replaces the Host header, so that `Hosts` checks the one that counts (RFC 9112, 3.2.2).
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] == "HEAD":
            scope = {**scope, "method": "GET"}
        if target := _ABSOLUTE.fullmatch(scope["raw_path"]):
            host, path = target[1], target[2] or b"/"
            headers = [(b"host", host), *(pair for pair in scope["headers"] if pair[0] != b"host")]
            scope = {**scope, "raw_path": path, "path": unquote(path.decode("ascii")), "headers": headers}
        await self._app(scope, receive, send)
