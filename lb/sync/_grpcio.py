"""Every private name of grpcio that `lb.sync` uses. A test fails when one of them moves.

grpcio's channel for threads has two layers, as its asyncio one has. The upper one, in Python
(``grpc._channel``), holds what users see: multicallables, call objects, futures, the threads
that consume request iterators and run callbacks. The lower one (``cygrpc.Channel`` and its
``SegregatedCall`` and ``IntegratedCall``) moves bytes: it takes batches of operations and hands
back an event for each batch. We keep the upper layer as it is and take the place of the lower
one, so code written for ``grpc.Channel`` meets grpcio's own code.
"""

from __future__ import annotations

import _socket
import asyncio
import functools
import operator
import threading
from collections.abc import Callable, Iterable, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

import grpc

from lb.aio._grpcio import UpperChannel as AioUpperChannel
from lb.aio._grpcio import demand, moved
from lb.shared import threads
from lb.shared.fork import POLLER

try:
    from grpc import _channel as grpcio_channel
    from grpc import _common as grpcio_common
    from grpc import _compression as grpcio_compression
    from grpc import _observability
    from grpc._cython import cygrpc

    NAMES: dict[Any, str] = {
        cygrpc: "AioChannel Channel SendInitialMetadataOperation SendMessageOperation SendCloseFromClientOperation"
        " ReceiveInitialMetadataOperation ReceiveMessageOperation ReceiveStatusOnClientOperation get_fork_epoch",
        cygrpc.StatusCode: "cancelled internal",
        cygrpc.OperationType: "send_initial_metadata send_message send_close_from_client receive_initial_metadata"
        " receive_message receive_status_on_client",
        cygrpc.CompletionType: "operation_complete",
        cygrpc.InitialMetadataFlags: "wait_for_ready wait_for_ready_explicitly_set",
        cygrpc.PropagationConstants: "GRPC_PROPAGATE_DEFAULTS",
        grpcio_channel: "_InactiveRpcError _RPCState _handle_event _start_unary_request _determine_deadline"
        " _UNARY_UNARY_INITIAL_DUE _UnaryUnaryMultiCallable _InitialMetadataFlags _DEFAULT_SINGLE_THREADED_UNARY_STREAM"
        " _UnaryStreamMultiCallable _StreamStreamMultiCallable _MultiThreadedRendezvous _abort"
        " _ChannelCallState _ChannelConnectivityState _channel_managed_call_management _separate_channel_options"
        " _augment_options",
        grpcio_channel.Channel: "_process_python_options _unsubscribe_all _close",
        grpcio_common: "deserialize encode",
        grpcio_compression: "augment_metadata",
        _observability: "_OBSERVABILITY_PLUGIN",
    }
    """What every release must have."""
except (ImportError, AttributeError) as error:
    raise moved([str(error)]) from error

demand(NAMES)

CLOSED = "Cannot invoke RPC on closed channel!"
CHANNEL_CLOSED = "Channel closed!"
CANCELLED: int = cygrpc.StatusCode.cancelled
INTERNAL: int = cygrpc.StatusCode.internal
READY: int = cygrpc.ConnectivityState.ready

SEND_INITIAL_METADATA: int = cygrpc.OperationType.send_initial_metadata
SEND_MESSAGE: int = cygrpc.OperationType.send_message
SEND_CLOSE: int = cygrpc.OperationType.send_close_from_client
RECEIVE_INITIAL_METADATA: int = cygrpc.OperationType.receive_initial_metadata
RECEIVE_MESSAGE: int = cygrpc.OperationType.receive_message
RECEIVE_STATUS: int = cygrpc.OperationType.receive_status_on_client
OPERATION_COMPLETE: int = cygrpc.CompletionType.operation_complete

_WAIT_FOR_READY: int = cygrpc.InitialMetadataFlags.wait_for_ready
_EXPLICIT: int = cygrpc.InitialMetadataFlags.wait_for_ready_explicitly_set

InactiveRpcError: Any = grpcio_channel._InactiveRpcError

Options = Sequence[tuple[str, Any]]


flags_of: Callable[[Any], int] = operator.attrgetter("_flags")
"""The flags of a ``SendInitialMetadataOperation``."""


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


def raised(credentials: Any) -> grpc.CallCredentials | None:
    """Core's call credentials as the asyncio layer takes them."""
    return None if credentials is None else grpc.CallCredentials(credentials)


def _arguments(options: Options, compression: grpc.Compression | None) -> tuple[tuple[str, Any], ...]:
    # Newer releases add the epoch in ``cygrpc.Channel``, and none does in ``cygrpc.AioChannel``.
    return (*grpcio_channel._augment_options(options, compression), ("grpc.fork_epoch", cygrpc.get_fork_epoch()))


def blocking_channel(
    address: str, options: Options, credentials: grpc.ChannelCredentials | None, compression: grpc.Compression | None
) -> Any:
    """A ``cygrpc.Channel``. Its blocking calls poll in the caller's thread; it starts none."""
    return cygrpc.Channel(address.encode(), _arguments(options, compression), _lowered(credentials))


