"""Every private name of grpcio that `lb.aio` uses. A test fails when one of them moves.

grpcio's asyncio channel has two layers. The upper one, in Python (``grpc.aio._channel`` and
``_call``), holds what users see: multicallables, call objects, interceptors, the rules for
mixing ``read`` with iteration. The lower one (``cygrpc.AioChannel`` and ``cygrpc._AioCall``)
moves bytes. We keep the upper layer as it is and take the place of the lower one: a
`lb.aio.engine.Engine` for the ``AioChannel``, a `LogicalCall` for the ``_AioCall``. So code written
for ``grpc.aio.Channel`` meets grpcio's own code, and our attempts run inside the task that
grpcio has made for the call anyway.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import operator
import time
import weakref
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import grpc

# The oldest and the newest release that the tests run with (`make releases`).
OLDEST, NEWEST = "1.76", "1.85"


def moved(what: Iterable[str]) -> ImportError:
    """What to raise where the installed grpcio lacks private names that we use."""
    return ImportError(
        f"lb works with grpcio {OLDEST} to {NEWEST}; grpcio {grpc.__version__} is installed, and lacks what lb uses"
        f" of it: {', '.join(what)}. Install a release in between, or a newer lb."
    )


def demand(names: dict[Any, str]) -> None:
    """Raise ``ImportError`` unless each of these modules and classes has all of its names."""
    missing = [
        f"{owner.__name__}.{name}" for owner in names for name in names[owner].split() if not hasattr(owner, name)
    ]
    if missing:
        raise moved(missing)


try:
    from grpc import _common as grpcio_common
    from grpc import _observability
    from grpc._cython import cygrpc as cygrpc
    from grpc.aio import _call as grpcio_call
    from grpc.aio import _channel as grpcio_channel
    from grpc.aio import _interceptor as grpcio_interceptor

    NAMES: dict[Any, str] = {
        cygrpc: "EOF AioRpcStatus UsageError InternalError ExecuteBatchError AioChannel CallCredentials Channel"
        " StatusCode InitialMetadataFlags execute_batch build_census_context set_instrumentation_context_on_call_aio"
        " SendInitialMetadataOperation SendMessageOperation SendCloseFromClientOperation"
        " ReceiveInitialMetadataOperation ReceiveStatusOnClientOperation",
        grpcio_call: "UnaryUnaryCall _create_rpc_error _LOCAL_CANCELLATION_DETAILS",
        grpcio_common: "serialize deserialize",
        _observability: "_OBSERVABILITY_PLUGIN",
        grpcio_channel: "UnaryUnaryMultiCallable _augment_channel_arguments",
        grpcio_channel.Channel: "unary_unary unary_stream stream_unary stream_stream"
        " _close close get_state wait_for_state_change channel_ready",
        grpcio_interceptor: "UnaryUnaryClientInterceptor UnaryStreamClientInterceptor StreamUnaryClientInterceptor"
        " StreamStreamClientInterceptor",
    }
    """What every release must have."""
except (ImportError, AttributeError) as error:
    raise moved([str(error)]) from error

demand(NAMES)

# What older releases lack. A line goes, with what hangs on it, once nothing before its release is supported.
# (A change that needs nothing from us: from 1.82 on a channel cancels its calls in a forked child.)
TELLS_OF_CALLS = hasattr(grpcio_channel.Channel, "_register_call")  # 1.83: a multicallable tells its channel of a call
HAS_HANDLES = hasattr(cygrpc.AioChannel, "get_registered_call_handle")  # 1.84: methods of stubs are registered

# 1.81: core ends a stream whose metadata cannot be sent; before, it never ends it.
ENDS_ILLEGAL = tuple(int(part) for part in grpc.__version__.split(".")[:2]) >= (1, 81)

T = TypeVar("T")

EOF = cygrpc.EOF
AioRpcStatus = cygrpc.AioRpcStatus
UsageError = cygrpc.UsageError
InternalError = cygrpc.InternalError
ExecuteBatchError = cygrpc.ExecuteBatchError

# Taken once, here: whoever puts a channel of ours in grpcio's place (``grpc.aio.insecure_channel = ...``)
# must not have our connections made by it.
insecure_channel = grpc.aio.insecure_channel
secure_channel = grpc.aio.secure_channel

CHANNEL_CLOSED = "Channel is closed."
LOCALLY_CANCELLED: str = grpcio_call._LOCAL_CANCELLATION_DETAILS
CREDENTIALS_ON_INSECURE = "Call credentials are only valid on secure channels"

STATUS_CODES: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}


def on_monotonic_clock(deadline: float | None) -> float | None:
    """A deadline of grpcio's, to be kept for later: grpcio names instants of the wall clock, which may be set."""
    return None if deadline is None else deadline - time.time() + time.monotonic()


