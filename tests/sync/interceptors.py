"""An interceptor of all kinds, for threads."""

from __future__ import annotations

import collections
from typing import Any

import grpc


class Details(
    collections.namedtuple(
        "Details", ("method", "timeout", "metadata", "credentials", "wait_for_ready", "compression")
    ),
    grpc.ClientCallDetails,
):
    """Call details of an interceptor's own."""


class Recorder(
    grpc.UnaryUnaryClientInterceptor,
    grpc.UnaryStreamClientInterceptor,
    grpc.StreamUnaryClientInterceptor,
    grpc.StreamStreamClientInterceptor,
):
    """An interceptor of all kinds: notes what it sees and adds metadata."""

    def __init__(self, name: str = "one", log: list[str] | None = None) -> None:
        self.name = name
        self.log: list[str] = [] if log is None else log

    def _intercept(self, kind: str, continuation: Any, details: Any, request: Any) -> Any:
        self.log.append(f"{self.name} {kind}")
        metadata = (*(details.metadata or ()), ("x-seen-by", self.name))
        changed = Details(
            details.method,
            details.timeout,
            metadata,
            details.credentials,
            details.wait_for_ready,
            details.compression,
        )
        return continuation(changed, request)

    def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        """As grpcio asks for it."""
        return self._intercept("unary_unary", continuation, client_call_details, request)

    def intercept_unary_stream(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        """As grpcio asks for it."""
        return self._intercept("unary_stream", continuation, client_call_details, request)

    def intercept_stream_unary(self, continuation: Any, client_call_details: Any, request_iterator: Any) -> Any:
        """As grpcio asks for it."""
        return self._intercept("stream_unary", continuation, client_call_details, request_iterator)

    def intercept_stream_stream(self, continuation: Any, client_call_details: Any, request_iterator: Any) -> Any:
        """As grpcio asks for it."""
        return self._intercept("stream_stream", continuation, client_call_details, request_iterator)
