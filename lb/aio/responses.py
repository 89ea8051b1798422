"""A stream of responses: an attempt of it ends when its status arrives, for which nobody may be waiting.

So the status calls back (`_status_arrived`), and what follows runs in a task of its own. Until the caller sees
something of an attempt, another one may take its place; from then on messages go past this file.
"""

from __future__ import annotations

import asyncio
import functools
import time
from typing import TYPE_CHECKING, Any

from lb.aio._grpcio import EOF, headers_now
from lb.aio.attempt import CANCELLED, LiveAttempt
from lb.core.attempt import Attempt
from lb.core.call import Action

if TYPE_CHECKING:
    from lb.aio.execution import Execution
    from lb.aio.outbox import Outbox


class Responses:
    """The attempts of one call with a stream of responses."""

    __slots__ = ("_call", "_context", "_given_up", "_outbox", "_picked", "_request", "_retrying")

    def __init__(self, call: Execution, request: bytes | None, outbox: Outbox | None, context: tuple[Any, ...]) -> None:
        """One ``request`` (None: it was not serialized; grpcio's layer has told that), or an ``outbox`` of them."""
        self._call = call
        self._request = request
        self._outbox = outbox
        self._context = context
        self._given_up: LiveAttempt | None = None
        """The attempt that another one follows, until that begins."""
        self._picked: Attempt | None = None
        """The attempt that is to begin in `_retrying`."""
        self._retrying: asyncio.Task[None] | None = None

    async def run(self, action: Action | None) -> None:
        """Returns when an attempt's headers are here, or the call has ended."""
        await self._open(action)
        while self._retrying is not None and not self._retrying.done():
            await asyncio.wait((self._retrying,))

    def stop(self) -> None:
        """The call was cancelled."""
        if self._retrying is not None:
            self._retrying.cancel()
        self._give_picked_back()

    def _give_picked_back(self) -> None:
        picked, self._picked = self._picked, None
        if picked is not None:
            LiveAttempt(self._call, picked).give_back(CANCELLED, time.monotonic())

    async def _open(self, action: Action | None) -> None:
        """Bring an attempt so far that its headers arrived, or end the call."""
        call = self._call
        while not isinstance(action, Attempt):
            if action is None:
                return
            action = await call.wait(action)
        try:
            live = call.hold(action)
            lower = live.open_stream(functools.partial(self._status_arrived, live))
            call.result.attempt_begins()
            headers = live.headers()
            if self._outbox is None:
                call.await_response(lower)
                await lower.initiate_unary_stream(self._request, headers, *self._context)
            else:
                self._outbox.attach(lower)
                await lower.initiate_stream_stream(headers, self._outbox.metadata_sent, *self._context)
        except BaseException as error:
            call.abandon(error)
            raise
        if headers_now(lower):
            if live is call.live and live is not self._given_up:
                call.commit(live)
        else:
            # A status without headers hands over empty ones first, and itself a moment later.
            await asyncio.sleep(0)

    def _status_arrived(self, live: LiveAttempt, _: Any) -> None:
        """An attempt ended: for good, or to be followed by another."""
        call = self._call
        if live is not call.live:
            return
        action = call.answered(live)
        if action is not None:
            self._given_up = live
            self._picked = action if isinstance(action, Attempt) else None
            self._retrying = asyncio.get_running_loop().create_task(self._open_again(action))

    async def _open_again(self, action: Action) -> None:
        if self._call.done():
            self._give_picked_back()
            return
        self._picked = None
        try:
            await self._open(action)
        except Exception as error:  # noqa: BLE001  # nobody waits for this task's own result: the call must not hang
            if not self._call.done():
                self._call.abandon(error)

    async def receive_first(self) -> Any:
        """The next message of a call of which nothing was shown yet: another attempt may have to bring it."""
        call = self._call
        while True:
            live = call.live
            if live is None or live.lower is None:  # no attempt was ever made, and none will be
                return EOF
            message = await live.lower.receive_serialized_message()
            if message is not EOF:
                if live is not call.live or live is self._given_up:
                    continue  # of an attempt that was given up while the message was on its way here
                if not call.committed:
                    call.commit(live)
                return message
            if not call.committed and not call.done():
                await live.lower.status()
            if call.committed or call.done() or self._retrying is None:
                return EOF
            await asyncio.wait((self._retrying,))
            if live is call.live:
                return EOF
