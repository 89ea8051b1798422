"""Checks of a policy's settings. Each raises ``ValueError``: the policy, the field, the value, what is accepted."""

from __future__ import annotations

from lb.core import checks


def number(
    policy: str, name: str, value: object, *, least: float, most: float = checks.MOST, above: bool = False
) -> None:
    """A number from ``least`` (or above it) to ``most``."""
    checks.number(f"{policy}: {name}", value, least=least, most=most, above=above)


def whole(policy: str, name: str, value: object, *, least: int) -> None:
    """A whole number from ``least`` on."""
    checks.whole(f"{policy}: {name}", value, least=least)


def text(policy: str, name: str, value: object) -> None:
    """A text that is not empty."""
    if not isinstance(value, str) or not value:
        raise ValueError(f"{policy}: {name} is {checks.shown(value)}; expected a text that is not empty")
