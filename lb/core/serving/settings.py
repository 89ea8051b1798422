"""What a user sets of a server's bounds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from lb.core import checks
from lb.core.concurrency import ConcurrencyLimit, LimitState
from lb.core.headers import legal_key

MOST_METHODS = 4096
"""So many methods are told apart; a proxy may meet any number."""
_MOST = 1e15


@dataclass(frozen=True, slots=True, kw_only=True)
class Concurrency:
    """How many calls a server runs at once, and how many wait for a place.

    By default the limit follows the latency, with the gradient controller of Envoy's "adaptive concurrency".

    Args:
        limit: calls at once, >= 1: the fixed limit, or the first value of the adaptive one.
        adaptive: whether the limit follows the latency, from ``min_limit`` to ``max_limit``.
        min_limit: the lowest adaptive limit, >= 1. For a moment every ten seconds it may be half of that.
        max_limit: the highest adaptive limit, >= ``min_limit``.
        queue: how many calls may wait, >= 0. The newest goes first, and the oldest is refused when one more comes.
        queue_s: how long a call may wait, in seconds, > 0. Then it is refused.

    Raises:
        ValueError: a field is out of its range; the message names it.
        TypeError: a field has a wrong type.
    """

    limit: int = 16
    adaptive: bool = True
    min_limit: int = 1
    max_limit: int = 1000
    queue: int = 64
    queue_s: float = 0.1

    def __post_init__(self) -> None:
        checks.flag("Concurrency.adaptive", self.adaptive)
        for name in ("limit", "min_limit", "max_limit"):
            checks.whole(f"Concurrency.{name}", getattr(self, name), least=1)
        if self.adaptive and not self.min_limit <= self.limit <= self.max_limit:
            raise ValueError(
                f"Concurrency.limit is {self.limit}; expected min_limit ({self.min_limit})"
                f" <= limit <= max_limit ({self.max_limit})"
            )
        checks.whole("Concurrency.queue", self.queue)
        checks.number("Concurrency.queue_s", self.queue_s, above=True)

    def new_state(self) -> LimitState:
        """The limit of one server, at its beginning."""
        return ConcurrencyLimit(
            limit=self.limit, adaptive=self.adaptive, min_limit=self.min_limit, max_limit=self.max_limit
        ).new_state()


@dataclass(frozen=True, slots=True)
class Rate:
    """A rate of calls, for a token bucket.

    Args:
        per_s: calls a second in the long run, > 0.
        burst: calls at once, >= 1; by default twice ``per_s``, and at least 1.

    Raises:
        ValueError: a field is out of its range; the message names it.
        TypeError: a field is not a number.
    """

    per_s: float
    burst: float = 0.0

    def __post_init__(self) -> None:
        checks.number("Rate.per_s", self.per_s, most=_MOST, above=True)
        checks.number("Rate.burst", self.burst, most=_MOST)
        if self.burst == 0.0:
            object.__setattr__(self, "burst", min(_MOST, max(1.0, 2 * self.per_s)))
        elif self.burst < 1.0:
            raise ValueError(f"Rate.burst is {self.burst}; expected a number >= 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a server takes on: how many calls at once, how many a second, and for how long.

    Args:
        concurrency: how many calls run at once; None: any number.
        rate: calls a second of all methods together; None: any number.
        method_rates: calls a second of single methods, by ``/package.Service/Method``; by ``/package.Service/*`` of all
            methods of a service together that have no entry of their own.
        client_rate: calls a second of each client, by the name that the metadata ``client_key`` has; None: any number.
            A call without a name has no such limit.
        client_key: the key of the metadata by which clients are told apart. A client can write what it likes there:
            set it at the edge, or use mutual TLS.
        timeout_s: how long a call may take that came without a deadline, and at most any call, in seconds, > 0; None:
            as long as its client says.
        hopeless: whether a call is refused that has less time left than its method's median.

    Raises:
        ValueError: a field is out of its range; the message names it.
        TypeError: a field has a wrong type.
    """

    concurrency: Concurrency | None = field(default_factory=Concurrency)
    rate: Rate | None = None
    method_rates: Mapping[str, Rate] = field(default_factory=dict)
    client_rate: Rate | None = None
    client_key: str = "lb-client"
    timeout_s: float | None = None
    hopeless: bool = True

    def __post_init__(self) -> None:
        _kind("concurrency", self.concurrency, Concurrency)
        _kind("rate", self.rate, Rate)
        _kind("client_rate", self.client_rate, Rate)
        if not isinstance(self.method_rates, Mapping):
            raise TypeError(
                f"Limits.method_rates is {checks.shown(self.method_rates)}; expected a mapping of methods to rates"
            )
        for name, rate in self.method_rates.items():
            checks.method(f"Limits.method_rates has {checks.shown(name)}", name)
            if not isinstance(rate, Rate):
                raise TypeError(f"Limits.method_rates[{name!r}] is {checks.shown(rate)}; expected a Rate")
        checks.string("Limits.client_key", self.client_key)
        if not legal_key(self.client_key) or self.client_key.endswith("-bin"):
            raise ValueError(
                f"Limits.client_key is {checks.shown(self.client_key)}; expected a key of metadata with text:"
                " lower-case letters, digits, '_', '.' and '-', not ending in '-bin'"
            )
        if self.timeout_s is not None:
            checks.number("Limits.timeout_s", self.timeout_s, above=True)
        checks.flag("Limits.hopeless", self.hopeless)


def _kind(name: str, value: object, kind: type) -> None:
    if value is not None and not isinstance(value, kind):
        raise TypeError(f"Limits.{name} is {checks.shown(value)}; expected a {kind.__name__} or None")
