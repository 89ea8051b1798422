"""How many calls a second a server takes: in all, of a method, and of each client."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

from lb.core import checks
from lb.core.serving.settings import MOST_METHODS, Rate
from lb.core.token_bucket import SLACK_S, TokenBucket

MOST_CLIENTS = 10_000
"""So many clients are told apart. One more, and the bucket that was used longest ago is forgotten."""


class Rates:
    """The token buckets of one server. Not thread-safe."""

    __slots__ = ("_by_client", "_by_entry", "_by_method", "_client", "_of_each", "_total", "bound", "refused")

    def __init__(self, rate: Rate | None, methods: Mapping[str, Rate], client: Rate | None) -> None:
        self._total = None if rate is None else _Bucket(rate, f"the server takes {rate.per_s:g}")
        self._by_entry = {entry: _Bucket(found, f"{entry} takes {found.per_s:g}") for entry, found in methods.items()}
        self._by_method: dict[str, _Bucket | None] = {}
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
        total = self._total
        of_method = self._of_method(method) if self._by_entry else None
        of_client = self._of_client(client) if client else None
        short = total
        wait_s = 0.0 if total is None else total.lacks(now)
        if of_method is not None and (lacks_s := of_method.lacks(now)) > wait_s:
            short, wait_s = of_method, lacks_s
        if of_client is not None and (lacks_s := of_client.lacks(now)) > wait_s:
            short, wait_s = of_client, lacks_s
        if wait_s > 0.0 and short is not None:
            self.refused += 1
            self.bound = short.bound
            return wait_s
        if total is not None:
            total.spend(now)
        if of_method is not None:
            of_method.spend(now)
        if of_client is not None:
            of_client.spend(now)
        return 0.0

    def left(self, client: str, now: float) -> float | None:
        """How many calls a client may make at once by its own rate; None if there is none for clients."""
        if self._client is None:
            return None
        bucket = self._by_client.get(client)
        return self._client.burst if bucket is None else bucket.available(now)

    def _of_method(self, method: str) -> _Bucket | None:
        found = self._by_method
        if method not in found:
            if len(found) >= MOST_METHODS:
                found.clear()
            by_entry = self._by_entry
            of_method, of_service = checks.entries(method)
            found[method] = by_entry.get(of_method) or by_entry.get(of_service)
        return found[method]

    def _of_client(self, client: str) -> _Bucket | None:
        if self._client is None:
            return None
        clients = self._by_client
        found = clients.get(client)
        if found is None:
            if len(clients) >= MOST_CLIENTS:
                clients.popitem(last=False)
            found = clients[client] = _Bucket(self._client, self._of_each)
        else:
            clients.move_to_end(client)
        return found

    def __repr__(self) -> str:
        return f"<Rates {len(self._by_client)} clients, {self.refused} refused>"


class _Bucket(TokenBucket):
    """One of which tokens are taken one by one, several buckets at a time or none: asked first, then taken from."""

    __slots__ = ("_each_s", "_last_s", "bound")

    def __init__(self, rate: Rate, bound: str) -> None:
        super().__init__(rate.per_s, rate.burst)
        self.bound = bound
        self._each_s = 1.0 / rate.per_s
        self._last_s = (rate.burst - 1.0) / rate.per_s
        """Full so much later, it has one token left."""

    def lacks(self, now: float) -> float:
        """`wait` for one token."""
        missing = self._full_at - now - self._last_s
        return missing if missing > SLACK_S else 0.0

    def spend(self, now: float) -> None:
        """Take one that is there."""
        full_at = self._full_at
        self._full_at = (full_at if full_at > now else now) + self._each_s
