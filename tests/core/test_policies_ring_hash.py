"""Ring hash: one key, one endpoint; few move when the set changes; nobody is loaded beyond the bound."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lb.core.outcome import OK
from lb.core.policies import Picker, RingHash
from tests.core.backends import Backend, backend, backends, ids

POLICY = RingHash(key="user")


@dataclass(frozen=True)
class Call:
    """A call that has metadata."""

    metadata: Sequence[tuple[str, str | bytes]] = ()
    method: str = "/shop.Shop/Get"


def user(name: str) -> Call:
    """A call with that key."""
    return Call((("other", "x"), ("user", name)))


def owners(picker: Picker, keys: int, policy: RingHash = POLICY) -> list[str]:
    """Whose each of so many keys is, while nothing else is in flight."""
    names = []
    for key in range(keys):
        picked = picker.pick(user(f"user-{key}"), 0.0, Random(1))
        policy.ended(picked, OK, 0.1, 0.0)
        names.append(picked.endpoint.id)
    return names


def test_a_key_has_one_endpoint() -> None:
    """Call after call, in a picker made anew, and whatever the order of the set."""
    servers = backends([1, 2, 3, 1, 1])
    first = owners(POLICY.picker(servers, None), 300)
    assert first == owners(POLICY.picker(servers, None), 300)
    assert first == owners(POLICY.picker(servers[::-1], POLICY.picker(servers, None)), 300)
    assert set(first) == set("abcde")


def test_every_process_agrees() -> None:
    """Another interpreter, with another hash seed, gives each key to the same endpoint."""
    code = (
        "from tests.core.test_policies_ring_hash import *;"
        "print(','.join(owners(POLICY.picker(backends([1, 2, 3, 1, 1]), None), 50)))"
    )
    told = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60)
    assert told.stdout.strip().split(",") == owners(POLICY.picker(backends([1, 2, 3, 1, 1]), None), 50)


@pytest.mark.parametrize("size", [3, 10, 100])
def test_keys_are_spread_evenly(size: int) -> None:
    """Nobody has more than 1.7 of its share of 20,000 keys, nor less than 0.4 of it."""
    count = Counter(owners(POLICY.picker(backends([1] * size), None), 20_000))
    assert max(count.values()) < 1.7 * 20_000 / size
    assert min(count[name] for name in ids(backends([1] * size))) > 0.4 * 20_000 / size


def test_weights_count() -> None:
    """Over 60 endpoints of the weights 1, 2 and 5, each weight's together have their part within a tenth."""
    servers = backends([1, 2, 5] * 20)
    weight = {server.endpoint.id: server.weight for server in servers}
    count = Counter(weight[name] for name in owners(POLICY.picker(servers, None), 20_000))
    for w in (1, 2, 5):
        assert abs(count[w] / 20_000 - w / 8) < 0.1 * w / 8 + 0.02


@given(size=st.integers(2, 60), at=st.integers(0, 59))
@settings(max_examples=20, deadline=None)
def test_only_the_keys_of_who_left_move(size: int, at: int) -> None:
    """One of n leaves: all keys of others stay. It comes back: everything is as it was."""
    servers = backends([1] * size)
    gone = servers[at % size]
    left = [server for server in servers if server is not gone]
    picker = POLICY.picker(servers, None)
    before = owners(picker, 500)
    picker = POLICY.picker(left, picker)
    without = owners(picker, 500)
    assert all(a == b for a, b in zip(before, without, strict=True) if a != gone.endpoint.id)
    assert without == owners(POLICY.picker(left, None), 500)
    assert owners(POLICY.picker(servers, picker), 500) == before


def test_a_newcomer_takes_its_share_of_the_keys_and_no_more() -> None:
    """The 21st of 20 takes about a 21st of the keys; nobody else gets any."""
    servers = backends([1] * 20)
    picker = POLICY.picker(servers, None)
    before = owners(picker, 4000)
    after = owners(POLICY.picker([*servers, backend("new")], picker), 4000)
    moved = [b for a, b in zip(before, after, strict=True) if a != b]
    assert set(moved) == {"new"}
    assert 0.4 * 4000 / 21 < len(moved) < 1.8 * 4000 / 21


