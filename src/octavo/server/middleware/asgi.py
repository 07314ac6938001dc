"""Shared by the middleware: reading a header, and refusing a request."""

import asyncio
import contextlib

from starlette.types import Receive, Scope, Send

from octavo.server.api_error import ApiError
from octavo.server.limits import Limits

PROBES = ("/health", "/ping", "/ready")  # need no key, and are answered while the server drains


def header(scope: Scope, name: bytes) -> str:
    """The value of a request header; empty if it is missing."""
    return next((value.decode("latin-1") for key, value in scope["headers"] if key == name), "")


async def refuse(error: ApiError, limits: Limits, receive: Receive, send: Send) -> None:
    """Send an error before the body is read, then read on for `linger_seconds`.

    Closing a connection with unread data resets it, and the client may never see the response.
    """
    error.headers["connection"] = "close"  # the rest of the body must not be parsed as the next request
    response = error.response
    await send({"type": "http.response.start", "status": response.status_code, "headers": response.raw_headers})
    await send({"type": "http.response.body", "body": response.body, "more_body": True})
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(limits.linger_seconds):
            while (message := await receive())["type"] == "http.request" and message.get("more_body"):
                pass
    await send({"type": "http.response.body", "body": b""})
