"""Rate limits for each API key. Only requests that compute something count: those with a body."""

from starlette.types import ASGIApp, Receive, Scope, Send

from octavo.server.api_error import ApiError
from octavo.server.limits import Limits
from octavo.server.middleware.asgi import refuse


class RateLimit:
    """Answers 429 if the client of a POST request has used up what it may ask for in a minute."""

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self._app, self._limits = app, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] == "POST":
            try:
                scope["state"]["client"].admit()
            except ApiError as error:
                await refuse(error, self._limits, receive, send)
                return
        await self._app(scope, receive, send)
