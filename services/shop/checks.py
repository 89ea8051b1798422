"""The shop's own rules for a request's fields, beside those of `services.runtime.validation`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Protocol

from services.runtime import validation

LONGEST_SKU = 64
_SKU = re.compile(rf"[a-z0-9-]{{1,{LONGEST_SKU}}}")


class Goods(Protocol):
    """Pieces of one product: an item of an order, a line of a reservation."""

    @property
    def sku(self) -> str:
        """Which product."""

    @property
    def quantity(self) -> int:
        """How many."""


def is_sku(value: str) -> bool:
    """Whether a product can have this identity."""
    return _SKU.fullmatch(value) is not None


class Checks(validation.Checks):
    """Collects violations; ``done`` raises when there are any."""

    __slots__ = ()

    def sku(self, field: str, value: str) -> None:
        """A product's identity."""
        if not value:
            self.fail(field, "is required")
        elif not is_sku(value):
            self.fail(field, f"must be 1 to {LONGEST_SKU} lower-case letters, digits and dashes")

    def goods(self, field: str, each: str, given: Sequence[Goods], most: int, pieces: int) -> None:
        """1 to ``most`` different products, 1 to ``pieces`` of each. One of them is called ``each``."""
        if not 1 <= len(given) <= most:
            self.fail(field, f"has {len(given)} {each}s; 1 to {most} are accepted")
        seen: set[str] = set()
        for number, one in enumerate(given[:most]):
            self.sku(f"{field}[{number}].sku", one.sku)
            self.within(f"{field}[{number}].quantity", one.quantity, 1, pieces)
            if one.sku in seen:
                self.fail(f"{field}[{number}].sku", f"{one.sku!r} occurs in an earlier {each}")
            seen.add(one.sku)
