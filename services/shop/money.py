"""Exact arithmetic on mesh.common.v1.Money: whole numbers of nanos, never a float."""

from __future__ import annotations

from mesh.common.v1 import Money

NANOS = 1_000_000_000


def to_nanos(money: Money) -> int:
    """The amount as one whole number of billionths."""
    return money.units * NANOS + money.nanos


def from_nanos(currency_code: str, nanos: int) -> Money:
    """The inverse: units and nanos of one sign."""
    sign = -1 if nanos < 0 else 1
    units, rest = divmod(abs(nanos), NANOS)
    return Money(currency_code=currency_code, units=sign * units, nanos=sign * rest)


def flaw(money: Money) -> str:
    """What is wrong with the form of an amount; empty when nothing is."""
    code = money.currency_code
    if not (len(code) == 3 and code.isascii() and code.isalpha() and code.isupper()):
        return f"currency_code is {code!r}; an ISO 4217 code is accepted, such as EUR"
    if not -NANOS < money.nanos < NANOS:
        return f"nanos is {money.nanos}; -999999999 to 999999999 are accepted"
    if money.units * money.nanos < 0:
        return "units and nanos have different signs"
    return ""
