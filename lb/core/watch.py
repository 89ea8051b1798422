"""The rules of watching a service in Consul: what to ask, when, and of which agent. The shell asks and waits.

Consul's blocking query: the question carries the last index, and Consul answers when something
changed or the wait is over. The rules are those of Consul's "Blocking Queries" page:

* the first question carries no index and is answered at once;
* after a good answer the index is never below 1 (0 would not block, and make a busy loop);
* after an index lower than the last one the next question carries none;
* an answer does not mean a change: sets are compared;
* questions are paced by a token bucket, not by a sleep after each: a single change is seen
  at once, a storm of changes costs ``rate`` questions a second;
* after an error the next question carries no index: an agent that restarted may count
  from the beginning, and would not answer a question with a high index before its wait is over.

What an answer makes of the instances is `lb.core.known`'s. It may want a proof: then the next question is a plain one,
at once and of a server that is up to date.

A proxy may cut questions that wait. After the first cut the same agent is asked again, and it is no failure.
After two cuts by about the same time-out, questions wait for less than that.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from lb.core.consul_health import Answer
from lb.core.endpoint import Resolution
from lb.core.known import Known
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
# A question that is cut sooner is a failure like others: no proxy has such a time-out.
_CUT_LEAST_S = 2.0
# How far two cuts by one time-out may be apart, and how much of it is used.
_CUT_ALIKE = 1.25
_CUT_MARGIN = 0.8


@dataclass(frozen=True, slots=True)
class Query:
    """What to ask. With the ``index`` None for an answer at once, else for a change within ``wait_s`` seconds.

    ``stale``: any server may answer, so that reading needs no leader. A proof of what another
    server has just said must not come from one that lags behind.
    """

    index: int | None
    wait_s: float
    stale: bool = True

    @property
    def timeout_s(self) -> float:
        """How long the agent may be silent, in seconds. Consul makes the wait longer by up to 1/16, at random."""
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
        self._asked = f"{service!r} with {asked}" if asked else repr(service)
        self._agents = agents
        self._keep_order = keep_order
        self._wait_s = wait_s
        self._bucket = TokenBucket(rate, burst)
        self._known = Known(hold_s)
        self._index: int | None = None
        self._last_index = 0
        self._failures = 0
        self._failed = False
        self._answered_at: float | None = None
        """When the last good answer came; None since an interruption."""
        self._proving = False
        """Whether the next question is the proof that `Known` wants."""
        self._cut: float | None = None
        """How long the last question had waited, if it was cut and there was no answer since."""
        self._cut_before: float | None = None
        self._told: frozenset[str] = frozenset()
        self._untold: list[str] = []
        self._published: Resolution | None = None

    @property
    def query(self) -> Query:
        """The next question."""
        wait_s = min(self._wait_s, max(self._known.shortest_hold_s, _WAIT_LEAST_S))
        return Query(None, wait_s, stale=False) if self._proving else Query(self._index, wait_s)

    def pace(self, now: float) -> float:
        """Seconds to wait before asking; 0.0: ask now (which counts as asked)."""
        return self._bucket.take(now)

    def answered(self, now: float, answer: Answer, source: str) -> Resolution | None:
        """A good answer came from ``source`` (for the notes). The new resolution, or None when nothing changed."""
        recovered = self._answered_at is None
        passed_s = 0.0 if self._answered_at is None else now - self._answered_at
        # A proof follows an answer at once; another backend may count a little differently.
        backwards = answer.index < self._last_index and not self._proving
        forgot = backwards or (recovered and not self._known.remembered_by(answer))
        self._last_index = answer.index
        self._index = None if backwards else max(1, answer.index)
        self._failures = 0
        self._answered_at = now
        self._learn_from_cuts()
        remarks = self._known.learn(answer, passed_s=passed_s, forgot=forgot, recovered=recovered, proof=self._proving)
        self._proving = self._known.wants_proof
        self._untold += [words for words in remarks if words not in self._told]
        self._told = frozenset(remarks)
        return self._publish(source)

    def failed(self, rng: Random, *, overloaded: bool = False) -> float:
        """The question failed. Seconds to wait before the next one, which goes to ``agent``.

        ``overloaded``: the agent answered 429 or 503. The other agents are asked at once. After that
        the wait grows to 2 s, half of it jitter.
        """
        self._index = self._answered_at = self._cut = None
        self._failed, self._proving = True, False
        self._failures += 1
        self.agent = (self.agent + 1) % self._agents
        rounds, more = divmod(self._failures, self._agents)
        if more:
            return 0.0
        first = _BACKOFF_OVERLOADED_S if overloaded else _BACKOFF_FIRST_S
        longest = min(_BACKOFF_MAX_S, first * 2.0 ** min(rounds - 1, 16))
        return longest * rng.uniform(0.5, 1.0)

    def cut(self, after_s: float) -> bool:
        """The question was cut off after ``after_s`` seconds. True: that is no failure, ask the same agent at once.

        A proxy may cut a question that waits. False if it was not waiting, or the one before was cut as
        well: then Consul is away, and the caller calls `failed`.
        """
        if self.query.index is None or self._cut is not None or after_s < _CUT_LEAST_S:
            return False
        self._index = self._answered_at = None
        self._proving = False
        self._cut = after_s
        return True

    def remarks(self) -> list[str]:
        """What an operator should hear of, each thing once while it lasts."""
        remarks, self._untold = self._untold, []
        return remarks

    def _learn_from_cuts(self) -> None:
        """After two cuts alike, each with an answer at once after it, questions wait for less than that."""
        cut, before = self._cut, self._cut_before
        if cut is None:
            return
        self._cut, self._cut_before = None, cut
        if before is None or max(cut, before) > _CUT_ALIKE * min(cut, before):
            return
        self._wait_s = _CUT_MARGIN * min(cut, before)
        self._untold.append(
            f"something before Consul, probably a proxy, ends requests after {cut:.1f} s;"
            f" from now on blocking queries wait {self._wait_s:.1f} s"
        )

    def _publish(self, source: str) -> Resolution | None:
        endpoints = self._known.endpoints
        if not self._keep_order:
            endpoints.sort(key=lambda e: e.key)
        resolution = Resolution(tuple(endpoints), self._known.note(source, self._asked))
        again, self._failed = self._failed, False
        if not again and self._published is not None and _same(self._published, resolution):
            return None
        self._published = resolution
        return resolution

    def __repr__(self) -> str:
        return f"<Watch {self._asked} index={self._index} last={self._last_index} {self._known!r}>"


def _same(a: Resolution, b: Resolution) -> bool:
    """Whether they differ in their order at most: answers sorted by distance change places without a change."""
    return a.note == b.note and {e.key: e for e in a.endpoints} == {e.key: e for e in b.endpoints}
