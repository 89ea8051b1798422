"""The arguments of both kinds of server, checked when it is made: later they would break each call."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import grpc

from lb.core import checks
from lb.core.headers import legal
from lb.core.serving.settings import Limits
from lb.server.orca import check_reporter


def server(
    kind: type,
    *,
    limits: object,
    register: object,
    depends: object,
    credentials: object,
    options: object,
    interceptors: object,
    inner: object,
    load: object,
    counts: object,
    trailers: object,
    health: object,
    reflection: object,
) -> None:
    """Those of one server; ``kind`` is that of its interceptors. Raises ``TypeError`` or ``ValueError``."""
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
    for what, given in (("options", options), ("interceptors", interceptors), ("inner", inner), ("trailers", trailers)):
        if given is None:
            raise TypeError(f"{what} is None; expected a sequence, which may be empty")
    checks.pairs("options", options, '("grpc.max_concurrent_streams", 1000)')
    _interceptors("interceptors", interceptors, kind)
    _interceptors("inner", inner, kind)
    if load is not None:
        check_reporter("load", load, "a LoadReporter or None")
    if counts is not None and not callable(counts):
        raise TypeError(f"counts is {checks.shown(counts)}; expected a function or None")
    _metadata("trailers", trailers)
    for what, asked in (("health", health), ("reflection", reflection)):
        if asked is not None and not isinstance(asked, bool):
            raise TypeError(f"{what} is {checks.shown(asked)}; expected True, False or None")


def callback(given: object) -> None:
    """One for the end. Raises ``TypeError``: at the end nobody would be there to repair it."""
    if not callable(given):
        raise TypeError(f"callback is {checks.shown(given)}; expected a function")


def of_limits(limits: Any, expected: str = "a Limits or None") -> Limits:
    """The limits, by default ``Limits()``. Raises ``TypeError``."""
    if limits is None:
        return Limits()
    if not isinstance(limits, Limits):
        raise TypeError(f"limits is {checks.shown(limits)}; expected {expected}")
    return limits


def _interceptors(what: str, given: object, kind: type) -> None:
    accepted = f"a sequence of {'grpc' if kind is grpc.ServerInterceptor else 'grpc.aio'}.ServerInterceptor"
    for each in checks.sequence(what, given, accepted):
        if not isinstance(each, kind):
            raise TypeError(f"{what} has {checks.shown(each)}; expected {accepted}")


def _metadata(what: str, given: object) -> None:
    found = checks.pairs(what, given, '("instance", "a-1")')
    for name, value in found:
        if not isinstance(name, str) or not isinstance(value, (str, bytes)):
            raise TypeError(f"{what} has {checks.shown((name, value))}; expected a string, and a string or bytes")
        if not legal([(name, value)]):
            raise ValueError(f"{what} has {checks.shown((name, value))}, which gRPC cannot send as metadata")
