"""How many calls a second a server takes: in all, of a method, and of each client."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

from lb.core import checks
from lb.core.serving.settings import Rate
from lb.core.token_bucket import TokenBucket

MOST_CLIENTS = 10_000
"""So many clients are told apart. One more, and the bucket that was used longest ago is forgotten."""


class Rates:
    """The token buckets of one server. Not thread-safe."""

    __slots__ = ("_by_client", "_by_entry", "_client", "_total", "refused")

    def __init__(self, rate: Rate | None, methods: Mapping[str, Rate], client: Rate | None) -> None:
        self._total = None if rate is None else _made(rate)
        self._by_entry = {entry: _made(found) for entry, found in methods.items()}
        self._client = client
        self._by_client: OrderedDict[str, TokenBucket] = OrderedDict()
        self.refused = 0

    @property
    def any(self) -> bool:
        """Whether there is any limit."""
        return self._total is not None or bool(self._by_entry) or self._client is not None

    def take(self, method: str, client: str, now: float) -> float:
        """Count a call. 0.0: it may run. Else it is refused, and nothing was taken: so many seconds until it may run.

        ``method`` is ``/package.Service/Method``; ``client`` is empty where it is not known, and is then not limited.
        """
        total = self._total
        of_method = self._of_method(method) if self._by_entry else None
        of_client = self._of_client(client) if client else None
        wait_s = 0.0 if total is None else total.wait(now)
        if of_method is not None:
            wait_s = max(wait_s, of_method.wait(now))
        if of_client is not None:
            wait_s = max(wait_s, of_client.wait(now))
        if wait_s > 0.0:
            self.refused += 1
            return wait_s
        if total is not None:
            total.take(now)
        if of_method is not None:
            of_method.take(now)
        if of_client is not None:
            of_client.take(now)
        return 0.0

    def left(self, client: str, now: float) -> float | None:
        """How many calls a client may make at once by its own rate; None if there is none for clients."""
        if self._client is None:
            return None
        bucket = self._by_client.get(client)
        return self._client.burst if bucket is None else bucket.available(now)

    def _of_method(self, method: str) -> TokenBucket | None:
        by_entry = self._by_entry
        of_method, of_service = checks.entries(method)
        return by_entry.get(of_method) or by_entry.get(of_service)

    def _of_client(self, client: str) -> TokenBucket | None:
        if self._client is None:
            return None
        clients = self._by_client
        found = clients.get(client)
        if found is None:
            if len(clients) >= MOST_CLIENTS:
                clients.popitem(last=False)
            found = clients[client] = _made(self._client)
        else:
            clients.move_to_end(client)
        return found

    def __repr__(self) -> str:
        return f"<Rates {len(self._by_client)} clients, {self.refused} refused>"


def _made(rate: Rate) -> TokenBucket:
    return TokenBucket(rate.per_s, rate.burst)
