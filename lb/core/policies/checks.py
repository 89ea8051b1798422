"""Checks of a policy's settings. Each raises ``ValueError``: the policy, the field, the value, what is accepted."""

from __future__ import annotations

import math


def number(policy: str, name: str, value: object, *, least: float, most: float = math.inf, above: bool = False) -> None:
    """A finite number from ``least`` (or above it) to ``most``."""
    if (
        not isinstance(value, bool)
        and isinstance(value, (int, float))
        and math.isfinite(value)
        and (value > least if above else value >= least)
        and value <= most
    ):
        return
    limits = f"{'>' if above else '>='} {least:g}" + ("" if most == math.inf else f" and <= {most:g}")
    raise ValueError(f"{policy}: {name} is {value!r}; expected a number {limits}")


def whole(policy: str, name: str, value: object, *, least: int) -> None:
    """A whole number from ``least`` on."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{policy}: {name} is {value!r}; expected a whole number >= {least}")


def text(policy: str, name: str, value: object) -> None:
    """A text that is not empty."""
    if not isinstance(value, str) or not value:
        raise ValueError(f"{policy}: {name} is {value!r}; expected a text that is not empty")
