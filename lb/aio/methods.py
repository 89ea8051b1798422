"""The methods that a channel was called with: what all calls of one share, and which settings no method used."""

from __future__ import annotations

import asyncio
import logging
import weakref

from lb.aio.alarm import Alarm
from lb.aio.attempt import LiveAttempt
from lb.aio.idempotency import is_idempotent
from lb.aio.unary import UnaryCall
from lb.core import checks
from lb.core.balancer import Balancer
from lb.core.budget import BudgetState
from lb.core.call import Shared
from lb.core.hedging import next_delay_s
from lb.core.quantile import Quantile
from lb.core.settings import Settings
from lb.core.throttle import ThrottleState
from lb.telemetry.metrics import Metrics

_log = logging.getLogger("lb.channel")

_MOST_KNOWN = 4096
UNMATCHED_S = 60.0
"""How long after a channel's first use the log names settings for methods that were not called."""
_MOST_SHOWN = 5
_CLOSE = 0.8
_told: set[str] = set()
"""Names in settings that the log of this process has named."""


class Methods:
    """What is known of each method that was called."""

    def __init__(
        self,
        target: str,
        settings: Settings,
        balancer: Balancer,
        budget: BudgetState | ThrottleState,
        metrics: Metrics,
    ) -> None:
        self._target = target
        self._settings = settings
        self._balancer = balancer
        self._budget = budget
        self._metrics = metrics
        self._registered: set[str] = set()
        """Names that a stub has registered: these may stand in metrics."""
        self._unmatched = settings.entries
        """Names in the settings that no called method goes by."""
        self.known: dict[bytes, Shared] = {}
        """By ``/package.Service/Method``, the methods that were called before."""

    def register(self, method: bytes) -> None:
        """A stub has this method."""
        self._registered.add(method.decode())

    def find(self, method: bytes) -> Shared:
        """What all calls of this method share."""
        known = self.known.get(method)
        if known is None:
            if not isinstance(method, bytes):  # from an interceptor; the words are grpcio's
                raise TypeError(f"Argument 'method' has incorrect type (expected bytes, got {type(method).__name__})")
            if len(self.known) >= _MOST_KNOWN:  # a proxy may meet any number of them
                self.known.clear()
            known = self.known[method] = self._made(method.decode())
        return known

    def _made(self, name: str) -> Shared:
        rules = self._settings.method(name, declared_idempotent=is_idempotent(name))
        self._unmatched.difference_update(rules.entries)
        if rules.doubt:
            _log.warning("%s: %s", self._target, rules.doubt)
        hedging, limit_s = rules.hedging, rules.retry.attempt_timeout_s
        latency = Quantile() if hedging is not None and hedging.delay_s is None else None
        return Shared(
            name,
            rules,
            self._balancer,
            self._budget,
            latency=latency,
            tally=self._metrics.tally(name, self._registered),
            overdue=None if limit_s is None else Alarm(lambda: limit_s, LiveAttempt.overdue),
            hedges=None if hedging is None else Alarm(lambda: next_delay_s(hedging, latency), UnaryCall.hedge),
        )

    # ---- settings that no method used ----

    def watch_unmatched(self) -> None:
        """Name settings that no called method used, a while from now. In the loop, at the channel's first use."""
        if self._unmatched:
            # Weak: a channel that was forgotten must not be kept by its timer.
            asyncio.get_running_loop().call_later(UNMATCHED_S, _look_for_unmatched, weakref.ref(self))

    def look_for_unmatched(self) -> None:
        """Name those of services that were called: the others may be called later."""
        services = {checks.entries(method.name)[1] for method in self.known.values()}
        self._tell({name for name in self._unmatched if checks.entries(name)[1] in services})

    def close(self) -> None:
        """The channel is closed: name all of them, if any method was called."""
        if self.known:
            self._tell(self._unmatched)

    def _tell(self, names: set[str]) -> None:
        """Log names in the settings that no called method goes by: each once in a process.

        A list of methods may well have some that this program does not call. So it is a warning only when a name is
        nearly that of a called method which goes by none, or when no name had any use.
        """
        names = names - _told
        if not names:
            return
        from difflib import get_close_matches  # once in a process, if at all

        _told.update(names)
        entries = self._settings.entries
        called = {method.name for method in self.known.values()}
        alone = {name for name in called if not entries.intersection(checks.entries(name))}
        forms = [form for name in sorted(alone) for form in checks.entries(name)]
        meant = sorted({form for name in names for form in get_close_matches(name, forms, n=1, cutoff=_CLOSE)})
        hint = f". Did you mean {', '.join(meant)}?" if meant else ""
        level = logging.WARNING if meant or self._unmatched == entries else logging.INFO
        shown, told = ", ".join(sorted(names)), ", ".join(sorted(called)[:_MOST_SHOWN])
        words = "%s: Retry.idempotent or methods= names %s, which was never called (called: %s)%s"
        _log.log(level, words, self._target, shown, told, hint)


def _look_for_unmatched(reference: weakref.ref[Methods]) -> None:
    methods = reference()
    if methods is not None:
        methods.look_for_unmatched()
