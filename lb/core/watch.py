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
                               HELD ── held for hold_s / judged critical / in maintenance
                                       / its id or its address usable under another key

The hold counts the time between good answers only: a Consul that comes back empty, says so and
is gone again has not given anybody the time to register. When the hold is over, Consul is asked
once more at once, and what it lists then is kept: the last answer may be old, if the client
itself stood still. Additions apply at once; the breakers guard against a held instance that is
really gone. A check that has not run yet is critical without any output: that is how a
registration begins, and no judgement.

What a token may not read is not gone either. Consul filters it out, and says so in a header;
what the last complete answer listed is held until there is a complete one again. Its streaming
backend, which answers the questions that wait, filters without a word. So what is missing from
such an answer is *doubted*, and used, until the plain question that follows at once has its answer.

Service ids are unique on one node only. The instance that has an id already keeps it, so that it
keeps its statistics; one that joins with the same id at another address is called ``id@node``.
Of two ids at one address the first counts: the server behind them gets the share of one.

A proxy may cut questions that wait. The first cut is answered by asking again, and is no failure;
after two cuts at about the same time, questions wait less long than that.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import inf
from random import Random

from lb.core.consul_health import RIGHTS, Answer, Instance
from lb.core.endpoint import Endpoint, Resolution
from lb.core.token_bucket import TokenBucket

WAIT_S = 30.0
HOLD_S = 30.0
_WAIT_LEAST_S = 0.1
_RATE = 20.0
_BURST = 2.0
_ANSWER_S = 5.0
_BACKOFF_FIRST_S = 0.05
_BACKOFF_OVERLOADED_S = 0.5
_BACKOFF_MAX_S = 2.0
# A question cut sooner is a failure like others: no proxy is set so.
_CUT_LEAST_S = 2.0
# How far two cuts by one time-out may be apart, and how much of it is used.
_CUT_ALIKE = 1.25
_CUT_MARGIN = 0.8

