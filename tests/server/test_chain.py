"""Interceptors of ours that stand next to each other are one for grpcio, and do the same."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import grpc
import pytest

import lb.aio
from lb.server import Admission, Around, Behavior, Limits, LoadReporter, LoadTrailers, Rate, behavior_of
from lb.server.chain import joined


class Named(Around):
    """Writes down its name where a call comes in and where it leaves, if the call concerns it."""

    def __init__(self, name: str, told: list[str], only: str = "/") -> None:
        super().__init__()
        self._name = name
        self._told = told
        self._only = only

    def concerns(self, method: str) -> bool:
        """By its beginning."""
        return method.startswith(self._only)

    def around(self, method: str, handler: Any) -> Behavior:
        """Write."""
        behavior = behavior_of(handler)

        async def unary(request: Any, context: Any) -> Any:
            self._told.append(self._name)
            response = await behavior(request, context)
            self._told.append(f"{self._name} ends")
            return response

        async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
            self._told.append(self._name)
            async for response in behavior(request, context):
                yield response
            self._told.append(f"{self._name} ends")

        return stream if handler.response_streaming else unary


class Other(grpc.aio.ServerInterceptor):
    """Not one of ours."""

    def __init__(self, told: list[str]) -> None:
        self._told = told

    async def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        """Write down that a call came."""
        self._told.append("other")
        return await continuation(handler_call_details)


async def served(stack: AsyncExitStack, interceptors: list[Any]) -> Any:
    """A server with these; a channel to it."""
    server = grpc.aio.server(interceptors=interceptors)

    async def echo(request: bytes, context: Any) -> bytes:
        return request

    handlers: dict[str, Any] = {"Echo": grpc.unary_unary_rpc_method_handler(echo)}
    for name in ("a.B", "grpc.C"):
        server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(name, handlers)])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    stack.push_async_callback(server.stop, None)
    return await stack.enter_async_context(grpc.aio.insecure_channel(f"127.0.0.1:{port}"))


@pytest.mark.parametrize("chained", [False, True])
async def test_they_stand_in_the_order_that_is_given(chained: bool) -> None:
    """Chained or not: what stands around admission sees its refusals, what stands within does not."""
    async with AsyncExitStack() as stack:
        told: list[str] = []
        given: list[Any] = [
            Named("outer", told),
            Named("grpc's own", told, only="/grpc."),
            Admission(Limits(rate=Rate(0.001, 1))),
            LoadTrailers(LoadReporter()),
            Named("inner", told),
            lb.aio.incoming(),
        ]
        channel = await served(stack, list(joined(given)) if chained else given)
        assert await channel.unary_unary("/a.B/Echo")(b"x") == b"x"
        assert told == ["outer", "inner", "inner ends", "outer ends"]
        told.clear()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary("/a.B/Echo")(b"x")
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert told == ["outer", "outer ends"]
        told.clear()
        assert await channel.unary_unary("/grpc.C/Echo")(b"x") == b"x"
        assert told == ["outer", "grpc's own", "inner", "inner ends", "grpc's own ends", "outer ends"]


async def test_an_inner_admission_refuses_what_an_outer_one_admits() -> None:
    """And the outer one gets its place back."""
    async with AsyncExitStack() as stack:
        told: list[str] = []
        outer = Admission()
        inner = Admission(Limits(rate=Rate(0.001, 1)), trailers=[("id", "i-1")])
        (chain,) = joined([Named("outer", told), outer, Named("between", told), inner])
        channel = await served(stack, [chain])
        assert await channel.unary_unary("/a.B/Echo")(b"x") == b"x"
        told.clear()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary("/a.B/Echo")(b"x")
        assert ("id", "i-1") in [*caught.value.trailing_metadata()]
        assert told == ["outer", "between", "between ends", "outer ends"]
        assert outer.places.load == 0


def test_others_stay_where_they_are() -> None:
    """Only ours are put together, and none across another one."""
    told: list[str] = []
    ours, other = Named("ours", told), Other(told)
    first, second, third = joined([ours, lb.aio.incoming(), other, ours])
    assert second is other
    assert first is not ours
    assert third is not first
