"""Response headers that keep a browser from misusing a response, and an id for each request."""

import re
import secrets

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from octavo.server.api_error import REQUEST_ID
from octavo.server.middleware.asgi import header

_HEADERS = {
    "x-content-type-options": "nosniff",
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
}


_CLIENT_ID = re.compile(r"[\w.:/+=@-]{1,128}", re.ASCII)  # nothing that could forge a line of the log


class SecurityHeaders:
    """Adds the headers that the application has not set. The page sets its own policy, so that its scripts can run.

    `X-Request-Id` is the request's own, if all its characters are harmless, else a new one. Errors have it too.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        client_id = header(scope, b"x-request-id")
        request_id = client_id if _CLIENT_ID.fullmatch(client_id) else f"req_{secrets.token_hex(12)}"

        REQUEST_ID.set(request_id)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                present = {name.lower() for name, _ in message["headers"]}
                headers = _HEADERS | {"x-request-id": request_id}
                added = [(name.encode(), value.encode()) for name, value in headers.items()]
                message["headers"] = [*message["headers"], *(pair for pair in added if pair[0] not in present)]
            await send(message)

        await self._app(scope, receive, send_with_headers)
