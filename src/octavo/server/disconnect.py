"""Waiting for a result only as long as the client waits for it."""

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from fastapi import Request

T = TypeVar("T")


async def unless_disconnected(request: Request, result: Awaitable[T]) -> T | None:
    """Await a result; if the client disconnects first, cancel it and return None."""
    future = asyncio.ensure_future(result)
    disconnected = asyncio.ensure_future(_wait_for_disconnect(request))
    try:
        await asyncio.wait((future, disconnected), return_when=asyncio.FIRST_COMPLETED)
        return future.result() if future.done() else None
    finally:
        future.cancel()
        disconnected.cancel()


async def _wait_for_disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