def watching_channel(
    address: str, options: Options, credentials: grpc.ChannelCredentials | None, compression: grpc.Compression | None
) -> grpc.aio.Channel:
    """A channel for the running loop with the very arguments of `blocking_channel`: the two share a connection."""
    if threads.green():
        _poll_in_a_real_thread()
    lower = cygrpc.AioChannel(
        address.encode(), _arguments(options, compression), _lowered(credentials), asyncio.get_running_loop()
    )
    return AioUpperChannel(lower, None)  # type: ignore[abstract]  # grpcio's own class implements them


class _Modules(ModuleType):
    """A module as grpcio's asyncio layer sees it beside gevent: with something else in a few places."""

    def __init__(self, module: ModuleType, **other: Any) -> None:
        super().__init__(module.__name__)
        self.__dict__.update(other)
        self._module = module

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


def _thread(*arguments: Any, **named: Any) -> Any:
    target = named.get("target")
    if f"({getattr(target, '__name__', '')})" != POLLER:
        return threading.Thread(*arguments, **named)
    return threads.Thread(target, POLLER)  # type: ignore[arg-type]  # it is callable, since it has that name


def _poll_in_a_real_thread() -> None:
    """Have grpcio's asyncio layer poll core in a real thread, and tell its loops through real sockets.

    A greenlet that polls holds up all others of its thread, for ever.
    """
    if not isinstance(cygrpc.threading, _Modules):
        cygrpc.threading = _Modules(cygrpc.threading, Thread=_thread)
        cygrpc.socket = _Modules(cygrpc.socket, socketpair=_socket.socketpair)


def hold_callbacks() -> Callable[[], None]:
    """Have call credentials asked beside gevent, though no channel of grpcio's own is there. Returns what ends it.

    Core asks for them in a thread of its own, in which no greenlet ever runs.
    """
    if not threads.green():
        return _nothing_to_end
    if cygrpc.g_gevent_activated:  # by ``init_gevent()``: asked in greenlets, while a channel is counted
        # In the thread that said so, whose greenlets they are.
        cygrpc.g_gevent_threadpool.hub.loop.run_callback_threadsafe(cygrpc.gevent_increment_channel_count)
        return cygrpc.gevent_decrement_channel_count  # type: ignore[no-any-return]
    cygrpc.set_async_callback_func(_call_back)
    return _nothing_to_end


def _nothing_to_end() -> None:
    pass


def _call_back(callback: Callable[..., object], arguments: Iterable[Any]) -> None:
    def run() -> None:
        try:
            callback(*arguments)
        finally:
            threads.leave()

    threads.Thread(run, "lb: call credentials").start()


if TYPE_CHECKING:
    _Base = grpc.Channel
    _UnaryUnary = Any
    _UnaryStream = Any
    _StreamStream = Any
    _Responses = Any
else:
    _Base = grpcio_channel.Channel
    _UnaryUnary = grpcio_channel._UnaryUnaryMultiCallable
    _UnaryStream = grpcio_channel._UnaryStreamMultiCallable
    _StreamStream = grpcio_channel._StreamStreamMultiCallable
    _Responses = grpcio_channel._MultiThreadedRendezvous


class UnaryUnary(_UnaryUnary):  # type: ignore[misc]  # Any for a type checker: private
    """grpcio's own multicallable, whose blocking call makes no state that nobody will see.

    That state, with its condition, and the general handling of events take a tenth of a call.
    """

    def __call__(
        self,
        request: Any,
        timeout: float | None = None,
        metadata: Any = None,
        credentials: grpc.CallCredentials | None = None,
        wait_for_ready: bool | None = None,
        compression: grpc.Compression | None = None,
    ) -> Any:
        """See ``grpc.UnaryUnaryMultiCallable``."""
        if _observability._OBSERVABILITY_PLUGIN is not None:  # it is told of each state
            return super().__call__(request, timeout, metadata, credentials, wait_for_ready, compression)
        deadline, message, error = grpcio_channel._start_unary_request(request, timeout, self._request_serializer)
        if message is None:
            assert error is not None
            raise error
        flags = 0 if wait_for_ready is None else _FLAGS[bool(wait_for_ready)]
        event = self._channel.segregated_call(
            _DEFAULTS,
            self._method,
            None,
            grpcio_channel._determine_deadline(deadline),
            metadata,
            None if credentials is None else credentials._credentials,  # type: ignore[attr-defined]
            (
                (
                    (
                        cygrpc.SendInitialMetadataOperation(_augmented(metadata, compression), flags),
                        cygrpc.SendMessageOperation(message, 0),
                        cygrpc.SendCloseFromClientOperation(0),
                        cygrpc.ReceiveInitialMetadataOperation(0),
                        cygrpc.ReceiveMessageOperation(0),
                        cygrpc.ReceiveStatusOnClientOperation(0),
                    ),
                    None,
                ),
            ),
            self._context,
            self._registered_call_handle,
        ).next_event()
        done = event.batch_operations
        deserializer = self._response_deserializer
        if done[5].code() == 0:
            data = done[4].message()
            response = data if data is None else grpcio_common.deserialize(data, deserializer)
            if response is not None or data is None:
                return response
            deserializer = _nothing  # which it has failed to make already
        state = grpcio_channel._RPCState(grpcio_channel._UNARY_UNARY_INITIAL_DUE, None, None, None, None)
        state.method, state.target = self._method.decode(), self._target.decode()
        grpcio_channel._handle_event(event, state, deserializer)
        raise InactiveRpcError(state)


