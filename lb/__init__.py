"""Client-side load balancing for gRPC: no proxy, no sidecar.

::

    import lb

    async with lb.aio.channel("consul:///catalog", policy=lb.WeightedRoundRobin()) as channel:
        product = await CatalogStub(channel).GetProduct(request, timeout=0.5)

The channel is a ``grpc.aio.Channel`` (and `lb.sync.channel` makes a ``grpc.Channel`` for threads):
generated stubs, interceptors, health and reflection clients work on it unchanged.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lb import aio
from lb._version import __version__
from lb.core.attempt import Attempt
from lb.core.breaker import Breaker
from lb.core.budget import Budget
from lb.core.concurrency import ConcurrencyLimit
from lb.core.connection import Connection
from lb.core.ejection import Ejection
from lb.core.endpoint import Endpoint, Listener, Resolution, Resolver
from lb.core.hedging import Hedging
from lb.core.later import later
from lb.core.outcome import Origin, Outcome, Retryable, Verdict
from lb.core.policies import CallInfo, Candidate, Hooks, Picker, Policy
from lb.core.retry import Retry
from lb.core.serving.priority import Priority
from lb.core.settings import MethodSettings
from lb.shared.scopes import deadline, detached, priority

if TYPE_CHECKING:
    from lb import server, sync
    from lb._attempts import attempts
    from lb.core.orca import LoadReport
    from lb.core.policies import (
        P2C,
        LeastRequest,
        Orca,
        PickFirst,
        Random,
        RingHash,
        RoundRobin,
        SlowStart,
        Subset,
        WeightedRandom,
        WeightedRoundRobin,
        ZoneAware,
    )
    from lb.core.snapshot import EndpointSnapshot, Snapshot
else:
    from lb.core.policies import LATER

    __getattr__ = later(
        __name__,
        {
            **LATER,
            "EndpointSnapshot": "lb.core.snapshot",
            "LoadReport": "lb.core.orca",
            "Snapshot": "lb.core.snapshot",
            "attempts": "lb._attempts",
            "server": "lb.server",
            "sync": "lb.sync",
        },
    )

__all__ = [
    "Attempt",
    "Breaker",
    "Budget",
    "CallInfo",
    "Candidate",
    "ConcurrencyLimit",
    "Connection",
    "Ejection",
    "Endpoint",
    "EndpointSnapshot",
    "Hedging",
    "Hooks",
    "LeastRequest",
    "Listener",
    "LoadReport",
    "MethodSettings",
    "Orca",
    "Origin",
    "Outcome",
    "P2C",
    "PickFirst",
    "Picker",
    "Policy",
    "Priority",
    "Random",
    "Resolution",
    "Resolver",
    "Retry",
    "Retryable",
    "RingHash",
    "RoundRobin",
    "SlowStart",
    "Snapshot",
    "Subset",
    "Verdict",
    "WeightedRandom",
    "WeightedRoundRobin",
    "ZoneAware",
    "__version__",
    "aio",
    "attempts",
    "deadline",
    "detached",
    "priority",
    "server",
    "sync",
]


def __dir__() -> list[str]:
    """What is imported later is here, too."""
    return sorted({*globals(), *__all__})