def on_wall_clock(deadline: float | None) -> float | None:
    """A deadline for core, which turns it at once into an instant of its own monotonic clock."""
    return None if deadline is None else deadline - time.monotonic() + time.time()


status_now: Callable[[Any], Any] = operator.attrgetter("_status")
"""The status of a lower call, or None as long as it has none."""
headers_now: Callable[[Any], tuple[Any, ...] | None] = operator.attrgetter("_initial_metadata")
"""Its response headers, or None as long as it has none."""


def of_server(call: Any) -> bool:
    """Whether a lower call that ended has metadata, which only a server can have sent."""
    return bool(call._status.trailing_metadata() or call._initial_metadata)


_REMOVED = "Stream removed ("
_REWORDED = (grpc.StatusCode.CANCELLED.value[0], grpc.StatusCode.DEADLINE_EXCEEDED.value[0])


def as_with_core_retries(status: Any) -> Any:
    """The status in the words that it has with core's own retries on, as users know them.

    With these off core wraps what its own timer says, and what a call was cancelled with from this
    side; all else reads the same either way.
    """
    details = status.details() or ""
    if status.code() not in _REWORDED or not details.startswith(_REMOVED) or status.trailing_metadata():
        return status
    words = details.removeprefix(_REMOVED).removesuffix(")")
    return AioRpcStatus(status.code(), words, (), f"{STATUS_CODES[status.code()].name}:{words}")


class _WithoutHandles:
    """A ``cygrpc.AioChannel`` of before 1.84, which cannot register methods."""

    def __init__(self, channel: Any) -> None:
        self.close = channel.close
        self.watch_connectivity_state = channel.watch_connectivity_state
        self._call = channel.call

    def get_registered_call_handle(self, method: bytes) -> int:
        return 0

    def call(
        self, method: Any, deadline: Any, credentials: Any, wait_for_ready: Any, registered_call_handle: int
    ) -> Any:
        return self._call(method, deadline, credentials, wait_for_ready)


def lower(channel: grpc.aio.Channel) -> Any:
    """The ``cygrpc.AioChannel`` under a channel of grpcio's, with the methods of the newest."""
    found = channel._channel  # type: ignore[attr-defined]
    return found if HAS_HANDLES else _WithoutHandles(found)


def check_arguments(
    target: str,
    options: Sequence[tuple[str, Any]],
    credentials: grpc.ChannelCredentials | None,
    compression: grpc.Compression | None,
) -> None:
    """Raise what grpcio raises for bad channel arguments, where it raises it: at construction.

    Makes a core channel that never connects and throws it away: one of the synchronous layer, since
    ``AioChannel`` asks for an event loop.
    """
    if credentials is not None and not isinstance(credentials, grpc.ChannelCredentials):
        # Core must not see it: it counts its users down for a channel that it never counted up.
        raise TypeError(f"credentials is {credentials!r}; expected grpc.ChannelCredentials or None")
    if compression is not None and compression not in grpc.Compression.__members__.values():
        wrong = ValueError if isinstance(compression, (int, str)) else TypeError  # as grpcio has it
        accepted = ", ".join(f"grpc.Compression.{name}" for name in grpc.Compression.__members__)
        raise wrong(f"compression is {compression!r}; expected one of {accepted}, or None")
    if not options and compression is None and credentials is None:
        return  # nothing to check: core is left alone, so that the process may still fork
    arguments = grpcio_channel._augment_channel_arguments(tuple(options), compression)
    lowered = getattr(credentials, "_credentials", credentials)
    try:
        cygrpc.Channel(target.encode(), arguments, lowered).close(cygrpc.StatusCode.cancelled, "not needed")
    except TypeError as error:
        refused = [f"{name!r} is {value!r}" for name, value in options if not isinstance(value, (int, str, bytes))]
        if not refused:
            raise
        raise TypeError(f"options: {', '.join(refused)}; expected a whole number, a string or bytes") from error


def check_call_credentials(credentials: Any, *, secure: bool) -> None:
    """Raise what grpcio raises for bad call credentials, where it raises it: when the call is made."""
    if not secure:
        raise UsageError(CREDENTIALS_ON_INSECURE)
    if not isinstance(credentials._credentials, cygrpc.CallCredentials):
        raise TypeError(f"credentials is {credentials!r}; expected grpc.CallCredentials or None")


