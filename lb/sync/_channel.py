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
    """A channel to a service for threads, for all four kinds of call. It connects at its first use.

    Its calls raise the errors of grpcio's own channel. The repository's docs/troubleshooting.md explains their
    messages. A background thread of the process, in which an event loop runs, serves all such channels. A resolver of
    your own is started and closed in this thread. A policy of your own runs in the calling thread while the channel's
    lock is held, so keep it short.

    Args:
        target: what to call. ``consul:///catalog`` (or ``consul://agent:8500/catalog``, with ``?dc=``, ``?near=``, and
            ``?tag=``, which may be repeated), ``static:///host:port,host:port?weights=1,3``, or what grpcio takes:
            ``host:port`` and ``dns:///host:port`` (port 443 if there is none; each address of the name is an endpoint;
            it is looked up every 30 s, or every ``?interval=`` seconds, and when a connection is lost), ``ipv4:``,
            ``ipv6:``, ``unix:``. Or a resolver of your own (`lb.Resolver`).
        policy: how to choose an endpoint, as an object or a name (``weighted_round_robin``, ``least_request``, ``p2c``,
            ...; see docs/policies.md). Default: ``weighted_round_robin``.
        retry: when failed attempts are tried again. False: never. Default: `lb.Retry`.
        breaker: when an endpoint is ejected for a while. False: never. Default: `lb.Breaker`.
        hedging: whether a call that has no answer yet is sent to another endpoint as well, for methods that may run
            twice. False: no, not even if the service config says so. Default: no.
        limit: how many calls may run at once on each endpoint. Default, and False: any number.
        ejection: how many endpoints breakers may eject. Default: `lb.Ejection`.
        connection: connecting, keepalive, idling. Default: `lb.Connection`.
        health: a service name. Each endpoint's gRPC health service is watched under this name (``""``: the whole
            server). Endpoints that are not SERVING get no calls, nor do those that do not know the service while others
            do. Default: no watch.
        service_config: gRPC's service config, as JSON text or a mapping. It is also accepted as an option. See
            docs/service_config.md.
        timeout_s: seconds, > 0, for calls that give no timeout, also for streams, from beginning to end. Default: no
            limit.
        methods: an `lb.MethodSettings` for a method (``/package.Service/Method``), or for all methods of a service
            (``/package.Service/*``). If both match, only the more specific entry applies. The timeout of a call is its
            own, otherwise that of ``methods``, otherwise ``timeout_s``; it is cut to the service config's timeout,
            `lb.deadline`, and the deadline of an incoming call. Retries and hedging are those of ``methods``, otherwise
            the service config's, otherwise ``retry`` and ``hedging``.
        propagate: whether calls inherit deadline and cancellation from an incoming call (`lb.sync.incoming`), and a
            deadline from `lb.deadline`.
        measure_sizes: whether metrics include the sizes of messages (see docs/metrics.md).
        measure_endpoints: whether metrics of attempts include the endpoint (see docs/metrics.md).
        credentials: as from ``grpc.ssl_channel_credentials``. Default: plain text. The certificate must be for the
            target's authority (of ``consul:///catalog``: ``catalog``), unless the option
            ``grpc.ssl_target_name_override`` or ``grpc.default_authority`` names another one.
        options: channel options, as pairs of name and value, for the connection to each endpoint.
        compression: a ``grpc.Compression`` for the connection to each endpoint.
        interceptors: as for ``grpc.intercept_channel``. They see a call once, however many attempts it has.

    Raises:
        ValueError: a bad target, setting, service config or compression, or ``options`` that are not pairs; the message
            names it.
        TypeError: an argument, an option's value or an interceptor of a wrong type.
        RuntimeError: no channel works in this process, because it was forked while a call was running or an `lb.aio`
            channel was open.
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
    """What `channel` returns: a ``grpc.Channel`` with a snapshot, whose policy and weights can be changed."""

    def __init__(self, front: Front, options: Sequence[tuple[str, Any]], interceptors: Sequence[Any]) -> None:
        self._front = front
        upper = _grpcio.UpperChannel(front, front.engine.target, options)  # type: ignore[abstract]
        self._upper = grpc.intercept_channel(upper, *interceptors)

    def unary_unary(self, *args: Any, **kwargs: Any) -> Any:
        """Same as in ``grpc.Channel``."""
        return self._upper.unary_unary(*args, **kwargs)

    def unary_stream(self, *args: Any, **kwargs: Any) -> Any:
        """Same as in ``grpc.Channel``."""
        return self._upper.unary_stream(*args, **kwargs)

    def stream_unary(self, *args: Any, **kwargs: Any) -> Any:
        """Same as in ``grpc.Channel``."""
        return self._upper.stream_unary(*args, **kwargs)

    def stream_stream(self, *args: Any, **kwargs: Any) -> Any:
        """Same as in ``grpc.Channel``."""
        return self._upper.stream_stream(*args, **kwargs)

    def subscribe(
        self, callback: Callable[[grpc.ChannelConnectivity], None], try_to_connect: bool | None = False
    ) -> None:
        """Same as in ``grpc.Channel``. The state is that of the whole channel: READY if one endpoint is."""
        self._upper.subscribe(callback, bool(try_to_connect))

    def unsubscribe(self, callback: Callable[[grpc.ChannelConnectivity], None]) -> None:
        """Same as in ``grpc.Channel``."""
        self._upper.unsubscribe(callback)

    def close(self) -> None:
        """End running calls with CANCELLED, and close all connections. It may be called again, from any thread."""
        self._upper.close()

    def __enter__(self) -> Channel:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def snapshot(self) -> Snapshot:
        """The endpoints as the channel sees them now, and why each one is picked or not."""
        return self._front.snapshot()

    def change_policy(self, policy: Policy | str) -> None:
        """Replace the policy, from the next attempt on. Running attempts are not affected. Call it from any thread.

        Args:
            policy: an object or a name, the same as in `channel`.

        Raises:
            ValueError: the name is not known.
            TypeError: it is neither a policy nor a name.
        """
        self._front.engine.balancer.change_policy(resolve(policy))

    def change_weights(self, weights: Mapping[str, int]) -> None:
        """Replace the resolver's weights, from the next attempt on. Call it from any thread.

        Args:
            weights: whole numbers from 0 to 1,000,000,000 by endpoint id. Each call replaces the weights of the
                previous one. Endpoints that are not named use the resolver's weight; ``{}`` restores all.

        Raises:
            ValueError: a weight is out of its range.
            TypeError: ``weights`` is not a mapping, or a weight is not a whole number.
        """
        self._front.engine.change_weights(weights)

    def __reduce__(self) -> NoReturn:
        raise TypeError(NOT_COPIED.format(self))

    def __repr__(self) -> str:
        return f"<lb.sync.Channel {self._front.engine.target}>"
