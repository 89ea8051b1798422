"""A server's handlers with something around them."""

from __future__ import annotations

from typing import Any

import grpc

from lb.shared.handlers import Handlers
from tests.support import doors


def test_a_handler_is_wrapped_once_for_as_long_as_it_is_the_same() -> None:
    """By method and identity; its serializers stay."""
    handlers = Handlers(lambda method, handler: lambda request, context: None)
    grpcio: Any = grpc
    first = grpcio.unary_unary_rpc_method_handler(lambda r, c: b"", len, repr)
    second = grpcio.stream_stream_rpc_method_handler(lambda r, c: b"")
    wrapped: Any = handlers.wrapped("/a/b", first)
    assert handlers.wrapped("/a/b", first) is wrapped
    serializers: tuple[Any, ...] = (len, repr)
    assert (wrapped.request_deserializer, wrapped.response_serializer) == serializers
    other = handlers.wrapped("/a/b", second)
    assert other.stream_stream is not None
    assert other.request_streaming
    assert other.response_streaming
    for n in range(5000):
        handlers.wrapped(f"/a/{n}", first)
    assert doors.wrapped(handlers) <= 4096
