"""Who may ask what, and for how long: around the application, before it sees anything.

A request passes here only with a Host that is ours (else any web page could reach this server under a name of its
own: DNS rebinding), from no web page that wasn't named, with a key where there are keys, and with its whole body,
which is bounded and was in on time. Every answer gets the headers that keep a browser from misusing it.
"""

import asyncio
import contextlib
import hashlib
import hmac
import ipaddress
import re
import secrets
from collections.abc import Collection, Iterable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from octavo.server.limits import Limits
from octavo.server.metrics import Metrics
from octavo.server.protocol import ApiError

PROBES = ("/health", "/ready")  # open to all, and answered to the last
_PAGE = re.compile(r"/|/favicon\.ico|/page/.*", re.DOTALL)  # open to all: files that everybody has who has Octavo
_LOCAL = ("localhost", "127.0.0.1", "::1")
_HEADERS = {
    "x-content-type-options": "nosniff",
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
}
_PREFLIGHT = {
    "access-control-allow-methods": "GET, POST",
    "access-control-allow-headers": "authorization, content-type",
    "access-control-max-age": "600",
}


class Guard:
    """Pure ASGI, so that it can refuse a body without reading it. `running` counts the requests let through."""

    def __init__(self, app: ASGIApp, limits: Limits, metrics: Metrics, host: str, allow_hosts: Collection[str] = (),
                 allow_origins: Collection[str] = (), keys: Iterable[str] = ()) -> None:  # fmt: skip
        self.app, self.limits = app, limits
        self.running = 0
        self.draining = False  # nothing new is begun
        self._metrics = metrics
        self._hosts = {each.lower().rstrip(".") for each in (*_LOCAL, host, *allow_hosts)}
        self._any_address = ipaddress.ip_address(host).is_unspecified if _is_address(host) else False
        self._origins = {each.rstrip("/") for each in allow_origins}
        self._keys = [hashlib.sha256(key.encode()).digest() for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] == "http", "no lifespan and no web sockets are configured"
        status = 499  # the client left first

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                own = _HEADERS | {"x-request-id": f"req_{secrets.token_hex(12)}"} | self._cors(scope)
                said = {name for name, _ in message["headers"]} - {b"vary"}  # by the page, which must be let run
                added = ((name.encode(), value.encode()) for name, value in own.items())
                message["headers"] = [*message["headers"], *(each for each in added if each[0] not in said)]
            await send(message)

        try:
            await self._pass(scope, receive, answer)
        finally:
            self._metrics.answered(getattr(scope.get("route"), "path", "other"), status)

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            self._admit(scope)
        except ApiError as refused:
            await _refuse(refused, self.limits.linger_seconds, receive, send)
            return
        self.running += 1
        try:
            await self._answer(scope, receive, send)
        except ApiError as refused:
            await _refuse(refused, self.limits.linger_seconds, receive, send)
        finally:
            self.running -= 1

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        if _is_preflight(scope):
            await send({"type": "http.response.start", "status": 204, "headers": []})
            await send({"type": "http.response.body", "body": b""})
            return
        body = await self._body(scope, receive)
        if body is None:  # the client left before the end of it
            return
        unread: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def again() -> Message:
            return unread.pop() if unread else await receive()

        await self.app(scope, again, send)

    def _admit(self, scope: Scope) -> None:
        """Raise `ApiError` for a request whose headers alone rule it out."""
        headers = scope["headers"]
        size = sum(len(name) + len(value) for name, value in headers) + len(scope["raw_path"] + scope["query_string"])
        if len(headers) > self.limits.headers or size > self.limits.header_bytes:
            raise ApiError(431, f"at most {self.limits.headers} headers, of {self.limits.header_bytes:,} bytes in all")
        host = _header(scope, b"host")
        if not self._is_ours(host):
            raise ApiError(400, f"this server doesn't answer for the host {host[:80]!r} (--allow-host names more)")
        origin = _header(scope, b"origin")
        if origin and origin not in self._origins and origin.partition("://")[2].lower() != host.lower():
            raise ApiError(403, f"web pages of {origin[:80]!r} may not use this server (--allow-origin names some)")
        if scope["path"] in PROBES or _is_preflight(scope):
            return
        if self.draining:
            raise ApiError(503, "this server is about to end", headers={"retry-after": "5"})
        if _PAGE.fullmatch(scope["path"]):
            return
        scope.setdefault("state", {})["share"] = self._share(_header(scope, b"authorization"))

    def _is_ours(self, host: str) -> bool:
        found = re.fullmatch(r"(?:\[([0-9a-fA-F:.]+)\]|([^:\[\]]+))(?::\d{1,5})?", host)
        if not found:
            return False
        name = (found[1] or found[2]).lower().rstrip(".")
        return name in self._hosts or (self._any_address and _is_address(name))  # an address can't be rebound

    def _share(self, authorization: str) -> str:
        """A word for the key, by which what is cached is kept apart. Raises `ApiError` where it isn't one of ours."""
        if not self._keys:
            return ""
        scheme, _, given = authorization.partition(" ")
        key = given.strip().encode("latin-1")
        # All keys are compared, each in the time that any other takes.
        matches = [hmac.compare_digest(hashlib.sha256(key).digest(), each) for each in self._keys]
        if scheme.lower() != "bearer" or not any(matches):
            what = "not a key of this server" if authorization else "no API key: send Authorization: Bearer KEY"
            raise ApiError(401, what, code="invalid_api_key", headers={"www-authenticate": "Bearer"})
        return hashlib.sha256(b"share " + key).hexdigest()

    async def _body(self, scope: Scope, receive: Receive) -> bytes | None:
        """The whole body; None if the client left. Raises `ApiError` where it is too large or too late."""
        too_large = ApiError(413, f"the body is larger than {self.limits.body_bytes:,} bytes")
        length = _header(scope, b"content-length")
        if length.isdigit() and int(length[:20]) > self.limits.body_bytes:
            raise too_large
        body = bytearray()
        try:
            async with asyncio.timeout(self.limits.body_seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    body += message.get("body", b"")
                    if len(body) > self.limits.body_bytes:
                        raise too_large
                    if not message.get("more_body"):
                        return bytes(body)
        except TimeoutError:
            raise ApiError(408, f"the body was not here after {self.limits.body_seconds:g} seconds") from None

    def _cors(self, scope: Scope) -> dict[str, str]:
        origin = _header(scope, b"origin")
        if origin not in self._origins:
            return {}
        return {"access-control-allow-origin": origin, "vary": "origin"} | (_PREFLIGHT if _is_preflight(scope) else {})


async def _refuse(refused: ApiError, linger_seconds: float, receive: Receive, send: Send) -> None:
    """Answer before the body is read, then read on for a moment.

    Closing a connection on unread data resets it, and the answer may be lost with it.
    """
    refused.headers["connection"] = "close"  # what is left of the body must not be taken for a request
    response = refused.response
    await send({"type": "http.response.start", "status": response.status_code, "headers": response.raw_headers})
    await send({"type": "http.response.body", "body": response.body, "more_body": True})
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(linger_seconds):
            while (message := await receive())["type"] == "http.request" and message.get("more_body"):
                pass
    await send({"type": "http.response.body", "body": b""})


def _header(scope: Scope, name: bytes) -> str:
    return next((value.decode("latin-1") for key, value in scope["headers"] if key == name), "")


def _is_preflight(scope: Scope) -> bool:
    return scope["method"] == "OPTIONS" and bool(_header(scope, b"origin")) and bool(
        _header(scope, b"access-control-request-method")
    )  # fmt: skip


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
