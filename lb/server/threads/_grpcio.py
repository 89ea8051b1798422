"""Every private name of grpcio that `lb.server.threads` uses, for one purpose. A test fails when one of them moves.

A server with threads can end a call from outside of its handler only with CANCELLED (``context.cancel()``), which
clients take for something else than a handler that takes too long. So `end` sends a status as grpcio does for a handler
that aborts, and then lets grpcio believe that the client has gone: what the handler still does leads to nothing.

Only `Limits.timeout_s` needs this.
"""

from __future__ import annotations

from typing import Any

import grpc

from lb.aio._grpcio import demand, moved

try:
    from grpc import _server as grpcio_server
    from grpc._cython import cygrpc

    NAMES: dict[Any, str] = {
        grpcio_server: "_abort _is_rpc_state_active _CANCELLED _RPCState _unary_response_in_pool"
        " _stream_response_in_pool",
        cygrpc.StatusCode: "deadline_exceeded",
    }
    """What every release must have."""
except (ImportError, AttributeError) as error:
    raise moved([str(error)]) from error

demand(NAMES)

_JOBS = (grpcio_server._unary_response_in_pool, grpcio_server._stream_response_in_pool)


def end(arguments: tuple[Any, ...], details: str) -> None:
    """End a call with DEADLINE_EXCEEDED while its handler goes on; nothing, if it has ended.

    ``arguments`` are those of grpcio's job: its function, the event, the state.
    """
    if len(arguments) < 3 or arguments[0] not in _JOBS:
        return
    event, state = arguments[1], arguments[2]
    with state.condition:
        if not grpcio_server._is_rpc_state_active(state):
            return
        state.code, state.details = grpc.StatusCode.DEADLINE_EXCEEDED, details.encode()
        grpcio_server._abort(state, event.call, cygrpc.StatusCode.deadline_exceeded, b"")
        state.client = grpcio_server._CANCELLED
        state.condition.notify_all()  # who waits for the next request
