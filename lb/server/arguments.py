"""The arguments of both kinds of server, checked when it is made: later they would break each call."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import grpc

from lb.core import checks
from lb.core.serving.settings import Limits
from lb.server.orca import check_reporter


def server(*, limits: object, register: object, depends: object, credentials: object, load: object) -> None:
    """What both kinds have in common. Raises ``TypeError``."""
    if limits is not False:
        of_limits(limits, "a Limits, False or None")
    if not isinstance(register, (bool, Mapping)):
        raise TypeError(f"register is {checks.shown(register)}; expected True, False or a mapping")
    if depends is not None and not isinstance(depends, Mapping):
        raise TypeError(f"checks is {checks.shown(depends)}; expected functions by name")
    for name, check in (depends or {}).items():
        if not callable(check):
            raise TypeError(f"checks[{name!r}] is {checks.shown(check)}; expected a function")
    if credentials is not None and not isinstance(credentials, grpc.ServerCredentials):
        raise TypeError(f"credentials is {checks.shown(credentials)}; expected grpc.ServerCredentials or None")
    if load is not None:
        check_reporter("load", load, "a LoadReporter or None")


def of_limits(limits: Any, expected: str = "a Limits or None") -> Limits:
    """The limits, by default ``Limits()``. Raises ``TypeError``."""
    if limits is None:
        return Limits()
    if not isinstance(limits, Limits):
        raise TypeError(f"limits is {checks.shown(limits)}; expected {expected}")
    return limits


def interceptors(what: str, given: object, kind: type, name: str) -> None:
    """Interceptors of one kind; one of the other would break each call. Raises ``TypeError`` or ``ValueError``."""
    accepted = f"a sequence of {name}"
    for each in checks.sequence(what, given, accepted):
        if not isinstance(each, kind):
            raise TypeError(f"{what} has {checks.shown(each)}; expected {accepted}")


def option(what: str, given: object) -> None:
    """True, False, or None for the default. Raises ``TypeError``."""
    if given is not None and not isinstance(given, bool):
        raise TypeError(f"{what} is {checks.shown(given)}; expected True, False or None")
