"""Compresses large responses for clients that accept gzip. Event streams are not compressed."""

import re

from starlette.middleware.gzip import GZipMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from octavo.server.middleware.asgi import header

_REFUSED = re.compile(r"\bgzip\s*;\s*q=0(\.0*)?\s*(,|$)")


class Compression(GZipMiddleware):
    """Starlette's middleware, which compresses large bodies in a thread. It ignores `gzip;q=0`, so this checks it."""

    def __init__(self, app: ASGIApp) -> None:
        super().__init__(app, minimum_size=2048, compresslevel=6, thread_minimum_size=16 << 10)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if _REFUSED.search(header(scope, b"accept-encoding")):
            await self.app(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)
