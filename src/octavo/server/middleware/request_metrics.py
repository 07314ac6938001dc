"""Counts every request by route and status."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from octavo.server.metrics import Metrics


class RequestMetrics:
    """Counts every request once. The status is 499, as in nginx, if the client disconnects before a response starts."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] == "http", "lifespan and web sockets are switched off"
        recorder = _StatusRecorder(send)
        try:
            await self._app(scope, receive, recorder)
        finally:
            route = getattr(scope.get("route"), "path", "other")  # set by the router; its values are few
            self._metrics.count_request(route, recorder.status)


class _StatusRecorder:
    """Passes messages on to ASGI's `send`, and keeps the status of the response."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.status = 499  # until a response starts

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        await self._send(message)
