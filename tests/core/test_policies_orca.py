"""Reported load: the wire format against protobuf's own, A58's weights and periods, and the shares that follow."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from random import Random
from typing import Any

import pytest
from google.protobuf import message_factory
from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from hypothesis import given
from hypothesis import strategies as st

from lb.core.orca import LoadReport, decode
from lb.core.policies import Orca
from lb.core.policies.orca import OrcaPicker
from tests.core.backends import Backend, backends, ids

DOUBLES = {
    "cpu_utilization": 1,
    "mem_utilization": 2,
    "rps_fractional": 6,
    "eps": 7,
    "application_utilization": 9,
}
MAPS = {"request_cost": 4, "utilization": 5, "named_metrics": 8}


def _message_class() -> Any:
    """``xds.data.orca.v3.OrcaLoadReport``, by its published field numbers."""
    field = FieldDescriptorProto
    report = DescriptorProto(name="OrcaLoadReport")
    for name, number in DOUBLES.items():
        report.field.add(name=name, number=number, type=field.TYPE_DOUBLE, label=field.LABEL_OPTIONAL)
    report.field.add(name="rps", number=3, type=field.TYPE_UINT64, label=field.LABEL_OPTIONAL)
    for name, number in MAPS.items():
        entry = report.nested_type.add(name=name.title().replace("_", "") + "Entry")
        entry.options.map_entry = True
        entry.field.add(name="key", number=1, type=field.TYPE_STRING, label=field.LABEL_OPTIONAL)
        entry.field.add(name="value", number=2, type=field.TYPE_DOUBLE, label=field.LABEL_OPTIONAL)
        report.field.add(
            name=name,
            number=number,
            type=field.TYPE_MESSAGE,
            label=field.LABEL_REPEATED,
            type_name=f".xds.data.orca.v3.OrcaLoadReport.{entry.name}",
        )
    file = FileDescriptorProto(name="orca.proto", package="xds.data.orca.v3", syntax="proto3", message_type=[report])
    pool = DescriptorPool()
    pool.Add(file)
    found = pool.FindMessageTypeByName("xds.data.orca.v3.OrcaLoadReport")
    if not hasattr(message_factory, "GetMessageClass"):  # protobuf before 4.22
        return message_factory.MessageFactory(pool).GetPrototype(found)  # type: ignore[attr-defined,unused-ignore]
    return message_factory.GetMessageClass(found)


MESSAGE = _message_class()
AMOUNTS = st.floats(0, 1e12)
NAMED = st.dictionaries(st.text(max_size=200), st.floats(allow_nan=False, allow_infinity=False), max_size=4)
REPORTS = st.builds(
    LoadReport,
    cpu_utilization=AMOUNTS,
    mem_utilization=AMOUNTS,
    application_utilization=AMOUNTS,
    qps=AMOUNTS,
    eps=AMOUNTS,
    request_cost=NAMED,
    utilization=NAMED,
    named_metrics=NAMED,
)


@given(report=REPORTS)
def test_protobuf_reads_what_we_write(report: LoadReport) -> None:
    """Each field arrives, names of any length and script too."""
    message = MESSAGE.FromString(report.encode())
    for name in DOUBLES:
        assert getattr(message, name) == getattr(report, "qps" if name == "rps_fractional" else name)
    for name in MAPS:
        assert dict(getattr(message, name)) == getattr(report, name)


@given(report=REPORTS)
def test_we_read_what_protobuf_writes(report: LoadReport) -> None:
    """From a message of protobuf's own, the same report."""
    message = MESSAGE(
        **{name: getattr(report, "qps" if name == "rps_fractional" else name) for name in DOUBLES},
        **{name: getattr(report, name) for name in MAPS},
    )
    assert decode(message.SerializeToString()) == report


def test_the_old_field_of_requests_a_second_is_read() -> None:
    """``rps``, deprecated, holds while ``rps_fractional`` is not set."""
    assert decode(MESSAGE(rps=300, cpu_utilization=0.5).SerializeToString()).qps == 300
    assert decode(MESSAGE(rps=300, rps_fractional=2.5).SerializeToString()).qps == 2.5


def test_what_a_later_version_adds_is_passed_over() -> None:
    """Unknown fields of every wire type."""
    unknown = b"\x78\x96\x01" + b"\x81\x01" + b"12345678" + b"\x8a\x01\x03abc" + b"\x95\x01" + b"1234"
    assert decode(unknown + LoadReport(qps=2).encode() + unknown) == LoadReport(qps=2)


