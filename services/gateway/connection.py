"""One HTTP connection of the gateway, by uvicorn, whose every state has an end.

=============  ============================================  ===============================================
state          what is waited for                            ends
=============  ============================================  ===============================================
HEAD           the rest of a request's head                  ``HEAD_S`` after its first byte, or the connect
(idle)         the next request                              uvicorn's keep-alive, 5 s
ANSWER         the body, and the application                 `services.gateway.limits.Bounds`, ``read_body``
LEFTOVER       a body that nobody reads: the answer is out   ``LEFTOVER_S`` after the answer
CLOSING        the client to read what was written           ``FLUSH_S`` without a byte taken; then aborted
=============  ============================================  ===============================================

At most ``MOST_CONNECTIONS`` are open. One more closes the one that has waited longest for a request or for a
leftover body; where all are busy, it is closed itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import socket
import struct
from collections.abc import Iterator
from math import inf
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from services.gateway.limits import LONGEST_S

MOST_CONNECTIONS = 1024
HEAD_S = 10.0
LEFTOVER_S = 5.0
FLUSH_S = 5.0
_FLUSH_MOST_S = LONGEST_S
_LOOK_EVERY_S = 0.5


class State(enum.Enum):
    """See the table above."""

    HEAD = "head"
    ANSWER = "answer"
    LEFTOVER = "leftover"
    CLOSING = "closing"


class Connection(H11Protocol):
    """uvicorn's HTTP/1.1, bounded in each state."""

    _timer: asyncio.TimerHandle | None = None
    _state = State.HEAD
    _since = 0.0
    _begun = True
    _unread = 0
    _closing_since = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Make room for it, and start the clock: a client that connects has something to say."""
        super().connection_made(transport)
        # asyncio sets it only where the listener was made with IPPROTO_TCP; without it an answer's body waits
        # for the client's delayed acknowledgement of its head (40 ms).
        if (sock := transport.get_extra_info("socket")) is not None and sock.family in (
            socket.AF_INET,
            socket.AF_INET6,
        ):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._since = self.loop.time()
        if len(self.connections) > MOST_CONNECTIONS:
            self._make_room()
        self._look()

    def data_received(self, data: bytes) -> None:
        """Note the state that the data leads to."""
        super().data_received(data)
        self._note()
        if not self._begun:
            self._begun, self._since = True, self.loop.time()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clock."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        super().connection_lost(exc)

    def _now(self) -> State:
        if self.transport.is_closing():
            return State.CLOSING
        if self.conn.their_state is h11.IDLE:
            return State.HEAD
        if self.cycle is not None and self.cycle.response_complete:
            return State.LEFTOVER
        return State.ANSWER

    def _note(self) -> None:
        """See whether the state is another one by now."""
        state = self._now()
        if state is self._state:
            return
        self._state, self._since = state, self.loop.time()
        if state is State.HEAD:
            self._begun = False  # uvicorn's keep-alive watches until the next byte
        elif state is State.CLOSING:
            self._unread = self.transport.get_write_buffer_size()
            self._closing_since = self._since

    def _look(self) -> None:
        """Look at the clock; again after a while."""
        self._note()
        waited = self.loop.time() - self._since
        limits_s = {State.HEAD: HEAD_S if self._begun else inf, State.LEFTOVER: LEFTOVER_S}
        if waited >= limits_s.get(self._state, inf):
            self.transport.close()
        elif self._state is State.CLOSING and waited >= FLUSH_S:
            unread = self.transport.get_write_buffer_size()
            if unread >= self._unread or self.loop.time() - self._closing_since >= _FLUSH_MOST_S:
                self._reset()
            self._unread, self._since = unread, self.loop.time()
        self._timer = self.loop.call_later(min(_LOOK_EVERY_S, HEAD_S, LEFTOVER_S, FLUSH_S), self._look)

    def _make_room(self) -> None:
        waiting = [
            other
            for other in self.connections
            if isinstance(other, Connection) and other is not self and other._now() in (State.HEAD, State.LEFTOVER)
        ]
        (min(waiting, key=lambda other: other._since) if waiting else self)._reset()

    def _reset(self) -> None:
        """Close it at once, also in the kernel, which else keeps what the client does not read for minutes."""
        if (sock := self.transport.get_extra_info("socket")) is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()


class Server(uvicorn.Server):
    """uvicorn without its signal handlers: the order of leaving is the process's (`services.gateway.__main__`)."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture nothing."""
        yield


def config(app: Any, *, drain_s: float) -> uvicorn.Config:
    """How the gateway runs uvicorn; requests in flight have ``drain_s`` seconds when it stops."""
    return uvicorn.Config(
        app,
        http=Connection,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        # Else a request that was pipelined begins in the trace of the one before it.
        reset_contextvars=True,
        timeout_graceful_shutdown=max(1, round(drain_s)),
    )
