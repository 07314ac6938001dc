"""Graceful shutdown: requests in progress are finished, new ones are rejected."""

from starlette.types import ASGIApp, Receive, Scope, Send

from octavo.server.api_error import ApiError
from octavo.server.limits import Limits
from octavo.server.middleware.asgi import PROBES, refuse


class Drain:
    """Counts the requests in progress. While `draining`, everything but the probes is answered with 503."""

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self._app, self._limits = app, limits
        self.running = 0
        self.draining = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.draining and scope["path"] not in PROBES:
            error = ApiError(503, "this server is shutting down", headers={"retry-after": "5"})
            await refuse(error, self._limits, receive, send)
            return
        self.running += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self.running -= 1
