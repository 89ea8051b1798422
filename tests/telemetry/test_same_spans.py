"""A span that is made at its end is the SDK's own, field by field."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from opentelemetry import baggage, context, trace
from opentelemetry.trace import SpanContext, TraceFlags, TraceState

import lb
from lb.telemetry.late import Late
from lb.testing import Backend
from lb.testing.backend import fail, hang
from tests.aio.conftest import Fleet
from tests.aio.kit import IDEMPOTENT, UU, First, Kind, channel_to, ready
from tests.aio.kit import Told as Resolver
from tests.support import doors
from tests.telemetry.kit import NO_SDK, Ids, Recording

sdk: Any = pytest.importorskip("opentelemetry.sdk.trace", reason=NO_SDK)
sampling: Any = pytest.importorskip("opentelemetry.sdk.trace.sampling", reason=NO_SDK)

HEADERS = ("traceparent", "tracestate", "baggage")


class Watching(sdk.SpanProcessor):  # type: ignore[misc]  # of the SDK, which may not be there
    """Looks at each span when it starts: so the SDK has to make it."""

    def on_start(self, span: Any, parent_context: Any = None) -> None:
        """See the SDK."""


def fields(span: Any) -> dict[str, Any]:
    """All that an exporter can ask of a span, but for its instants."""
    assert type(span) is sdk.ReadableSpan
    shown = json.loads(span.to_json())
    assert shown.pop("start_time") <= shown.pop("end_time")
    return {
        "shown": shown,
        "name": span.name,
        "context": span.context,
        "ids": span.get_span_context(),
        "flags": type(span.context.trace_flags),
        "parent": span.parent,
        "kind": span.kind,
        "attributes": list(span.attributes.items()),
        "types": [type(value) for value in span.attributes.values()],
        "events": span.events,
        "links": span.links,
        "status": (span.status.status_code, span.status.description),
        "resource": span.resource,
        "scope": span.instrumentation_scope,
        "dropped": (span.dropped_attributes, span.dropped_events, span.dropped_links),
    }


Scenario = Callable[[Recording], Awaitable[list[lb.Attempt]]]


async def compare(scenario: Scenario, *, sampler: Any = None, spans: int, backends: list[Backend]) -> None:
    """Run it with spans that are made at their end, and with the SDK's own: spans and headers are the same."""
    seen = []
    for watched in (False, True):
        recording = Recording(sampler, Ids())
        if watched:
            recording.provider.add_span_processor(Watching())
        before = [len(backend.received) for backend in backends]
        attempts = await scenario(recording)
        if spans:
            assert {isinstance(attempt.span, Late) for attempt in attempts} <= {not watched}
        ours = [span for span in recording.spans if span.name.partition(".")[0] in ("Sent", "Attempt")]
        assert len(ours) == spans
        most = doors.opentelemetry().MOST_ATTRIBUTES
        assert all(len(span.attributes) < most for span in ours)  # else a limit could bind
        for child in ours:
            for parent in ours:
                if child.parent is not None and child.parent.span_id == parent.context.span_id:
                    assert parent.start_time <= child.start_time <= child.end_time <= parent.end_time
        received = [
            {name: received.metadata.get(name) for name in HEADERS}
            for backend, number in zip(backends, before, strict=True)
            for received in backend.received[number:]
        ]
        seen.append((sorted(map(fields, ours), key=lambda one: one["context"].span_id), received))
    late, own = seen
    assert late == own


async def test_a_call_that_succeeds(backend: Backend, kind: Kind) -> None:
    """Of each kind."""

    async def run(recording: Recording) -> list[lb.Attempt]:
        async with channel_to(backend) as channel:
            recording.of(channel)
            call = kind.start(channel)
            await kind.responses(call)
            return lb.attempts(call)

    await compare(run, spans=2, backends=[backend])


async def test_a_call_that_is_retried(fleet: Fleet, kind: Kind) -> None:
    """The failed attempt has a status, the second a reason, the call the number."""
    one, two = await fleet(2)

    async def run(recording: Recording) -> list[lb.Attempt]:
        async with channel_to(one, two, policy=First(), retry=IDEMPOTENT) as channel:
            recording.of(channel)
            await ready(channel, 2)
            one.always(fail(details="not now"))
            call = kind.start(channel)
            await kind.responses(call)
            return lb.attempts(call)

    await compare(run, spans=3, backends=[one, two])


