"""What an instance's entry should be: each answer of an agent, and the step that follows."""

from __future__ import annotations

from typing import Any

import pytest

from lb.core.presence import LEAVING
from tests.core.consul import CHECK, known, presence


def body(step: Any) -> dict[str, Any]:
    """What it registers; it must."""
    assert step.body is not None
    found: dict[str, Any] = step.body
    return found


def test_unknown_is_registered_with_all_that_was_given() -> None:
    """With the check, and no maintenance is touched."""
    step = presence().step(None, owned=False, rotated=False)
    assert body(step) == {
        "Name": "shop",
        "ID": "s1",
        "Address": "127.0.0.1",
        "Port": 7,
        "Weights": {"Passing": 2, "Warning": 1},
        "Tags": ["t"],
        "Meta": {"pid": "1"},
        "TaggedAddresses": {"grpc": {"Address": "grpc://127.0.0.1:7", "Port": 7}},
        "EnableTagOverride": False,
        "Check": {**CHECK, "Status": "critical"},
    }
    assert (step.maintenance, step.gives_way, step.remark) == (None, False, "")


def test_known_as_it_is_needs_nothing() -> None:
    """No step at all."""
    step = presence().step(known(), owned=True, rotated=False)
    assert (step.body, step.maintenance, step.gives_way) == (None, None, False)


@pytest.mark.parametrize(
    ("rotated", "set_weight", "check", "with_check"),
    [(True, False, "passing", True), (False, True, "passing", False), (False, False, "", True), (True, True, "", True)],
)
def test_what_is_registered_again(rotated: bool, set_weight: bool, check: str, with_check: bool) -> None:
    """Another token and a lost check bring the check along; a new weight leaves it, and its interval, alone."""
    mine = presence()
    if set_weight:
        mine.set_weight(5, 3)
    step = mine.step(known(check=check), owned=True, rotated=rotated)
    assert ("Check" in body(step)) is with_check
    assert body(step)["Weights"] == ({"Passing": 5, "Warning": 3} if set_weight else {"Passing": 2, "Warning": 1})
    mine.registered()
    assert mine.step(known(passing=4), owned=True, rotated=False).body is None
    assert mine.weight == 4, "what is set later in Consul counts"


def test_what_others_set_is_what_is_registered_when_it_is_forgotten() -> None:
    """Weight, tags, metadata, tagged addresses, maintenance, and the check's status; not what Consul made itself."""
    mine = presence()
    public = {"public": {"Address": "192.0.2.1", "Port": 7}}
    said = known(passing=9, tags=("x",), meta={"k": "v"}, tagged=public, check="warning")
    assert mine.step(said, owned=True, rotated=False).body is None
    again = body(mine.step(None, owned=True, rotated=False))
    assert (again["Weights"]["Passing"], again["Tags"], again["Meta"]) == (9, ["x"], {"k": "v"})
    assert again["TaggedAddresses"] == public
    assert again["Check"]["Status"] == "warning"


def test_weight_0() -> None:
    """It is 1 with metadata that says 0, both ways."""
    mine = presence(weight=0)
    assert body(mine.step(None, owned=False, rotated=False))["Meta"] == {"pid": "1", "weight": "0"}
    mine = presence()
    mine.step(known(passing=1, meta={"weight": "0"}), owned=True, rotated=False)
    assert mine.weight == 0


def test_an_operators_maintenance_goes_where_the_instance_goes() -> None:
    """Seen at one agent, it is switched on where the instance is registered next, and no passing status lets it in."""
    mine = presence()
    assert mine.step(known(maintenance="disk"), owned=True, rotated=False).maintenance is None
    step = mine.step(None, owned=False, rotated=False)
    assert (step.maintenance, body(step)["Check"]["Status"]) == ("disk", "critical")
    stale = mine.step(known(), owned=False, rotated=False)
    assert stale.maintenance == "disk", "an entry left behind elsewhere does not end it"
    mine.step(known(), owned=True, rotated=False)
    assert mine.step(None, owned=True, rotated=False).maintenance is None, "the operator has ended it"


@pytest.mark.parametrize("port", [7, 8])
def test_maintenance_of_a_predecessor(port: int) -> None:
    """That it was leaving ends with it; an operator's reason stands, and so does what somebody else set."""
    left = presence().step(known(port=port, maintenance=LEAVING), owned=False, rotated=False)
    assert left.maintenance == ""
    meta = {"pid": "0", "note": "x", "weight": "0"}
    mine = presence()
    step = mine.step(known(port=port, meta=meta, maintenance="disk"), owned=False, rotated=False)
    assert step.maintenance is None
    assert body(step)["Meta"] == {"pid": "1", "note": "x"}
    assert body(step)["Weights"]["Passing"] == 2
    assert "lan_ipv4" not in body(step)["TaggedAddresses"], "those of the predecessor's address go"
    assert mine.step(None, owned=True, rotated=False).maintenance == "disk"


def test_the_id_of_another() -> None:
    """Not ours yet: taken over, and said when it was alive. Ours before: given way to, and nothing is registered."""
    for other in (known(port=8), known(name="bank")):
        step = presence().step(other, owned=False, rotated=False)
        assert body(step)["Port"] == 7
        assert "replaced the registration of" in step.remark
        step = presence().step(other, owned=True, rotated=True)
        assert (step.body, step.gives_way) == (None, True)
        assert "this instance is no longer registered" in step.remark
    dead = presence().step(known(port=8, check="critical"), owned=False, rotated=False)
    assert (dead.remark, body(dead)["Port"]) == ("", 7)
    bank = presence().step(known(name="bank", meta={"k": "v"}, maintenance="disk"), owned=False, rotated=False)
    assert body(bank)["Meta"] == {"pid": "1"}, "another service's entry is no predecessor's"
    assert presence().ours(known(name="SHOP"))


@pytest.mark.parametrize(
    ("check", "output", "words"),
    [
        (
            CHECK,
            "rpc error: code = Unimplemented desc = unknown service grpc.health.v1.Health",
            "grpcio-health-checking",
        ),
        (CHECK, "rpc error: code = NotFound desc = unknown", "of the whole server (the name '')"),
        ({"GRPC": "127.0.0.1:7/a.B"}, "rpc error: code = NotFound desc = unknown", "of 'a.B'"),
        (CHECK, "connection refused", ""),
        ({"TCP": "127.0.0.1:7"}, "code = Unimplemented", ""),
        (None, "code = Unimplemented", ""),
    ],
)
def test_checks_that_can_never_pass(check: Any, output: str, words: str) -> None:
    """What to add is said; of other failures nothing."""
    step = presence(check=check).step(known(check="critical", output=output), owned=True, rotated=False)
    assert words in step.remark
    assert bool(words) == bool(step.remark)
