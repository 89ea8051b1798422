"""The rules of a watch on a fake clock: index, pace, backoff, what is held and for how long."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lb.core.consul_health import Answer, parse_answer
from lb.core.endpoint import Endpoint
from lb.core.watch import Query, Watch
from tests.core.consul import answer, entry

SOURCE = "consul 127.0.0.1:8500"


def one(e: dict[str, Any]) -> Endpoint:
    """The endpoint of a single entry."""
    return answer(1, e).instances[0].endpoint


class World:
    """A watch and what a channel would know from it."""

    def __init__(self, **settings: Any) -> None:
        self.watch = Watch("a", **settings)
        self.ids: list[str] | None = None
        self.note = ""
        self.changes = 0
        self.said: list[str] = []
        self.keys: list[tuple[str, str]] = []
        self.endpoints: tuple[Endpoint, ...] = ()

    def answer(self, now: float, index: int, *entries: dict[str, Any], **kind: bool) -> None:
        """A good answer arrives."""
        self._take(self.watch.answered(now, answer(index, *entries, **kind), SOURCE))
        self.said += self.watch.remarks()

    def lose(self) -> None:
        """The line breaks."""
        self.watch.failed(random.Random(1))

    def _take(self, resolution: Any) -> None:
        if resolution is not None:
            self.ids = [e.id for e in resolution.endpoints]
            self.keys = [e.key for e in resolution.endpoints]
            self.endpoints = resolution.endpoints
            self.note = resolution.note
            self.changes += 1


# Reading the answer


def test_endpoint_fields() -> None:
    """Address, id, weight, zone and metadata come from the service's entry."""
    got = one(entry("a-1", 80, address="10.0.0.1", weights={"Passing": 5, "Warning": 2}, meta={"zone": "z1", "v": "2"}))
    assert got == Endpoint("10.0.0.1:80", id="a-1", weight=5, zone="z1", metadata={"zone": "z1", "v": "2"})


def test_address_falls_back_to_the_node() -> None:
    """Without an address of its own an instance is at its node's."""
    assert one(entry(address="")).address == "10.9.9.9:1"


def test_ipv6_address_in_brackets() -> None:
    """An IPv6 address is dialled in brackets."""
    assert one(entry(address="fe80::1")).address == "[fe80::1]:1"


@pytest.mark.parametrize(
    ("changes", "weight"),
    [
        ({}, 5),
        ({"status": "warning"}, 2),
        ({"node_status": "warning"}, 2),
        ({"meta": {"weight": "0"}}, 0),
        ({"meta": {"weight": "0"}, "status": "warning"}, 0),
        ({"meta": {"weight": "9"}}, 5),
        ({"status": "warning", "weights": {"Passing": 5, "Warning": 0}}, 0),
    ],
)
def test_weights(changes: dict[str, Any], weight: int) -> None:
    """Warning has its own weight; Meta weight "0" means 0, and no other value counts."""
    assert one(entry(**({"weights": {"Passing": 5, "Warning": 2}} | changes))).weight == weight


@pytest.mark.parametrize(
    ("changes", "status", "judged"),
    [
        ({}, "passing", False),
        ({"status": "warning"}, "warning", False),
        ({"status": "critical"}, "critical", False),
        ({"status": "critical", "output": "refused"}, "critical", True),
        ({"node_status": "critical"}, "critical", True),
        ({"status": "warning", "node_status": "critical"}, "critical", True),
        ({"maintenance": True}, "maintenance", True),
        ({"maintenance": True, "status": "critical"}, "maintenance", True),
        ({"port": 0}, "no port", True),
    ],
)
def test_status(changes: dict[str, Any], status: str, judged: bool) -> None:
    """The worst check counts, maintenance above all; a check without output has not judged."""
    instance = answer(1, entry(**changes)).instances[0]
    assert (instance.status, instance.judged) == (status, judged)


def test_same_id_on_two_nodes() -> None:
    """Ids that collide across nodes are told apart by the node: the older registration keeps the id. Said once."""
    w = World()
    both = entry("a", 1, node="n1", created=9), entry("a", 2, node="n2", created=8), entry("b", 3)
    w.answer(0.0, 1, *both)
    w.answer(1.0, 2, *both)
    assert w.ids == ["a", "a@n1", "b"]
    assert w.said == [
        "id 'a' is registered at several addresses: 127.0.0.1:1 (node n1), 127.0.0.1:2 (node n2);"
        " each address is an endpoint"
    ]


