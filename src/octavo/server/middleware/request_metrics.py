"""Counts every request by route and status."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from octavo.server.metrics import Metrics


class RequestMetrics:
    """Counts a request whose client disconnects before the response as 499, as nginx does."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] == "http", "lifespan and web sockets are switched off"
        status = 499

        async def send_and_record(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, send_and_record)
        finally:
            route = getattr(scope.get("route"), "path", "other")  # set by the router; its values are few
            self._metrics.count_request(route, status)
