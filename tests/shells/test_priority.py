"""The priority of a call: what a block of `lb.priority` or an incoming call hands on to outgoing ones."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, nullcontext
from typing import Any

import grpc
import pytest

import lb
import lb.sync
from lb.testing import Backend
from tests.shells.kit import Shell
from tests.sync.kit import KINDS as SYNC_KINDS

KEY = "lb-priority"


def sent(backend: Backend) -> list[Any]:
    """The priorities of the latest call that a backend received."""
    metadata = backend.received[-1].metadata
    return [metadata[KEY]] if KEY in metadata else []


@pytest.mark.parametrize("kind", [kind.name for kind in SYNC_KINDS])
async def test_a_blocks_calls_have_its_priority(shell: Shell, backend: Backend, kind: str) -> None:
    """Calls of all kinds; the default one is not sent, nor is any outside of the block."""
    async with shell.open(f"static:///{backend.address}") as channel:
        await shell.call(channel, kind=kind)
        assert sent(backend) == []
        with lb.priority(lb.Priority.CRITICAL):
            await shell.call(channel, kind=kind)
            assert sent(backend) == ["critical"]
            await shell.call(channel, kind=kind)
            assert sent(backend) == ["critical"]
            with lb.priority(lb.Priority.DEFAULT):
                await shell.call(channel, kind=kind)
                assert sent(backend) == []
            with lb.deadline(60):
                await shell.call(channel, kind=kind)
                assert sent(backend) == ["critical"]
            with lb.detached():
                await shell.call(channel, kind=kind)
                assert sent(backend) == []
        await shell.call(channel, kind=kind)
        assert sent(backend) == []


async def test_a_calls_own_priority_wins(shell: Shell, backend: Backend) -> None:
    """What stands in its metadata is sent, beside the rest."""
    async with shell.open(f"static:///{backend.address}") as channel:
        with lb.priority(lb.Priority.CRITICAL):
            for _ in range(2):
                await shell.call(channel, metadata=((KEY, "sheddable"), ("other", "1")))
                assert sent(backend) == ["sheddable"]
                await shell.call(channel, metadata=(("other", "1"),))
                assert sent(backend) == ["critical"]
                assert backend.received[-1].metadata["other"] == "1"


async def test_a_channel_without_propagation_has_no_part_in_it(shell: Shell, backend: Backend) -> None:
    """As with deadlines."""
    async with shell.open(f"static:///{backend.address}", propagate=False) as channel:
        with lb.priority(lb.Priority.CRITICAL):
            await shell.call(channel)
        assert sent(backend) == []


def test_only_a_priority_is_one() -> None:
    """A word is not."""
    word: Any = "critical"
    with pytest.raises(TypeError, match=r"importance is 'critical'; expected an lb\.Priority"), lb.priority(word):
        pass


@pytest.mark.parametrize("detached", [False, True])
@pytest.mark.parametrize(("given", "goes_on"), [("critical", ["critical"]), ("default", []), ("?", []), (None, [])])
async def test_a_handlers_calls_have_that_of_the_incoming_one(
    shell: Shell, backend: Backend, given: str | None, goes_on: list[str], detached: bool
) -> None:
    """Through `incoming` of both shells; not in a block of `detached`."""
    within: Callable[[], Any] = lb.detached if detached else nullcontext
    async with AsyncExitStack() as stack:
        channel = await stack.enter_async_context(shell.open(f"static:///{backend.address}"))
        server: Any

        async def forward(request: bytes, context: Any) -> bytes:
            with within():
                await shell.call(channel)
            return request

        def forward_in_a_thread(request: bytes, context: Any) -> bytes:
            with within():
                next(kind for kind in SYNC_KINDS if kind.name == "unary_unary").run(channel, timeout=30)
            return request

        options = [("grpc.so_reuseport", 0)]
        if shell.name == "aio":
            server = grpc.aio.server(interceptors=[lb.aio.incoming()], options=options)
        else:
            pool = stack.enter_context(ThreadPoolExecutor(1))
            server = grpc.server(pool, interceptors=[lb.sync.incoming()], options=options)
        handler: Any = grpc.unary_unary_rpc_method_handler(forward if shell.name == "aio" else forward_in_a_thread)
        server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("a.B", {"C": handler})])
        port = server.add_insecure_port("127.0.0.1:0")
        if shell.name == "aio":
            await server.start()
            stack.push_async_callback(server.stop, None)
        else:
            server.start()
            stack.push_async_callback(asyncio.to_thread, lambda: server.stop(None).wait())
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as client:
            method: Any = client.unary_unary("/a.B/C")
            await method(b"", timeout=30, metadata=() if given is None else ((KEY, given),))
        assert sent(backend) == ([] if detached else goes_on)