def test_an_instance_keeps_its_id_when_another_node_has_it_too() -> None:
    """The known one keeps the id, and the other its own name when the first has left: so do statistics."""
    w = World()
    old, new = entry("a", 1, node="n1", created=9), entry("a", 2, node="n2", created=3)
    w.answer(0.0, 1, old)
    w.answer(1.0, 2, new, old)
    assert w.keys == [("a", "127.0.0.1:1"), ("a@n2", "127.0.0.1:2")]
    w.answer(2.0, 3, new)
    assert w.keys == [("a@n2", "127.0.0.1:2")]
    w.answer(3.0, 4)
    w.answer(4.0, 5, new)
    assert w.keys == [("a", "127.0.0.1:2")], "nobody else has it any more"


def test_both_nodes_keep_their_names_while_they_are_held() -> None:
    """A registry that comes back with one of the two first changes neither name and drops neither."""
    w = World()
    one, two = entry("a", 1, node="n1"), entry("a", 2, node="n2", created=8)
    w.answer(0.0, 50, one, two)
    w.answer(1.0, 3)
    assert w.keys == [("a", "127.0.0.1:1"), ("a@n2", "127.0.0.1:2")]
    w.answer(2.0, 4, two)
    assert w.keys == [("a", "127.0.0.1:1"), ("a@n2", "127.0.0.1:2")]


def test_two_ids_at_one_address_count_once() -> None:
    """The first by id counts, with its weight; that is said once. Another one that is usable takes its place."""
    w = World()
    b, a = entry("b", 1, weights={"Passing": 9, "Warning": 1}), entry("a", 1)
    w.answer(0.0, 1, b, a, entry("c", 2))
    w.answer(1.0, 2, b, a, entry("c", 2))
    assert w.keys == [("a", "127.0.0.1:1"), ("c", "127.0.0.1:2")]
    assert w.said == ["127.0.0.1:1 is registered as a and as b; it is one endpoint, a"]
    w.answer(2.0, 3, b, entry("a", 1, maintenance=True), entry("c", 2))
    assert w.ids == ["b", "c"]


def test_same_instance_at_two_agents() -> None:
    """One instance registered at two agents is one endpoint, with the better status."""
    got = answer(1, entry("a", 1, node="n1", status="critical"), entry("a", 1, node="n2"))
    assert [(i.endpoint.id, i.status) for i in got.instances] == [("a", "passing")]


@pytest.mark.parametrize(
    ("headers", "body", "says"),
    [
        ({}, [], "no X-Consul-Index"),
        ({"X-Consul-Index": "x"}, [], "no X-Consul-Index"),
        ({"X-Consul-Index": "1"}, {}, "expected a list"),
        ({"X-Consul-Index": "1"}, [{"Service": {}}], "not in the shape"),
        ({"X-Consul-Index": "1"}, ["x"], "not in the shape"),
        ({"X-Consul-Index": "1", "X-Consul-KnownLeader": "false"}, [], "no cluster leader"),
    ],
)
def test_unusable_answers(headers: dict[str, str], body: object, says: str) -> None:
    """What is not Consul's answer is an error that says so, never an empty service."""
    with pytest.raises(ValueError, match=says):
        parse_answer(headers, body)


def test_leader_header_of_the_streaming_backend_means_nothing() -> None:
    """A blocking query's empty answer counts: that backend always says that it knows no leader."""
    headers = {"X-Consul-Index": "4", "X-Consul-KnownLeader": "false", "X-Consul-Query-Backend": "streaming"}
    assert parse_answer(headers, []) == Answer(4, (), streamed=True)


# The index


def test_index_rules() -> None:
    """None at first, then the last index (at least 1), none again when it went backwards or was lost."""
    w = World()
    assert w.watch.query == Query(None, 30.0)
    w.answer(0.0, 40, entry())
    assert w.watch.query.index == 40
    w.answer(1.0, 39, entry())
    assert w.watch.query.index is None
    w.answer(1.0, 39, entry())
    assert w.watch.query.index == 39
    w.lose()
    assert w.watch.query.index is None
    w.answer(2.0, 0)
    assert w.watch.query.index is None, "0 is lower than 39"
    w.answer(2.0, 0)
    assert w.watch.query.index == 1, "0 would not block"