class _CurrentLoop:
    """Stands for ``Channel._loop``: whichever loop runs when it is used."""

    @staticmethod
    def create_task(coroutine: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        return asyncio.get_running_loop().create_task(coroutine)

    def __getattr__(self, name: str) -> Any:
        return getattr(asyncio.get_running_loop(), name)


_CURRENT_LOOP = _CurrentLoop()

_INTERCEPTOR_KINDS = (
    (grpcio_interceptor.UnaryUnaryClientInterceptor, "_unary_unary_interceptors"),
    (grpcio_interceptor.UnaryStreamClientInterceptor, "_unary_stream_interceptors"),
    (grpcio_interceptor.StreamUnaryClientInterceptor, "_stream_unary_interceptors"),
    (grpcio_interceptor.StreamStreamClientInterceptor, "_stream_stream_interceptors"),
)


class _ActiveCalls:
    """The calls that may still run, held weakly. A call pays for being added, not for being removed."""

    def __init__(self) -> None:
        self._references: list[weakref.ref[Any]] = []
        self._tidy_at = _TIDY_FROM

    def add(self, call: Any) -> None:
        references = self._references
        references.append(weakref.ref(call))
        if len(references) >= self._tidy_at:
            references[:] = map(weakref.ref, self)
            self._tidy_at = 2 * len(references) + _TIDY_FROM

    def __iter__(self) -> Iterator[Any]:
        for reference in list(self._references):
            call = reference()
            if call is not None and not _done(call):
                yield call

    def clear(self) -> None:
        self._references.clear()


_TIDY_FROM = 256


def _done(call: Any) -> bool:
    try:
        return bool(call.done())
    except Exception:  # noqa: BLE001  # before 1.83 both this and ``cancel`` raise whatever an interceptor raised
        return True


def _telling(kind: Any) -> Any:
    """A multicallable of before 1.83, which tells its channel of each call."""

    def __call__(self: Any, *arguments: Any, **named: Any) -> Any:
        call = kind.__call__(self, *arguments, **named)
        self._python_channel._register_call(call)
        return call

    return type(kind.__name__, (kind,), {"__call__": __call__})


if TYPE_CHECKING:
    _Base = grpc.aio.Channel

    class _UnaryUnaryBase:
        def __call__(self, *arguments: Any, **named: Any) -> Any: ...
        def __getattr__(self, name: str) -> Any: ...

    class _UnaryUnaryCallBase:
        def _invoke(self) -> Coroutine[Any, Any, Any]: ...
        def __del__(self) -> None: ...

else:
    _Base = grpcio_channel.Channel
    _UnaryUnaryBase = grpcio_channel.UnaryUnaryMultiCallable
    if not TELLS_OF_CALLS:
        _UnaryUnaryBase = _telling(_UnaryUnaryBase)
    _UnaryUnaryCallBase = grpcio_call.UnaryUnaryCall


class UnaryUnaryCall(_UnaryUnaryCallBase):
    """grpcio's own call object over a call that makes its lower call only when more is asked than the response.

    A subclass says how: ``general`` is that lower call, and it waits, cancels and knows its end by itself.
    """

    def general(self) -> Any:
        """What stands for grpcio's lower call."""
        raise NotImplementedError

    # grpcio's cancels a call that nobody holds. While ours runs, core's event holds it, as grpcio's task holds its
    # own; afterwards there is nothing to cancel. A function in C costs no frame.
    __del__ = staticmethod(bool)  # type: ignore[assignment]

    @property
    def _cython_call(self) -> Any:
        return self.general()

    @property
    def _invocation_task(self) -> Any:
        return _over(self)


def rpc_error(call: Any) -> Exception:
    """The error of a call that did not end OK."""
    error: Exception = grpcio_call._create_rpc_error(call._initial_metadata, call._status)
    return error


class UnaryUnary(_UnaryUnaryBase):
    """grpcio's own multicallable, most of whose calls the channel carries out without a task (`lb.aio.unary`)."""

    method: bytes
    registered: bool

    def serialize(self, request: Any) -> Any:
        """The request's bytes; None when the serializer raised, which grpcio logs."""
        serializer = self._request_serializer
        return request if serializer is None else grpcio_common.serialize(request, serializer)

    def deserialize(self, response: Any) -> Any:
        """The response's object; None when the deserializer raised."""
        deserializer = self._response_deserializer
        return response if deserializer is None else grpcio_common.deserialize(response, deserializer)

    def __call__(
        self,
        request: Any,
        *,
        timeout: float | None = None,
        metadata: Any = None,
        credentials: Any = None,
        wait_for_ready: bool | None = None,
        compression: Any = None,
    ) -> Any:
        # An observability plugin has to see each call as grpcio makes it; so have interceptors.
        if not self._interceptors and _observability._OBSERVABILITY_PLUGIN is None:
            headers: tuple[Any, ...] = ()
            if metadata is not None or compression is not None:  # else no ``Metadata`` object: 3 % of a call
                headers = tuple(self._init_metadata(metadata, compression))
            call = self._channel.unary_call(self, request, timeout, headers, credentials, wait_for_ready)
            if call is not None:
                return call
        return super().__call__(
            request,
            timeout=timeout,
            metadata=metadata,
            credentials=credentials,
            wait_for_ready=wait_for_ready,
            compression=compression,
        )


# grpcio looks for its observability plugin, at 12,000 instructions, once more for each call whose method's name it is
# told. Core knows the name of a registered method already, and services of this name grpcio leaves alone.
_LEFT_ALONE: bytes | None = next(iter(getattr(_observability, "_SERVICES_TO_EXCLUDE", ())), None)


def name_of_registered(method: bytes) -> bytes:
    """What to tell grpcio instead of a registered method's name."""
    return method if _LEFT_ALONE is None or _observability._OBSERVABILITY_PLUGIN is not None else _LEFT_ALONE


class UpperChannel(_Base):
    """grpcio's own upper layer over what stands for a ``cygrpc.AioChannel`` (an `Engine`)."""

    def __init__(self, lower: Any, interceptors: Sequence[grpc.aio.ClientInterceptor] | None) -> None:
        # Not super().__init__: it would open a core channel and ask for an event loop.
        for _, name in _INTERCEPTOR_KINDS:
            setattr(self, name, [])
        for interceptor in interceptors or ():
            matched = False
            for kind, name in _INTERCEPTOR_KINDS:
                if isinstance(interceptor, kind):
                    getattr(self, name).append(interceptor)
                    matched = True
            if not matched:
                kinds = " or ".join(kind.__name__ for kind, _ in _INTERCEPTOR_KINDS)
                raise ValueError(f"Interceptor {interceptor!r} must be {kinds}.")
        self._loop = _CURRENT_LOOP
        self._channel = lower
        self._active_calls = _ActiveCalls()

    def unary_unary(self, *arguments: Any, **named: Any) -> Any:
        made: Any = super().unary_unary(*arguments, **named)
        made.__class__ = UnaryUnary  # grpcio names its class where it makes one, and takes no other
        made.method = made._method
        made.registered = HAS_HANDLES and made._registered_call_handle != 0
        return made

    def _register_call(self, call: Any) -> None:
        # grpcio's own adds a done callback, which keeps a call that was forgotten alive for ever.
        self._active_calls.add(call)

    async def _close(self, grace: float | None) -> None:
        # As of grpcio 1.83; those before look for calls among all tasks of the loop, and find some of them.
        channel = self._channel
        channel.check_loop()
        try:
            if channel.closed():
                return
            if grace and grace < 0:
                raise ValueError(f"grace must be non-negative, got {grace}.")
            channel.closing()
            calls = [*channel.departures.running, *self._active_calls]
            if grace and calls:
                await asyncio.wait([asyncio.ensure_future(_over(call)) for call in calls], timeout=grace)
            for call in calls:
                call.cancel()
            self._active_calls.clear()
        finally:  # also when closing was cancelled while it waited for calls
            if channel.closed():  # not when the grace was refused
                for call in [*channel.departures.running, *self._active_calls]:
                    call.cancel()
                channel.close()
                await channel.wait_closed()


async def _over(call: Any) -> None:
    """Wait for a call's end, whatever that is."""
    with contextlib.suppress(Exception):
        await call.code()


def _as_newest(make: Callable[..., Any]) -> Callable[..., Any]:
    """A channel's method whose multicallables get what those of its release lack."""

    def made(
        self: UpperChannel,
        method: str,
        request_serializer: Any = None,
        response_deserializer: Any = None,
        _registered_method: bool | None = False,
    ) -> Any:
        stub = make(self, method, request_serializer, response_deserializer, _registered_method)
        # A connection's own channel of such a release has none (`lb.sync` puts this layer over one, too).
        handles = getattr(self._channel, "get_registered_call_handle", None)
        stub._registered_call_handle = handles(method.encode()) if _registered_method and handles is not None else 0
        stub.registered = stub._registered_call_handle != 0
        if not TELLS_OF_CALLS:
            stub._python_channel = self
            if type(stub) is not UnaryUnary:
                stub.__class__ = _telling(type(stub))
        return stub

    return functools.wraps(make)(made)


if not HAS_HANDLES:
    for _name in ("unary_unary", "unary_stream", "stream_unary", "stream_stream"):
        setattr(UpperChannel, _name, _as_newest(getattr(UpperChannel, _name)))


def lower_call(call: Any) -> Any:
    """What stands for ``cygrpc._AioCall`` under a call object; None under interceptors."""
    return getattr(call, "_cython_call", None)


def interceptors_task(call: Any) -> asyncio.Task[Any] | None:
    """The task that runs a call's interceptors and makes the call below them; None without interceptors."""
    task = getattr(call, "_interceptors_task", None)
    return task if isinstance(task, asyncio.Task) else None
