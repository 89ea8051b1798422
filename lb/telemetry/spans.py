"""Spans: one for the call, one under it for each attempt (gRFC A72).

Depends on the OpenTelemetry *API* alone. Without an SDK nothing is made; a trace context that
came in with a request is then still passed on. A call that is sampled out costs one
non-recording span and its ``traceparent``.

========================  ============================================================
on the call's span        ``Sent.package.Service/Method``
``lb.target``             what the channel was made for
``lb.attempts``           how many were made (when it was not one)
``lb.gave_up``            why the last failure was not followed by another attempt
on an attempt's span      ``Attempt.package.Service/Method``
``server.address/port``   where it went
``rpc.system``            ``grpc``; ``rpc.service`` and ``rpc.method`` beside it
``lb.endpoint.id``        the instance there
``lb.policy``             who chose it
``lb.attempt``            its number, from 1
``lb.retry.reason``       why there was another one
``lb.breaker.state``      of the endpoint, when it was picked
``lb.lost``               it was hedged, and another attempt was faster; it is no error
``rpc.grpc.status_code``  how it ended (both)
========================  ============================================================
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from math import inf
from typing import Any

from grpc import StatusCode
from opentelemetry import baggage, context, propagate, trace
from opentelemetry.baggage.propagation import W3CBaggagePropagator
from opentelemetry.propagators.composite import CompositePropagator
from opentelemetry.propagators.textmap import Setter
from opentelemetry.trace import Span, SpanKind, Status
from opentelemetry.trace import StatusCode as SpanStatus
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from lb.core.balancer import Attempt, Balancer
from lb.core.call import Call
from lb.core.outcome import LATE, LOST
from lb.core.target import split_host_port

Metadata = tuple[Any, ...]
Attributes = dict[str, str | int]

_LOOK_EVERY_S = 1.0
"""How often a channel looks whether an SDK was set up, or another propagator."""


class _Append(Setter[list[tuple[str, str]]]):
    def set(self, carrier: list[tuple[str, str]], key: str, value: str) -> None:
        carrier.append((key.lower(), value))


_APPEND = _Append()


class Spans:
    """The listener of one channel that makes spans. ``look`` is called about once a second, while calls begin."""

    def __init__(self, target: str, balancer: Balancer, look: Callable[[], object] = lambda: None) -> None:
        self._balancer = balancer
        self._look = look
        self._tracer = trace.get_tracer("lb")
        self._sdk = False
        self._plain = False
        # No rpc.* here: the span's name says it, the attempts (of kind CLIENT) carry them, and each costs 1 us.
        self._attributes = {"lb.target": target}
        self._look_again_at = -inf

    def call_started(self, call: Call, now: float) -> Span | None:
        """The call's span, in the caller's context; None when there is nothing to trace or pass on."""
        if now >= self._look_again_at:
            self._look_again_at = now + _LOOK_EVERY_S
            if not self._sdk and type(trace.get_tracer_provider()) is not trace.ProxyTracerProvider:
                self._sdk = True
                self._tracer = trace.get_tracer("lb")  # the SDK's own: no stand-in asks for it at each span
            self._plain = _by_the_standard()
            self._look()
        if not self._sdk:
            if not context.get_current():
                return None
            current = trace.get_current_span()
            return None if current is trace.INVALID_SPAN else trace.NonRecordingSpan(current.get_span_context())
        return self._tracer.start_span(_names(call.settings.name)[0], attributes=self._attributes)

    def attempt_started(self, span: Span, call: Call, attempt: Attempt, metadata: Metadata) -> Metadata:
        """Start the attempt's span, if the call is sampled; returns the metadata with the trace context."""
        if span.is_recording():
            _, name, rpc = _names(call.settings.name)
            endpoint = attempt.candidate.endpoint
            attributes: Attributes = {
                **rpc,
                "lb.endpoint.id": endpoint.id,
                "lb.policy": self._balancer.policy.name,
                "lb.attempt": attempt.number,
                "lb.breaker.state": attempt.breaker_state.name,
                **_where(endpoint.address),
            }
            if attempt.why:
                attributes["lb.retry.reason"] = attempt.why
            span = self._tracer.start_span(
                name, context=trace.set_span_in_context(span), kind=SpanKind.CLIENT, attributes=attributes
            )
            attempt.span = span
        ids = span.get_span_context()
        if self._plain and not ids.trace_state and not baggage.get_all():
            # What the propagators would write, without asking each of them: a call that is sampled out costs half.
            if not ids.is_valid:
                return metadata
            return (*metadata, ("traceparent", f"00-{ids.trace_id:032x}-{ids.span_id:016x}-{ids.trace_flags:02x}"))
        carrier: list[tuple[str, str]] = []
        propagate.inject(carrier, trace.set_span_in_context(span), _APPEND)
        return (*metadata, *carrier)

    def attempt_ended(self, attempt: Attempt) -> None:
        """End the attempt's span with its outcome."""
        span, outcome = attempt.span, attempt.outcome
        assert isinstance(span, Span)
        assert outcome is not None
        if not span.is_recording():
            return
        if outcome is LOST or outcome is LATE:  # no error: the call was answered, by another attempt
            span.set_attribute("lb.lost", outcome.details)
            span.end()
        else:
            _end(span, outcome.code, outcome.reason())

    def call_ended(self, span: Span, call: Call, code: StatusCode, details: str | None) -> None:
        """End the call's span with its final status."""
        if not span.is_recording():
            return
        if len(call.attempts) != 1:
            span.set_attribute("lb.attempts", len(call.attempts))
        if call.gave_up and code is not StatusCode.OK:
            span.set_attribute("lb.gave_up", call.gave_up)
        _end(span, code, f"{code.name}: {details}" if details else code.name)


def _end(span: Span, code: StatusCode, description: str) -> None:
    span.set_attribute("rpc.grpc.status_code", code.value[0])
    if code is not StatusCode.OK:
        span.set_status(Status(SpanStatus.ERROR, description))
    span.end()


def _by_the_standard() -> bool:
    """Whether trace context is passed on by OpenTelemetry's default: W3C's ``traceparent`` and ``baggage``."""
    propagator = propagate.get_global_textmap()
    parts = getattr(propagator, "_propagators", ()) if type(propagator) is CompositePropagator else ()
    return [type(part) for part in parts] == [TraceContextTextMapPropagator, W3CBaggagePropagator]


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
