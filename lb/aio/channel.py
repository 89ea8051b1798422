"""`channel`: a ``grpc.aio.Channel`` that chooses among a service's instances itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import grpc

from lb.aio import _grpcio
from lb.aio.engine import Engine
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
    interceptors: Sequence[grpc.aio.ClientInterceptor] | None = None,
) -> Channel:
    """A channel to a service, for all four kinds of call. It connects at its first use.

    Its calls raise what they raise on grpcio's channel; docs/troubleshooting.md tells which words are lb's
    own, and what they mean.

    Args:
        target: ``consul:///catalog?dc=&tag=&near=`` (of the agent that ``CONSUL_HTTP_ADDR`` names, or
            ``consul://agent:8500/catalog``; ``tag`` may be repeated, and an instance must have all),
            ``static:///host:port,host:port?weights=1,3``, or what grpcio takes: ``host:port``, the same as
            ``dns:///host:port`` (each address of the name is an endpoint; looked up every 30 s, or
            ``?interval=`` seconds, and when a connection is lost), ``ipv4:``, ``ipv6:``, ``unix:``; or a
            resolver: an object with ``start(listener)`` and ``close()`` (see `lb.Resolver`).
        policy: how to choose, an object or a name (``round_robin``, ``weighted_round_robin``,
            ``least_request``, ``p2c``, ...; see docs/policies.md). Default: ``weighted_round_robin``.
        retry: when failed attempts are tried again. False: never. Default: ``lb.Retry()``.
        breaker: when an endpoint is left out for a while. False: never. Default: ``lb.Breaker()``.
        hedging: a second attempt while the first has not answered, for unary calls of methods that
            are idempotent. False: none, also where a service config has them. Default: none.
        limit: how many calls may run at once on each endpoint. Default, and False: any number.
        ejection: how much of the pool breakers may take out. Default: ``lb.Ejection()``.
        connection: reconnecting, keepalive, idling. Default: ``lb.Connection()``.
        health: watch gRPC's health service of each endpoint under this service name (``""``: the whole
            server), and send nothing to those that are NOT_SERVING, or do not know the service while others do.
            Default: no watch.
        service_config: gRPC's JSON document (text or mapping) in place of the settings above; it is
            also accepted among the ``options``. See docs/service_config.md.
        timeout_s: seconds for a call that gives none itself; streams too, from beginning to end. Default: none.
        methods: what holds for single methods (``/package.Service/Method``, or ``/package.Service/*`` for all of a
            service; the entry of the method stands alone), by an `lb.MethodSettings` with ``timeout_s``, ``retry``,
            ``hedging``. The call's own timeout wins over that of ``methods``, and that over ``timeout_s``; all are
            bounded by the service config's, by an incoming call's deadline and `lb.deadline`. For retries and
            hedging ``methods`` win over the service config, and that over ``retry`` and ``hedging``.
        propagate: whether a call made while an incoming call is handled inherits its deadline and
            cancellation (see `lb.aio.incoming`), and one in a block of `lb.deadline` that one's.
        measure_sizes: whether the metrics tell the sizes of messages, too (see docs/metrics.md).
        measure_endpoints: whether the metrics of attempts tell the endpoint of each (see docs/metrics.md).
        credentials: as of ``grpc.ssl_channel_credentials``; None for plain text. The certificate
            must be for the target's authority (``consul:///catalog``: ``catalog``), unless the
            option ``grpc.ssl_target_name_override`` or ``grpc.default_authority`` says otherwise.
        options: channel options as in ``grpc.aio.insecure_channel``, for the connection to each endpoint.
        compression: as there; also for the connection to each endpoint.
        interceptors: as there. They see a call once, however many attempts it takes.

    Raises:
        ValueError: a bad target, policy name, setting, service config or interceptor.
        TypeError: an object of a wrong kind, or bad channel options (as grpcio raises it).
    """
    given = channel_options(options)
    interceptors = checks.sequence("interceptors", interceptors, "a sequence of grpc.aio.ClientInterceptor")
    return Channel(  # type: ignore[abstract]  # grpcio's upper layer, unknown to the stubs, implements them
        Engine(
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
                options=given,
            ),
            credentials=credentials,
            options=given,
            compression=compression,
            intercepted=bool(interceptors),
        ),
        interceptors,
    )


class Channel(_grpcio.UpperChannel):
    """What `channel` returns: a ``grpc.aio.Channel``, with a look inside."""

    _channel: Engine

    def snapshot(self) -> Snapshot:
        """The endpoints as the channel sees them now, and why each is or is not picked.

        ``str()`` of it is a table; ``as_dict()`` is ready for JSON.
        """
        return self._channel.snapshot()

    def change_policy(self, policy: Policy | str) -> None:
        """Choose by another policy from the next call on; running calls are not touched."""
        self._channel.balancer.change_policy(resolve(policy))

    def change_weights(self, weights: Mapping[str, int]) -> None:
        """From the next call on these weights hold, by endpoint id, whatever the resolver says of them.

        The mapping replaces the one before; ``{}`` gives the resolver its word back. Raises
        ``ValueError`` for a weight that is no whole number >= 0.
        """
        self._channel.change_weights(weights)

    def __reduce__(self) -> NoReturn:
        raise TypeError(NOT_COPIED.format(self))

    def __repr__(self) -> str:
        return f"<lb.aio.Channel {self._channel.target}>"
