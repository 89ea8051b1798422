"""What a server says of its load: measured over spans, added to each answer, and read by a client."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from lb.core.orca import KEYS, STANDARD_KEY, LoadReport, decode
from lb.core.outcome import REPORT_KEY
from lb.server import Around, Behavior, LoadReporter, LoadTrailers, behavior_of, cost
from lb.server.orca import counting
from lb.testing.clock import FakeClock
from tests.support.wait import eventually

TRAILERS = (("mesh-instance-id", "i-1"),)


class Own(Around):
    """An interceptor that sets trailing metadata of its own."""

    def around(self, method: str, handler: Any) -> Behavior:
        """Sets it, and calls the handler."""
        behavior = behavior_of(handler)

        async def unary(request: Any, context: Any) -> Any:
            context.set_trailing_metadata(TRAILERS)
            return await behavior(request, context)

        async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
            context.set_trailing_metadata(TRAILERS)
            async for response in behavior(request, context):
                yield response

        return stream if handler.response_streaming else unary


class Counting(LoadReporter):
    """A reporter that remembers how calls ended."""

    def __init__(self, **named: Any) -> None:
        super().__init__(**named)
        self.failed: list[bool] = []

    def ended(self, *, failed: bool) -> None:
        """Remember it."""
        self.failed.append(failed)
        super().ended(failed=failed)


def read(trailers: Any, at: int = 0) -> LoadReport:
    """The report in a pair of the trailing metadata."""
    return decode(trailers[at][1])


def test_a_span_is_measured_and_reported_until_the_next_is_over() -> None:
    """Two seconds with 20 calls, five of them failed, and half of a processor."""
    clock, used = FakeClock(), 0.0
    reporter = LoadReporter(every_s=2.0, clock=clock, cpu=lambda: used)
    assert reporter.trailers() == ()
    for number in range(20):
        reporter.ended(failed=number < 5)
    used = 1.0
    clock.advance(2.0)
    report = LoadReport(cpu_utilization=0.5, qps=10, eps=2.5)
    assert reporter.trailers() == tuple((key, report.encode()) for key in KEYS)
    clock.advance(1.9)
    assert reporter.report == report


def test_costs_are_the_call_s_own() -> None:
    """They stand beside the report, and alone while there is none."""
    clock = FakeClock()
    reporter = LoadReporter(application=lambda: 0.25, clock=clock, cpu=lambda: 0.0)
    assert read(reporter.trailers({"rows": 120.0})) == LoadReport(request_cost={"rows": 120.0})
    reporter.ended(failed=False)
    clock.advance(1.0)
    both = read(reporter.trailers({"rows": 3.0}), 1)
    assert both == LoadReport(application_utilization=0.25, qps=1, request_cost={"rows": 3.0})
    assert not read(reporter.trailers()).request_cost


def test_each_span_counts_its_own_calls_alone() -> None:
    """A second without calls has none, whatever was before."""
    clock = FakeClock()
    reporter = LoadReporter(clock=clock, cpu=lambda: 0.0)
    reporter.ended(failed=True)
    for qps in (1.0, 0.0):
        clock.advance(1.0)
        reporter.trailers()
        assert reporter.report == LoadReport(qps=qps, eps=qps)


def test_a_bad_span_is_said() -> None:
    """The error names the field and the value."""
    with pytest.raises(ValueError, match=r"^LoadReporter\.every_s is 0; expected seconds > 0"):
        LoadReporter(every_s=0)


def test_a_measure_that_raises_costs_no_call(caplog: pytest.LogCaptureFixture) -> None:
    """There is no report while it does, the log says so once, and afterwards there is one again."""
    clock = FakeClock()
    answers: list[Any] = [0.5, RuntimeError("no gauge"), "half", 0.25]

    def application() -> float:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer  # type: ignore[no-any-return]  # one of them is no number

    reporter = LoadReporter(application=application, every_s=1.0, clock=clock, cpu=lambda: 0.0)
    seen: list[float | None] = []
    while answers:
        clock.advance(1.0)
        trailers = reporter.trailers()
        seen.append(read(trailers).application_utilization if trailers else None)
    assert seen == [0.5, None, None, 0.25]
    assert len(caplog.records) == 1
    assert "RuntimeError: no gauge" in caplog.text


@pytest.mark.parametrize("amount", [float("nan"), float("inf"), -1, -0.5, float("-inf")])
def test_a_cost_that_is_no_amount(amount: float) -> None:
    """It is told where it is given, inside of a handler or not: clients would balance by it."""
    with pytest.raises(ValueError, match=rf"^cost: rows is {amount}; expected a finite number >= 0$"):
        cost("rows", amount)
    costs = counting()
    with pytest.raises(ValueError, match="expected a finite number"):
        cost("rows", amount)
    assert costs == {}


def test_costs_that_are_too_much_together() -> None:
    """A sum that is infinite is not reported; what was told before stands."""
    costs = counting()
    cost("rows", 1e308)
    with pytest.raises(ValueError, match=r"^cost: rows is 1e\+308; expected a finite number >= 0$"):
        cost("rows", 1e308)
    assert costs == {"rows": 1e308}


@pytest.mark.parametrize(
    ("name", "amount", "message"),
    [
        ("rows", "2", "cost: rows is '2'; expected a number >= 0"),
        ("rows", None, "cost: rows is None; expected a number >= 0"),
        ("rows", True, "cost: rows is True; expected a number >= 0"),
        (7, 2, "cost: name is 7; expected a string"),
    ],
)
def test_a_cost_of_a_wrong_type(name: Any, amount: Any, message: str) -> None:
    """It would break the answer of the call, after its handler was done."""
    with pytest.raises(TypeError) as caught:
        cost(name, amount)
    assert str(caught.value) == message


async def test_it_is_added_to_the_trailing_metadata() -> None:
    """Of unary calls and of streams, beside the instance's id; not of a call that failed, which counts as one.

    The standard key does not arrive: when it does one day, the key of our own can go.
    """
    clock = FakeClock()
    reporter = Counting(application=lambda: 0.5, clock=clock, cpu=lambda: 0.0)

    async def unary(request: bytes, context: Any) -> bytes:
        cost("rows", 2)
        cost("rows", 3)
        if request == b"fail":
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such row")
        return b""

    async def stream(request: bytes, context: Any) -> AsyncIterator[bytes]:
        if request == b"fail":
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such row")
        yield b"1"
        cost("rows", 7)

    server = grpc.aio.server(interceptors=[LoadTrailers(reporter), Own()])
    handlers: dict[str, Any] = {
        "unary": grpc.unary_unary_rpc_method_handler(unary),
        "stream": grpc.unary_stream_rpc_method_handler(stream),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Service", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as opened:
            channel: Any = opened
            call = channel.unary_unary("/test.Service/unary")(b"")
            await call
            clock.advance(1.0)
            streamed = channel.unary_stream("/test.Service/stream")(b"")
            assert [message async for message in streamed] == [b"1"]
            trailing = [dict([*await c.trailing_metadata()]) for c in (call, streamed)]
            failing = channel.unary_unary("/test.Service/unary")(b"fail")
            with pytest.raises(grpc.aio.AioRpcError):
                await failing
            assert REPORT_KEY not in dict([*await failing.trailing_metadata()])
            failing = channel.unary_stream("/test.Service/stream")(b"fail")
            with pytest.raises(grpc.aio.AioRpcError):
                await failing.read()
            await eventually(lambda: reporter.failed == [False, False, True, True])
    finally:
        await server.stop(None)
    assert [metadata["mesh-instance-id"] for metadata in trailing] == ["i-1", "i-1"]
    assert all(STANDARD_KEY not in metadata for metadata in trailing)
    reports = [decode(metadata[REPORT_KEY]) for metadata in trailing]
    assert reports[0] == LoadReport(request_cost={"rows": 5.0})
    assert reports[1] == LoadReport(application_utilization=0.5, qps=2, request_cost={"rows": 7.0})
