"""Weighted round robin, smooth: shares by weight, spread evenly in time.

Two schedules with one kind of state. Each candidate has a *credit*: the picks that are due to
it minus those it got.

Up to 64 candidates: **nginx's sequence** (``ngx_http_upstream_round_robin.c``): every pick adds
its weight to each credit, the highest is picked, the first of equals, and pays the sum of
weights. Weights 5, 1, 1 give ``a a b a c a a``. It is O(n), but it repeats after as many picks
as the weights' sum, so a short cycle is recorded while it is walked and then replayed in O(1).

Beyond: **tiers**. Those with weights from 2^k up to 2^(k+1) are one tier. Which tier comes next
is laid out for 256 picks at once, each tier's picks evenly spread; what is left of a pick is
carried into the next 256. Within a tier they come in turn. Where their weights differ, each visit
adds the weight to a credit, and who has no 2^(k+1) yet is passed over: at most every other
visit. So a pick is O(1) on average, with 16 tiers for weights up to 65,535, and nobody is ever three
picks off its share. An earliest-deadline heap (gRFC A58, Envoy) costs O(log n) for each pick, a
static stride O(n) where one weight towers.

Where a sequence begins is left to chance: with weights 5, 1, 1 a client's first pick is the first of them five times
in seven, and so is its second. Clients that start together, or make one call each, do not all
begin with the same endpoint. From there on the shares are exact.

When the set or a weight changes, survivors keep their credit and newcomers begin with an
average one: the sequence does not restart, nobody waits longer than its share says, nobody gets
a burst. Who left and comes back is a newcomer. The place of one that was alone says nothing: what
follows begins anywhere.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from heapq import nlargest
from itertools import chain, compress, cycle
from math import gcd
from operator import add, length_hint
from random import Random
from typing import ClassVar, TypeAlias

from lb.core.policies.base import CallInfo, Candidate, Picker

SMOOTH_LIMIT = 64
"""Up to so many candidates the sequence is nginx's."""
CYCLE_LIMIT = 1024
"""Up to this sum of (reduced) weights nginx's sequence is recorded: at most 8 KB a channel. A longer one begins at one
of its first 1024 picks: walking there costs a millisecond or two, once."""
PRECISION = 1 << 20
"""Weights are multiplied until they sum to this: a change rounds credits to a millionth of a pick."""
STRETCH = 256
"""So many picks of the tiers are laid out at once."""
PASSED_OVER = 16
"""Moving the turn leaves out fewer picks than that."""
LAYOUTS = 256
"""So many layouts of a stretch are kept."""

_GOLDEN = (5**0.5 - 1) / 2

