"""Spans: one for the call, one under it for each attempt (gRFC A72).

Depends on the OpenTelemetry *API* alone. Without an SDK nothing is made; a trace context that
came in with a request is then still passed on. A call that is sampled out has no span either: the
SDK's sampler is asked first, and what is left is the ``traceparent`` that all attempts send. Under
``suppress_instrumentation()`` a call is neither traced nor measured, and passes nothing on.

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

import copy
import logging
import os
import threading
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from math import inf
from typing import Any

from grpc import StatusCode
from opentelemetry import baggage, context, propagate, trace
from opentelemetry.baggage.propagation import W3CBaggagePropagator
from opentelemetry.context import Context
from opentelemetry.propagators.composite import CompositePropagator
from opentelemetry.propagators.textmap import Setter
from opentelemetry.trace import Span, SpanContext, SpanKind, Status, TraceFlags
from opentelemetry.trace import StatusCode as SpanStatus
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from lb._version import __version__
from lb.core.attempt import Attempt
from lb.core.balancer import Balancer
from lb.core.call import Call, Tally
from lb.core.headers import legal
from lb.core.outcome import LATE, LOST
from lb.core.target import split_host_port

Metadata = tuple[Any, ...]
Headers = tuple[tuple[str, str], ...]
Attributes = dict[str, str | int]

_log = logging.getLogger("lb.telemetry")

_OK = StatusCode.OK
_CONTRIB = "opentelemetry.instrumentation.grpc"
# The API keeps its key to itself; contrib's instrumentations read it so, too. Old SDKs set the plain word.
_SUPPRESSED = (getattr(context, "_SUPPRESS_INSTRUMENTATION_KEY", ""), "suppress_instrumentation")
_LOOK_EVERY_S = 1.0
"""How often a channel looks whether an SDK was set up, or another propagator."""
_RANDOM = 2
"""The flag that a trace id is random (W3C Trace Context, level 2)."""


class _Append(Setter[list[tuple[str, str]]]):
    def set(self, carrier: list[tuple[str, str]], key: str, value: str) -> None:
        carrier.append((key.lower(), value))


_APPEND = _Append()


class _Decided(threading.local):
    """Sampler and id generator of a tracer whose next span is decided on already."""

    trace_id: int
    result: Any
    generate_span_id: Callable[[], int]

    def __init__(self, ids: Any) -> None:
        self.generate_span_id = ids.generate_span_id
        self.is_trace_id_random = getattr(ids, "is_trace_id_random", bool)

    def generate_trace_id(self) -> int:
        return self.trace_id

    def should_sample(self, *_: Any, **__: Any) -> Any:
        return self.result


class _Sampling:
    """The SDK's decision on a span, taken before there is one.

    The SDK makes a span to tell that there will be none, in some thirty steps. Here its sampler and its id
    generator are asked as it asks them, once for each call. A span that is to be recorded is the SDK's own,
    made by a copy of its tracer that finds both answers ready.
    """

    def __init__(self, tracer: Any, drop: Any) -> None:
        self.should_sample = tracer.sampler.should_sample
        self.generate_trace_id = tracer.id_generator.generate_trace_id
        self.generate_span_id = tracer.id_generator.generate_span_id
        self.drop = drop
        is_random = getattr(tracer.id_generator, "is_trace_id_random", None)
        self.root_flags = _RANDOM if is_random is not None and is_random() else 0
        self.kept_flags = 0 if is_random is None else _RANDOM
        self.decided = _Decided(tracer.id_generator)
        self.tracer = copy.copy(tracer)
        self.tracer.sampler = self.tracer.id_generator = self.decided

    @classmethod
    def of(cls, tracer: Any) -> _Sampling | None:
        """For the SDK's tracer; None for any other, and for one that is switched off or counts what it drops."""
        try:
            from opentelemetry.sdk.trace import Tracer
            from opentelemetry.sdk.trace.sampling import Decision
        except ImportError:
            return None
        if type(tracer) is not Tracer or os.environ.get("OTEL_PYTHON_SDK_INTERNAL_METRICS_ENABLED"):
            return None
        is_enabled = getattr(tracer, "_is_enabled", None)
        return cls(tracer, Decision.DROP) if is_enabled is None or is_enabled() else None


