"""The doors through which tests look into `lb` where nothing public shows what they ask.

A door is a function that says what it reads, and why no public way exists. `test_doors` holds all other files to them.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
from collections.abc import Callable, Iterator
from typing import Any

import grpc

# ---- the parts of a channel ----


def engine(channel: Any) -> Any:
    """What an `lb` channel consists of, in either shell.

    A user gives telemetry to the process, not to a channel, and a snapshot shows states, not the parts that have them.
    """
    return channel._channel if hasattr(channel, "_channel") else channel._front.engine


def candidates(channel: Any) -> Any:
    """The balancer's records of the endpoints. A snapshot shows them, but a test may have to change one."""
    return engine(channel).balancer.candidates


def in_line(channel: Any) -> int:
    """How many calls the balancer counts in line below the concurrency limits. No metric says that at one moment."""
    waiting: int = engine(channel).balancer.line.waiting
    return waiting


def line(channel: Any) -> Any:
    """The calls that wait in line for a place, which must be empty when `in_line` is 0: two records of one thing."""
    return engine(channel).waiting.line


def waits_for_change(channel: Any) -> int:
    """How many calls wait for any change (a first resolution, a connection). No snapshot shows calls."""
    waiting: int = engine(channel).waiting.for_change
    return waiting


def running(channel: Any) -> Any:
    """The calls that a channel keeps until they end. That none is left there shows only as memory, in time."""
    return channel._front._running if hasattr(channel, "_front") else engine(channel).departures.running


def upper(channel: Any) -> Any:
    """The ``grpc.Channel`` of grpcio's under an `lb.sync` channel, whose attributes are set by hand."""
    return channel._upper


# ---- a connection ----


def closed(candidate: Any) -> bool:
    """Whether the connection to an endpoint is closed. An endpoint that left the set is in no snapshot any more."""
    closed: bool = candidate.handle._closed
    return closed


@contextlib.contextmanager
def another_core(candidate: Any, make: Callable[[Any], Any]) -> Iterator[None]:
    """Put something between an endpoint's connection and core: what core does not tell cannot be forced otherwise."""
    lower = candidate.handle._lower
    candidate.handle._lower = make(lower)
    try:
        yield
    finally:
        candidate.handle._lower = lower


async def left(candidate: Any, state: grpc.ChannelConnectivity) -> None:
    """Wait as a connection's own watch does until core has left a state."""
    await candidate.handle._left(state)


def opens_for(candidate: Any, seconds: float) -> None:
    """Set for how long a breaker opens the next time: its settings hold from the beginning to the end."""
    candidate.breaker._open_s = seconds


# ---- counts and tables ----


def instruments(channel: Any) -> Any:
    """What a channel's metrics are recorded by, so that one of them can fail as an SDK might."""
    return engine(channel).metrics._instruments


def recorded_in_bulk(histogram: Any) -> bool:
    """Whether many values go to the SDK at once. What they become there is the same, and the way invisible."""
    return histogram._bulk is not None


def wrapped(handlers: Any) -> int:
    """How many handlers are kept wrapped. A table without bound shows only as memory."""
    return len(handlers._kept._first)


def registry(agent: Any) -> Any:
    """The state of the embedded agent, for a change before the answer that is being written: HTTP comes after it."""
    return agent._registry


def on_exception() -> Callable[[Any, dict[str, Any]], None]:
    """What the background loop does with an exception that no one handles. Its race with other loops is a rare one."""
    from lb.sync import loop

    return loop._on_exception


# ---- modules ----


def consul() -> Any:
    """`lb.aio._consul`, which asks an agent: neither resolver nor registration shows a single request."""
    return importlib.import_module("lb.aio._consul")


def grpcio(shell: str) -> Any:
    """A shell's ``_grpcio``, the private names of grpcio: tests ask the installed grpcio whether it has them."""
    return importlib.import_module(f"lb.{shell}._grpcio")


def opentelemetry() -> Any:
    """`lb.telemetry._opentelemetry`, the names that OpenTelemetry does not promise: the same of the installed SDK."""
    return importlib.import_module("lb.telemetry._opentelemetry")


async def stop_accepting(server: asyncio.Server) -> None:
    """Close a listening port while clients connect to it, as `lb.testing`'s own servers do; users have no such port."""
    await importlib.import_module("lb.testing._listening").stop_accepting(server)
