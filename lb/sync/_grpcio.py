"""Every private name of grpcio that `lb.sync` uses. A test fails when one of them moves.

grpcio's channel for threads has two layers, as its asyncio one has. The upper one, in Python
(``grpc._channel``), holds what users see: multicallables, call objects, futures, the threads
that consume request iterators and run callbacks. The lower one (``cygrpc.Channel`` and its
``SegregatedCall`` and ``IntegratedCall``) moves bytes: it takes batches of operations and hands
back an event for each batch. We keep the upper layer as it is and take the place of the lower
one, so code written for ``grpc.Channel`` meets grpcio's own code.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import grpc
from grpc import _channel as grpcio_channel
from grpc._cython import cygrpc

from lb.aio._grpcio import UpperChannel as AioUpperChannel

CLOSED = "Cannot invoke RPC on closed channel!"
CHANNEL_CLOSED = "Channel closed!"
CANCELLED: int = cygrpc.StatusCode.cancelled
INTERNAL: int = cygrpc.StatusCode.internal

SEND_INITIAL_METADATA: int = cygrpc.OperationType.send_initial_metadata
SEND_MESSAGE: int = cygrpc.OperationType.send_message
SEND_CLOSE: int = cygrpc.OperationType.send_close_from_client
RECEIVE_INITIAL_METADATA: int = cygrpc.OperationType.receive_initial_metadata
RECEIVE_MESSAGE: int = cygrpc.OperationType.receive_message
RECEIVE_STATUS: int = cygrpc.OperationType.receive_status_on_client
OPERATION_COMPLETE: int = cygrpc.CompletionType.operation_complete

_WAIT_FOR_READY: int = cygrpc.InitialMetadataFlags.wait_for_ready
_EXPLICIT: int = cygrpc.InitialMetadataFlags.wait_for_ready_explicitly_set

InactiveRpcError = grpcio_channel._InactiveRpcError

Options = Sequence[tuple[str, Any]]


def wait_for_ready(operation: Any) -> bool | None:
    """What the caller said, from a ``SendInitialMetadataOperation``; None: nothing."""
    flags = operation._flags
    return bool(flags & _WAIT_FOR_READY) if flags & _EXPLICIT else None


def metadata_of(operation: Any) -> tuple[Any, ...]:
    """The metadata in a ``SendInitialMetadataOperation``."""
    return tuple(operation._initial_metadata or ())


def message_of(operation: Any) -> bytes:
    """The message in a ``SendMessageOperation``."""
    message: bytes = operation._message
    return message


def send_metadata(metadata: tuple[Any, ...]) -> Any:
    """An operation that sends this, and does not wait for a connection."""
    return cygrpc.SendInitialMetadataOperation(metadata, _EXPLICIT)


def separate_options(options: Options) -> tuple[list[tuple[str, Any]], list[tuple[str, Any]]]:
    """Options for grpcio's Python layer, and those for core."""
    python, core = grpcio_channel._separate_channel_options(options)
    return list(python), list(core)


def _lowered(credentials: grpc.ChannelCredentials | None) -> Any:
    return getattr(credentials, "_credentials", credentials)


def blocking_channel(
    address: str, options: Options, credentials: grpc.ChannelCredentials | None, compression: grpc.Compression | None
) -> Any:
    """A ``cygrpc.Channel``. Its blocking calls poll in the caller's thread; it starts none."""
    arguments = grpcio_channel._augment_options(options, compression)
    return cygrpc.Channel(address.encode(), arguments, _lowered(credentials))


def watching_channel(
    address: str, options: Options, credentials: grpc.ChannelCredentials | None, compression: grpc.Compression | None
) -> grpc.aio.Channel:
    """A channel for the running loop with the very arguments of `blocking_channel`: the two share a connection."""
    epoch = ("grpc.fork_epoch", cygrpc.get_fork_epoch())  # which ``cygrpc.Channel`` adds by itself
    arguments = (*grpcio_channel._augment_options(options, compression), epoch)
    lower = cygrpc.AioChannel(address.encode(), arguments, _lowered(credentials), asyncio.get_running_loop())
    return AioUpperChannel(lower, None)  # type: ignore[abstract]  # grpcio's own class implements them


if TYPE_CHECKING:
    _Base = grpc.Channel
else:
    _Base = grpcio_channel.Channel


class UpperChannel(_Base):
    """grpcio's own upper layer over what stands for a ``cygrpc.Channel``."""

    def __init__(self, logical: Any, target: str, python_options: Options) -> None:
        # Not super().__init__: it would open a core channel.
        self._single_threaded_unary_stream = grpcio_channel._DEFAULT_SINGLE_THREADED_UNARY_STREAM
        self._process_python_options(python_options)  # type: ignore[attr-defined]  # the stubs know public names only
        self._channel = logical
        self._target = target
        # Closes what stands for the core channel once neither the channel nor a stub of it is left.
        self._call_state = grpcio_channel._ChannelCallState(logical)
        self._connectivity_state = grpcio_channel._ChannelConnectivityState(logical)

    def _close(self) -> None:
        self._unsubscribe_all()  # type: ignore[attr-defined]  # as above
        self._channel.close(CANCELLED, CHANNEL_CLOSED)


def lower_call(call: Any) -> Any:
    """What stands for the core call under a call object of grpcio's, also under interceptors."""
    while call is not None:
        lower = getattr(call, "_call", None)
        if lower is None or not isinstance(lower, grpc.RpcContext):
            return lower
        call = lower
    return None