def test_read_timeout_exceeds_consuls_wait() -> None:
    """Consul may hold a blocking query for wait x 17/16; an immediate one is bounded much closer."""
    assert Query(5, 30.0).timeout_s > 30 * 17 / 16
    assert Query(None, 30.0).timeout_s <= 5


def test_return_without_change() -> None:
    """Same set, higher index, other order: nothing is told."""
    w = World()
    w.answer(0.0, 5, entry("a", 1), entry("b", 2))
    w.answer(1.0, 6, entry("b", 2), entry("a", 1))
    assert (w.ids, w.changes) == (["a", "b"], 1)


def test_change_of_weight_is_told() -> None:
    """The same instances with another weight are a change."""
    w = World()
    w.answer(0.0, 5, entry())
    w.answer(1.0, 6, entry(weights={"Passing": 2, "Warning": 1}))
    assert w.changes == 2


def test_near_keeps_consuls_order() -> None:
    """With near the order is Consul's; without it sorted."""
    for keep, ids in ((True, ["b", "a"]), (False, ["a", "b"])):
        w = World(keep_order=keep)
        w.answer(0.0, 5, entry("b", 2), entry("a", 1))
        assert w.ids == ids


# Pace and backoff


def test_pace_is_a_token_bucket() -> None:
    """Two questions at once, then twenty a second; after a rest two at once again."""
    watch = Watch("a")
    assert [watch.pace(0.0), watch.pace(0.0)] == [0.0, 0.0]
    assert watch.pace(0.0) == pytest.approx(0.05)
    assert watch.pace(0.05) == 0.0
    assert [watch.pace(9.0), watch.pace(9.0)] == [0.0, 0.0]


@settings(deadline=None)
@given(st.integers(0, 2**32), st.booleans())
def test_backoff_grows_and_is_capped(seed: int, overloaded: bool) -> None:
    """Waits grow, stay within half and all of 2 s, and start small again after an answer."""
    watch, rng = Watch("a"), random.Random(seed)
    waits = [watch.failed(rng, overloaded=overloaded) for _ in range(40)]
    assert waits[0] <= (0.5 if overloaded else 0.05)
    assert all(0 < wait <= 2.0 for wait in waits)
    assert all(wait >= 1.0 for wait in waits[8:])
    watch.answered(0.0, answer(3, entry()), SOURCE)
    assert watch.failed(rng, overloaded=overloaded) <= (0.5 if overloaded else 0.05)


def test_other_agents_first() -> None:
    """Every agent is tried at once before the first wait, then they are tried in turn."""
    watch, rng = Watch("a", agents=3), random.Random(1)
    tried = []
    waits = []
    for _ in range(6):
        tried.append(watch.agent)
        waits.append(watch.failed(rng) > 0)
    assert tried == [0, 1, 2, 0, 1, 2]
    assert waits == [False, False, True] * 2


# Forgetting


def test_removal_applies_at_once() -> None:
    """An index that went forward is believed, down to the last instance."""
    w = World()
    w.answer(0.0, 5, entry("a", 1), entry("b", 2))
    w.answer(1.0, 6, entry("b", 2))
    assert w.ids == ["b"]
    w.answer(2.0, 7)
    assert w.ids == []


def test_backwards_holds_removals_and_adds_at_once() -> None:
    """Index backwards: what is gone stays for 30 s, what is new comes at once."""
    w = World()
    w.answer(0.0, 50, entry("a", 1), entry("b", 2))
    w.answer(10.0, 9, entry("c", 3))
    assert w.ids == ["a", "b", "c"]
    assert "2 of 3 instances are missing" in w.note
    w.answer(30.0, 9, entry("c", 3))
    assert w.ids == ["a", "b", "c"]
    assert w.watch.query == Query(9, 10.0), "the next question ends with the hold"
    w.answer(40.0, 9, entry("c", 3))
    assert w.ids == ["a", "b", "c"]
    assert w.watch.query.index is None, "Consul is asked once more before they go"
    w.answer(40.1, 9, entry("c", 3))
    assert w.ids == ["c"]
    assert w.watch.query == Query(9, 30.0)


