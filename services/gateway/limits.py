"""What bounds a request from outside: how many at once, and how long one may take in all.

uvicorn bounds neither; ``read_body`` bounds the body, and `services.gateway.connection` the connection around it.
"""

from __future__ import annotations

import asyncio
import json

from starlette.types import ASGIApp, Message, Receive, Scope, Send

MOST_AT_ONCE = 256
LONGEST_S = 30.0

_FULL = json.dumps(
    {
        "type": "about:blank",
        "title": "Service Unavailable",
        "status": 503,
        "detail": "too many requests at once",
    }
).encode()


class Limits:
    """Admits at most ``most`` requests at once (``/healthz`` aside), each for ``longest_s`` seconds at most."""

    def __init__(self, app: ASGIApp, *, most: int = MOST_AT_ONCE, longest_s: float = LONGEST_S) -> None:
        self._app = app
        self._most = most
        self._longest_s = longest_s
        self._idle = asyncio.Event()
        self._idle.set()
        self.in_flight = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the application within the bounds."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if self.in_flight >= self._most and scope["path"] != "/healthz":
            await _answer_full(send)
            return
        self.in_flight += 1
        self._idle.clear()
        try:
            async with asyncio.timeout(self._longest_s):
                await self._app(scope, receive, send)
        except TimeoutError:
            # The handlers have deadlines of their own: whoever is still here does not read its answer.
            # Returning without having ended it makes uvicorn close the connection.
            return
        finally:
            self.in_flight -= 1
            if not self.in_flight:
                self._idle.set()

    async def idle(self) -> None:
        """Wait until no request is in flight."""
        await self._idle.wait()


async def _answer_full(send: Send) -> None:
    headers = [
        (b"content-type", b"application/problem+json"),
        (b"content-length", str(len(_FULL)).encode()),
        (b"retry-after", b"1"),
    ]
    start: Message = {"type": "http.response.start", "status": 503, "headers": headers}
    await send(start)
    await send({"type": "http.response.body", "body": _FULL})
