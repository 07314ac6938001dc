"""Error responses, all in OpenAI's form."""

import json
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any

from fastapi.responses import Response

REQUEST_ID: ContextVar[str | None] = ContextVar("request_id", default=None)  # of the request that is being answered


class ApiError(Exception):
    """A response that is not a success. `code` and `param` are for programs, `message` and `hint` for people."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        hint: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code, self.hint = status, message, param, code, hint
        self.headers = dict(headers or {})
        if status in (429, 503):
            self.headers.setdefault("retry-after", "1")

    @property
    def body(self) -> dict[str, Any]:
        """OpenAI's error body, and Octavo's hint and the id of the request if there are any."""
        types = {429: "rate_limit_error", 500: "server_error", 503: "server_error"}
        kind = types.get(self.status, "invalid_request_error")
        error = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        more = {"hint": self.hint, "request_id": REQUEST_ID.get()}
        return {"error": error | {name: value for name, value in more.items() if value}}

    @property
    def content(self) -> bytes:
        """The body as JSON, in ASCII: a message may quote an unpaired surrogate, which UTF-8 cannot encode."""
        return json.dumps(self.body).encode()

    @property
    def response(self) -> Response:
        return Response(self.content, self.status, self.headers, "application/json")