class Spans:
    """The listener of one channel that makes spans. ``look`` is called about once a second, while calls begin."""

    def __init__(self, target: str, balancer: Balancer, look: Callable[[], object] = lambda: None) -> None:
        self._balancer = balancer
        self._look = look
        self._tracer = trace.get_tracer("lb", __version__)
        self._sdk = False
        self._sampling: _Sampling | None = None
        self._plain = False
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
        if current and (current.get(_SUPPRESSED[0]) or current.get(_SUPPRESSED[1])):
            call.settings = replace(call.settings, tally=Tally(""))
            return None
        if not self._sdk:
            if not current:
                return None
            return self._headers(trace.get_current_span(current).get_span_context(), current) or None
        name = _names(call.settings.name)[0]
        sampling = self._sampling
        if sampling is None:
            span = self._tracer.start_span(name, current)
            self._look_at_parent(trace.get_current_span(current))
            return span if span.is_recording() else self._headers(span.get_span_context(), current)
        parent = trace.get_current_span(current).get_span_context() if current else None
        if parent is None or not parent.is_valid:
            trace_id, flags = sampling.generate_trace_id(), sampling.root_flags
        else:
            trace_id, flags = parent.trace_id, parent.trace_flags & sampling.kept_flags
        result = sampling.should_sample(current, trace_id, name, SpanKind.INTERNAL, None, ())
        if result.decision is not sampling.drop:
            sampling.decided.trace_id, sampling.decided.result = trace_id, result
            recorded: Span = sampling.tracer.start_span(name, current)
            if current:
                self._look_at_parent(trace.get_current_span(current))
            return recorded
        span_id = sampling.generate_span_id()
        if self._plain and not current and not result.trace_state:
            return (("traceparent", f"00-{trace_id:032x}-{span_id:016x}-0{flags}"),)
        ids = SpanContext(trace_id, span_id, False, TraceFlags(flags), result.trace_state)
        return self._headers(ids, current)

    def _look_around(self) -> None:
        """Whether an SDK was set up meanwhile, and how trace context is passed on."""
        if type(trace.get_tracer_provider()) is not trace.ProxyTracerProvider:
            self.use(trace.get_tracer("lb", __version__))  # the SDK's own: no stand-in asks for it at each span
        self._plain = _by_the_standard()
        self._look()

    def use(self, tracer: trace.Tracer) -> None:
        """Make spans by this tracer."""
        self._sdk = True
        self._tracer = tracer
        self._sampling = _Sampling.of(tracer)

    def _headers(self, ids: SpanContext, current: Context) -> Headers:
        """The metadata by which a trace context is passed on."""
        if self._plain and not ids.trace_state and not (current and baggage.get_all(current)):
            # What the propagators would write, without asking each of them.
            if not ids.is_valid:
                return ()
            return (("traceparent", f"00-{ids.trace_id:032x}-{ids.span_id:016x}-{ids.trace_flags:02x}"),)
        carrier: list[tuple[str, str]] = []
        try:
            propagate.inject(carrier, trace.set_span_in_context(trace.NonRecordingSpan(ids), current), _APPEND)
        except Exception:  # noqa: BLE001  # a propagator of the user's may raise anything, and no call may fail by it
            if self._first("inject"):
                _log.exception("%s: a propagator raised; what it had not written yet is not passed on", self._target)
        return tuple(header for header in carrier if self._sendable(*header))

    def _sendable(self, key: str, value: Any) -> bool:
        """Whether gRPC can send a propagator's header: no call may fail by one that it cannot."""
        fits = isinstance(value, bytes if key.endswith("-bin") else str)
        if fits and (isinstance(value, bytes) or value.isascii()) and key.isascii() and legal(((key, value),)):
            return True
        if self._first(key):
            _log.warning(
                "%s: the header %r of a propagator is not passed on: gRPC cannot send %r in it (a key is of a-z, 0-9,"
                " _ - and .; a value is printable ASCII, or bytes where the key ends in -bin)",
                *(self._target, key, value),
            )
        return False

    def _look_at_parent(self, parent: Span) -> None:
        """Whether contrib's client instrumentation has made a span of this call already."""
        scope = getattr(parent, "instrumentation_scope", None)
        if scope is None or scope.name != _CONTRIB or getattr(parent, "kind", None) is not SpanKind.CLIENT:
            return
        if self._first(_CONTRIB):
            _log.warning(
                "%s: calls have two sets of client spans, lb's own and those of %s; leave the latter's client"
                " interceptors out",
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
        if type(span) is tuple:
            return metadata + span
        assert isinstance(span, Span)
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
        current = context.get_current()
        attempt.span = child = self._tracer.start_span(
            name, trace.set_span_in_context(span, current), SpanKind.CLIENT, attributes
        )
        return metadata + self._headers(child.get_span_context(), current)

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
        # Here and not where it starts: a first attribute costs 3 us there, and 1 us here. No rpc.* either: the
        # span's name says it, and the attempts (of kind CLIENT) carry them.
        span.set_attribute("lb.target", self._target)
        if len(call.attempts) != 1:
            span.set_attribute("lb.attempts", len(call.attempts))
        if call.gave_up and code is not StatusCode.OK:
            span.set_attribute("lb.gave_up", call.gave_up)
        _end(span, code, f"{code.name}: {details}" if details else code.name)


def _end(span: Span, code: StatusCode, description: str) -> None:
    if code is _OK:
        span.set_attribute("rpc.grpc.status_code", 0)
    else:
        span.set_attribute("rpc.grpc.status_code", code.value[0])
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
