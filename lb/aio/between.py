"""What a call waits for between its attempts: a pause, a change of the set, or a place in line."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import grpc

from lb.aio import _grpcio
from lb.aio._grpcio import AioRpcStatus
from lb.aio.records import log_raised
from lb.aio.result import NO_METADATA
from lb.core.call import Action, Done, Failed, Pause, Queued

if TYPE_CHECKING:
    from lb.aio.execution import Execution

_CANCELLED: int = grpc.StatusCode.CANCELLED.value[0]


async def pass_time(call: Execution, action: Action) -> Action | None:
    """Wait as told and ask again; None when the call ended instead."""
    record = call.record
    if isinstance(action, Pause):
        await asyncio.sleep(action.delay_s)
    if isinstance(action, (Pause, Queued)) and call.channel.over():
        # Closing cancels what the channel knows; an interceptor may have made calls that it does not.
        call.fail(AioRpcStatus(_CANCELLED, _grpcio.CHANNEL_CLOSED, (), ""), NO_METADATA)
        return None
    if isinstance(action, Pause):
        return record.resume(time.monotonic())
    if isinstance(action, Queued) and action.line_s is not None:
        return await _in_line(call, action.line_s)
    if isinstance(action, Queued):
        if await call.channel.changed(record.deadline):
            return record.resume(time.monotonic())
        action = record.expired(time.monotonic())
    assert isinstance(action, (Failed, Done))
    log_raised(call.channel, action)
    if isinstance(action, Failed):
        tried = record.tried()
        status = AioRpcStatus(action.code.value[0], action.details, (), f"tried: {tried}" if tried else "")
        call.fail(status, NO_METADATA)
        return None
    # From `resume` after a failed attempt: nothing is left to try.
    call.fail(*call.last)
    return None


async def _in_line(call: Execution, line_s: float) -> Action | None:
    """Wait for a place below the concurrency limit; what follows."""
    deadline = call.record.deadline
    since = time.monotonic()
    ticket = None
    while (ticket := await call.channel.place(since, line_s, deadline, ticket)) is not None:
        action = call.record.resume(time.monotonic())
        if not isinstance(action, Queued) or action.line_s is None:
            call.channel.next_in_line()  # there may be room for more than one
            return action
    now = time.monotonic()
    if deadline is not None and now >= deadline:
        return call.record.expired(now)
    return call.record.refused()