async def test_a_call_that_is_hedged(fleet: Fleet) -> None:
    """The attempt that lost says so, and is no error."""
    slow, quick = await fleet(2)
    hedging = lb.Hedging(delay_s=0.01)

    async def run(recording: Recording) -> list[lb.Attempt]:
        slow.script(hang())
        async with channel_to(slow, quick, policy=First(), retry=IDEMPOTENT, hedging=hedging) as channel:
            recording.of(channel)
            await ready(channel, 2)
            call = UU.start(channel)
            await call
            return lb.attempts(call)

    await compare(run, spans=3, backends=[slow, quick])


async def test_a_call_that_fails(backend: Backend, kind: Kind) -> None:
    """Both spans have the words, and the call's says why there was no other attempt."""
    backend.always(fail(details="away"))

    async def run(recording: Recording) -> list[lb.Attempt]:
        async with channel_to(backend) as channel:
            recording.of(channel)
            call = kind.start(channel)
            await asyncio.gather(kind.responses(call), return_exceptions=True)
            return lb.attempts(call)

    await compare(run, spans=2, backends=[backend])


async def test_a_call_that_is_cancelled(backend: Backend, kind: Kind) -> None:
    """Both spans end, with CANCELLED."""

    async def run(recording: Recording) -> list[lb.Attempt]:
        backend.always(hang())
        async with channel_to(backend) as channel:
            recording.of(channel)
            call = kind.start(channel)
            await backend.until(lambda: backend.in_flight == 1)
            call.cancel()
            await asyncio.gather(call.code(), return_exceptions=True)
        await backend.until(lambda: backend.in_flight == 0)
        return lb.attempts(call)

    await compare(run, spans=2, backends=[backend])


async def test_a_call_without_an_attempt() -> None:
    """Nobody was there: one span."""

    async def run(recording: Recording) -> list[lb.Attempt]:
        async with lb.aio.channel(Resolver(note="nobody")) as channel:
            recording.of(channel)
            call = UU.start(channel)
            await asyncio.gather(call.code(), return_exceptions=True)
            return lb.attempts(call)

    await compare(run, spans=1, backends=[])


PARENTS = {
    "local": SpanContext(0xC000, 0xD000, False, TraceFlags(1)),
    "remote": SpanContext(0xC000, 0xD000, True, TraceFlags(3), TraceState([("vendor", "7")])),
    "not sampled": SpanContext(0xC000, 0xD000, True, TraceFlags(2), TraceState([("vendor", "7")])),
    "invalid": SpanContext(0, 0, False),
}


@pytest.mark.parametrize("luggage", [False, True])
@pytest.mark.parametrize("parent", [None, *PARENTS])
@pytest.mark.parametrize("sampler", ["always", "ratio", "parent", "parent, ratio"])
async def test_a_call_under_a_span(backend: Backend, sampler: str, parent: str | None, luggage: bool) -> None:
    """Trace, parent, flags and tracestate are the SDK's, in the spans and in the headers; baggage is passed on."""
    samplers = {
        "always": sampling.ALWAYS_ON,
        "ratio": sampling.TraceIdRatioBased(0.5),
        "parent": sampling.ParentBased(sampling.ALWAYS_ON),
        "parent, ratio": sampling.ParentBasedTraceIdRatio(0.5),
    }

    async def run(recording: Recording) -> list[lb.Attempt]:
        async with channel_to(backend) as channel:
            recording.of(channel)
            with contextlib.ExitStack() as stack:
                if luggage:
                    stack.callback(context.detach, context.attach(baggage.set_baggage("user", "7")))
                if parent is not None:
                    stack.enter_context(trace.use_span(trace.NonRecordingSpan(PARENTS[parent])))
                call = UU.start(channel)
                await call
            return lb.attempts(call)

    dropped = parent == "not sampled" and sampler.startswith("parent")
    await compare(run, sampler=samplers[sampler], spans=0 if dropped else 2, backends=[backend])


async def test_many_calls_of_a_ratio(backend: Backend) -> None:
    """The same calls are sampled, in the same traces."""

    class Scattered(Ids):
        def generate_trace_id(self) -> int:
            return super().generate_trace_id() * 0x9E3779B97F4A7C15 % 2**128

    seen = []
    for watched in (False, True):
        recording = Recording(sampling.TraceIdRatioBased(0.3), Scattered())
        if watched:
            recording.provider.add_span_processor(Watching())
        async with channel_to(backend) as channel:
            recording.of(channel)
            for _ in range(50):
                await UU.run(channel)
        seen.append(sorted(span.context.trace_id for span in recording.spans))
    assert seen[0] == seen[1]
    assert 10 < len(seen[0]) < 60
