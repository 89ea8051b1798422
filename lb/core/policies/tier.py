"""One tier of a large set: candidates whose weights differ by less than a factor of two, in turn.

Where all weights are equal, each visit is a pick. Where they differ, each visit adds the candidate's weight to its
account. Only a candidate that has 2^(k+1) then (``cap``, above all weights of the tier) pays that and is picked; the
others are passed over, at most every other visit.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from itertools import compress, cycle
from random import Random

from lb.core.policies.base import Candidate

_GOLDEN = (5**0.5 - 1) / 2


class Tier:
    """The candidates of one tier. ``next(turns)`` is the next of them."""

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
        """Candidates that stay keep their turn; new ones come in the middle of the round."""
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
        # Spread by the golden ratio, so that new ones are not all passed over in the same round.
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
        """How many picks are due to each: around 0, falling along the round. The tier cannot be used after that."""
        self._turn(self._place())
        size, cap = len(self._members), self._cap
        for place, (member, weight, account) in enumerate(
            zip(self._members, self.weights, self._accounts, strict=True), 1
        ):
            # What it has, and what the way round since its last visit is worth.
            has = cap / 2 if self._even else account
            yield member, (has + weight * (0.5 - place / size)) / cap - 0.5
