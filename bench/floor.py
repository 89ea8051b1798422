"""The least that a unary call can cost through grpcio: its lower layer alone, without its upper one and without `lb`.

A call is one batch of core's (``cygrpc``), with a deadline. The endpoints take turns. All calls that begin in one turn
of the loop are sent together, in the next one: sent one by one, each response would come alone and wake every thread
on its way. Core's own retries and its idle timer are off, as in `lb`. This names private parts of grpcio.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Sequence
from typing import Any

import grpc

OPTIONS = (("grpc.enable_retries", 0), ("grpc.client_idle_timeout_ms", 2**31 - 1))


class Floor:
    """A channel that can do unary calls, and nothing else."""

    def __init__(self, addresses: Sequence[str]) -> None:
        self._channels = [grpc.aio.insecure_channel(f"ipv4:{address}", options=OPTIONS) for address in addresses]
        self._lowers: list[Any] = [channel._channel for channel in self._channels]  # type: ignore[attr-defined]
        self._starting: list[Callable[[], None]] = []
        self._loop = asyncio.get_running_loop()

    async def close(self) -> None:
        """Close the connections."""
        for channel in self._channels:
            await channel.close()

    def unary_unary(self, method: str, _registered_method: bool = False) -> Any:
        """As that of grpcio's channels; what it returns takes bytes and a ``timeout`` in seconds."""
        name = method.encode()
        with_handles = hasattr(self._lowers[0], "get_registered_call_handle")
        turn = itertools.cycle(
            [(one, (one.get_registered_call_handle(name),) if with_handles else ()) for one in self._lowers]
        )

        def call(request: bytes, *, timeout: float) -> asyncio.Future[bytes]:
            response: asyncio.Future[bytes] = self._loop.create_future()
            lower, handle = next(turn)
            steps = lower.call(name, time.time() + timeout, None, None, *handle).unary_unary(request, ())

            def arrived(_: object) -> None:
                try:
                    steps.send(None)
                except StopIteration as stop:
                    response.set_result(stop.value)

            def start() -> None:
                steps.send(None).add_done_callback(arrived)

            if not self._starting:
                self._loop.call_soon(self._start)
            self._starting.append(start)
            return response

        return call

    def _start(self) -> None:
        starting, self._starting = self._starting, []
        for start in starting:
            start()
