"""What a channel shows of itself: for pages as a dictionary, for people as text."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from random import Random

import pytest

from lb.core.outcome import OK
from lb.core.policies import RoundRobin, WeightedRandom, WeightedRoundRobin
from lb.core.policies.base import CallInfo, Candidate, Picker
from lb.core.snapshot import Snapshot, snapshot
from tests.core.rig import CONNECTING, FAILING, INTERNAL, READY, Rig


def look(rig: Rig) -> Snapshot:
    """The snapshot now."""
    return snapshot(rig.balancer, rig.budget.balance(rig.now), rig.now)


def test_a_channel_that_knows_nothing_yet() -> None:
    """Not resolved, no endpoints; the text says so, and what the resolver complained of."""
    rig = Rig()
    assert str(look(rig)).splitlines() == [
        "static:///shop  round_robin  CONNECTING  retry budget 100",
        "  no endpoints: not resolved yet",
    ]
    rig.balancer.resolver_failed("consul: connection refused", rig.now)
    seen = look(rig)
    assert (seen.resolved, seen.resolver_error) == (False, "consul: connection refused")
    assert "\n  resolver: consul: connection refused\n" in str(seen)


@pytest.mark.parametrize(("note", "shown"), [("no service 'x'", "no service 'x'"), ("", "none known")])
def test_an_empty_set_says_why(note: str, shown: str) -> None:
    """The resolver's note stands in place of the table."""
    rig = Rig()
    rig.update("", note=note)
    seen = look(rig)
    assert (seen.resolved, seen.note, seen.state, seen.endpoints) == (True, note, "TRANSIENT_FAILURE", ())
    assert str(seen).endswith(f"  no endpoints: {shown}")


def test_every_endpoint_says_why_it_is_or_is_not_picked() -> None:
    """Picked, weight 0, breaker open, probe out, not connected: each in words."""
    rig = Rig("abcdef", weights=[3, 1, 0, 1, 1, 1])
    rig.trip("b")
    rig.connect("d", FAILING, "connection refused")
    rig.connect("e", CONNECTING)
    rig.clock.advance(0.4)
    seen = {e.id: e for e in look(rig).endpoints}
    assert {name: (e.picked, e.why) for name, e in seen.items()} == {
        "a": (True, "picked"),
        "b": (False, "breaker open for 0.6 s more (INTERNAL: bug)"),
        "c": (False, "weight 0"),
        "d": (False, "not connected (transient failure: connection refused)"),
        "e": (False, "not connected (connecting)"),
        "f": (True, "picked"),
    }
    assert (seen["b"].breaker, seen["b"].last_error, seen["b"].connectivity) == ("OPEN", "INTERNAL: bug", "READY")
    assert (seen["a"].weight, seen["c"].weight, seen["d"].connectivity) == (3, 0, "TRANSIENT_FAILURE")


def test_a_probe_that_is_out_is_said() -> None:
    """HALF_OPEN with its probe under way is not picked, and says that."""
    rig = Rig("ab")
    rig.trip("a")
    rig.clock.advance(1.0)
    picked = [rig.pick() for _ in range(2)]
    assert {attempt.endpoint_id for attempt in picked} == {"a", "b"}
    seen = {e.id: e for e in look(rig).endpoints}
    assert (seen["a"].breaker, seen["a"].why) == ("HALF_OPEN", "breaker half-open, a test call is running")
    assert seen["a"].in_flight == 1


def test_counts_and_latency() -> None:
    """In flight, picks, and a latency once an attempt has ended."""
    rig = Rig("a")
    assert look(rig).endpoints[0].latency_ms is None
    first, _ = rig.pick(), rig.pick()
    rig.clock.advance(0.25)
    rig.end(first)
    seen = look(rig).endpoints[0]
    assert (seen.in_flight, seen.picks, seen.latency_ms) == (1, 2, 250.0)


def test_panic_is_shown() -> None:
    """When every breaker is open all are picked, and the head line says so."""
    rig = Rig("ab")
    rig.trip("a")
    rig.trip("b")
    seen = look(rig)
    assert seen.panic
    assert [e.picked for e in seen.endpoints] == [True, True]
    assert str(seen).splitlines()[0].endswith("PANIC: every breaker is open, all are used")


def test_panic_says_which_case_it_is() -> None:
    """Breakers may well be closed: too many others are lost."""
    rig = Rig("abcdefABCDEF")
    assert look(rig).panic_reason == ""
    for name in "ABCDEF":
        rig.connect(name, FAILING, "connection refused")
    rig.trip("a")
    seen = look(rig)
    why = "only 5 of 12 could be used (6 lost, 1 open breakers), all 6 connected ones are used"
    assert (seen.panic, seen.panic_reason) == (True, why)
    assert str(seen).splitlines()[0].endswith(f"PANIC: {why}")


