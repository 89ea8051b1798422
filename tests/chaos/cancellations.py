"""Calls of all kinds given up at random moments, and what is left of them: nothing may be."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from random import Random
from typing import Any

import grpc
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider

import lb
from lb.aio import Channel
from lb.aio.calls import LogicalCall
from tests.chaos.load import BODY
from tests.chaos.server import METHODS, STREAM_STREAM, STREAM_UNARY, UNARY, UNARY_STREAM
from tests.support import doors
from tests.support.process import Process

SETTINGS: dict[str, Any] = {
    "policy": "round_robin",
    # Half the attempts on one endpoint fail, so many calls are cancelled in the pause before a retry.
    "retry": lb.Retry(idempotent=METHODS, attempt_timeout_s=0.5, budget=lb.Budget(ratio=2.0)),
    "breaker": lb.Breaker(consecutive_failures=None, failure_ratio=None),
    # Sooner than most answers: many are cancelled while two attempts run.
    "hedging": lb.Hedging(delay_s=0.003),
    # Below what is in flight, so some are cancelled while they wait for a place.
    "limit": lb.ConcurrencyLimit(limit=8),
}
LATENCY_S = 0.005

_IN_FLIGHT = 32
_MOST_TURNS = 6
_MOST_S = 0.04
_SETTLED_S = 10.0
_FDS = Path("/proc/self/fd")
_WAYS = ("cancel", "cancel", "task", "task", "deadline", "drop")


class Spans(SpanProcessor):
    """Counts the spans that are open."""

    def __init__(self) -> None:
        self.begun = 0
        self.open = 0

    def of(self, channel: Channel) -> None:
        """Record the channel's spans, all of them; the global SDK is not touched."""
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(self)
        doors.engine(channel).tracer.use(provider.get_tracer("lb"))

    def on_start(self, span: Any, parent_context: Any = None) -> None:
        """One more."""
        self.begun += 1
        self.open += 1

    def on_end(self, span: Any) -> None:
        """One less."""
        self.open -= 1


class Cancellations:
    """Makes so many calls and gives each up. ``moments`` counts what each was doing then."""

    def __init__(self, channel: Channel, servers: list[Process], seed: int) -> None:
        self.moments: Counter[str] = Counter()
        self.spans = Spans()
        self.lives_s: list[float] = []
        self.attempts: Counter[str] = Counter()
        self._channel = channel
        self._servers = servers
        self._rng = Random(seed)
        self._left = 0
        self._unary: Any = channel.unary_unary(UNARY)
        self._streams: tuple[Any, ...] = (
            channel.unary_stream(UNARY_STREAM),
            channel.stream_unary(STREAM_UNARY),
            channel.stream_stream(STREAM_STREAM),
        )

    async def run(self, count: int) -> list[str]:
        """Give up ``count`` calls; returns what is left of them afterwards, in words."""
        for _ in range(8):  # all connections stand, and all that is made once is there
            await self._unary(BODY, timeout=10)
        self.spans.of(self._channel)
        before = _descriptors()
        tasks = asyncio.all_tasks()
        self._left = count
        await asyncio.gather(*(self._work() for _ in range(_IN_FLIGHT)))
        deadline = time.monotonic() + _SETTLED_S
        while True:
            left = await self._left_behind(tasks, before)
            if not left or time.monotonic() > deadline:
                return left
            await asyncio.sleep(0.05)

    async def _work(self) -> None:
        while self._left > 0:
            self._left -= 1
            await self._one()

    async def _one(self) -> None:
        rng = self._rng
        way = rng.choice(_WAYS)
        timeout = rng.uniform(0.0, _MOST_S) if way == "deadline" else 10.0
        began = time.perf_counter()
        if rng.random() < 0.6:
            call = self._unary(BODY, timeout=timeout)
        else:
            stub = rng.choice(self._streams)
            call = stub(BODY if stub is self._streams[0] else _requests(rng.random() < 0.5), timeout=timeout)
        user = None if way == "drop" or rng.random() < 0.3 else asyncio.ensure_future(_use(call))
        at_once = await self._some_moment()
        self.moments[_doing(call, at_once=at_once)] += 1
        if way == "cancel":
            call.cancel()
        elif way == "task":
            if user is None:
                user = asyncio.ensure_future(_use(call))
            user.cancel()
        elif way == "deadline" and user is None:
            user = asyncio.ensure_future(_use(call))
        if user is not None:
            with contextlib.suppress(asyncio.CancelledError):
                await user
        for attempt in lb.attempts(call):
            if attempt.number > 1:
                self.attempts[attempt.why.partition(":")[0]] += 1
        self.lives_s.append(time.perf_counter() - began)

    async def _some_moment(self) -> bool:
        """Let a moment pass; True when it was none at all."""
        which = self._rng.random()
        if which < 0.2:
            return True
        if which < 0.4:
            for _ in range(self._rng.randint(1, _MOST_TURNS)):
                await asyncio.sleep(0)
        else:
            await asyncio.sleep(self._rng.uniform(0.0, _MOST_S))
        return False

    async def _left_behind(self, tasks: set[asyncio.Task[Any]], descriptors: int) -> list[str]:
        left = []
        if new := asyncio.all_tasks() - tasks:
            left.append(f"{len(new)} tasks, such as {next(iter(new))!r}")
        if in_flight := sum(endpoint.in_flight for endpoint in self._channel.snapshot().endpoints):
            left.append(f"{in_flight} in flight")
        if self.spans.open:
            left.append(f"{self.spans.open} of {self.spans.begun} spans open")
        if (more := _descriptors() - descriptors) > 0:
            left.append(f"{more} descriptors")
        running = [await server.tell() for server in self._servers]
        if any(each["running"] for each in running):
            left.append(f"{sum(each['running'] for each in running)} handlers running in the servers")
        if not left:
            gc.collect()
            if calls := sum(isinstance(each, LogicalCall) for each in gc.get_objects()):
                left.append(f"{calls} calls in memory")
        return left


async def _requests(waits: bool) -> AsyncIterator[bytes]:
    for _ in range(3):
        yield BODY
        if waits:
            await asyncio.sleep(_MOST_S / 10)


async def _use(call: Any) -> None:
    """Take all that the call gives, whatever it is."""
    with contextlib.suppress(grpc.aio.AioRpcError):
        if hasattr(call, "__aiter__"):
            async for _ in call:
                pass
        else:
            await call


def _doing(call: Any, *, at_once: bool) -> str:
    if at_once:
        return "before its first step"
    if call.done():
        return "over"
    attempts = lb.attempts(call)
    running = sum(attempt.outcome is None for attempt in attempts)
    if running > 1:
        return "hedged"
    if running:
        return "in an attempt"
    return "between attempts" if attempts else "waiting"


def _descriptors() -> int:
    return len(os.listdir(_FDS)) if _FDS.exists() else 0
