"""The rules of watching a service in Consul; who asks and waits is the pump in the shell.

Consul's blocking query: the question carries the last index, Consul answers when something
changed or the wait ran out. The rules are those of Consul's "Blocking Queries" page:

* the first question carries no index and is answered at once;
* after a good answer the index is never below 1 (0 would not block: a busy loop);
* an index lower than the last one starts again from none;
* a return does not mean a change: sets are compared;
* the loop is paced by a token bucket, not by a sleep in each turn: a single change is seen
  at once, a storm of changes costs ``rate`` questions a second;
* after an error nothing is taken for granted: no index, for an agent that restarted may count
  from the beginning, and would leave a question for a high index unanswered for its wait.

What Consul forgot is not gone. A registry that was restarted empty, or restored from an older
snapshot, says that instances are gone that still serve. So removals are *held* for ``hold_s``
when they come

* with an index that went backwards, or
* after an interruption, when nothing that was known has the same origin (node id, creation
  index) as before: the new index may by then have overtaken the old one; or
* after an interruption, when the instance is listed, but its check has not run yet: an agent
  that kept its registrations over a restart begins all checks as critical.

::

              listed, usable                      gone, and Consul remembers / judged unusable
    (absent) ───────────────► LIVE ─────────────────────────────────────────────► (absent)
                               ▲ │  gone, and Consul forgot                           ▲
                 listed, usable│ ▼                                                    │
                               HELD ── hold_s passed / judged critical / in maintenance
                                       / the same id usable at another address ───────┘

Additions apply at once; the breakers guard against a held instance that is really gone. A
check that has not run yet is critical without any output: that is how a registration begins,
and no judgement.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from lb.core.consul_health import Answer, Instance
from lb.core.endpoint import Endpoint, Resolution
from lb.core.token_bucket import TokenBucket

WAIT_S = 30.0
HOLD_S = 30.0
_RATE = 20.0
_BURST = 2.0
_ANSWER_S = 5.0
_BACKOFF_FIRST_S = 0.05
_BACKOFF_OVERLOADED_S = 0.5
_BACKOFF_MAX_S = 2.0

_Key = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Query:
    """What to ask: ``index`` None asks for an answer at once, else wait up to ``wait_s`` seconds."""

    index: int | None
    wait_s: float

    @property
    def timeout_s(self) -> float:
        """How long to wait for the answer. Consul adds up to 1/16 to the wait, against herds."""
        return _ANSWER_S if self.index is None else self.wait_s * 17 / 16 + _ANSWER_S


class Watch:
    """One service's watch. All instants are monotonic seconds given by the caller.

    ``service`` and ``asked`` (``"tag blue, dc eu"``, or empty) are for the notes. ``agents`` is
    the number of agents that may be asked in turn; ``agent`` is the one to ask next.
    ``keep_order`` keeps Consul's order (for ``near``); otherwise endpoints are sorted.
    """

    def __init__(
        self,
        service: str,
        *,
        asked: str = "",
        agents: int = 1,
        keep_order: bool = False,
        wait_s: float = WAIT_S,
        hold_s: float = HOLD_S,
        rate: float = _RATE,
        burst: float = _BURST,
    ) -> None:
        self.agent = 0
        self._service = service
        self._asked = f" with {asked}" if asked else ""
        self._agents = agents
        self._keep_order = keep_order
        self._wait_s = wait_s
        self._hold_s = hold_s
        self._bucket = TokenBucket(rate, burst)
        self._index: int | None = None
        self._last_index = 0
        self._failures = 0
        self._interrupted = False
        self._source = ""
        self._listed: tuple[Instance, ...] = ()
        self._live: dict[_Key, Endpoint] = {}
        self._held: dict[_Key, tuple[Endpoint, float]] = {}
        self._published: Resolution | None = None

    @property
    def query(self) -> Query:
        """The next question."""
        return Query(self._index, self._wait_s)

    @property
    def wake_at(self) -> float | None:
        """When :meth:`tick` has something to do; None when nothing is held."""
        return min((until for _, until in self._held.values()), default=None)

    def pace(self, now: float) -> float:
        """Seconds to wait before asking; 0.0 means ask now (and counts as asked)."""
        return self._bucket.take(now)

    def answered(self, now: float, answer: Answer, source: str) -> Resolution | None:
        """A good answer came from ``source`` (for the notes). The new resolution, or None when nothing changed."""
        recovered = self._interrupted
        backwards = answer.index < self._last_index
        forgot = backwards or (recovered and not self._remembered(answer))
        self._last_index = answer.index
        self._index = None if backwards else max(1, answer.index)
        self._failures = 0
        self._interrupted = False
        self._source = source

        gone = self._live
        self._listed = answer.instances
        self._live = {i.endpoint.key: i.endpoint for i in answer.instances if i.usable}
        unjudged = {i.endpoint.key for i in answer.instances if not i.judged} if recovered else set()
        for key, endpoint in gone.items():
            if forgot or key in unjudged:
                self._held[key] = (endpoint, now + self._hold_s)
        self._release(now)
        return self._publish(again=recovered)

    def failed(self, rng: Random, *, overloaded: bool = False) -> float:
        """The question failed. Seconds to wait before the next one, which goes to :attr:`agent`.

        ``overloaded``: the agent answered 429 or 503. The other agents are tried at once, then
        the wait grows to 2 s, half of it jitter.
        """
        self._index = None
        self._interrupted = True
        self._failures += 1
        self.agent = (self.agent + 1) % self._agents
        rounds, more = divmod(self._failures, self._agents)
        if more:
            return 0.0
        first = _BACKOFF_OVERLOADED_S if overloaded else _BACKOFF_FIRST_S
        longest = min(_BACKOFF_MAX_S, first * 2.0 ** min(rounds - 1, 16))
        return longest * rng.uniform(0.5, 1.0)

    def tick(self, now: float) -> Resolution | None:
        """Lets go what was held long enough. The new resolution, or None when nothing changed."""
        self._release(now)
        return self._publish(again=False)

    def _remembered(self, answer: Answer) -> bool:
        """Whether something known before is still the same registration."""
        origins = {i.origin for i in self._listed}
        return not self._live or any(i.origin in origins for i in answer.instances)

    def _release(self, now: float) -> None:
        usable_ids = {key[0] for key in self._live}
        judged = {i.endpoint.key for i in self._listed if not i.usable and i.judged}
        self._held = {
            key: (endpoint, until)
            for key, (endpoint, until) in self._held.items()
            if until > now and key[0] not in usable_ids and key not in judged
        }

    def _publish(self, *, again: bool) -> Resolution | None:
        endpoints = [*self._live.values(), *(endpoint for endpoint, _ in self._held.values())]
        if not self._keep_order:
            endpoints.sort(key=lambda e: e.key)
        resolution = Resolution(tuple(endpoints), self._note(endpoints))
        if not again and self._published is not None and _same(self._published, resolution):
            return None
        self._published = resolution
        return resolution

    def _note(self, endpoints: list[Endpoint]) -> str:
        if self._held:
            return f"{self._source}: Consul forgot {len(self._held)} of {len(endpoints)}; kept for {self._hold_s:g} s"
        if endpoints:
            return self._source
        if not self._listed:
            return f"{self._source}: no service {self._service!r}{self._asked} is registered"
        counts: dict[str, int] = {}
        for instance in self._listed:
            counts[instance.status] = counts.get(instance.status, 0) + 1
        words = ", ".join(f"{count} {status}" for status, count in sorted(counts.items()))
        why = next((f" ({i.endpoint.id}: {i.why})" for i in self._listed if i.why), "")
        return f"{self._source}: service {self._service!r}{self._asked} has no usable instance: {words}{why}"

    def __repr__(self) -> str:
        return (
            f"Watch({self._service!r}, index={self._index}, last={self._last_index}, live={len(self._live)}, "
            f"held={len(self._held)}, failures={self._failures})"
        )


def _same(a: Resolution, b: Resolution) -> bool:
    """Equal but for the order: answers sorted by distance swap places without a change."""
    return a.note == b.note and {e.key: e for e in a.endpoints} == {e.key: e for e in b.endpoints}
