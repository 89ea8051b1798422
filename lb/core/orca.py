"""A server's report of its load, ``xds.data.orca.v3.OrcaLoadReport``, written and read by hand (gRFC A51).

It travels in the trailing metadata of a call under ``endpoint-load-metrics-bin``. grpcio reads that key for its
own policies and hides it from everyone else, so a server that is to be balanced by `lb.Orca` sends the
same bytes under ``REPORT_KEY`` as well. These few fields need no generated code; the wire format is protobuf's
(https://protobuf.dev/programming-guides/encoding).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from struct import error as StructError
from struct import pack, unpack_from
from typing import Any

from lb.core import checks
from lb.core.outcome import REPORT_KEY
from lb.core.wire import varint

STANDARD_KEY = "endpoint-load-metrics-bin"
"""For grpcio's own policies, and for clients in other languages."""
KEYS = (STANDARD_KEY, REPORT_KEY)
"""What a server sends a report under."""

_DOUBLES = {1: "cpu_utilization", 2: "mem_utilization", 6: "qps", 7: "eps", 9: "application_utilization"}
_MAPS = {4: "request_cost", 5: "utilization", 8: "named_metrics"}
_WIDEST = 1.7976931348623157e308  # the largest there is
_RPS = 3  # the deprecated whole number of requests a second
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def _check(name: str, values: object) -> None:
    if not isinstance(values, Mapping):
        raise TypeError(f"LoadReport.{name} is {checks.shown(values)}; expected numbers by name")
    for key, value in values.items():
        if not isinstance(key, str):
            raise TypeError(f"LoadReport.{name} has the name {checks.shown(key)}; expected a string")
        what = f"LoadReport.{name}[{checks.shown(key)}]"
        checks.number(what, value, "a finite number", least=-_WIDEST, most=_WIDEST)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadReport:
    """What a server says of its own load, for clients with the policy `Orca`. Send it with each answer::

        context.set_trailing_metadata((("lb-endpoint-load-metrics-bin", report.encode()),))

    Args:
        cpu_utilization: the used part of the processor, 0 to 1; above 1 if it is beyond its soft limit.
        mem_utilization: the used part of the memory, 0 to 1.
        application_utilization: the used part of what limits the service, by its own measure, instead of the
            processor's.
        qps: requests that it answers a second.
        eps: those of them that fail, a second.
        request_cost: what this call has cost, by name.
        utilization: the used parts of other resources, by name, 0 to 1.
        named_metrics: anything else, by name.

    Raises:
        ValueError: a number is negative (costs and metrics may be) or not finite; the message names it.
        TypeError: a field has a wrong type.
    """

    cpu_utilization: float = 0.0
    mem_utilization: float = 0.0
    application_utilization: float = 0.0
    qps: float = 0.0
    eps: float = 0.0
    request_cost: Mapping[str, float] = field(default_factory=dict)
    utilization: Mapping[str, float] = field(default_factory=dict)
    named_metrics: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in _DOUBLES.values():
            value = getattr(self, name)
            if not (type(value) is float and 0.0 <= value <= checks.MOST):  # made for each answer: the quick way
                checks.number(f"LoadReport.{name}", value, "a finite number >= 0", most=_WIDEST)
        for name in _MAPS.values():
            values = getattr(self, name)
            if values or type(values) is not dict:
                _check(name, values)

    def encode(self) -> bytes:
        """The serialized message of gRFC A51."""
        parts = [
            bytes([number << 3 | _FIXED64]) + pack("<d", value)
            for number, name in _DOUBLES.items()
            if (value := getattr(self, name))
        ]
        for number, name in _MAPS.items():
            for key, value in getattr(self, name).items():
                text = key.encode()
                entry = b"\x0a" + varint(len(text)) + text + b"\x11" + pack("<d", value)
                parts.append(bytes([number << 3 | _BYTES]) + varint(len(entry)) + entry)
        return b"".join(parts)


def decode(data: bytes) -> LoadReport:
    """The report in a serialized message. Unknown fields are passed over.

    Raises:
        ValueError: it is no such message, or a number in it is negative or not finite.
    """
    doubles: dict[str, Any] = {}
    maps: dict[str, Any] = {}
    rps = 0.0
    for number, value in _fields(data):
        if number in _DOUBLES and isinstance(value, float):
            doubles[_DOUBLES[number]] = value
        elif number in _MAPS and isinstance(value, bytes):
            entry = dict(_fields(value))
            key, amount = entry.get(1, b""), entry.get(2, 0.0)
            if isinstance(key, bytes) and isinstance(amount, float):
                maps.setdefault(_MAPS[number], {})[key.decode()] = amount
        elif number == _RPS and isinstance(value, int):
            rps = float(value)
    doubles.setdefault("qps", rps)
    return LoadReport(**doubles, **maps)


def _fields(data: bytes) -> Iterator[tuple[int, int | float | bytes]]:
    """The fields of a message: number, and a varint, double or bytes. Others are passed over."""
    at = 0
    while at < len(data):
        tag, at = _read_varint(data, at)
        number, kind = tag >> 3, tag & 7
        if kind == _FIXED64:
            try:
                (double,) = unpack_from("<d", data, at)
            except StructError:
                raise ValueError("load report: it ends within a field") from None
            at += 8
            yield number, double
        elif kind == _BYTES:
            size, at = _read_varint(data, at)
            at += size
            if at > len(data):
                raise ValueError("load report: it ends within a field")
            yield number, data[at - size : at]
        elif kind == _VARINT:
            whole, at = _read_varint(data, at)
            yield number, whole
        elif kind == _FIXED32 and at + 4 <= len(data):
            at += 4
        else:
            raise ValueError(f"load report: field {number} has the unknown wire type {kind}")


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise ValueError("load report: it ends within a field")
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise ValueError("load report: a number is too long")
