"""Spans: one for the call, one under it for each attempt (gRFC A72).

Through the OpenTelemetry API. Without an SDK nothing is made; a trace context that came in with a request is then
still passed on. A call that is sampled out has no span either: the SDK's sampler is asked first, and what is left is
the ``traceparent`` that all attempts send. A span that nobody looks at before its end is made at its end
(`lb.telemetry.late`); what of that the API does not promise stands in `lb.telemetry._opentelemetry`. Under
``suppress_instrumentation()`` a call is neither traced nor measured, and passes nothing on.

A process that does not use OpenTelemetry does not import it here, either: `Spans` does nothing until somebody has.

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

import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from grpc import StatusCode
    from opentelemetry.trace import Span, Tracer

    from lb.core.attempt import Attempt
    from lb.core.balancer import Balancer
    from lb.core.call import Call
    from lb.telemetry.tracing import Headers, Metadata, Tracing

_CONTEXT = "opentelemetry.context"
"""Whatever of OpenTelemetry is imported, this is imported by it."""
_PROVIDERS = ("OTEL_PYTHON_TRACER_PROVIDER", "OTEL_PYTHON_METER_PROVIDER")
"""By these the API itself makes a provider, when it is asked for one."""


class Spans:
    """The listener of one channel that makes spans. ``look`` is called about once a second, while calls begin."""

    def __init__(self, target: str, balancer: Balancer, look: Callable[[], object] = lambda: None) -> None:
        self._target = target
        self._balancer = balancer
        self._look = look
        self._tracing: Tracing | None = None
        # Imported here where it will be needed: a first call is not held by it.
        if _CONTEXT in sys.modules or any(os.environ.get(name) for name in _PROVIDERS):
            self._begin()

    def _begin(self) -> Tracing:
        from lb.telemetry.tracing import Tracing  # imports OpenTelemetry

        self._tracing = tracing = Tracing(self._target, self._balancer, self._look)
        return tracing

    def use(self, tracer: Tracer) -> None:
        """Make spans by this tracer."""
        (self._tracing or self._begin()).use(tracer)

    def call_started(self, call: Call, now: float) -> Span | Headers | None:
        """The call's span, in the caller's context; or what its attempts send in the place of one.

        None when there is nothing to trace or pass on.
        """
        tracing = self._tracing
        if tracing is None:
            if _CONTEXT not in sys.modules:
                return None
            tracing = self._begin()
        return tracing.call_started(call, now)

    def attempt_started(self, span: Span | Headers, call: Call, attempt: Attempt, metadata: Metadata) -> Metadata:
        """Start the attempt's span, if the call has one; returns the metadata with the trace context."""
        assert self._tracing is not None
        return self._tracing.attempt_started(span, call, attempt, metadata)

    def attempt_ended(self, attempt: Attempt) -> None:
        """End the attempt's span with its outcome."""
        assert self._tracing is not None
        self._tracing.attempt_ended(attempt)

    def call_ended(self, span: Span, call: Call, code: StatusCode, details: str | None) -> None:
        """End the call's span with its final status."""
        assert self._tracing is not None
        self._tracing.call_ended(span, call, code, details)
