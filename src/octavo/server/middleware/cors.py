"""Which web pages may use the server: its own, and those of allowed origins.

Starlette's CORSMiddleware lets a request of any origin through and only withholds the response headers, which leaves
it to the browser to hide the response. Here a request from a foreign page is rejected, so it cannot start any work.
"""

import re
from collections.abc import Collection

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from octavo.server.api_error import ApiError
from octavo.server.limits import Limits
from octavo.server.middleware.asgi import header, refuse

_PREFLIGHT = {
    "access-control-allow-methods": "GET, HEAD, POST",
    "access-control-max-age": "600",
    "vary": "access-control-request-headers",
}
_EXPOSED = "retry-after, x-request-id"  # response headers that OpenAI's JavaScript client reads
_HEADER_NAMES = re.compile(r"[\w!#$%&'*+.^`|~-]+(\s*,\s*[\w!#$%&'*+.^`|~-]+)*", re.ASCII)


class Cors:
    """Answers 403 to pages of other origins. Answers preflight requests before keys are checked: they have none."""

    def __init__(self, app: ASGIApp, limits: Limits, allow_origins: Collection[str] = ()) -> None:
        self._app, self._limits = app, limits
        self._origins = {origin.rstrip("/") for origin in allow_origins}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        origin, host = header(scope, b"origin"), header(scope, b"host")
        allowed = origin in self._origins
        same_origin = origin.partition("://")[2].lower() == host.lower()
        if origin and not allowed and not same_origin:
            message = f"web pages of {origin[:80]!r} may not use this server (--allow-origin adds a site)"
            await refuse(ApiError(403, message), self._limits, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if allowed and message["type"] == "http.response.start":
                headers = {
                    "access-control-allow-origin": origin,
                    "access-control-expose-headers": _EXPOSED,
                    "vary": "origin",
                }
                message["headers"] = [*message["headers"], *_encode(headers)]
            await send(message)

        if origin and scope["method"] == "OPTIONS" and header(scope, b"access-control-request-method"):
            headers = _preflight(header(scope, b"access-control-request-headers")) if allowed else {}
            await send_with_headers({"type": "http.response.start", "status": 204, "headers": _encode(headers)})
            await send({"type": "http.response.body", "body": b""})
        else:
            await self._app(scope, receive, send_with_headers)


def _preflight(requested: str) -> dict[str, str]:
    """The headers of a preflight's response. A page of an allowed origin may send any header.

    OpenAI's JavaScript client sends seven headers `x-stainless-...`. The names are returned as they were sent: `*`
    would not include `authorization`.
    """
    names = requested if _HEADER_NAMES.fullmatch(requested) else "authorization, content-type"
    return _PREFLIGHT | {"access-control-allow-headers": names}


def _encode(headers: dict[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.encode(), value.encode()) for name, value in headers.items()]
