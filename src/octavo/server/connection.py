"""HTTP on the wire: uvicorn's server and its HTTP/1.1 protocol, for clients that may not finish what they begin.

Every state of a connection has its deadline: headers not in, an answer not read, an idle client. Malformed requests
are answered in the one form of error, and only then is the connection let go.
"""

import asyncio
import json
import socket
import sys
from collections.abc import Callable
from types import FrameType

import uvicorn
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol

from octavo.server.guard import Guard
from octavo.server.limits import Limits
from octavo.server.protocol import ApiError


class Connection(H11Protocol):
    """A client's connection. It waits for a request's `head`, then answers it, then is `idle`; or is `over`."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        guard = self.config.app
        assert isinstance(guard, Guard)
        self._limits: Limits = guard.limits
        # What is read at once is parsed at once, and of a body in chunks of one byte that takes a while: 0.3 s for
        # asyncio's 256 KiB.
        transport.max_size = 16 << 10  # type: ignore[attr-defined]
        self._timer: asyncio.TimerHandle | None = None
        self._state = ""
        if len(self.connections) > self._limits.connections:
            self._end(ApiError(429, "too many connections: try again in a moment", code="rate_limit_exceeded"))
        else:
            self._enter("head")

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._state == "over":
            return
        if self._state == "idle":
            self._enter("head")
        super().data_received(data)
        self._note_request()

    def on_response_complete(self) -> None:
        self._enter("idle")
        super().on_response_complete()  # which may begin the next request, if that came already
        self._note_request()

    def shutdown(self) -> None:
        if self._state == "over":
            self.transport.close()
        else:
            super().shutdown()

    def send_400_response(self, msg: str) -> None:
        """What uvicorn calls when bytes are no HTTP, in the `except` that knows more."""
        if getattr(sys.exception(), "error_status_hint", 400) == 431:
            self._end(ApiError(431, f"the headers are larger than {self._limits.header_bytes:,} bytes"))
        else:
            self._end(ApiError(400, "this is not HTTP/1.1"))

    def _note_request(self) -> None:
        if self._state in ("head", "idle") and self.cycle is not None and not self.cycle.response_complete:
            self._enter("answer")

    def _enter(self, state: str) -> None:
        """Change the state, and arm its deadline in place of the last one's."""
        limits, abort = self._limits, self.transport.abort
        deadlines: dict[str, tuple[float, Callable[[], None]]] = {
            "head": (limits.header_seconds, self._too_late),
            "answer": (limits.body_seconds + limits.request_seconds + limits.linger_seconds, abort),
            "idle": (limits.idle_seconds + limits.linger_seconds, abort),  # uvicorn closes; a client may not read on
            "over": (limits.linger_seconds, abort),
        }
        if self._timer is not None:
            self._timer.cancel()
        self._state = state
        self._timer = self.loop.call_later(*deadlines[state])

    def _too_late(self) -> None:
        self._end(ApiError(408, f"the headers were not here after {self._limits.header_seconds:g} seconds"))

    def _end(self, refused: ApiError) -> None:
        """Answer without the application, and close: first for writing, so that the answer isn't lost in a reset."""
        self._unset_keepalive_if_required()
        self._enter("over")
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
            if self.cycle.response_started:  # an answer is half out, and another can't follow
                self.transport.abort()
                return
        body = json.dumps(refused.body).encode()
        status = refused.status
        fields = {"content-type": "application/json", "content-length": str(len(body)), "connection": "close"}
        lines = [f"{name}: {value}\r\n".encode() for name, value in (fields | refused.headers).items()]
        self.transport.write(b"HTTP/1.1 %d %s\r\n%s\r\n%s" % (status, STATUS_PHRASES[status], b"".join(lines), body))
        if self.transport.can_write_eof():
            self.transport.write_eof()
        else:
            self.transport.close()


class Server(uvicorn.Server):
    """uvicorn's server. Told to end, it first finishes what it has begun; told twice, it ends."""

    def __init__(self, guard: Guard, started: Callable[[], object] = lambda: None) -> None:
        limits = guard.limits
        super().__init__(uvicorn.Config(
            guard, http=Connection, ws="none", loop="asyncio", lifespan="off", interface="asgi3", proxy_headers=False,
            server_header=False, access_log=False, log_config=None, log_level="error",
            timeout_keep_alive=int(limits.idle_seconds), timeout_graceful_shutdown=int(limits.linger_seconds) + 1,
            h11_max_incomplete_event_size=limits.header_bytes,
        ))  # fmt: skip
        self._guard, self._started = guard, started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._started()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """SIGTERM and Ctrl-C. uvicorn would raise them again in the end, and the exit code would be no 0."""
        if self._guard.draining:
            self.should_exit = self.force_exit = True
        self._guard.draining = True

    async def on_tick(self, counter: int) -> bool:
        if self._guard.draining and not self._guard.running:
            self.should_exit = True
        return await super().on_tick(counter)
