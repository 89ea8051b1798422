"""What speaks against one endpoint, beside what its breaker counts. Written and read by judgement and comparison."""

from __future__ import annotations

from math import inf


class Suspicion:
    """That an endpoint answers worse than the others, under test (`lb.core.comparison`).

    It holds what the counts were when it began, so that differences tell what came since.
    """

    __slots__ = ("all_bad", "all_good", "bad", "generation", "good", "moves_turn", "since", "tests")

    def __init__(self, good: int, bad: int, all_good: int, all_bad: int, generation: int, since: float) -> None:
        self.good = good
        self.bad = bad
        self.all_good = all_good
        self.all_bad = all_bad
        self.generation = generation
        """The breaker's. What came before it moved is another matter."""
        self.since = since
        self.tests = 0
        self.moves_turn = False

    def __repr__(self) -> str:
        return f"<Suspicion since {self.since:.3f}, {self.tests} tests{', moves the turn' if self.moves_turn else ''}>"


class Evidence:
    """One endpoint's record."""

    __slots__ = ("bad", "opened_after", "opened_at", "refusals", "refused_after", "refusing_since", "suspicion")

    def __init__(self) -> None:
        self.bad = 0
        """How many bad answers it gave; its ``load.samples`` counts the good ones."""
        self.suspicion: Suspicion | None = None
        """That it answers worse than the others, while that is tested."""
        self.opened_at = -inf
        """When its breaker opened last ..."""
        self.opened_after = 0
        """... and how many answers all endpoints had given by then."""
        self.refusals = 0
        """How many calls it has refused since it answered last ..."""
        self.refused_after = 0
        """... which was after this many answers of its own ..."""
        self.refusing_since = -inf
        """... and when it refused the first of them."""

    def __repr__(self) -> str:
        return f"<Evidence {self.bad} bad, {self.refusals} refusals in a row, {self.suspicion}>"
