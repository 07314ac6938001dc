"""API keys, sent as `Authorization: Bearer KEY`, and the client that a key belongs to."""

import hashlib
import hmac
import re
from collections.abc import Mapping

from starlette.types import ASGIApp, Receive, Scope, Send

from octavo.server.api_error import ApiError
from octavo.server.client import NO_KEY, Client, RateLimits
from octavo.server.limits import Limits
from octavo.server.metrics import Metrics
from octavo.server.middleware.asgi import PROBES, header, refuse

_PAGE = re.compile(r"/|/docs|/favicon\.ico|/page/.*", re.DOTALL)  # files without data of a model


class ApiKeys:
    """Answers 401 without a valid key, unless the server has no keys. Probes and the page's files need none.

    Sets `scope["state"]["client"]`.
    """

    def __init__(
        self, app: ASGIApp, limits: Limits, keys: Mapping[str, str], rate_limits: RateLimits, metrics: Metrics
    ) -> None:
        """`keys` maps names to API keys."""
        self._app, self._limits = app, limits
        self._everybody = Client(NO_KEY, "", rate_limits, metrics)
        self._clients = [
            (_digest(key), Client(name, _digest(f"cache scope {key}").hex(), rate_limits, metrics))
            for name, key in keys.items()
        ]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        authorization = header(scope, b"authorization")
        client = self._find_client(authorization) if self._clients else self._everybody
        if client is None and scope["path"] not in PROBES and not _PAGE.fullmatch(scope["path"]):
            reason = "invalid API key" if authorization else "no API key: send Authorization: Bearer KEY"
            error = ApiError(401, reason, code="invalid_api_key", headers={"www-authenticate": "Bearer"})
            await refuse(error, self._limits, receive, send)
            return
        scope.setdefault("state", {})["client"] = client or self._everybody
        await self._app(scope, receive, send)

    def _find_client(self, authorization: str) -> Client | None:
        """The client with the key of a header; None if it is not valid."""
        scheme, _, key = authorization.partition(" ")
        if scheme.lower() != "bearer":
            return None
        digest = _digest(key.strip())
        # Every key is compared, in constant time: the time of the response says nothing about a key.
        matches = [client for each, client in self._clients if hmac.compare_digest(digest, each)]
        return matches[0] if matches else None


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("latin-1", "replace")).digest()
