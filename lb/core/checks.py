"""Checks of settings: one sentence with the field, its value and what is accepted.

::

    Retry.jitter is -1; expected a number from 0 to 1

``what`` is the field as its user finds it: ``Retry.jitter`` of a settings class, ``timeout_s`` of a function's
arguments. A wrong type is a ``TypeError``, a wrong value a ``ValueError``. Values are bounded above although
no rule asks for it: 1e9 seconds are 30 years, and beyond it sums lose their digits, and grpcio's
clocks their count. A bound that a message's own words do not name is told when it was passed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

MOST = 1e9
LEAST = 1e-9
"""What counts as above 0: divided by less, numbers are infinite."""
_WIDEST = 80
_METHOD = re.compile(r"/[^/*]+/([^/*]+|\*)")


def number(
    what: str, value: object, accepted: str = "", *, least: float = 0.0, most: float = MOST, above: bool = False
) -> None:
    """A number from ``least`` (or above it) to ``most``. Raises ``TypeError`` or ``ValueError``."""
    real = isinstance(value, (int, float)) and not isinstance(value, bool)
    if above and least == 0:
        ok = real and LEAST <= value <= most  # type: ignore[operator]  # it is real
    else:
        ok = real and least <= value <= most and not (above and value == least)  # type: ignore[operator]
    if ok:
        return
    unit = "seconds" if what.endswith("_s") and not what.endswith("per_s") else "a number"
    words = accepted or f"{unit} {'>' if above else '>='} {least:g}" + ("" if most >= MOST else f" and <= {most:g}")
    if real and value > most >= MOST:  # type: ignore[operator]
        words += f", at most {most:g}"
    elif above and least == 0 and real and 0 < value < LEAST:  # type: ignore[operator]
        words += f", at least {LEAST:g}"
    raise _wrong(real)(f"{what} is {shown(value)}; expected {words}")


def whole(what: str, value: object, accepted: str = "", *, least: int = 0, most: int = int(MOST)) -> None:
    """A whole number from ``least`` to ``most``. Raises ``TypeError`` or ``ValueError``."""
    real = isinstance(value, int) and not isinstance(value, bool)
    if real and least <= value <= most:  # type: ignore[operator]  # it is real
        return
    words = accepted or f"a whole number >= {least}"
    if real and value > most >= MOST:  # type: ignore[operator]
        words += f", at most {most:g}"
    raise _wrong(real)(f"{what} is {shown(value)}; expected {words}")


def string(what: str, value: object, accepted: str = "", *, empty: bool = False) -> None:
    """A string, by default not an empty one. Raises ``TypeError`` or ``ValueError``."""
    real = isinstance(value, str)
    if not real or not (value or empty):
        words = accepted or ("a string" if empty else "a string that is not empty")
        raise _wrong(real)(f"{what} is {shown(value)}; expected {words}")


def segment(what: str, text: object) -> None:
    """A name that is one part of a URL's path. Raises ``TypeError`` or ``ValueError``."""
    accepted = "a name without blanks and slashes"
    string(what, text, accepted)
    assert isinstance(text, str)
    if "/" in text or not text.isprintable() or any(c.isspace() for c in text):
        raise ValueError(f"{what} is {shown(text)}; expected {accepted}")
    if text in (".", ".."):
        raise ValueError(f"{what} is {text!r}, which means another place in a URL; expected a name")


def flag(what: str, value: object) -> None:
    """True or False. Raises ``TypeError``."""
    if not isinstance(value, bool):
        raise TypeError(f"{what} is {shown(value)}; expected True or False")


def sequence(what: str, value: object, accepted: str) -> tuple[Any, ...]:
    """The items of a sequence; none for None. Raises ``TypeError``, or ``ValueError`` for a mapping or a string."""
    if value is None:
        return ()
    if isinstance(value, (Mapping, str, bytes)):
        raise ValueError(f"{what} is {shown(value)}; expected {accepted}")
    try:
        return tuple(value)  # type: ignore[arg-type]  # that is what is asked here
    except TypeError:
        raise TypeError(f"{what} is {shown(value)}; expected {accepted}") from None


def pairs(what: str, value: object, example: str) -> tuple[tuple[str, Any], ...]:
    """Pairs of a name and a value; none for None. Raises ``TypeError`` or ``ValueError``."""
    accepted = f"a sequence of (name, value) pairs, such as [{example}]"
    found = sequence(what, value, accepted)
    for pair in found:
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            wrong = TypeError if pair is None else ValueError
            raise wrong(f"{what}: an item is {shown(pair)}; expected {accepted}")
        if not isinstance(pair[0], (str, bytes)):
            raise TypeError(f"{what}: a name is {shown(pair[0])}; expected {accepted}")
    return found


def method(what: str, name: object) -> None:
    """``/package.Service/Method`` or ``/package.Service/*``. The error's message begins with ``what``."""
    if isinstance(name, str) and _METHOD.fullmatch(name):
        return
    words = "expected /package.Service/Method, or /package.Service/* for all of a service"
    raise _wrong(isinstance(name, str))(f"{what}; {words}")


def entries(name: str) -> tuple[str, str]:
    """What `method` may be for a method to go by it, the more specific one first."""
    return name, f"{name[: name.rfind('/') + 1]}*"


def _wrong(type_is_right: bool) -> type[Exception]:
    return ValueError if type_is_right else TypeError


def shown(value: object) -> str:
    """A value as Python writes it, on one line and short."""
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001  # more than 4300 digits, or a broken __repr__
        text = f"a {type(value).__name__}"
    text = text.replace("\n", " ")
    return text if len(text) <= _WIDEST else f"{text[: _WIDEST - 3]}..."