def test_empty_after_backwards_is_confirmed_after_the_hold() -> None:
    """An empty registry is believed when it has said so for 30 s."""
    w = World()
    w.answer(0.0, 50, entry())
    w.answer(1.0, 3)
    w.answer(2.0, 4)
    assert w.ids == ["a-1"]
    w.answer(31.0, 4)
    w.answer(31.0, 4)
    assert w.ids == []
    assert w.note == f"{SOURCE}: no service 'a' is registered"


def test_the_hold_counts_only_while_consul_answers() -> None:
    """A registry that comes back empty, says so and is gone again takes nobody away, however long it is gone."""
    w = World()
    w.answer(0.0, 50, entry())
    for began in (100.0, 200.0, 300.0, 400.0):
        w.lose()
        w.answer(began, 3)
        w.answer(began + 6.0, 4)
        assert w.ids == ["a-1"]
    w.lose()
    w.answer(1000.0, 3)
    w.answer(1005.9, 3)
    assert w.ids == ["a-1"]
    w.answer(1006.1, 3)
    w.answer(1006.2, 3)
    assert w.ids == [], "30 s in all"


def test_an_answer_read_late_lets_nobody_go() -> None:
    """A client that stood still reads an old answer first: who has registered meanwhile is never away."""
    w = World()
    w.answer(0.0, 50, entry("a", 1), entry("b", 2))
    w.answer(1.0, 3)
    w.answer(60.0, 4, entry("a", 1))  # was sent at 2.0
    assert w.ids == ["a", "b"]
    assert w.watch.query.index is None
    w.answer(60.1, 5, entry("a", 1), entry("b", 2))
    assert w.ids == ["a", "b"]


# What a token may not read


def test_what_the_token_may_not_read_is_an_error_and_no_empty_service() -> None:
    """Consul answers 200 and an empty list; it is read as the refusal that it is, and names the right."""
    with pytest.raises(ValueError, match=r"ACLs let this token read no instance.*service:read.*node:read"):
        answer(1, filtered=True)


def test_what_becomes_hidden_stays() -> None:
    """A token that loses a part of its rights removes nobody; what it still reads comes and goes. Said once."""
    w = World()
    w.answer(0.0, 5, entry("a", 1), entry("b", 2), entry("c", 3))
    w.answer(1.0, 6, entry("b", 2), entry("c", 3), filtered=True)
    w.answer(2.0, 7, entry("b", 2, status="critical", output="refused"), entry("d", 4), filtered=True)
    w.answer(99.0, 8, entry("d", 4), filtered=True)
    assert w.ids == ["a", "c", "d"]
    assert "cannot read 2 of 3" in w.note
    assert len(w.said) == 1
    assert "service:read for the service and node:read for its nodes" in w.said[0]
    w.answer(100.0, 9, entry("d", 4))
    assert w.ids == ["d"], "it may read all again, and they are gone"


def test_what_is_missing_from_a_streamed_answer_is_asked_for() -> None:
    """Consul's streaming backend filters without a word: a plain question, not to be answered stale, decides."""
    w = World()
    w.answer(0.0, 5, entry("a", 1), entry("b", 2))
    w.answer(1.0, 6, entry("b", 2), streamed=True)
    assert (w.ids, w.changes) == (["a", "b"], 1)
    assert w.watch.query == Query(None, 30.0, stale=False)
    w.answer(1.0, 6, entry("b", 2))
    assert w.ids == ["b"]
    assert w.watch.query == Query(6, 30.0)
    w.answer(2.0, 7, entry("b", 2), entry("c", 3), streamed=True)
    w.answer(3.0, 7, streamed=True)
    w.answer(3.0, 7, entry("c", 3), filtered=True)
    assert w.ids == ["b", "c"], "b is hidden"
    w.answer(4.0, 8, entry("c", 3, status="critical", output="x"), streamed=True)
    assert w.ids == ["b"], "what it lists needs no question"
    assert w.watch.query == Query(8, 30.0)
    w.answer(5.0, 9, entry("c", 3))
    assert w.ids == ["c"]


def test_a_token_that_loses_all_rights_keeps_the_last_answer() -> None:
    """The streamed answer is empty, the plain one is refused, again and again: nobody goes, whatever the hold."""
    w = World(hold_s=1.0)
    w.answer(0.0, 5, entry("a", 1), entry("b", 2))
    w.answer(1.0, 5, streamed=True)
    for _ in range(3):
        w.lose()
    assert w.ids == ["a", "b"]
    w.answer(30.0, 9, entry("b", 2))
    assert w.ids == ["b"]


