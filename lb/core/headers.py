"""Which metadata can be sent: core refuses the rest, before anything of the call leaves the process.

We ask only where no attempt is at hand that core could refuse, or to tell whose fault a failure was.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

_KEY = re.compile(rb"[0-9a-z_.-]+")
_VALUE = re.compile(rb"[ -~]*")


def legal_key(name: str) -> bool:
    """Whether a metadata key may be called so: lower-case letters, digits, ``_``, ``.`` and ``-``."""
    return _KEY.fullmatch(name.encode(errors="replace")) is not None


def last_value(metadata: Iterable[Any] | None, key: str) -> Any:
    """The value of a key; the last one, if there are several; empty when there is none."""
    found: Any = ""
    for pair in metadata or ():  # a named tuple of grpcio's, which is slow to take apart
        if pair[0] == key:
            found = pair[1]
    return found


def legal(metadata: Sequence[Any]) -> bool:
    """Whether these pairs are headers by gRPC's rules (PROTOCOL-HTTP2: Custom-Metadata).

    They have the right types already: ``str``, ``bytes``, or None, which is empty to grpcio.
    """
    for key, value in metadata:
        name, data = _encoded(key), _encoded(value)
        if not _KEY.fullmatch(name) or not (name.endswith(b"-bin") or _VALUE.fullmatch(data)):
            return False
    return True


def check_types(metadata: Sequence[Any]) -> None:
    """Raise grpcio's ``TypeError`` for pairs of wrong types. None is empty, but for a binary value."""
    for key, value in metadata:
        data = value if _encoded(key)[-4:] == b"-bin" else _encoded(value)
        if not isinstance(data, bytes):
            raise TypeError(f'Binary metadata key="{key}" expected bytes, got {type(data)}')


def _encoded(text: Any) -> bytes:
    if isinstance(text, str):
        return text.encode()
    if text is None:
        return b""
    if not isinstance(text, bytes):
        raise TypeError(f"Expected str, not {type(text)}")
    return text