def _nothing(data: bytes) -> None:
    """A deserializer's failure, as grpcio's layer knows it."""


class Responses(_Responses):  # type: ignore[misc]  # as above
    """grpcio's own stream, whose reader makes the responses of their bytes.

    In grpcio's the thread does it that brings the event. Here that may be an event loop's, where no code of a user's
    must run.
    """

    def _next(self) -> Any:
        state = self._state
        condition, due = state.condition, state.due
        with condition:
            if state.code is None:
                due.add(RECEIVE_MESSAGE)
                if not self._call.operate((cygrpc.ReceiveMessageOperation(0),), self.received):
                    due.remove(RECEIVE_MESSAGE)
            elif state.code is grpc.StatusCode.OK:
                raise StopIteration
            else:
                raise self
            while state.response is None and (RECEIVE_MESSAGE in due or state.code is None):
                condition.wait(_LOOK_EVERY_S)
            data = state.response
            if data is None:
                if state.code is grpc.StatusCode.OK:
                    raise StopIteration
                raise self
            state.response = None
        if self.deserializer is None:
            return data
        response = grpcio_common.deserialize(data, self.deserializer)
        if response is not None:
            return response
        with condition:
            grpcio_channel._abort(state, grpc.StatusCode.INTERNAL, _NO_RESPONSE)
            if state.code is grpc.StatusCode.OK:  # the status was there before the response was read
                state.code, state.details = grpc.StatusCode.INTERNAL, _NO_RESPONSE
            condition.notify_all()
        raise self


def _received(state: Any, event: Any) -> bool:
    """A message of a stream came, or its end. Returns whether that was the last event of the call."""
    condition = state.condition
    with condition:
        state.due.discard(RECEIVE_MESSAGE)
        state.response = event.batch_operations[0].message()
        condition.notify_all()
        return not state.due and state.fork_epoch >= cygrpc.get_fork_epoch()


# An error is such a call, and is told by the name that users know.
Responses.__module__ = grpcio_channel.__name__
Responses.__name__ = Responses.__qualname__ = "_MultiThreadedRendezvous"
_LOOK_EVERY_S = 0.1
"""As grpcio's own waits, which so meet a signal on each system."""
_NO_RESPONSE = "Exception deserializing response!"


def _read_here(call: Any) -> Any:
    """A call of grpcio's, as `Responses`."""
    call.__class__ = Responses
    call.deserializer, call._response_deserializer = call._response_deserializer, None
    call.received = functools.partial(_received, call._state)  # and not of the call: nothing that runs must keep it
    return call


class UnaryStream(_UnaryStream):  # type: ignore[misc]  # as above
    """grpcio's own multicallable."""

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """See ``grpc.UnaryStreamMultiCallable``."""
        return _read_here(super().__call__(*arguments, **named))


class StreamStream(_StreamStream):  # type: ignore[misc]  # as above
    """grpcio's own multicallable."""

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """See ``grpc.StreamStreamMultiCallable``."""
        return _read_here(super().__call__(*arguments, **named))


_augmented = grpcio_compression.augment_metadata
_DEFAULTS = cygrpc.PropagationConstants.GRPC_PROPAGATE_DEFAULTS
_FLAGS = {said: grpcio_channel._InitialMetadataFlags().with_wait_for_ready(said) for said in (True, False)}


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

    def unary_unary(
        self,
        method: str,
        request_serializer: Any = None,
        response_deserializer: Any = None,
        _registered_method: bool | None = False,
    ) -> Any:
        """See ``grpc.Channel``."""
        return UnaryUnary(
            self._channel,
            grpcio_channel._channel_managed_call_management(self._call_state),
            grpcio_common.encode(method),
            grpcio_common.encode(self._target),
            request_serializer,
            response_deserializer,
            1 if _registered_method else None,
        )

    def unary_stream(self, *arguments: Any, **named: Any) -> Any:
        """See ``grpc.Channel``."""
        made: Any = super().unary_stream(*arguments, **named)
        if type(made) is _UnaryStream:  # and not the one whose caller takes the events itself
            made.__class__ = UnaryStream
        return made

    def stream_stream(self, *arguments: Any, **named: Any) -> Any:
        """See ``grpc.Channel``."""
        made: Any = super().stream_stream(*arguments, **named)
        made.__class__ = StreamStream
        return made

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
