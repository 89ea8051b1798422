"""What bounds a request from outside: how many at once, and how long one may take in all.

uvicorn bounds neither the head of a request nor the body (``read_body`` bounds that) nor the whole,
and its own limit on concurrency answers plain text.
"""

from __future__ import annotations

import asyncio
import json

import h11
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

MOST_AT_ONCE = 256
LONGEST_S = 30.0
HEAD_S = 10.0

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
        """Runs the application within the bounds."""
        if scope["type"] != "http" or scope["path"] == "/healthz":
            await self._app(scope, receive, send)
            return
        if self.in_flight >= self._most:
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
        """Waits until no request is in flight."""
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


class HeadDeadline(H11Protocol):
    """uvicorn's HTTP/1.1, which closes a connection whose request has no complete head after ``HEAD_S`` seconds."""

    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Starts the clock: who connects has something to say."""
        super().connection_made(transport)
        self._watch_head()

    def data_received(self, data: bytes) -> None:
        """Starts the clock with the first bytes of a head, and stops it with the last."""
        super().data_received(data)
        self._watch_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stops the clock."""
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
        super().connection_lost(exc)

    def _watch_head(self) -> None:
        incomplete = self.conn.their_state in (h11.IDLE,)
        if incomplete and self._head_timer is None:
            self._head_timer = self.loop.call_later(HEAD_S, self._close_headless)
        elif not incomplete and self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _close_headless(self) -> None:
        self._head_timer = None
        if self.conn.their_state is h11.IDLE and not self.transport.is_closing():
            self.transport.close()
