"""Bounds the number and the size of a request's headers, and refuses a body with two lengths."""

from starlette.types import ASGIApp, Receive, Scope, Send

from octavo.server.api_error import ApiError
from octavo.server.limits import Limits
from octavo.server.middleware.asgi import refuse


class HeaderLimits:
    """Answers 431 beyond the limits. Far larger headers never arrive here: the parser rejects them (connection.py)."""

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self._app, self._limits = app, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers, limits = scope["headers"], self._limits
        size = sum(len(name) + len(value) for name, value in headers) + len(scope["raw_path"] + scope["query_string"])
        if len(headers) > limits.headers or size > limits.header_bytes:
            message = f"at most {limits.headers} headers are allowed, {limits.header_bytes:,} bytes in all"
            await refuse(ApiError(431, message), limits, receive, send)
        elif {b"content-length", b"transfer-encoding"} <= {name for name, _ in headers}:
            # A proxy could take the other length, and the end of the body for the next request (RFC 9112, 6.1).
            message = "a request cannot have both content-length and transfer-encoding"
            await refuse(ApiError(400, message), limits, receive, send)
        else:
            await self._app(scope, receive, send)
