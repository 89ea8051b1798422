"""`attempts`: where a call went, whichever shell made it. Above both, since it knows the calls and errors of both."""

from __future__ import annotations

from typing import Any

import grpc

from lb.aio.calls import logical_call
from lb.core import checks
from lb.core.attempt import Attempt
from lb.sync._grpcio import InactiveRpcError, lower_call
from lb.sync.blocking import BlockingCall
from lb.sync.calls import Handle, LoopCall

# What a call may give that is not ours, or did not get as far as an attempt.
_FROM_A_CALL = (grpc.RpcContext, grpc.aio.RpcContext, grpc.Future, BaseException)


def attempts(call: Any) -> list[Attempt]:
    """The attempts of a call that was made through a channel of `lb`, in order: endpoint, outcome and reason of each.

    ``call`` is what the stub returned, with asyncio or threads, also under interceptors: a call object, a future, or
    what ``with_call`` returns. The ``grpc.RpcError`` that was raised will do as well. The list is empty if nothing was
    sent (yet), or if the call was made through another library's channel.

    Raises:
        TypeError: ``call`` is not a call, but a response, for example.
    """
    if isinstance(call, tuple) and len(call) == 2:  # (response, call)
        call = call[1]
    lower = lower_call(call)
    if isinstance(lower, Handle):
        lower = lower.held
    if isinstance(lower, (BlockingCall, LoopCall)):
        return lower.attempts
    logical = logical_call(call)
    if logical is not None:
        return list(logical.record.attempts)
    if isinstance(call, (grpc.aio.AioRpcError, InactiveRpcError)):
        return list(getattr(call.debug_error_string(), "attempts", ()))
    if not isinstance(call, _FROM_A_CALL):
        raise TypeError(
            f"attempts() was given {checks.shown(call)}; expected what a call gave: its call object (of asyncio: "
            "call = stub.Method(request); of threads: _, call = stub.Method.with_call(request), or .future(request), "
            "or a stream), or the grpc.RpcError that it raised"
        )
    return []
