"""How many calls a second a server takes: in all, of a method, and of each client."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping

from lb.core import checks
from lb.core.serving.settings import MOST_METHODS, Rate
from lb.core.token_bucket import SLACK_S

MOST_CLIENTS = 10_000
"""So many clients are told apart. One more, and the bucket that was used longest ago is forgotten."""


class Rates:
    """The token buckets of one server. Not thread-safe."""

    __slots__ = ("_by_client", "_by_entry", "_by_method", "_client", "_of_each", "_total", "bound", "refused")

    def __init__(self, rate: Rate | None, methods: Mapping[str, Rate], client: Rate | None) -> None:
        self._total = None if rate is None else _Bucket(rate, f"the server takes {rate.per_s:g}")
        self._by_entry = {entry: _Bucket(found, f"{entry} takes {found.per_s:g}") for entry, found in methods.items()}
        self._by_method: dict[str, tuple[_Bucket, ...]] = {}
        self._client = client
        self._of_each = "" if client is None else f"each client has {client.per_s:g}"
        self._by_client: OrderedDict[str, _Bucket] = OrderedDict()
        self.refused = 0
        self.bound = ""
        """Which rate the last call was refused for, in words."""

    @property
    def any(self) -> bool:
        """Whether there is any limit."""
        return self._total is not None or bool(self._by_entry) or self._client is not None

    def take(self, method: str, client: str, now: float) -> float:
        """Count a call. 0.0: it may run. Else it is refused, and nothing was taken: so many seconds until it may run,
        for the rate of which there is least.

        ``method`` is ``/package.Service/Method``; ``client`` is empty where it is not known, and is then not limited.
        """
        buckets = self._by_method.get(method)
        if buckets is None:
            buckets = self._of_method(method)
        if client and self._client is not None:
            buckets = (*buckets, self._of_client(client, self._client))
        short, free_at = None, now + SLACK_S
        for bucket in buckets:
            if bucket.next_at > free_at:
                short, free_at = bucket, bucket.next_at
        if short is not None:
            self.refused += 1
            self.bound = short.bound
            return free_at - now
        for bucket in buckets:
            full = now - bucket.burst_s
            bucket.next_at = (bucket.next_at if bucket.next_at > full else full) + bucket.each_s
        return 0.0

    def left(self, client: str, now: float) -> float | None:
        """How many calls a client may make at once by its own rate; None if there is none for clients."""
        if self._client is None:
            return None
        bucket = self._by_client.get(client)
        return self._client.burst if bucket is None else bucket.available(now)

    def _of_method(self, method: str) -> tuple[_Bucket, ...]:
        """Those that all of a method's calls take from."""
        if len(self._by_method) >= MOST_METHODS:
            self._by_method.clear()
        by_entry = self._by_entry
        of_method, of_service = checks.entries(method)
        own = by_entry.get(of_method) or by_entry.get(of_service)
        found = self._by_method[method] = tuple(bucket for bucket in (self._total, own) if bucket is not None)
        return found

    def _of_client(self, client: str, rate: Rate) -> _Bucket:
        clients = self._by_client
        found = clients.get(client)
        if found is None:
            if len(clients) >= MOST_CLIENTS:
                clients.popitem(last=False)
            found = clients[client] = _Bucket(rate, self._of_each)
        else:
            clients.move_to_end(client)
        return found

    def __repr__(self) -> str:
        return f"<Rates {len(self._by_client)} clients, {self.refused} refused>"


class _Bucket:
    """A `TokenBucket` from which `Rates` takes one token at a time, asking several buckets first."""

    __slots__ = ("_burst", "_per_s", "bound", "burst_s", "each_s", "next_at")

    def __init__(self, rate: Rate, bound: str) -> None:
        self._burst = rate.burst
        self._per_s = rate.per_s
        self.bound = bound
        """The rate, in words."""
        self.next_at = -math.inf
        """From when on it has a token."""
        self.each_s = 1.0 / rate.per_s
        self.burst_s = (rate.burst - 1.0) / rate.per_s
        """A full one has had a token for so long."""

    def available(self, now: float) -> float:
        """Tokens in it."""
        return min(self._burst, 1.0 + (now - self.next_at) * self._per_s)