@pytest.mark.parametrize("away", ["connections", "endpoints"])
def test_panic_ends_when_nothing_is_ready(away: str) -> None:
    """No endpoint is used then, so "all are used" would be wrong."""
    rig = Rig("a")
    rig.trip("a")
    assert look(rig).panic
    if away == "connections":
        rig.connect("a", FAILING, "connection refused")
    else:
        rig.update("", note="gone")
    assert not look(rig).panic


def test_the_table() -> None:
    """Columns are aligned; one line an endpoint."""
    rig = Rig("ab", weights=[10, 1])
    attempt = rig.pick()
    rig.clock.advance(0.0125)
    rig.end(attempt)
    name = attempt.endpoint_id
    head, rule, *lines = str(look(rig)).splitlines()
    assert head == "static:///shop  round_robin  READY  retry budget 100"
    assert rule == "  rule: each of 2 in turn"
    assert lines[0].split() == ["id", "address", "weight", "state", "in", "flight", "picks", "latency", "why"]
    assert len(lines) == 3
    column = lines[0].index("latency")
    shown = {line.split()[0]: line[column : column + 7] for line in lines[1:]}
    assert shown[name] == "12.5 ms"
    assert shown["b" if name == "a" else "a"].strip() == "-"
    assert all(line == line.rstrip() for line in lines)


class Mute:
    """A policy whose picker has no words, or chokes on them."""

    name = "mute"

    def __init__(self, explain: Callable[[], str] | None = None) -> None:
        self.explain = explain

    def picker(self, candidates: Sequence[Candidate], previous: Picker | None) -> Picker:
        """A round robin without its words, or with others."""
        picker = WordlessPicker(candidates)
        if self.explain is not None:
            picker.explain = self.explain  # type: ignore[attr-defined]
        return picker


class WordlessPicker:
    """The first one."""

    def __init__(self, candidates: Sequence[Candidate]) -> None:
        self.first = candidates[0]

    def pick(self, call: CallInfo | None, now: float, rng: Random) -> Candidate:
        """The first one."""
        return self.first


def test_the_rule_in_the_policys_words() -> None:
    """Once something was picked; nothing when the picker does not explain itself, and no error when it fails."""

    def bug() -> str:
        raise KeyError("words")

    rig = Rig("ab")
    assert look(rig).rule == ""
    for policy, rule in ((None, "each of 2 in turn"), (Mute(), ""), (Mute(lambda: "my rule"), "my rule")):
        if policy is not None:
            rig.balancer.change_policy(policy)
        rig.end(rig.pick())
        assert look(rig).rule == rule
    rig.balancer.change_policy(Mute(bug))
    rig.end(rig.pick())
    assert look(rig).rule == "explain() failed: KeyError('words')"


def test_as_a_dictionary_it_survives_json() -> None:
    """All values are plain."""
    rig = Rig("ab")
    plain = look(rig).as_dict()
    assert json.loads(json.dumps(plain))["endpoints"][1]["address"] == "b:1"
    assert plain["target"] == "static:///shop"


def test_as_a_dictionary_it_is_dictionaries_and_lists() -> None:
    """As documented: what was written as JSON and read again is equal."""
    plain = look(Rig("ab")).as_dict()
    assert json.loads(json.dumps(plain)) == plain


@pytest.mark.parametrize("policy", [RoundRobin(), WeightedRandom(), WeightedRoundRobin()], ids=lambda p: p.name)
def test_looking_does_not_change_what_is_picked(policy: RoundRobin | WeightedRoundRobin | WeightedRandom) -> None:
    """The same seed and the same events give the same picks, whether or not somebody looks in between."""

    def run(looks: bool) -> list[str]:
        rig = Rig("abcd", weights=[5, 1, 1, 2], policy=policy)
        ids = []
        for turn in range(120):
            if looks:
                look(rig)
            if turn == 30:
                rig.trip("b")
            if turn == 60:
                rig.update("abde", [1, 1, 4, 2])
                rig.connect("e")
            attempt = rig.pick()
            ids.append(attempt.endpoint_id)
            if looks:
                look(rig)
            rig.clock.advance(0.05)
            rig.end(attempt, INTERNAL if attempt.endpoint_id == "d" else OK)
        return ids

    assert run(True) == run(False)


def picks_across_a_gap(*, gap: bool, looks: bool = False) -> list[str]:
    """Three picks, perhaps a connection that is gone and back, seven picks; perhaps a look in the gap."""
    rig = Rig("abc", weights=[5, 1, 1], policy=WeightedRoundRobin())
    ids = rig.picked(3)
    if gap:
        rig.connect("c", CONNECTING)
    if looks:
        look(rig)
    if gap:
        rig.connect("c", READY)
    return ids + rig.picked(7)


def test_a_short_gap_costs_an_endpoint_nothing() -> None:
    """A connection that was gone and back between two picks leaves nginx's sequence as it was."""
    assert picks_across_a_gap(gap=True) == picks_across_a_gap(gap=False)


def test_looking_during_a_short_gap_does_not_change_what_is_picked() -> None:
    """Nor does it when somebody looked meanwhile."""
    assert picks_across_a_gap(gap=True, looks=True) == picks_across_a_gap(gap=False)
