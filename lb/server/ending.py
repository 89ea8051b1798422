"""How a server leaves: in which order, and in how much time.

There is one time for all of it: telling Consul and waiting for clients, calls in flight, and the callbacks at the end.
What is not done when it is over is cancelled.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import grpc

from lb.core import checks
from lb.server.gate import Gate, Meter

if TYPE_CHECKING:
    from lb.aio import Registration
    from lb.server.health import Health

_log = logging.getLogger("lb.server")

# What may remain after the last call that counts: streams of health watchers, and answers on their way.
_LAST_WORDS_S = 0.25
_DEREGISTERING = "leaving Consul"
# For taking the registration back, when all else is skipped.
_LEAST_S = 1.0


class Ending:
    """The end of one server.

    ``all_s`` is the time for all, ``wait_s`` how long it stays open after it has said that it leaves, ``flush_s`` how
    much of ``all_s`` is kept for the callbacks, at most half of it: calls need time as well. Raises as ``Server`` does
    for its arguments.
    """

    def __init__(self, name: str, all_s: float, wait_s: float, flush_s: float) -> None:
        for what, seconds in (("drain_s", all_s), ("drain_wait_s", wait_s), ("flush_s", flush_s)):
            checks.number(what, seconds)
        if wait_s and wait_s >= all_s:
            raise ValueError(f"drain_wait_s is {wait_s:g}; expected seconds below drain_s ({all_s:g}), or 0")
        self.all_s = all_s
        self.callbacks: list[Callable[[], Awaitable[object]]] = []
        self._name = name
        self._wait_s = wait_s
        self._flush_s = flush_s
        self._until: float | None = None

    async def leave(
        self,
        server: grpc.aio.Server,
        gate: Gate,
        meter: Meter,
        health: Health | None,
        registration: Registration | None,
    ) -> None:
        """Tell everyone, wait, refuse new calls, deregister, finish what is in flight, call the callbacks."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        left_s = max(0.0, self.all_s - _LAST_WORDS_S)
        self._until = now + left_s
        until = self._until - (min(self._flush_s, left_s / 2) if self.callbacks else 0.0)
        try:
            if health is not None:
                await health.enter_graceful_shutdown()
            await self._within(until, self._tell(registration), "waiting until clients have noticed")
            gate.shut()
            if registration is not None:
                await self._within(until, registration.close(), _DEREGISTERING)
            await self._finish(server, meter, until)
            await self._flush(self._until)
            _log.info("%s: has left, after %.1f s", self._name, loop.time() - now)
        except asyncio.CancelledError:
            _log.warning("%s: ends at once; calls that are cancelled: %d", self._name, meter.in_flight)
            self.callbacks.clear()
            self._until = loop.time() + _LEAST_S
            raise

    async def last(self, tasks: list[asyncio.Task[object]], registration: Registration | None) -> None:
        """What has to be done in any case, in what is left of the time; in time of its own if nobody has left yet."""
        now, until = asyncio.get_running_loop().time(), self._until
        if until is not None:
            until = max(until, now + _LAST_WORDS_S)
        if tasks:
            await self._within(until, asyncio.wait(tasks), "what had begun: checks, or registering")
        if registration is not None:
            await self._within(until, registration.close(), _DEREGISTERING)
        await self._flush(now + self._flush_s)

    async def _tell(self, registration: Registration | None) -> None:
        if registration is not None:
            await registration.drain()
        await asyncio.sleep(self._wait_s)

    async def _finish(self, server: grpc.aio.Server, meter: Meter, until: float) -> None:
        left_s = max(0.0, until - asyncio.get_running_loop().time())
        stopping = asyncio.create_task(server.stop(left_s + _LAST_WORDS_S))
        idle = asyncio.create_task(meter.idle())
        try:
            await asyncio.wait([idle], timeout=left_s)
            if meter.in_flight:
                _log.warning(
                    "%s: the time for leaving has passed; calls that are cancelled: %d", self._name, meter.in_flight
                )
            await server.stop(_LAST_WORDS_S if idle.done() else None)
            await stopping
        finally:
            idle.cancel()

    async def _flush(self, until: float) -> None:
        callbacks, self.callbacks = self.callbacks, []
        if callbacks:
            calls = asyncio.gather(*(self._call(callback) for callback in callbacks))
            await self._within(until, calls, "callbacks of on_close")

    async def _call(self, callback: Callable[[], Awaitable[object]]) -> None:
        try:
            await callback()
        except Exception as error:  # noqa: BLE001 - whatever it is, the others are called, and the process ends well
            _log.error("%s: a callback of on_close failed", self._name, exc_info=error)

    async def _within(self, until: float | None, work: Awaitable[object], what: str) -> None:
        """Await it until this time of the loop, and cancel it then; the log says ``what`` it was."""
        try:
            async with asyncio.timeout_at(until):
                await work
        except TimeoutError:
            _log.warning("%s: the time for leaving has passed; not done: %s", self._name, what)

    def __repr__(self) -> str:
        return f"<Ending within {self.all_s:g} s>"
