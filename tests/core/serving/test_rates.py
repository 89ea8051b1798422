"""How many calls a second: in all, of a method or service, of each client."""

from __future__ import annotations

import pytest

from lb.core.serving.rates import MOST_CLIENTS, Rates
from lb.core.serving.settings import Rate

GET, PUT, OTHER = "/shop.Shop/Get", "/shop.Shop/Put", "/shop.Other/Get"
ONE = Rate(1.0, 1.0)


def taken(rates: Rates, method: str = GET, client: str = "", now: float = 0.0) -> bool:
    """Whether a call may run."""
    return rates.take(method, client, now) == 0.0


def test_without_rates_there_is_nothing_to_ask() -> None:
    """All calls may run, and `any` says so beforehand."""
    rates = Rates(None, {}, None)
    assert not rates.any
    assert all(taken(rates) for _ in range(1000))
    assert rates.left("orders", 0.0) is None


@pytest.mark.parametrize("rates", [Rates(ONE, {}, None), Rates(None, {GET: ONE}, None), Rates(None, {}, ONE)])
def test_each_kind_is_a_limit(rates: Rates) -> None:
    """One call, and one more a second later."""
    assert rates.any
    assert taken(rates, client="orders")
    assert rates.take(GET, "orders", 0.25) == pytest.approx(0.75)
    assert taken(rates, client="orders", now=1.0)
    assert rates.refused == 1


def test_a_methods_own_rate_goes_before_its_services() -> None:
    """The methods of a service without one of their own share theirs; other services have none."""
    rates = Rates(None, {GET: Rate(1.0, 2.0), "/shop.Shop/*": ONE}, None)
    assert [taken(rates, GET) for _ in range(3)] == [True, True, False]
    assert taken(rates, PUT)
    assert not taken(rates, "/shop.Shop/List")
    assert all(taken(rates, OTHER) for _ in range(10))


def test_each_client_has_a_rate_of_its_own() -> None:
    """One that asks too much takes nothing from another, and one without a name is not limited."""
    rates = Rates(None, {}, Rate(1.0, 3.0))
    assert [taken(rates, client="loud") for _ in range(4)] == [True, True, True, False]
    assert taken(rates, client="calm")
    assert all(taken(rates, client="") for _ in range(10))
    assert rates.left("loud", 0.0) == pytest.approx(0.0)
    assert rates.left("calm", 0.0) == pytest.approx(2.0)
    assert rates.left("new", 0.0) == 3.0
    assert repr(rates) == "<Rates 2 clients, 1 refused>"


def test_a_refused_call_takes_nothing_from_any_rate() -> None:
    """A client over its own rate uses up nothing of the server's, nor the other way round."""
    rates = Rates(Rate(1.0, 2.0), {GET: Rate(1.0, 5.0)}, ONE)
    assert taken(rates, client="loud")
    assert not any(taken(rates, client="loud") for _ in range(50))
    assert taken(rates, client="calm")
    assert not taken(rates, client="third")
    assert rates.left("third", 0.0) == 1.0


def test_the_longest_wait_counts() -> None:
    """A call that may run by one rate in a second and by the other in ten may run in ten."""
    rates = Rates(ONE, {}, Rate(0.1, 1.0))
    assert taken(rates, client="orders")
    assert rates.take(GET, "orders", 0.0) == pytest.approx(10.0)
    assert rates.take(GET, "other", 0.0) == pytest.approx(1.0)


def test_the_table_of_clients_is_bounded() -> None:
    """Who asked longest ago is forgotten, and then is new."""
    rates = Rates(None, {}, ONE)
    for number in range(MOST_CLIENTS):
        assert taken(rates, client=f"client-{number}")
    assert not taken(rates, client="client-0")  # which makes it the newest
    assert taken(rates, client="one more")
    assert not taken(rates, client="client-0")
    assert not taken(rates, client="client-2")
    assert taken(rates, client="client-1")
    assert repr(rates).startswith(f"<Rates {MOST_CLIENTS} clients")
