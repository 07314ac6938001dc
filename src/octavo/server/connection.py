"""HTTP on the wire: uvicorn's server and its HTTP/1.1 protocol, made safe against clients that never finish.

Every state of a connection has a deadline: headers that do not arrive, a response that is not read, an idle client.
A malformed request gets an error response in the API's form before the connection is closed.

uvicorn has no hooks for this, so this module extends its protocol class and uses undocumented names of uvicorn, which
`UVICORN_INTERNALS` lists. pyproject.toml therefore allows one minor release of uvicorn, and
tests/test_serve_connection.py checks the names. To allow the next release, read the changes to `h11_impl.py` and
`server.py`, run the tests in tests/test_serve_*.py, and raise the bound.
"""

import asyncio
import functools
import socket
import sys
from collections.abc import Callable
from http import HTTPStatus
from types import FrameType

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from octavo.server.api_error import ApiError
from octavo.server.limits import Limits
from octavo.server.middleware.drain import Drain

UVICORN_INTERNALS = {
    "H11Protocol": ("send_400_response", "on_response_complete", "shutdown", "_unset_keepalive_if_required"),
    "H11Protocol instance": ("loop", "transport", "connections", "conn", "cycle", "flow", "scope"),
    "RequestResponseCycle instance": (
        "response_started",
        "response_complete",
        "disconnected",
        "waiting_for_100_continue",
        "message_event",
        "more_body",
    ),
    "Server": ("startup", "handle_exit", "on_tick"),
}

# How many connections asyncio accepts in an iteration of its loop. It may accept three times as many more before those
# that are refused are closed.
ACCEPTED_AT_ONCE = 32
_PROBE_SECONDS = 0.02  # between two checks whether a client that sends no more is still there


