"""Endpoints and resolutions are values."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, replace

import pytest

from lb.core.endpoint import Endpoint, Resolution


def test_the_id_is_the_address_unless_given() -> None:
    """An endpoint without an id goes by its address; the key has both."""
    assert Endpoint("h:1").id == "h:1"
    assert Endpoint("h:1", id="shop-1").key == ("shop-1", "h:1")


def test_equal_endpoints_are_the_same_thing() -> None:
    """Equality is by value, metadata included; equal ones have equal hashes."""
    one = Endpoint("h:1", id="a", weight=2, zone="z", metadata={"pid": "1"})
    same = Endpoint("h:1", id="a", weight=2, zone="z", metadata={"pid": "1"})
    assert one == same
    assert hash(one) == hash(same)
    assert one != replace(one, metadata={"pid": "2"})
    assert Endpoint("h:1") == Endpoint("h:1")
    assert len({Endpoint("h:1"), Endpoint("h:1")}) == 1


def test_a_new_weight_keeps_the_key_and_a_new_port_does_not() -> None:
    """That is how an instance that changed is told from one that was replaced."""
    one = Endpoint("h:1", id="a")
    assert replace(one, weight=5).key == one.key
    assert replace(one, address="h:2").key != one.key


def test_an_endpoint_does_not_change() -> None:
    """Fields can not be set."""
    with pytest.raises(FrozenInstanceError):
        Endpoint("h:1").weight = 2  # type: ignore[misc]  # the point of the test


def test_an_empty_address_is_refused() -> None:
    """The error says what is expected."""
    with pytest.raises(ValueError, match=r"Endpoint.address is ''; expected host:port"):
        Endpoint("")


def test_an_address_that_is_no_text_is_refused() -> None:
    """It would fail much later, in grpcio."""
    with pytest.raises(TypeError, match=r"Endpoint.address is 5; expected host:port"):
        Endpoint(5)  # type: ignore[arg-type]


@pytest.mark.parametrize("weight", [-1, 1.5, "3", True, None])
def test_a_bad_weight_is_named(weight: object) -> None:
    """The error has the endpoint, the value and what is accepted."""
    with pytest.raises(ValueError if weight == -1 else TypeError) as error:
        Endpoint("h:1", weight=weight)  # type: ignore[arg-type]  # the point of the test
    accepted = "a whole number from 0 to 1000000000 (address 'h:1')"
    assert str(error.value) == f"Endpoint.weight is {weight!r}; expected {accepted}"


def test_a_weight_of_0_is_fine() -> None:
    """No traffic while others are there."""
    assert Endpoint("h:1", weight=0).weight == 0


def test_resolutions_compare_by_value() -> None:
    """Order counts: it is stable, and a policy goes by it."""
    a, b = Endpoint("a:1"), Endpoint("b:1")
    assert Resolution((a, b), "x") == Resolution((a, b), "x")
    assert Resolution((a, b)) != Resolution((b, a))
    assert Resolution(()).note == ""
