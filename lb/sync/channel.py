"""`channel`: a ``grpc.Channel`` that chooses among a service's instances itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import grpc

from lb.core import checks
from lb.core.breaker import Breaker
from lb.core.concurrency import ConcurrencyLimit
from lb.core.connection import Connection
from lb.core.ejection import Ejection
from lb.core.endpoint import Resolver
from lb.core.hedging import Hedging
from lb.core.policies import Policy, resolve
from lb.core.retry import Retry
from lb.core.settings import NOT_COPIED, MethodSettings, channel_options, settings
from lb.shared import fork
from lb.sync import _grpcio
from lb.sync.front import Front

if TYPE_CHECKING:
    from lb.core.snapshot import Snapshot


def channel(
    target: str | Resolver,
    *,
    policy: Policy | str | None = None,
    retry: Retry | Literal[False] | None = None,
    breaker: Breaker | Literal[False] | None = None,
    hedging: Hedging | Literal[False] | None = None,
    limit: ConcurrencyLimit | Literal[False] | None = None,
    ejection: Ejection | None = None,
    connection: Connection | None = None,
    health: str | None = None,
    service_config: str | Mapping[str, Any] | None = None,
    timeout_s: float | None = None,
    methods: Mapping[str, MethodSettings] | None = None,
    propagate: bool = True,
    measure_sizes: bool = False,
    measure_endpoints: bool = False,
    credentials: grpc.ChannelCredentials | None = None,
    options: Sequence[tuple[str, Any]] | None = None,
    compression: grpc.Compression | None = None,
    interceptors: Sequence[Any] | None = None,
) -> Channel:
    """A channel to a service, for all four kinds of call, for threads. It connects at its first use.

    Args:
        target: as of `lb.aio.channel`, and so are all arguments up to ``measure_endpoints``. A resolver of
            the user's own is started and closed in the library's background thread, in which an event
            loop runs; a policy is asked under the channel's lock, in whichever thread calls.
        policy: see `lb.aio.channel`.
        retry: see there.
        breaker: see there.
        hedging: see there.
        limit: see there.
        ejection: see there.
        connection: see there.
        health: see there.
        service_config: see there.
        timeout_s: see there.
        methods: see there.
        propagate: see there.
        measure_sizes: see there.
        measure_endpoints: see there.
        credentials: as of ``grpc.secure_channel``; None for plain text.
        options: channel options as in ``grpc.insecure_channel``, for the connection to each endpoint.
        compression: as there; also for the connection to each endpoint.
        interceptors: as of ``grpc.intercept_channel``. They see a call once, however many attempts it takes.

    Raises:
        ValueError: a bad target, policy name, setting or service config.
        TypeError: an object of a wrong kind, or bad channel options (as grpcio raises it).
        RuntimeError: this process was forked from one in which such a channel was at work (see docs/operating.md).
    """
    if fork.lost():
        raise RuntimeError(fork.FORKED)
    given_interceptors = checks.sequence("interceptors", interceptors, "a sequence of grpc's client interceptors")
    python_options, core_options = _grpcio.separate_options(channel_options(options))
    front = Front(
        target,
        settings=settings(
            policy=policy,
            retry=retry,
            breaker=breaker,
            hedging=hedging,
            limit=limit,
            ejection=ejection,
            connection=connection,
            health=health,
            service_config=service_config,
            timeout_s=timeout_s,
            methods=methods,
            propagate=propagate,
            measure_sizes=measure_sizes,
            measure_endpoints=measure_endpoints,
            options=tuple(core_options),
        ),
        credentials=credentials,
        options=tuple(core_options),
        compression=compression,
    )
    return Channel(front, python_options, given_interceptors)


class Channel(grpc.Channel):
    """What `channel` returns: a ``grpc.Channel``, with a look inside."""

    def __init__(self, front: Front, options: Sequence[tuple[str, Any]], interceptors: Sequence[Any]) -> None:
        self._front = front
        upper = _grpcio.UpperChannel(front, front.engine.target, options)  # type: ignore[abstract]
        self._upper = grpc.intercept_channel(upper, *interceptors)

    def unary_unary(self, *args: Any, **kwargs: Any) -> Any:
        """See ``grpc.Channel``."""
        return self._upper.unary_unary(*args, **kwargs)

    def unary_stream(self, *args: Any, **kwargs: Any) -> Any:
        """See ``grpc.Channel``."""
        return self._upper.unary_stream(*args, **kwargs)

    def stream_unary(self, *args: Any, **kwargs: Any) -> Any:
        """See ``grpc.Channel``."""
        return self._upper.stream_unary(*args, **kwargs)

    def stream_stream(self, *args: Any, **kwargs: Any) -> Any:
        """See ``grpc.Channel``."""
        return self._upper.stream_stream(*args, **kwargs)

    def subscribe(
        self, callback: Callable[[grpc.ChannelConnectivity], None], try_to_connect: bool | None = False
    ) -> None:
        """See ``grpc.Channel``: the whole set's connectivity, by gRPC's aggregation rule."""
        self._upper.subscribe(callback, bool(try_to_connect))

    def unsubscribe(self, callback: Callable[[grpc.ChannelConnectivity], None]) -> None:
        """See ``grpc.Channel``."""
        self._upper.unsubscribe(callback)

    def close(self) -> None:
        """End running calls with CANCELLED, and close all connections. Idempotent."""
        self._upper.close()

    def __enter__(self) -> Channel:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def snapshot(self) -> Snapshot:
        """The endpoints as the channel sees them now, and why each is or is not picked.

        ``str()`` of it is a table; ``as_dict()`` is ready for JSON.
        """
        return self._front.snapshot()

    def change_policy(self, policy: Policy | str) -> None:
        """Choose by another policy from the next call on; running calls are not touched."""
        self._front.engine.balancer.change_policy(resolve(policy))

    def change_weights(self, weights: Mapping[str, int]) -> None:
        """From the next call on these weights hold, by endpoint id, whatever the resolver says of them.

        The mapping replaces the one before; ``{}`` gives the resolver its word back. Raises
        ``ValueError`` for a weight that is no whole number >= 0.
        """
        self._front.engine.change_weights(weights)

    def __reduce__(self) -> NoReturn:
        raise TypeError(NOT_COPIED.format(self))

    def __repr__(self) -> str:
        return f"<lb.sync.Channel {self._front.engine.target}>"
