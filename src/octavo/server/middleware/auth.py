"""API keys, sent as `Authorization: Bearer KEY`."""

import hashlib
import hmac
import re
from collections.abc import Collection

from starlette.types import ASGIApp, Receive, Scope, Send

from octavo.server.api_error import ApiError
from octavo.server.limits import Limits
from octavo.server.middleware.asgi import PROBES, header, refuse

_PAGE = re.compile(r"/|/docs|/favicon\.ico|/page/.*", re.DOTALL)  # files without data of a model


class ApiKeys:
    """Answers 401 without a valid key, unless the server has no keys. Probes and the page's files need none.

    Sets `scope["state"]["cache_scope"]`, a name for the key: cached prefixes are not shared between
    keys, because response times would reveal other clients' prompts.
    """

    def __init__(self, app: ASGIApp, limits: Limits, keys: Collection[str] = ()) -> None:
        self._app, self._limits = app, limits
        self._digests = [hashlib.sha256(key.encode()).digest() for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] not in PROBES and not _PAGE.fullmatch(scope["path"]):
            authorization = header(scope, b"authorization")
            cache_scope = self._cache_scope(authorization)
            if cache_scope is None:
                reason = "invalid API key" if authorization else "no API key: send Authorization: Bearer KEY"
                error = ApiError(401, reason, code="invalid_api_key", headers={"www-authenticate": "Bearer"})
                await refuse(error, self._limits, receive, send)
                return
            scope.setdefault("state", {})["cache_scope"] = cache_scope
        await self._app(scope, receive, send)

    def _cache_scope(self, authorization: str) -> str | None:
        """The scope of a valid key; None for an invalid one."""
        if not self._digests:
            return ""
        scheme, _, value = authorization.partition(" ")
        key = value.strip().encode("latin-1")
        digest = hashlib.sha256(key).digest()
        # Every key is compared, in constant time: the time of the response says nothing about a key.
        matches = [hmac.compare_digest(digest, each) for each in self._digests]
        if scheme.lower() != "bearer" or not any(matches):
            return None
        return hashlib.sha256(b"cache scope " + key).hexdigest()