@given(data=st.binary(max_size=60))
def test_nothing_but_a_value_error_comes_of_rubbish(data: bytes) -> None:
    """Whatever a server sends: a report, or a ValueError."""
    with suppress(ValueError):
        assert isinstance(decode(data), LoadReport)


@pytest.mark.parametrize("data", [b"\x09abc", b"\x22\x05a", b"\x0f", b"\x80", b"\xff" * 11])
def test_a_cut_message_is_said(data: bytes) -> None:
    """It ends within a field, or has a wire type that does not exist."""
    with pytest.raises(ValueError, match="load report"):
        decode(data)


def test_a_report_of_nonsense_is_said() -> None:
    """A number below 0 or none at all."""
    with pytest.raises(ValueError, match=r"LoadReport.cpu_utilization is -0.1; expected a finite number >= 0"):
        LoadReport(cpu_utilization=-0.1)
    with pytest.raises(ValueError, match=r"LoadReport.qps is nan"):
        LoadReport(qps=float("nan"))


def reporting(policy: Orca, servers: list[Backend], loads: list[LoadReport], start: float, end: float) -> None:
    """Each server reports its load every second."""
    for second in range(int(end - start) + 1):
        for server, load in zip(servers, loads, strict=True):
            policy.report(server, load.encode(), start + second)


def shares(policy: Orca, servers: list[Backend], now: float, picks: int = 4000) -> dict[str, float]:
    """The parts of so many picks at one instant."""
    picker, rng = policy.picker(servers, None), Random(1)
    count = Counter(ids([picker.pick(None, now, rng) for _ in range(picks)]))
    return {name: count[name] / picks for name in ids(servers)}


@pytest.mark.parametrize("size", [3, 90])
def test_shares_follow_the_reported_load(size: int) -> None:
    """Equal calls at 20 %, 40 % and 80 % of use: capacities of 4 : 2 : 1, and calls by them."""
    policy, servers = Orca(), backends([1] * size)
    loads = [LoadReport(qps=100, cpu_utilization=(0.2, 0.4, 0.8)[i % 3]) for i in range(size)]
    reporting(policy, servers, loads, 0, 15)
    got = shares(policy, servers, 15.0)
    for name, share in list(got.items())[:3]:
        assert abs(share * size / 3 - {"a": 4, "b": 2, "c": 1}[name] / 7) < 0.03


def test_nobody_starves_and_nobody_gets_all() -> None:
    """A weight counts as a hundredth of the mean at least, and as ten times at most, as in gRPC's scheduler."""
    tiny = LoadReport(qps=1e-8, cpu_utilization=100.0)
    usual = LoadReport(qps=100, cpu_utilization=0.5)
    huge = LoadReport(qps=1e9, cpu_utilization=1e-3)
    policy, servers = Orca(), backends([1] * 3)
    reporting(policy, servers, [usual, usual, tiny], 0, 15)
    got = shares(policy, servers, 15.0)
    assert got["c"] == pytest.approx(0.01 / 3, abs=0.001)
    assert got["a"] == pytest.approx(0.5, abs=0.01)
    policy, servers = Orca(), backends([1] * 30)
    reporting(policy, servers, [huge, *[usual] * 29], 0, 15)
    got = shares(policy, servers, 15.0)
    # The mean is nearly all the huge one's: the others count as a hundredth of it each, and it as ten.
    assert got["a"] == pytest.approx(10 / 10.29, abs=0.01)
    assert min(got.values()) > 0


def test_failures_make_lighter() -> None:
    """Qps / (utilization + eps / qps * penalty)."""
    policy, (server,) = Orca(error_penalty=2.0, blackout_s=0), backends([1])
    policy.report(server, LoadReport(qps=100, eps=10, cpu_utilization=0.3).encode(), 0.0)
    assert policy.weight_of(server, 0.0) == pytest.approx(100 / (0.3 + 0.1 * 2.0))


def test_the_service_s_own_measure_goes_before_the_processor_s() -> None:
    """``application_utilization`` counts when it is there."""
    policy, (server,) = Orca(blackout_s=0), backends([1])
    policy.report(server, LoadReport(qps=100, cpu_utilization=0.1, application_utilization=0.5).encode(), 0.0)
    assert policy.weight_of(server, 0.0) == pytest.approx(200)