@given(
    weights=st.lists(st.integers(1, 5), min_size=2, max_size=20),
    bound=st.sampled_from([1.05, 1.25, 2.0]),
    keys=st.integers(1, 5),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_nobody_is_loaded_beyond_the_bound(weights: list[int], bound: float, keys: int, seed: int) -> None:
    """Though all calls have a few hot keys, and end in any order: in flight <= bound times the share, rounded up."""
    policy, rng = RingHash(key="user", bound=bound), Random(seed)
    servers = backends(weights)
    picker = policy.picker(servers, None)
    flying: list[Backend] = []
    for _ in range(300):
        if flying and rng.random() < 0.4:
            ended = flying.pop(rng.randrange(len(flying)))
            ended.in_flight -= 1
            policy.ended(ended, OK, 0.1, 0.0)
        picked = picker.pick(user(str(rng.randrange(keys))), 0.0, rng)
        assert isinstance(picked, Backend)
        picked.in_flight += 1
        flying.append(picked)
        assert picked.in_flight - 1 <= bound * len(flying) * picked.weight / sum(weights) + 1e-9


def test_the_overflow_of_a_key_goes_to_the_same_endpoints() -> None:
    """A hot key fills its own endpoint first, and then always the same others."""

    def filled() -> list[str]:
        servers = backends([1] * 10)
        picker, order = POLICY.picker(servers, None), []
        for _ in range(12):
            picked = picker.pick(user("hot"), 0.0, Random(1))
            assert isinstance(picked, Backend)
            picked.in_flight += 1
            order.append(picked.endpoint.id)
        return order

    assert filled() == filled()
    assert len(set(filled())) >= 6  # two each, from the eleventh on


def test_attempts_that_no_picker_saw_are_counted_when_they_end() -> None:
    """A hedge that went out and came back leaves the total as it was, not below."""
    servers = backends([1] * 4)
    picker = POLICY.picker(servers, None)
    for server in servers * 5:
        server.in_flight += 1
    for server in servers * 5:
        server.in_flight -= 1
        POLICY.ended(server, OK, 0.1, 0.0)
    assert servers[0].stats.total.in_flight == 0
    assert len(set(owners(picker, 200))) == 4


def test_survivors_keep_their_counts() -> None:
    """A change of the set leaves the records alone, and the total goes on."""
    servers = backends([1] * 4)
    first = POLICY.picker(servers, None)
    picked = first.pick(user("a"), 0.0, Random(1))
    records = [server.stats for server in servers]
    POLICY.picker([*servers, backend("new")], first)
    assert [server.stats for server in servers] == records
    assert picked.stats.total.in_flight == 1


def test_calls_without_a_key_go_anywhere() -> None:
    """No metadata of that name, no call at all, or a function that returns None: by chance."""
    nothing = RingHash(key=lambda call: None)
    for policy, call in ((POLICY, Call()), (POLICY, None), (nothing, Call())):
        rng, picker = Random(2), policy.picker(backends([1] * 4), None)
        count = Counter[str]()
        for _ in range(4000):
            picked = picker.pick(call, 0.0, rng)
            policy.ended(picked, OK, 0.1, 0.0)
            count[picked.endpoint.id] += 1
        assert min(count.values()) > 500
        assert len(count) == 4


def test_a_key_may_be_bytes_repeated_or_computed() -> None:
    """Binary metadata is a key as it is; values of a repeated key are joined; a function sees the whole call."""
    binary = RingHash(key="user-bin")
    assert binary.key_of(Call((("user-bin", b"\x00\xff"),))) == b"\x00\xff"
    assert POLICY.key_of(Call((("user", "a"), ("x", "y"), ("user", "b")))) == b"a,b"
    assert RingHash(key=lambda call: call.method).key_of(Call()) == "/shop.Shop/Get"


def test_a_function_that_returns_no_key_is_said() -> None:
    """What it returned is in the error."""
    with pytest.raises(TypeError, match=r"ring_hash: key\(/shop.Shop/Get\) returned 3; expected text, bytes or None"):
        RingHash(key=lambda call: 3).picker(backends([1]), None).pick(Call(), 0.0, Random(1))  # type: ignore[arg-type,return-value]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"key": ""}, "RingHash.key is ''; expected a string that is not empty"),
        ({"key": 3}, "RingHash.key is 3; expected a string that is not empty"),
        ({"key": "User"}, "RingHash.key is 'User'; expected a metadata key in lower case"),
        ({"key": "user", "bound": 1}, "RingHash.bound is 1; expected a number > 1"),
        ({"key": "user", "bound": float("inf")}, "RingHash.bound is inf; expected a number > 1"),
    ],
)
def test_bad_settings_are_said(arguments: dict[str, object], message: str) -> None:
    """The error names the field, the value and what is accepted."""
    with pytest.raises((TypeError, ValueError), match=message):
        RingHash(**arguments)  # type: ignore[arg-type]