class Connection(H11Protocol):
    """A client's connection, in one of four states, each with a deadline.

    `head`: the headers of a request are arriving; `response`: the application is computing and sending the response;
    `idle`: the response is complete; `closing`: an error has been sent, and the client may still read it.
    """

    def __init__(self, *arguments: object, limits: Limits, **options: object) -> None:
        super().__init__(*arguments, **options)  # type: ignore[arg-type]
        self._limits = limits
        self._timer: asyncio.TimerHandle | None = None
        self._probe_timer: asyncio.TimerHandle | None = None
        self._unread_timer: asyncio.TimerHandle | None = None
        self._state = ""
        self._half_closed = False  # the client will send nothing more

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        # uvicorn parses all data of one read before the event loop continues. asyncio reads up to 256 KiB by default:
        # with chunked transfer encoding and chunks of one byte, parsing that much takes 0.3 s.
        transport.max_size = 16 << 10  # type: ignore[attr-defined]
        refused = len(self.connections) - self._limits.connections
        if refused > self._limits.refused_connections:
            self.transport.abort()
        elif refused > 0:
            self._end(ApiError(429, "too many connections: try again in a moment", code="rate_limit_exceeded"))
        else:
            self._enter("head")

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._timer, self._probe_timer, self._unread_timer):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)
        self._unset_keepalive_if_required()  # uvicorn leaves the timer, and so the connection, if the client reset it

    def eof_received(self) -> bool:  # type: ignore[override]
        """The client closes its sending side. Returns whether the connection stays open.

        The client is gone, or it waits for the response (`nc -N`). TCP does not distinguish the two until something is
        sent. So a client whose response has not started gets `100 Continue`, which HTTP/1.1 allows at any time before a
        response; if the client is gone, its machine resets the connection.
        """
        self._half_closed = (
            self._state == "response"
            and not self.cycle.response_started
            and not self.cycle.more_body
            and self.scope["http_version"] == "1.1"
        )
        if self._half_closed and self._probe_timer is None:
            self._probe_timer = self.loop.call_later(_PROBE_SECONDS, self._probe, True)
        return self._half_closed

    def _probe(self, is_first: bool = False) -> None:
        """Find out whether a client that sends no more is still there."""
        if self._state != "response" or self.cycle.response_started:
            return
        if self.transport.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self.transport.abort()
            return
        if is_first:
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self._probe_timer = self.loop.call_later(_PROBE_SECONDS, self._probe)

    def data_received(self, data: bytes) -> None:
        if self._state == "closing":
            return
        if self._state == "idle":
            self._enter("head")
        super().data_received(data)
        self._enter_response()

    def pause_writing(self) -> None:
        """Called by the transport when it has more to send than it should keep."""
        super().pause_writing()
        self._require_reading()

    def resume_writing(self) -> None:
        """Called by the transport when it has sent most of that."""
        super().resume_writing()
        if self._unread_timer is not None:
            self._unread_timer.cancel()

    def _require_reading(self, unread: int | None = None) -> None:
        """Abort a client that reads nothing: the texts that it does not wait for would keep their slots."""
        size = self.transport.get_write_buffer_size()
        if unread is not None and size >= unread:
            self.transport.abort()
        else:
            self._unread_timer = self.loop.call_later(self._limits.idle_seconds, self._require_reading, size)

    def on_response_complete(self) -> None:
        self._enter("idle")
        super().on_response_complete()  # which starts the next request if it has already arrived
        self._enter_response()
        if self._half_closed and self._state == "idle":
            self.transport.close()

    def shutdown(self) -> None:
        if self._state == "closing":
            self.transport.close()
        else:
            super().shutdown()

    def send_400_response(self, msg: str) -> None:
        """Called by uvicorn in an `except` block, for headers that are too large and for bytes that are not HTTP."""
        if getattr(sys.exception(), "error_status_hint", 400) == 431:
            self._end(ApiError(431, f"the headers are larger than {self._limits.header_bytes:,} bytes"))
        else:
            self._end(ApiError(400, "this is not HTTP/1.1"))

    def _enter_response(self) -> None:
        """Enter `response` if a request has arrived, and keep reading."""
        if self._state in ("head", "idle") and self.cycle is not None and not self.cycle.response_complete:
            self._enter("response")
        # uvicorn reads no more if the beginning of another request arrives during the response. A reset of a connection
        # that is not read would be noticed only at the end of the response.
        if self._state == "response" and not self.cycle.more_body:
            following, _ = self.conn.trailing_data
            if len(following) <= self._limits.header_bytes:
                self.flow.resume_reading()

    def _enter(self, state: str) -> None:
        """Enter a state: its deadline replaces that of the previous state."""
        limits, abort = self._limits, self.transport.abort
        deadlines: dict[str, tuple[float, Callable[[], None]]] = {
            "head": (limits.header_seconds, self._refuse_slow_headers),
            "response": (limits.body_seconds + limits.request_seconds + limits.linger_seconds, abort),
            # uvicorn closes an idle connection, but then waits for a client that does not read its last response.
            "idle": (limits.idle_seconds + limits.linger_seconds, abort),
            "closing": (limits.linger_seconds, abort),
        }
        if self._timer is not None:
            self._timer.cancel()
        self._state = state
        self._timer = self.loop.call_later(*deadlines[state])

    def _refuse_slow_headers(self) -> None:
        seconds = self._limits.header_seconds
        self._end(ApiError(408, f"the headers were not complete after {seconds:g} seconds"))

    def _end(self, error: ApiError) -> None:
        """Send an error without the application, and at first close only the write side of the connection.

        Closing all of it resets the connection if the client has sent more, and the client could lose the response.
        """
        self._unset_keepalive_if_required()
        self._enter("closing")
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.waiting_for_100_continue = False  # nothing can be sent after the error
            self.cycle.message_event.set()
            if self.cycle.response_started:  # a part of a response was sent, so no other can follow
                self.transport.abort()
                return
        body, status = error.content, HTTPStatus(error.status)
        headers = {"content-type": "application/json", "content-length": str(len(body)), "connection": "close"}
        lines = [f"HTTP/1.1 {status.value} {status.phrase}"]
        lines += [f"{name}: {value}" for name, value in (headers | error.headers).items()]
        self.transport.write("\r\n".join([*lines, "", ""]).encode() + body)
        try:
            self.transport.write_eof()
        except OSError:  # the client has reset the connection meanwhile
            self.transport.abort()


class Server(uvicorn.Server):
    """uvicorn's server. On a first SIGTERM or Ctrl-C it finishes the requests in progress; on a second it stops."""

    def __init__(
        self, app: ASGIApp, drain: Drain, limits: Limits, on_started: Callable[[], object] = lambda: None
    ) -> None:
        config = uvicorn.Config(
            app,
            http=functools.partial(Connection, limits=limits),  # type: ignore[arg-type]
            ws="none",
            loop="asyncio",
            lifespan="off",
            interface="asgi3",
            proxy_headers=False,
            server_header=False,
            access_log=False,
            log_config=None,
            log_level="error",
            backlog=ACCEPTED_AT_ONCE,  # uvicorn's default is 2048
            timeout_keep_alive=int(limits.idle_seconds),
            timeout_graceful_shutdown=int(limits.linger_seconds) + 1,
            h11_max_incomplete_event_size=limits.header_bytes,
        )
        super().__init__(config)
        self._drain, self._on_started = drain, on_started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for listener in sockets or ():
            listener.listen()  # asyncio has also let the system queue only `backlog` connections
        self._on_started()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Drain. uvicorn's method would raise the signal again at the end, and the exit code would not be 0."""
        if self._drain.draining:
            self.should_exit = self.force_exit = True
        self._drain.draining = True

    async def on_tick(self, counter: int) -> bool:
        if self._drain.draining and not self._drain.running:
            self.should_exit = True
        return await super().on_tick(counter)