def test_a_weight_waits_for_the_blackout_and_ends_with_the_expiry() -> None:
    """Not within 10 s of the first report, nor 180 s after the last; after that the blackout begins anew."""
    policy, (server,) = Orca(), backends([1])
    load = LoadReport(qps=10, cpu_utilization=0.5).encode()
    for now in range(0, 12):
        policy.report(server, load, float(now))
    assert policy.weight_of(server, 9.9) == 0
    assert policy.weight_of(server, 10.0) == 20
    assert policy.weight_of(server, 190.9) == 20
    assert policy.weight_of(server, 191.0) == 0
    policy.report(server, load, 300.0)
    assert policy.weight_of(server, 305.0) == 0
    assert policy.weight_of(server, 310.0) == 20


def test_a_new_connection_begins_the_blackout_anew() -> None:
    """As when a process was replaced behind the same address."""
    policy, (server,) = Orca(), backends([1])
    load = LoadReport(qps=10, cpu_utilization=0.5).encode()
    policy.report(server, load, 0.0)
    policy.report(server, load, 20.0)
    server.ready_since = 25.0
    assert policy.weight_of(server, 26.0) == 0
    policy.report(server, load, 27.0)
    assert policy.weight_of(server, 36.0) == 0
    assert policy.weight_of(server, 37.0) == 20


def test_who_reports_nothing_gets_the_mean() -> None:
    """Of three that report 4 : 2 : 3, a fourth gets 3."""
    policy, servers = Orca(blackout_s=0), backends([1] * 4)
    loads = [LoadReport(qps=q, cpu_utilization=0.5) for q in (40, 20, 30)]
    reporting(policy, servers[:3], loads, 0, 1)
    got = shares(policy, servers, 1.0)
    assert got["d"] == pytest.approx(3 / 12, abs=0.01)


def test_with_one_report_the_registry_s_weights_hold() -> None:
    """A single weight says nothing of the others."""
    policy, servers = Orca(blackout_s=0), backends([1, 3])
    policy.report(servers[0], LoadReport(qps=1000, cpu_utilization=0.1).encode(), 0.0)
    assert shares(policy, servers, 1.0)["b"] == pytest.approx(0.75)


@pytest.mark.parametrize("report", [b"\x0f", LoadReport(qps=10).encode(), LoadReport(cpu_utilization=0.4).encode()])
def test_a_report_that_says_nothing_changes_nothing(report: bytes) -> None:
    """Unreadable, without a use, without calls."""
    policy, (server,) = Orca(), backends([1])
    policy.report(server, report, 0.0)
    assert server.stats is None


def test_weights_are_read_anew_once_a_second_only() -> None:
    """A report acts with the next update; the schedule goes on, and survivors' records stay."""
    policy, servers = Orca(blackout_s=0), backends([1, 1])
    picker, rng = policy.picker(servers, None), Random(1)
    even = LoadReport(qps=10, cpu_utilization=0.5)
    reporting(policy, servers, [even, even], 0, 0)
    assert isinstance(picker, OrcaPicker)
    picker.pick(None, 0.0, rng)
    inner = picker.inner
    reporting(policy, servers, [even, LoadReport(qps=90, cpu_utilization=0.5)], 0, 0)
    assert Counter(ids([picker.pick(None, 0.9, rng) for _ in range(100)])) == {"a": 50, "b": 50}
    assert picker.inner is inner
    later = Counter(ids([picker.pick(None, 1.0, rng) for _ in range(100)]))
    assert abs(later["b"] - 90) <= 1
    records = [server.stats for server in servers]
    policy.picker(servers, picker).pick(None, 2.0, rng)
    assert [server.stats for server in servers] == records


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"blackout_s": -1}, "Orca.blackout_s is -1; expected seconds >= 0"),
        ({"expiry_s": 0}, "Orca.expiry_s is 0; expected seconds > 0"),
        ({"update_s": 0.01}, "Orca.update_s is 0.01; expected seconds >= 0.1"),
        ({"error_penalty": None}, "Orca.error_penalty is None; expected a number >= 0"),
    ],
)
def test_bad_settings_are_said(arguments: dict[str, Any], message: str) -> None:
    """The error names the field, the value and what is accepted."""
    with pytest.raises((TypeError, ValueError), match=message):
        Orca(**arguments)