Credits: TypeAlias = Mapping[Candidate, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightedRoundRobin:
    """Shares by weight, spread evenly: nginx's smooth sequence. The default policy."""

    name: ClassVar[str] = "weighted_round_robin"
    spreads: ClassVar[bool] = True

    def picker(self, candidates: Sequence[Candidate], previous: Picker | None) -> SmoothPicker | TieredPicker:
        """A picker in which survivors of ``previous`` keep their place."""
        return by_weights(candidates, [candidate.weight for candidate in candidates], previous)


def by_weights(
    candidates: Sequence[Candidate], weights: Sequence[int], previous: Picker | None
) -> SmoothPicker | TieredPicker:
    """A picker with these weights, each >= 1, in place of the candidates' own."""
    known = previous if isinstance(previous, (SmoothPicker, TieredPicker)) and previous.size > 1 else None
    if len(candidates) > SMOOTH_LIMIT:
        return TieredPicker(candidates, weights, known)
    reduced = sum(weights) // gcd(*weights)
    factor = PRECISION // sum(weights) + 1
    weights = [weight * factor for weight in weights]
    credits = None if known is None else _carried(candidates, sum(weights), known.credits())
    return SmoothPicker(candidates, weights, credits, reduced)


def _carried(candidates: Sequence[Candidate], total: int, credits: Credits) -> list[int]:
    """The old credits for a new set, in 1/``total`` of a pick.

    What the departed take with them is shared equally among the survivors: that keeps the
    distances between them, which is what decides the order.
    """
    known = [credits.get(candidate) for candidate in candidates]
    survivors = [credit for credit in known if credit is not None]
    mean = sum(survivors) / len(survivors) if survivors else 0.0
    return [0 if credit is None else round((credit - mean) * total) for credit in known]


def _pass_over(picker: SmoothPicker | TieredPicker, length: int, rng: Random) -> None:
    """Leave some picks out: any number of a round, of a long one so many that callers in step are out of it."""
    for _ in range(rng.randrange(min(length, PASSED_OVER))):
        picker.pick(None, 0.0, rng)


class SmoothPicker:
    """nginx's smooth weighted round robin; its credits are nginx's current_weight."""

    __slots__ = (
        "_at",
        "_begun",
        "_candidates",
        "_credits",
        "_cycle",
        "_length",
        "_replaying",
        "_start",
        "_weights",
        "total",
    )

    def __init__(
        self, candidates: Sequence[Candidate], weights: list[int], credits: list[int] | None, length: int
    ) -> None:
        """Use ``WeightedRoundRobin.picker``. ``length`` is the number of picks after which the sequence repeats.

        ``credits`` are in 1/sum of a pick; without any it begins anywhere in the sequence.
        """
        self.total = sum(weights)
        self._candidates = tuple(candidates)
        self._weights = weights
        self._begun = credits is not None
        self._credits = [0] * len(weights) if credits is None else credits
        self._start = self._credits  # where the recorded cycle begins
        self._cycle: list[int] = []
        self._length = length
        self._replaying = False
        self._at = 0

    def pick(self, call: CallInfo | None, now: float, rng: Random) -> Candidate:
        """The next of the sequence. O(1) once a short cycle was walked, else O(n)."""
        if self._replaying:
            at = self._at
            self._at = at + 1 if at + 1 < self._length else 0
            return self._candidates[self._cycle[at]]
        if not self._begun:
            self._begun = True
            for _ in range(rng.randrange(min(self._length, CYCLE_LIMIT))):
                self._walk()
        return self._candidates[self._walk()]

    def _walk(self) -> int:
        """A step of nginx's: the index of the next."""
        credits = list(map(add, self._credits, self._weights))
        best = credits.index(max(credits))
        credits[best] -= self.total
        self._credits = credits
        if self._length <= CYCLE_LIMIT:
            self._record(best)
        return best

    def _record(self, best: int) -> None:
        self._cycle.append(best)
        if len(self._cycle) == self._length:
            # After a change of weights the first rounds may differ: replay only what has closed.
            if self._credits == self._start:
                self._replaying = True
            else:
                self._cycle = []
                self._start = self._credits

    @property
    def size(self) -> int:
        """How many there are to pick from."""
        return len(self._candidates)

    def turn(self, rng: Random) -> None:
        """Go on from a random place."""
        _pass_over(self, self._length, rng)

    def credits(self) -> dict[Candidate, float]:
        """How many picks are due to each."""
        credits = list(self._credits)
        if self._replaying:
            credits = [credit + self._at * weight for credit, weight in zip(credits, self._weights, strict=True)]
            for picked in self._cycle[: self._at]:
                credits[picked] -= self.total
        total = self.total
        return {candidate: credit / total for candidate, credit in zip(self._candidates, credits, strict=True)}

    def explain(self) -> str:
        """The rule in words."""
        return f"in turn by weight, smooth (nginx), {len(self._weights)} candidates"


class TieredPicker:
    """A layout of evenly spread picks of tiers, and in each tier its own in turn."""

    __slots__ = (
        "_accounts",
        "_begun",
        "_layouts",
        "_opening",
        "_picks",
        "_rest",
        "_row",
        "_sums",
        "_tiers",
        "_weights",
    )

    def __init__(
        self,
        candidates: Sequence[Candidate],
        weights: Sequence[int],
        previous: SmoothPicker | TieredPicker | None,
    ) -> None:
        """Use ``WeightedRoundRobin.picker``. It takes over the tiers of ``previous`` and changes what changed."""
        self._weights = dict(zip(candidates, weights, strict=True))
        before: dict[Candidate, int] = {}
        self._tiers: dict[int, Tier] = {}
        due: dict[int, float] = {}
        coming: Iterable[Candidate] = candidates
        if isinstance(previous, TieredPicker):
            before, self._tiers, due = previous._weights, previous._tiers, previous.due()
            coming = [candidate for candidate, weight in self._weights.items() if before.get(candidate) != weight]
        elif previous is not None:
            credits = previous.credits()
            coming = sorted(candidates, key=lambda candidate: -credits.get(candidate, 0.0))
        leaving = {candidate for candidate, weight in before.items() if self._weights.get(candidate) != weight}
        changes: dict[int, list[tuple[Candidate, int]]] = {before[c].bit_length(): [] for c in leaving}
        for candidate in coming:
            weight = self._weights[candidate]
            changes.setdefault(weight.bit_length(), []).append((candidate, weight))
        for bits, new in changes.items():
            self._tiers.setdefault(bits, Tier(bits)).change(leaving, new)
        self._tiers = {bits: tier for bits, tier in sorted(self._tiers.items()) if tier.weights}
        self._sums = [sum(tier.weights) for tier in self._tiers.values()]
        mean = sum(due.values()) / len(due) if due else 0.0
        self._opening = [due[bits] - mean if bits in due else 0.0 for bits in self._tiers]
        """Picks due to each tier where the present row began."""
        self._accounts = [round(credit * sum(self._sums)) for credit in self._opening]
        """Picks due to each tier where it ends, in 1/sum of a pick."""
        self._begun = previous is not None
        self._row: list[Iterator[Candidate]] = []
        self._rest: Iterator[Iterator[Candidate]] = iter(())
        self._picks: Iterator[Candidate] = iter(())
        self._layouts: dict[tuple[int, ...], list[Iterator[Candidate]]] = {}

    def pick(self, call: CallInfo | None, now: float, rng: Random) -> Candidate:
        """The next of the schedule. O(1) on average."""
        candidate = next(self._picks, None)
        return self._next_row(rng) if candidate is None else candidate

    def _next_row(self, rng: Random) -> Candidate:
        """Lay out the next picks of the tiers, and make the first of them."""
        total, tiers = sum(self._sums), list(self._tiers.values())
        first = not self._row
        if first and not self._begun:
            for tier in tiers:
                tier.begin_anywhere(rng)
        if not first:
            self._opening = [account / total for account in self._accounts]
        counts = []
        for at, weight in enumerate(self._sums):
            due = self._accounts[at] + STRETCH * weight
            counts.append(max(due // total, 0))
            self._accounts[at] = due - counts[at] * total
        # What rounding left over goes to those who are nearest to their next.
        for at in nlargest(STRETCH - sum(counts), range(len(counts)), key=self._accounts.__getitem__):
            counts[at] += 1
            self._accounts[at] -= total
        key = tuple(counts)
        row = None if first else self._layouts.get(key)
        if row is None:
            # The j-th pick of a tier is due when its credit passes j + 1/2. What is due at the start counts
            # in the first row only: it matters where every pick follows a change, and would make each row unique.
            credits = self._opening if first else [0.0] * len(tiers)
            places = [
                ((j + 0.5 - credit) / weight, at)
                for at, (weight, credit) in enumerate(zip(self._sums, credits, strict=True))
                for j in range(counts[at])
            ]
            row = [tiers[at].turns for _, at in sorted(places)]
            if not first:
                if len(self._layouts) >= LAYOUTS:
                    self._layouts.clear()
                self._layouts[key] = row
        self._row = row
        self._rest = iter(row)
        # Drawn in C: the row's next tier, and that tier's next candidate.
        self._picks = map(next, self._rest)
        if first and not self._begun:
            for _ in range(rng.randrange(len(row))):
                next(self._picks)
        return next(self._picks)

    @property
    def size(self) -> int:
        """How many there are to pick from."""
        return len(self._weights)

    def turn(self, rng: Random) -> None:
        """Go on from a random place."""
        _pass_over(self, len(self._weights), rng)

    def due(self) -> dict[int, float]:
        """How many picks are due to each tier, by its number."""
        done = len(self._row) - length_hint(self._rest)
        got = Counter(map(id, self._row[:done]))
        total = sum(self._sums)
        return {
            bits: credit + done * weight / total - got[id(tier.turns)]
            for (bits, tier), weight, credit in zip(self._tiers.items(), self._sums, self._opening, strict=True)
        }

    def credits(self) -> dict[Candidate, float]:
        """How many picks are due to each, within its tier. The picker picks no more."""
        return dict(chain.from_iterable(tier.credits() for tier in self._tiers.values()))

    def explain(self) -> str:
        """The rule in words."""
        return f"in turn by weight, {len(self._weights)} candidates in {len(self._tiers)} tiers"


class Tier:
    """Candidates whose weights differ by less than a factor of two, in turn. ``next(turns)`` is the next.

    A visit adds the weight to the candidate's account; who then has ``cap`` pays it and is picked. When
    all weights are equal, a visit is a pick.
    """

    __slots__ = ("_accounts", "_at", "_bits", "_cap", "_even", "_members", "turns", "weights")

    def __init__(self, bits: int) -> None:
        """Empty; ``change`` fills it. The weights are those of ``bits`` binary digits."""
        self._bits = bits
        self._cap = 0
        self._even = False
        self._members: list[Candidate] = []
        self._accounts: list[int] = []
        self.weights: list[int] = []
        self._at = 0
        self.turns: Iterator[Candidate] = iter(())

    def change(self, leaving: Container[Candidate], coming: Sequence[tuple[Candidate, int]]) -> None:
        """Who stays keeps its turn; who comes is in the middle of the round."""
        self._turn(self._place())
        if leaving:
            stay = [member not in leaving for member in self._members]
            self._members = list(compress(self._members, stay))
            self.weights = list(compress(self.weights, stay))
            self._accounts = list(compress(self._accounts, stay))
        cap = 1 << self._bits
        half = len(self._members) // 2
        self._members[half:half] = [candidate for candidate, _ in coming]
        self.weights[half:half] = [weight for _, weight in coming]
        # Spread by the golden ratio, so that those who come together are not passed over together.
        self._accounts[half:half] = [int(i * _GOLDEN % 1.0 * cap) for i in range(len(coming))]
        if not self.weights:
            return
        self._even = min(self.weights) == max(self.weights)
        self._cap = self.weights[0] if self._even else cap
        self.turns = cycle(self._members) if self._even else self._walk()

    def begin_anywhere(self, rng: Random) -> None:
        """Turn the round, before the first pick."""
        self._turn(rng.randrange(len(self._members)))
        self.turns = cycle(self._members) if self._even else self._walk()

    def _walk(self) -> Iterator[Candidate]:
        members, weights, accounts, cap = self._members, self.weights, self._accounts, self._cap
        while True:
            for at, weight in enumerate(weights):
                account = accounts[at] + weight
                if account >= cap:
                    accounts[at] = account - cap
                    self._at = at + 1
                    yield members[at]
                else:
                    accounts[at] = account

    def _place(self) -> int:
        """The index of the next. Asking takes a turn of it."""
        return self._members.index(next(self.turns)) if self._even else self._at

    def _turn(self, at: int) -> None:
        self._members = self._members[at:] + self._members[:at]
        self.weights = self.weights[at:] + self.weights[:at]
        self._accounts = self._accounts[at:] + self._accounts[:at]
        self._at = 0

    def credits(self) -> Iterator[tuple[Candidate, float]]:
        """How many picks are due to each: around 0, falling along the round. The tier is of no more use."""
        self._turn(self._place())
        size, cap = len(self._members), self._cap
        for place, (member, weight, account) in enumerate(
            zip(self._members, self.weights, self._accounts, strict=True), 1
        ):
            # What it has, and what the way round since its last visit is worth.
            has = cap / 2 if self._even else account
            yield member, (has + weight * (0.5 - place / size)) / cap - 0.5
