"""Why there is nothing to pick, in words, and whether calls wait or fail."""

from __future__ import annotations

from lb.core.endpoint import Endpoint, Resolution
from lb.core.unpicked import RESOLVER_GRACE_S, Unpicked
from tests.core.rig import (
    CONNECTING,
    FAILING,
    Rig,
)

# ---- nothing to pick ----


def test_before_the_first_resolution_calls_wait() -> None:
    """And say why it takes so long, when the resolver has said it."""
    rig = Rig()
    assert rig.unpicked() == Unpicked("static:///shop is not resolved yet", wait=True)
    rig.balancer.resolver_failed("consul 127.0.0.1:8500: connection refused", rig.now)
    assert rig.unpicked().message == "static:///shop is not resolved yet: consul 127.0.0.1:8500: connection refused"
    rig.update("a")
    assert rig.balancer.resolver_error == ""


def test_a_source_that_stays_away_is_waited_for_a_moment_only() -> None:
    """Without a first answer calls wait while the resolver may just be late, then fail and say why."""
    rig = Rig()
    rig.balancer.resolver_failed("consul 127.0.0.1:8500: connection refused", rig.now)
    rig.clock.advance(RESOLVER_GRACE_S / 2)
    rig.balancer.resolver_failed("consul 127.0.0.1:8500: no answer within 2 s", rig.now)
    assert rig.unpicked().wait
    rig.clock.advance(RESOLVER_GRACE_S / 2)
    assert rig.unpicked() == Unpicked(
        "static:///shop is not resolved yet: consul 127.0.0.1:8500: no answer within 2 s", wait=False
    )
    rig.update("a")
    assert rig.unpicked().wait


def test_an_empty_set_fails_fast() -> None:
    """With the resolver's note, or in plain words."""
    rig = Rig("")
    assert rig.unpicked() == Unpicked("static:///shop has no endpoint: the resolver returned an empty list", wait=False)
    rig.update("", note="consul: no service 'x'")
    assert rig.unpicked() == Unpicked("static:///shop has no endpoint: consul: no service 'x'", wait=False)


def test_while_one_may_still_connect_calls_wait() -> None:
    """Idle or connecting for the first time: that may pass by itself, whatever the others do."""
    rig = Rig("")
    rig.update("abc")
    assert rig.unpicked() == Unpicked("static:///shop: still connecting (3 endpoints)", wait=True)
    rig.connect("a", FAILING)
    rig.connect("b", FAILING)
    rig.connect("c", CONNECTING)
    assert rig.unpicked().wait
    rig.connect("c", FAILING)
    assert not rig.unpicked().wait


def test_a_reason_that_several_share_is_told_once() -> None:
    """With the names of those it holds for; the address beside an id only where they differ; both in bounds."""
    rig = Rig()
    addresses = ["10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80"]
    rig.balancer.update(Resolution(tuple(Endpoint(a) for a in addresses)))
    for candidate in rig.balancer.candidates:
        rig.balancer.set_connectivity(candidate, FAILING, rig.now, "connection refused")
    said = "no endpoint of static:///shop can be reached: "
    assert rig.unpicked().message == said + "10.0.0.1:80, 10.0.0.2:80, 10.0.0.3:80: connection refused"
    rig.balancer.set_connectivity(rig.balancer.candidates[1], FAILING, rig.now, "timed out")
    assert rig.unpicked().message == said + "10.0.0.1:80, 10.0.0.3:80: connection refused; 10.0.0.2:80: timed out"
    rig = Rig("")
    rig.update("abcdefgh")
    for name in "abcdefgh":
        rig.connect(name, FAILING, "down")
    assert rig.unpicked().message == said + "a (a:1), b (b:1), c (c:1), d (d:1), e (e:1) and 3 more: down"
    for at, name in enumerate("abcdefgh"):
        rig.connect(name, FAILING, f"down {at}")
    assert rig.unpicked().message.endswith("; e (e:1): down 4; and 3 more")


def test_many_failures_are_named_up_to_five() -> None:
    """The first five with their causes, then how many more."""
    rig = Rig("abcdefg")
    for name in "abcdefg":
        rig.connect(name, FAILING, f"{name} is down")
    assert rig.unpicked().message == (
        "no endpoint of static:///shop can be reached: a (a:1): a is down; b (b:1): b is down; c (c:1): c is down;"
        " d (d:1): d is down; e (e:1): e is down; and 2 more"
    )