def test_a_token_that_never_read_all() -> None:
    """Rights for some nodes only are no trouble: removals among what it reads apply at once."""
    w = World()
    w.answer(0.0, 5, entry("a", 1), entry("b", 2), filtered=True)
    w.answer(1.0, 6, entry("b", 2), filtered=True)
    assert w.ids == ["b"]


# Questions that are cut


def test_a_cut_question_is_asked_again_at_once() -> None:
    """It is no failure: nothing is told, the same agent is asked; twice in a row, or at once, it is one."""
    w = World(agents=2)
    w.answer(0.0, 5, entry())
    assert w.watch.cut(10.0)
    assert (w.watch.query.index, w.watch.agent) == (None, 0)
    assert not w.watch.cut(10.0), "the question after it fails as well"
    w.lose()
    w.answer(10.0, 5, entry())
    assert not w.watch.cut(1.0), "no time-out is that short"
    assert w.changes == 2


def test_after_two_cuts_alike_questions_wait_less() -> None:
    """A proxy's time-out is learnt, and said once; a Consul that restarts now and then is none."""
    w = World()
    now = 0.0
    w.answer(now, 5, entry())
    for after in (25.0, 3.0, 10.0):
        now += after
        assert w.watch.cut(after)
        w.answer(now, 5, entry())
        assert w.watch.query.wait_s == 30.0
    assert w.watch.cut(10.1)
    w.answer(now + 10.1, 5, entry())
    assert w.watch.query.wait_s == pytest.approx(8.0)
    assert w.said == [
        "something before Consul, probably a proxy, ends requests after 10.1 s; from now on blocking queries wait 8.0 s"
    ]
    assert w.changes == 1


def test_reregistered_while_held_is_live_again() -> None:
    """What registers again leaves the hold; its next removal applies at once."""
    w = World()
    w.answer(0.0, 50, entry("a", 1), entry("b", 2))
    w.answer(1.0, 3)
    w.answer(2.0, 4, entry("a", 1, created=4))
    assert w.ids == ["a", "b"]
    w.answer(3.0, 5)
    assert w.ids == ["b"]


def test_held_goes_when_judged() -> None:
    """A verdict of the new registry ends the hold: critical with output, or maintenance."""
    for verdict in ({"status": "critical", "output": "refused"}, {"maintenance": True}):
        w = World()
        w.answer(0.0, 50, entry("a", 1))
        w.answer(1.0, 3, entry("a", 1, status="critical"))
        assert w.ids == ["a"], "a check that has not run is no verdict"
        w.answer(2.0, 4, entry("a", 1, **verdict))
        assert w.ids == []


def test_held_goes_when_its_id_is_elsewhere() -> None:
    """The same id at another address is the same instance, started anew."""
    w = World()
    w.answer(0.0, 50, entry("a", 1))
    w.answer(1.0, 3)
    w.answer(2.0, 4, entry("a", 99, created=4))
    assert w.keys == [("a", "127.0.0.1:99")]


def test_held_goes_when_its_address_is_registered_under_another_id() -> None:
    """The server behind it has come back with a new id: it gets the share of one."""
    w = World()
    w.answer(0.0, 50, entry("a", 1))
    w.answer(1.0, 3)
    w.answer(2.0, 4, entry("b", 1, created=4))
    assert w.ids == ["b"]


def test_second_backwards_keeps_the_first_deadline() -> None:
    """A registry that keeps crashing does not keep the gone alive for ever."""
    w = World()
    w.answer(0.0, 50, entry("a", 1))
    for i in range(1, 30):
        w.answer(float(i), 50 - i)
    assert w.ids == ["a"]
    w.answer(31.0, 20)
    w.answer(31.0, 20)
    assert w.ids == []


def test_interruption_with_overtaken_index() -> None:
    """After a lost line, nothing of what was known left: held, though the index is higher."""
    w = World()
    w.answer(0.0, 20, entry("a", 1), entry("b", 2))
    w.lose()
    w.answer(3.0, 25, entry("b", 2, node_id="new", created=18))
    assert w.ids == ["a", "b"]
    w.answer(33.0, 25, entry("b", 2, node_id="new", created=18))
    w.answer(33.0, 25, entry("b", 2, node_id="new", created=18))
    assert w.ids == ["b"]


