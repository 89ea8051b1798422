"""Makes the spans of one channel, once the process uses OpenTelemetry (see `lb.telemetry.spans`)."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import lru_cache
from math import inf
from typing import Any

from grpc import StatusCode
from opentelemetry import baggage, context, propagate, trace
from opentelemetry.context import Context
from opentelemetry.propagators.textmap import Setter
from opentelemetry.trace import Span, SpanContext, SpanKind, Status, TraceFlags
from opentelemetry.trace import StatusCode as SpanStatus

from lb._version import __version__
from lb.core.attempt import Attempt
from lb.core.balancer import Balancer
from lb.core.breaker import State
from lb.core.call import Call
from lb.core.checks import shown
from lb.core.headers import legal
from lb.core.outcome import LATE, LOST
from lb.core.peers import one_line
from lb.core.target import split_host_port
from lb.telemetry._opentelemetry import LOW_HALF, Sdk, by_the_standard, suppressed
from lb.telemetry.late import Late

Metadata = tuple[Any, ...]
Headers = tuple[tuple[str, str], ...]
Attributes = dict[str, str | int]

_log = logging.getLogger("lb.telemetry")
# A call's words may be a message of ours, which names several endpoints and what each of them said.
_LONGEST = 2000

_OK = StatusCode.OK
_CLOSED = State.CLOSED
_STATUS = "rpc.grpc.status_code"
_CONTRIB = "opentelemetry.instrumentation.grpc"
_LOOK_EVERY_S = 1.0
"""How often a channel looks whether an SDK was set up, or another propagator."""
_SAMPLED = 1
_FLAGS = tuple(TraceFlags(flags) for flags in range(4))
_HEX = tuple(f"{flags:02x}" for flags in range(256))


class _Append(Setter[list[tuple[str, str]]]):
    def set(self, carrier: list[tuple[str, str]], key: str, value: str) -> None:
        carrier.append((key.lower(), value))


_APPEND = _Append()


class Tracing:
    """The listener of one channel that makes spans. ``look`` is called about once a second, while calls begin."""

    def __init__(self, target: str, balancer: Balancer, look: Callable[[], object]) -> None:
        self._balancer = balancer
        self._look = look
        self._tracer: trace.Tracer | None = None
        """None: there is no SDK. What came in is passed on."""
        self._provider: trace.TracerProvider | None = None
        """The process's own, once there is one. It cannot be replaced."""
        self._sdk: Sdk | None = None
        """The tracer taken apart, if it is the SDK's own."""
        self._plain = False
        """Whether trace context is passed on as the standard says, so that no propagator must be asked."""
        self._target = target
        self._look_again_at = -inf
        self._told: set[str] = set()
        """What the log was told already."""

    def call_started(self, call: Call, now: float) -> Span | Headers | None:
        """The call's span, in the caller's context; or what its attempts send in the place of one.

        None when there is nothing to trace or pass on.
        """
        if now >= self._look_again_at:
            self._look_again_at = now + _LOOK_EVERY_S
            self._look_around()
        current = context.get_current()
        if current and suppressed(current):
            call.uncounted()
            return None
        tracer, sdk = self._tracer, self._sdk
        if tracer is None:
            if not current:
                return None
            return self._headers(trace.get_current_span(current).get_span_context(), current) or None
        name = _names(call.shared.name)[0]
        if sdk is None:
            span = tracer.start_span(name, current)
            if current:
                self._look_at_parent(current)
            return span if span.is_recording() else self._headers(span.get_span_context(), current)
        parent = trace.get_current_span(current).get_span_context() if current else None
        if parent is None or not parent.is_valid:
            parent = None
            trace_id, flags = sdk.generate_trace_id(), sdk.root_flags
        else:
            trace_id, flags = parent.trace_id, parent.trace_flags & sdk.kept_flags
        if parent is None and sdk.bound is not None:
            result = sdk.sampled if trace_id & LOW_HALF < sdk.bound else sdk.dropped
        else:
            result = sdk.should_sample(current, trace_id, name, SpanKind.INTERNAL, None, ())
        span_id = sdk.generate_span_id()
        if result.decision is sdk.drop:
            if self._plain and not current and not result.trace_state:
                return _traceparent(trace_id, span_id, flags)
            return self._headers(SpanContext(trace_id, span_id, False, _FLAGS[flags], result.trace_state), current)
        if current:
            self._look_at_parent(current)
        if result.decision is sdk.sample and not result.attributes and sdk.unwatched():
            ids = SpanContext(trace_id, span_id, False, _FLAGS[flags | _SAMPLED], result.trace_state)
            return Late(sdk, name, SpanKind.INTERNAL, ids, parent, {})
        return sdk.start(name, current, trace_id, span_id, result)

    def _look_around(self) -> None:
        """Whether an SDK was set up meanwhile, and how trace context is passed on."""
        provider = trace.get_tracer_provider()
        if provider is not self._provider and type(provider) is not trace.ProxyTracerProvider:
            self._provider = provider
            self._tracer = provider.get_tracer("lb", __version__)
        self._sdk = Sdk.of(self._tracer, self._sdk)
        self._plain = by_the_standard()
        self._look()

    def use(self, tracer: trace.Tracer) -> None:
        """Make spans by this tracer."""
        self._tracer = tracer
        self._sdk = Sdk.of(tracer)

    def _headers(self, ids: SpanContext, current: Context) -> Headers:
        """The metadata by which a trace context is passed on."""
        if self._plain and not ids.trace_state and not (current and baggage.get_all(current)):
            # What the propagators would write, without asking each of them.
            return _traceparent(ids.trace_id, ids.span_id, ids.trace_flags) if ids.is_valid else ()
        carrier: list[tuple[str, str]] = []
        try:
            propagate.inject(carrier, trace.set_span_in_context(trace.NonRecordingSpan(ids), current), _APPEND)
        except Exception:  # noqa: BLE001  # a propagator of the user's may raise anything, and no call may fail by it
            if self._first("inject"):
                _log.exception("%s: a propagator raised; headers that were still missing are not sent", self._target)
        return tuple(header for header in carrier if self._sendable(*header))

    def _sendable(self, key: str, value: Any) -> bool:
        """Whether gRPC can send a propagator's header: no call may fail by one that it cannot."""
        fits = isinstance(value, bytes if key.endswith("-bin") else str)
        if fits and (isinstance(value, bytes) or value.isascii()) and key.isascii() and legal(((key, value),)):
            return True
        if self._first(key):
            _log.warning(
                "%s: the propagator's header %s is not sent: gRPC cannot send the value %s (a key may have a-z, 0-9,"
                " _ - and .; a value is printable ASCII, or bytes if the key ends in -bin)",
                *(self._target, shown(key), shown(value)),
            )
        return False

    def _look_at_parent(self, current: Context) -> None:
        """Whether contrib's client instrumentation has made a span of this call already."""
        parent = trace.get_current_span(current)
        scope = getattr(parent, "instrumentation_scope", None)
        if scope is None or scope.name != _CONTRIB or getattr(parent, "kind", None) is not SpanKind.CLIENT:
            return
        if self._first(_CONTRIB):
            _log.warning(
                "%s: calls have two sets of client spans, lb's own and those of %s; remove the latter's client"
                " interceptors",
                *(self._target, _CONTRIB),
            )

    def _first(self, of: str) -> bool:
        """Whether the log is told of this for the first time."""
        if of in self._told:
            return False
        self._told.add(of)
        return True

    def attempt_started(self, span: Span | Headers, call: Call, attempt: Attempt, metadata: Metadata) -> Metadata:
        """Start the attempt's span, if the call has one; returns the metadata with the trace context."""
        if isinstance(span, tuple):
            return metadata + span
        _, name, rpc = _names(call.shared.name)
        endpoint = attempt.candidate.endpoint
        attributes: Attributes = {
            **rpc,
            "lb.endpoint.id": endpoint.id,
            "lb.policy": self._balancer.policy.name,
            "lb.attempt": attempt.number,
            "lb.breaker.state": "CLOSED" if attempt.breaker_state is _CLOSED else attempt.breaker_state.name,
            **_where(endpoint.address),
        }
        if attempt.why:
            attributes["lb.retry.reason"] = attempt.why
        current = context.get_current()
        if type(span) is Late:
            parent = span.ids
            trace_id, flags, state = parent.trace_id, parent.trace_flags, parent.trace_state
            span_id = span.sdk.generate_span_id()
            ids = SpanContext(trace_id, span_id, False, flags, state)
            attempt.span = Late(span.sdk, name, SpanKind.CLIENT, ids, parent, attributes)
            if self._plain and not current and not state:
                return metadata + _traceparent(trace_id, span_id, flags)
        else:
            assert self._tracer is not None
            under = trace.set_span_in_context(span, current)
            attempt.span = child = self._tracer.start_span(name, under, SpanKind.CLIENT, attributes)
            ids = child.get_span_context()
        return metadata + self._headers(ids, current)

    def attempt_ended(self, attempt: Attempt) -> None:
        """End the attempt's span with its outcome."""
        span: Any = attempt.span
        outcome = attempt.outcome
        assert outcome is not None
        if outcome is LOST or outcome is LATE:  # no error: the call was answered, by another attempt
            _end(span, {"lb.lost": outcome.details})
        elif outcome.code is _OK:
            _end(span, {_STATUS: 0})
        else:
            _end(span, {_STATUS: outcome.code.value[0]}, outcome.reason())

    def call_ended(self, span: Span, call: Call, code: StatusCode, details: str | None) -> None:
        """End the call's span with its final status."""
        # Here and not where it starts: a first attribute costs the SDK 3 us there, and 1 us here. No rpc.* either: the
        # span's name says it, and the attempts (of kind CLIENT) carry them.
        attributes: Attributes = {"lb.target": self._target}
        if len(call.attempts) != 1:
            attributes["lb.attempts"] = len(call.attempts)
        if code is _OK:
            attributes[_STATUS] = 0
            _end(span, attributes)
            return
        if call.gave_up:
            attributes["lb.gave_up"] = call.gave_up
        attributes[_STATUS] = code.value[0]
        _end(span, attributes, f"{code.name}: {one_line(details, _LONGEST)}" if details else code.name)


