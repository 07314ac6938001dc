"""Reads the whole body of a request before the application is called, bounded in size and time."""

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from octavo.server.api_error import ApiError
from octavo.server.limits import Limits
from octavo.server.middleware.asgi import header, refuse


class BodyLimits:
    """Answers 413 to a body that is too large, 408 to a body that is too slow, 415 to a compressed one."""

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self._app, self._limits = app, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            body = await self._read(scope, receive)
        except ApiError as error:
            await refuse(error, self._limits, receive, send)
            return
        if body is None:
            return
        unread: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive_body() -> Message:
            return unread.pop() if unread else await receive()

        await self._app(scope, receive_body, send)

    async def _read(self, scope: Scope, receive: Receive) -> bytes | None:
        """The whole body; None if the client disconnects before its end."""
        limits = self._limits
        too_large = ApiError(413, f"the body is larger than {limits.body_bytes:,} bytes")
        encoding = header(scope, b"content-encoding")
        if encoding and encoding.lower() != "identity":
            raise ApiError(415, f"content-encoding {encoding[:40]!r} is not supported: send the body uncompressed")
        length = header(scope, b"content-length")
        if length.isdigit() and int(length[:20]) > limits.body_bytes:
            raise too_large
        body = bytearray()
        try:
            async with asyncio.timeout(limits.body_seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    body += message.get("body", b"")
                    if len(body) > limits.body_bytes:
                        raise too_large
                    if not message.get("more_body"):
                        return bytes(body)
        except TimeoutError:
            raise ApiError(408, f"the body was not complete after {limits.body_seconds:g} seconds") from None
