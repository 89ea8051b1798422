"""Subset: the same few for a client, even over all clients, and few changes."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lb.core.policies import P2C, RoundRobin, Subset
from tests.core.backends import Backend, backend, backends, ids


def part(policy: Subset, servers: list[Backend]) -> set[str]:
    """Whom this client uses."""
    return set(ids(policy.picker(servers, None).part))


def test_a_client_uses_its_part_and_nothing_else() -> None:
    """Twenty of a hundred, each in turn, whatever the order they are named in."""
    servers = backends([1] * 100)
    policy = Subset(size=20, policy=RoundRobin(), client=7)
    picker, rng = policy.picker(servers, None), Random(1)
    got = Counter(ids([picker.pick(None, 0.0, rng) for _ in range(60)]))
    assert len(got) == 20
    assert set(got.values()) == {3}
    assert set(got) == part(policy, servers[::-1])


@pytest.mark.parametrize(("clients", "size", "count"), [(10, 20, 100), (64, 20, 300), (100, 10, 97), (1000, 20, 300)])
def test_numbered_clients_are_even(clients: int, size: int, count: int) -> None:
    """Each endpoint has the mean number of clients, within three (or a tenth); so with any number of clients."""
    servers = backends([1] * count)
    used = Counter[str]()
    for client in range(clients):
        used.update(part(Subset(size=size, client=client), servers))
    mean = clients * size / count
    assert all(abs(used[name] - mean) <= max(3, mean / 10) for name in ids(servers))


def test_named_clients_are_even_by_chance() -> None:
    """300 hosts, 20 of 100 each: 60 clients an endpoint, within 5 standard deviations of a random choice."""
    servers = backends([1] * 100)
    used = Counter[str]()
    for client in range(300):
        used.update(part(Subset(size=20, client=f"host-{client}"), servers))
    assert all(abs(used[name] - 60) < 5 * (300 * 0.2 * 0.8) ** 0.5 for name in ids(servers))


@given(client=st.one_of(st.integers(0, 500), st.text(min_size=1)), count=st.integers(12, 80), at=st.integers(0, 79))
@settings(max_examples=60, deadline=None)
def test_a_change_of_one_changes_two_at_most(client: int | str, count: int, at: int) -> None:
    """One leaves, or comes: no more than two of this client's ten are others; a picker that goes on agrees."""
    servers = backends([1] * count)
    policy = Subset(size=10, client=client)
    left = [server for server in servers if server is not servers[at % count]]
    assert len(part(policy, servers) - part(policy, left)) <= 2
    assert len(part(policy, left) - part(policy, servers)) <= 2
    picker = policy.picker(left, policy.picker(servers, None))
    assert set(ids(picker.part)) == part(policy, left)
    assert set(ids(policy.picker(servers, picker).part)) == part(policy, servers)


def test_with_few_endpoints_all_are_used() -> None:
    """A size beyond the number is the number."""
    servers = backends([1] * 5)
    assert part(Subset(size=20, client="x"), servers) == set("abcde")


def test_another_seed_is_another_circle() -> None:
    """Two services whose clients have the same numbers do not share their neighbours."""
    servers = backends([1] * 100)
    assert part(Subset(size=20, client=3), servers) != part(Subset(size=20, client=3, seed="orders"), servers)


def test_the_policy_inside_goes_on() -> None:
    """Its place and its records outlive a change."""
    servers = backends([1] * 30)
    policy, rng = Subset(size=10, policy=P2C(), client=0), Random(1)
    first = policy.picker(servers, None)
    picked = first.pick(None, 0.0, rng)
    picked.stats = "kept"
    second = policy.picker([*servers, backend("new")], first)
    assert picked.stats == "kept"
    assert "10 of 31" in second.explain()
    assert policy.name == "subset(p2c)"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 0, "client": 1}, "Subset.size is 0; expected a whole number >= 1"),
        ({"size": 2, "client": -1}, "Subset.client is -1; expected a whole number >= 0, or a string that is not empty"),
        ({"size": 2, "client": ""}, "Subset.client is ''; expected a whole number >= 0, or a string that is not empty"),
        (
            {"size": 2, "client": True},
            "Subset.client is True; expected a whole number >= 0, or a string",
        ),
        ({"size": 2, "client": 1, "seed": 3}, "Subset.seed is 3; expected a string"),
    ],
)
def test_bad_settings_are_said(arguments: dict[str, object], message: str) -> None:
    """The error names the field, the value and what is accepted."""
    with pytest.raises((TypeError, ValueError), match=message):
        Subset(**arguments)  # type: ignore[arg-type]