_Key = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Query:
    """What to ask: ``index`` None asks for an answer at once, else wait up to ``wait_s`` seconds.

    ``stale``: any server may answer, so that reading needs no leader. A question that confirms what another
    server has just said must not be answered by one that lags behind.
    """

    index: int | None
    wait_s: float
    stale: bool = True

    @property
    def timeout_s(self) -> float:
        """How long the agent may be silent. Consul adds up to 1/16 to the wait, against herds."""
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
        self._failed = False
        self._answered_at: float | None = None
        """When the last good answer came; None since an interruption."""
        self._source = ""
        self._listed: tuple[Instance, ...] = ()
        self._origins: set[tuple[str, int]] = set()
        """Of all that was listed, or is doubted."""
        self._live: dict[_Key, Endpoint] = {}
        self._held: dict[_Key, tuple[Endpoint, float]] = {}
        """With the seconds that each is still held for."""
        self._doubted: dict[_Key, Endpoint] = {}
        self._confirming = False
        """Whether the next question is the one after which those leave that are doubted, or whose hold is over."""
        self._filtered = False
        self._complete: set[_Key] = set()
        """What was listed while nothing was filtered."""
        self._at_node: dict[_Key, str] = {}
        """The names of those whose id another one has, by Consul's id and the address."""
        self._cut: float | None = None
        """How long the last question had waited, if it was cut and nothing was heard since."""
        self._cut_before: float | None = None
        self._told: frozenset[str] = frozenset()
        self._untold: list[str] = []
        self._published: Resolution | None = None

    @property
    def query(self) -> Query:
        """The next question."""
        left = min((left for _, left in self._held.values()), default=inf)
        wait_s = min(self._wait_s, max(left, _WAIT_LEAST_S))
        return Query(None, wait_s, stale=False) if self._confirming else Query(self._index, wait_s)

    def pace(self, now: float) -> float:
        """Seconds to wait before asking; 0.0 means ask now (and counts as asked)."""
        return self._bucket.take(now)

    def answered(self, now: float, answer: Answer, source: str) -> Resolution | None:
        """A good answer came from ``source`` (for the notes). The new resolution, or None when nothing changed."""
        recovered = self._answered_at is None
        passed = 0.0 if self._answered_at is None else now - self._answered_at
        # A question that confirms follows an answer at once; another backend may count a little differently.
        backwards = answer.index < self._last_index and not self._confirming
        forgot = backwards or (recovered and not self._remembered(answer))
        self._last_index = answer.index
        self._index = None if backwards else max(1, answer.index)
        self._failures = 0
        self._answered_at = now
        self._source = source
        self._learn_from_cuts()

        remarks: list[str] = []
        self._listed = self._named(answer.instances, remarks)
        listed = {i.endpoint.key for i in self._listed}
        gone = self._live | self._doubted
        self._live = {i.endpoint.key: i.endpoint for i in self._listed if i.usable}
        self._one_each(remarks)
        hidden = self._hidden(answer, listed)
        self._held = {
            key: (endpoint, inf if key in hidden else left - passed)
            for key, (endpoint, left) in self._held.items()
            if left > 0 or key in hidden or not self._confirming
        }
        unjudged = {i.endpoint.key for i in self._listed if not i.judged} if recovered else set()
        doubted = gone.keys() - listed if answer.streamed and not self._confirming else set()
        self._doubted = {}
        for key, endpoint in gone.items():
            if forgot or key in unjudged:
                self._held[key] = (endpoint, self._hold_s)
            elif key in hidden:
                self._held[key] = (endpoint, inf)
            elif key in doubted:
                self._doubted[key] = endpoint
        if self._filtered:
            remarks.append(f"Consul's ACLs hide instances from this token; it needs {RIGHTS}")
        elif not answer.streamed:
            self._held = {key: held for key, held in self._held.items() if held[1] < inf}
        self._release()
        origins = {i.origin for i in self._listed}
        self._origins = self._origins | origins if self._doubted else origins
        self._confirming = bool(self._doubted) or any(left <= 0 for _, left in self._held.values())
        self._forget_names(answer)
        self._remark(remarks)
        return self._publish()

    def failed(self, rng: Random, *, overloaded: bool = False) -> float:
        """The question failed. Seconds to wait before the next one, which goes to :attr:`agent`.

        ``overloaded``: the agent answered 429 or 503. The other agents are tried at once, then
        the wait grows to 2 s, half of it jitter.
        """
        self._index = self._answered_at = self._cut = None
        self._failed, self._confirming = True, False
        self._failures += 1
        self.agent = (self.agent + 1) % self._agents
        rounds, more = divmod(self._failures, self._agents)
        if more:
            return 0.0
        first = _BACKOFF_OVERLOADED_S if overloaded else _BACKOFF_FIRST_S
        longest = min(_BACKOFF_MAX_S, first * 2.0 ** min(rounds - 1, 16))
        return longest * rng.uniform(0.5, 1.0)

    def cut(self, after_s: float) -> bool:
        """The question was broken off after so many seconds. True: ask the same agent again at once, it is no failure.

        A waiting question may be cut by a proxy. When it was not waiting, or the one after it fails as
        well, Consul is away: then it is for :meth:`failed`.
        """
        if self.query.index is None or self._cut is not None or after_s < _CUT_LEAST_S:
            return False
        self._index = self._answered_at = None
        self._confirming = False
        self._cut = after_s
        return True

    def remarks(self) -> list[str]:
        """What an operator should hear of, each once while it lasts."""
        remarks, self._untold = self._untold, []
        return remarks

    def _learn_from_cuts(self) -> None:
        """After two cuts alike, with an answer at once after each, questions wait less long."""
        cut, before = self._cut, self._cut_before
        if cut is None:
            return
        self._cut, self._cut_before = None, cut
        if before is None or max(cut, before) > _CUT_ALIKE * min(cut, before):
            return
        self._wait_s = _CUT_MARGIN * min(cut, before)
        self._untold.append(
            f"waiting queries are cut after {cut:.1f} s, as by a proxy's time-out;"
            f" from now on they wait {self._wait_s:.1f} s"
        )

    def _named(self, instances: tuple[Instance, ...], remarks: list[str]) -> tuple[Instance, ...]:
        """The instances by the names that they go by here."""
        same: dict[str, list[Instance]] = {}
        for instance in instances:
            same.setdefault(instance.endpoint.id, []).append(instance)
        if len(same) == len(instances) and not self._at_node:
            return instances
        for id, found in same.items():
            plain = [i for i in found if i.endpoint.key not in self._at_node]
            if len(plain) > 1:
                plain.sort(key=lambda i: (i.endpoint.key not in self._live, i.origin[1], i.node))
                self._at_node.update({i.endpoint.key: f"{id}@{i.node}" for i in plain[1:]})
            if len(found) > 1:
                where = ", ".join(sorted(f"{i.endpoint.address} (node {i.node})" for i in found))
                remarks.append(f"id {id!r} is registered at several addresses: {where}; each counts")
        return tuple(self._renamed(instance) for instance in instances)

    def _renamed(self, instance: Instance) -> Instance:
        name = self._at_node.get(instance.endpoint.key)
        return replace(instance, endpoint=replace(instance.endpoint, id=name)) if name else instance

    def _forget_names(self, answer: Answer) -> None:
        if self._at_node:
            listed = {i.endpoint.key for i in answer.instances}
            self._at_node = {
                key: name
                for key, name in self._at_node.items()
                if key in listed or (name, key[1]) in self._held or (name, key[1]) in self._doubted
            }

    def _one_each(self, remarks: list[str]) -> None:
        """Of several ids at one address the first counts."""
        at: dict[str, str] = {}
        for id, address in self._live:
            at[address] = min(id, at.get(address, id))
        if len(at) == len(self._live):
            return
        for address, id in at.items():
            others = sorted(key[0] for key in self._live if key[1] == address and key[0] != id)
            if others:
                remarks.append(f"{address} is registered as {id} and as {', '.join(others)}; it counts once, as {id}")
        self._live = {key: endpoint for key, endpoint in self._live.items() if at[key[1]] == key[0]}

    def _remark(self, remarks: list[str]) -> None:
        now = frozenset(remarks)
        self._untold += [words for words in remarks if words not in self._told]
        self._told = now

    def _hidden(self, answer: Answer, listed: set[_Key]) -> set[_Key]:
        """Those that the token could read once, and that this answer may have filtered out."""
        if not answer.streamed:
            self._filtered = answer.filtered
        if not self._filtered:
            self._complete = listed if not answer.streamed else self._complete | listed
        return self._complete - listed if answer.filtered else set()

    def _remembered(self, answer: Answer) -> bool:
        """Whether something known before is still the same registration."""
        return not (self._live or self._doubted) or any(i.origin in self._origins for i in answer.instances)

    def _release(self) -> None:
        """Lets go of what is held or doubted, where the answer speaks of it."""
        if not self._held and not self._doubted:
            return
        ids, addresses = {key[0] for key in self._live}, {key[1] for key in self._live}
        judged = {i.endpoint.key for i in self._listed if not i.usable and i.judged}

        def kept(key: _Key) -> bool:
            return key[0] not in ids and key[1] not in addresses and key not in judged

        self._held = {key: held for key, held in self._held.items() if kept(key)}
        self._doubted = {key: endpoint for key, endpoint in self._doubted.items() if kept(key)}

    def _publish(self) -> Resolution | None:
        kept = [endpoint for endpoint, _ in self._held.values()]
        endpoints = [*self._live.values(), *self._doubted.values(), *kept]
        if not self._keep_order:
            endpoints.sort(key=lambda e: e.key)
        resolution = Resolution(tuple(endpoints), self._note(endpoints))
        again, self._failed = self._failed, False
        if not again and self._published is not None and _same(self._published, resolution):
            return None
        self._published = resolution
        return resolution

    def _note(self, endpoints: list[Endpoint]) -> str:
        if self._held:
            hidden = sum(left == inf for _, left in self._held.values())
            if hidden:
                return f"{self._source}: this token may not read {hidden} of {len(endpoints)}; kept until it may"
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
