"""Answers only to the server's own host names, against DNS rebinding.

A web page on evil.example can have its name resolve to 127.0.0.1. The browser then takes this server for the
page's own origin, and the page may read every response. The Host header still says evil.example.
"""

import ipaddress
import re
from collections.abc import Collection

from starlette.types import ASGIApp, Receive, Scope, Send

from octavo.server.api_error import ApiError
from octavo.server.limits import Limits
from octavo.server.middleware.asgi import header, refuse

_LOCAL = ("localhost", "127.0.0.1", "::1")


class Hosts:
    """Answers 400 if the Host header is not one of the server's names.

    A server that listens on all addresses accepts any address.

    Starlette's TrustedHostMiddleware splits at the first colon, so it misreads `[::1]:8000`.
    """

    def __init__(self, app: ASGIApp, limits: Limits, host: str, allow_hosts: Collection[str] = ()) -> None:
        self._app, self._limits = app, limits
        self._names = {name.lower().rstrip(".") for name in (*_LOCAL, host, *allow_hosts)}
        self._any_address = _is_address(host) and ipaddress.ip_address(host).is_unspecified

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        host = header(scope, b"host")
        if self._is_allowed(host):
            await self._app(scope, receive, send)
        else:
            message = f"this server does not answer for the host {host[:80]!r} (--allow-host adds a name)"
            await refuse(ApiError(400, message), self._limits, receive, send)

    def _is_allowed(self, host: str) -> bool:
        match = re.fullmatch(r"(?:\[([0-9a-fA-F:.]+)\]|([^:\[\]]+))(?::\d{1,5})?", host)
        if not match:
            return False
        name = (match[1] or match[2]).lower().rstrip(".")
        return name in self._names or (self._any_address and _is_address(name))  # an address cannot be rebound


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