def _end(span: Span, attributes: Attributes, error: str | None = None) -> None:
    """End a span with these attributes; with an error, if it was one."""
    status = None if error is None else Status(SpanStatus.ERROR, error)
    if type(span) is Late:
        span.attributes.update(attributes)
        span.finish(status)
    elif span.is_recording():
        span.set_attributes(attributes)
        if status is not None:
            span.set_status(status)
        span.end()


def _traceparent(trace_id: int, span_id: int, flags: int) -> Headers:
    # By bytes: to format the numbers takes 4,000 instructions more, 1.5 % of a call.
    try:
        ids = f"{trace_id.to_bytes(16, 'big').hex()}-{span_id.to_bytes(8, 'big').hex()}"
    except OverflowError:  # of an id generator of somebody's own: no trace can have such an id
        return ()
    return (("traceparent", f"00-{ids}-{_HEX[flags]}"),)


@lru_cache(4096)
def _names(method: str) -> tuple[str, str, Attributes]:
    """The spans' names, and the attributes that all of a method have."""
    name = method[1:]
    service, _, method = name.partition("/")
    return f"Sent.{name}", f"Attempt.{name}", {"rpc.system": "grpc", "rpc.service": service, "rpc.method": method}


@lru_cache(4096)
def _where(address: str) -> Attributes:
    try:
        host, port = split_host_port(address, where="address")
    except ValueError:  # unix:/path and the like
        return {"server.address": address}
    return {"server.address": host, "server.port": port}
