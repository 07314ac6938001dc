"""One line in the log for each request: never a prompt, a text or a key."""

import logging
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOGGER = logging.getLogger("octavo.server.access")


class AccessLog:
    """Logs a request when its response is complete: failures and requests with a body at `info`, others at `debug`.

    So the polling of the page and the probes of a supervisor do not fill the log.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        start = time.perf_counter()
        status, size, request_id = 499, 0, ""  # until a response starts, as in nginx

        async def record(message: Message) -> None:
            nonlocal status, size, request_id
            if message["type"] == "http.response.start":
                status = message["status"]
                request_id = next((value.decode() for name, value in message["headers"] if name == b"x-request-id"), "")
            size += len(message.get("body", b""))
            await send(message)

        try:
            await self._app(scope, receive, record)
        except BaseException:
            status = 500 if status == 499 else status
            raise
        finally:
            level = logging.INFO if status >= 400 or scope["method"] == "POST" else logging.DEBUG
            if LOGGER.isEnabledFor(level):
                client = scope.get("state", {}).get("client")
                fields = {
                    "method": scope["method"],
                    "path": scope["raw_path"].decode("ascii", "backslashreplace")[:300],
                    "status": status,
                    "milliseconds": round(1000 * (time.perf_counter() - start), 1),
                    "bytes": size,
                    "key": client.name if client else None,
                    "request_id": request_id,
                }
                LOGGER.log(level, "request", extra={"fields": fields})
