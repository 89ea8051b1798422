"""Channels to the other services of the mesh: discovered, balanced, retried by ``lb``."""

from __future__ import annotations

from collections.abc import Callable

import grpc

import lb.aio
from services.runtime.connections import CONNECTION, LIMIT
from services.runtime.interceptors import INSTANCE_KEY
from services.runtime.settings import Settings

RETRY = lb.Retry(attempt_timeout_s=2.0)
"""An instance that hangs costs a call two seconds, not its whole deadline."""

HEDGING = lb.Hedging()
"""A second instance is asked when the first takes longer than 19 of 20 calls do."""

HEDGED = frozenset({"catalog", "inventory", "payments"})
"""Not orders: a second PlaceOrder of the same key would only wait for the first."""

Connect = Callable[[str], grpc.aio.Channel]
"""Makes a channel to a service by its name in the registry. The caller closes it."""


def connector(settings: Settings, caller: str) -> Connect:
    """How a process of the service ``caller`` with these settings reaches other services."""

    def connect(service: str) -> grpc.aio.Channel:
        return lb.aio.channel(
            f"consul:///{service}",
            policy=settings.policy,
            retry=RETRY,
            hedging=HEDGING if service in HEDGED else None,
            limit=LIMIT,
            connection=CONNECTION,
            health="",
            options=(("grpc.primary_user_agent", caller),),
        )

    return connect


async def served_by(call: grpc.aio.Call) -> str:
    """Id of the instance that served a call that has ended; empty when none said so."""
    for key, value in await call.trailing_metadata() or ():
        if key == INSTANCE_KEY:
            return value if isinstance(value, str) else value.decode()
    return ""
