"""How large an order may be. The gateway and the services check it by the same numbers."""

from __future__ import annotations

MOST_ITEMS = 100
"""Different products of one order, or of one basket."""

MOST_PIECES = 1000
"""Pieces of one product in it."""

MOST_UNITS = 100_000_000
"""What one order may cost, in whole units of its currency."""
