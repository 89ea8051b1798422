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
``lb.endpoint.id``        the instance there
``lb.policy``             who chose it
``lb.attempt``            its number, from 1
``lb.retry.reason``       why there was another one
``lb.breaker.state``      of the endpoint, when it was picked
``rpc.grpc.status_code``  how it ended (both)
========================  ============================================================
"""

from __future__ import annotations

from math import inf
from typing import Any

from grpc import StatusCode
from opentelemetry import context, propagate, trace
from opentelemetry.propagators.textmap import Setter
from opentelemetry.trace import Span, SpanKind, Status
from opentelemetry.trace import StatusCode as SpanStatus

from lb.core.balancer import Attempt, Balancer
from lb.core.call import Call
from lb.core.target import split_host_port

Metadata = tuple[Any, ...]

_LOOK_EVERY_S = 1.0
"""How often a channel without an SDK looks whether one was set up meanwhile."""


class _Append(Setter[list[tuple[str, str]]]):
    def set(self, carrier: list[tuple[str, str]], key: str, value: str) -> None:
        carrier.append((key.lower(), value))


_APPEND = _Append()


class Spans:
    """The listener of one channel that makes spans."""

    def __init__(self, target: str, balancer: Balancer) -> None:
        self._target = target
        self._balancer = balancer
        self._tracer = trace.get_tracer("lb")
        self._sdk = False
        self._look_again_at = -inf

    def call_started(self, call: Call, now: float) -> Span | None:
        """The call's span, in the caller's context; None when there is nothing to trace or pass on."""
        if not self._sdk:
            if now >= self._look_again_at:  # looking costs as much as a pick
                self._sdk = type(trace.get_tracer_provider()) is not trace.ProxyTracerProvider
                self._look_again_at = now + _LOOK_EVERY_S
            if not self._sdk:
                if not context.get_current():
                    return None
                current = trace.get_current_span()
                return None if current is trace.INVALID_SPAN else trace.NonRecordingSpan(current.get_span_context())
        name = call.method[1:]
        service, _, method = name.partition("/")
        return self._tracer.start_span(
            f"Sent.{name}",
            attributes={
                "rpc.system": "grpc",
                "rpc.service": service,
                "rpc.method": method,
                "lb.target": self._target,
            },
        )

    def attempt_started(self, span: Span, call: Call, attempt: Attempt, metadata: Metadata) -> Metadata:
        """Start the attempt's span, if the call is sampled; returns the metadata with the trace context."""
        if span.is_recording():
            name = call.method[1:]
            service, _, method = name.partition("/")
            attributes: dict[str, str | int] = {
                "rpc.system": "grpc",
                "rpc.service": service,
                "rpc.method": method,
                "lb.endpoint.id": attempt.endpoint_id,
                "lb.policy": self._balancer.policy.name,
                "lb.attempt": attempt.number,
                "lb.breaker.state": attempt.breaker_state.name,
                **_where(attempt.address),
            }
            if attempt.why:
                attributes["lb.retry.reason"] = attempt.why
            span = self._tracer.start_span(
                f"Attempt.{name}",
                context=trace.set_span_in_context(span),
                kind=SpanKind.CLIENT,
                attributes=attributes,
            )
            attempt.span = span
        carrier: list[tuple[str, str]] = []
        propagate.inject(carrier, trace.set_span_in_context(span), _APPEND)
        return (*metadata, *carrier)

    def attempt_ended(self, attempt: Attempt) -> None:
        """End the attempt's span with its outcome."""
        span, outcome = attempt.span, attempt.outcome
        assert isinstance(span, Span)
        assert outcome is not None
        _end(span, outcome.code, outcome.reason())

    def call_ended(self, span: Span, call: Call, code: StatusCode, details: str | None) -> None:
        """End the call's span with its final status."""
        if span.is_recording():
            if len(call.attempts) != 1:
                span.set_attribute("lb.attempts", len(call.attempts))
            if call.gave_up and code is not StatusCode.OK:
                span.set_attribute("lb.gave_up", call.gave_up)
        _end(span, code, f"{code.name}: {details}" if details else code.name)


def _end(span: Span, code: StatusCode, description: str) -> None:
    if span.is_recording():
        span.set_attribute("rpc.grpc.status_code", code.value[0])
        if code is not StatusCode.OK:
            span.set_status(Status(SpanStatus.ERROR, description))
    span.end()


def _where(address: str) -> dict[str, str | int]:
    try:
        host, port = split_host_port(address, where="address")
    except ValueError:  # unix:/path and the like
        return {"server.address": address}
    return {"server.address": host, "server.port": port}