def test_interruption_of_a_registry_that_remembers() -> None:
    """After a lost line, one registration unchanged proves memory: removals apply at once."""
    w = World()
    w.answer(0.0, 20, entry("a", 1), entry("b", 2))
    w.lose()
    w.answer(3.0, 25, entry("b", 2))
    assert w.ids == ["b"]


def test_interruption_and_checks_that_have_not_run() -> None:
    """An agent that restarted with its registrations begins checks as critical: no verdict yet."""
    w = World()
    w.answer(0.0, 20, entry("a", 1), entry("b", 2))
    w.lose()
    w.answer(3.0, 25, entry("a", 1, status="critical"), entry("b", 2, status="critical", output="refused"))
    assert w.ids == ["a"]
    w.answer(4.0, 26, entry("a", 1))
    w.answer(5.0, 27, entry("a", 1, status="critical"))
    assert w.ids == [], "later, without an interruption, critical is critical"


def test_recovery_is_told() -> None:
    """The first good answer after an error is told, even if nothing changed: the error is over."""
    w = World()
    w.answer(0.0, 20, entry())
    w.lose()
    w.answer(3.0, 20, entry())
    assert w.changes == 2


# Notes


def test_notes_of_empty_sets() -> None:
    """The note of an empty set says where it was read and why nothing is usable."""
    w = World(asked="tag blue, dc eu")
    w.answer(0.0, 5)
    assert w.note == f"{SOURCE}: no service 'a' with tag blue, dc eu is registered"
    w.answer(1.0, 6, entry("a", 1, status="critical"), entry("b", 2, maintenance=True))
    assert w.note == f"{SOURCE}: service 'a' with tag blue, dc eu has no usable instance: 1 critical, 1 maintenance"
    assert w.ids == []
    w.answer(2.0, 7, entry("a", 1, status="critical", output="rpc error:\n  unknown service"), entry("b", 2))
    w.answer(3.0, 8, entry("a", 1, status="critical", output="rpc error:\n  unknown service"))
    assert w.note.endswith("has no usable instance: 1 critical (a: rpc error: unknown service)")


instances = st.lists(
    st.builds(
        entry,
        st.sampled_from(["a", "b", "c"]),
        st.integers(1, 2),
        status=st.sampled_from(["passing", "critical"]),
        output=st.sampled_from(["", "x"]),
        created=st.integers(1, 3),
        maintenance=st.sampled_from([False, False, False, True]),
    ),
    max_size=4,
    unique_by=lambda e: e["Service"]["ID"],
)


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.floats(0, 12), st.integers(0, 20), st.sampled_from(["", "lost", "cut"]), st.booleans(), instances),
        max_size=30,
    )
)
def test_always(turns: list[tuple[float, int, str, bool, list[dict[str, Any]]]]) -> None:
    """Usable instances are always published at once; a gone one stays 30 s of answers at most; never one twice."""
    w = World()
    now = 0.0
    heard: dict[tuple[str, str], float] = {}
    """For how long Consul has answered without each one, unless it may be hidden."""
    for wait, index, trouble, filtered, entries in turns:
        now += wait
        if trouble == "lost":
            w.lose()
        if trouble == "cut":
            w.watch.cut(wait)
        asked = w.watch.query
        w.answer(now, index, *entries, filtered=filtered and bool(entries))
        usable = {i.endpoint.key for i in answer(index, *entries).instances if i.usable}
        addresses = [e.address for e in w.endpoints]
        assert {address for _, address in usable} <= set(addresses)
        assert len(set(addresses)) == len(addresses)
        assert len(set(w.ids or ())) == len(addresses)
        for key in {e.key for e in w.endpoints} - usable:
            heard[key] = heard.get(key, 0.0) + (0.0 if trouble or key not in heard else wait)
            assert heard[key] <= 30.0 + 12.0 or filtered or asked.index is not None
        heard = {
            key: 0.0 if filtered else seconds
            for key, seconds in heard.items()
            if key in {e.key for e in w.endpoints} - usable
        }
        assert w.watch.query.index is None or w.watch.query.index >= 1
