"""What the tests of the channel share: the four kinds of call, channels, and a resolver that is told what to say."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from typing import Any

import grpc

import lb
from lb.aio import Channel
from lb.testing import Backend
from tests.support import calls
from tests.support.calls import AT_ONCE, IDEMPOTENT, NO_BREAKER, ONCE, REQUESTS, connected, in_flight, target
from tests.support.wait import eventually

__all__ = ["AT_ONCE", "IDEMPOTENT", "NO_BREAKER", "ONCE", "REQUESTS", "eventually", "in_flight", "target"]

HANGS_S = 30.0
"""A call that takes so long hangs: the test fails, and does not wait for ever."""

AnyChannel = Any
"""``grpc.aio.Channel`` once that of `lb` is one for a type checker, too."""


class Kind(calls.Kind):
    """One of the four kinds of call, as asyncio makes it."""

    def start(self, channel: AnyChannel, requests: Sequence[bytes] = REQUESTS, **options: Any) -> Any:
        """Begin a call with these requests (the first alone, where there is one)."""
        return self.stub(channel)(self.argument(requests), **options)

    async def responses(self, call: Any) -> list[bytes]:
        """All responses; raises as the call does, and ``TimeoutError`` when it hangs."""
        async with asyncio.timeout(HANGS_S):
            return [message async for message in call] if self.streams_responses else [await call]

    async def run(self, channel: AnyChannel, requests: Sequence[bytes] = REQUESTS, **options: Any) -> list[bytes]:
        """The call from beginning to end."""
        return await self.responses(self.start(channel, requests, **options))


UU, US, SU, SS = KINDS = Kind.all()


def channel_to(*backends: Backend, **settings: Any) -> Channel:
    """An `lb` channel to these; a breaker only where the test gives one."""
    settings.setdefault("breaker", NO_BREAKER)
    return lb.aio.channel(target(*backends), **settings)


def endpoints(*backends: Backend, weights: Iterable[int] = ()) -> tuple[lb.Endpoint, ...]:
    """Their endpoints, named like them."""
    given = list(weights) or [1] * len(backends)
    return tuple(lb.Endpoint(b.address, id=b.name, weight=w) for b, w in zip(backends, given, strict=True))


class First:
    """A policy that takes the first admitted endpoint; `picks` counts, ``then`` is called at each pick."""

    name = "first"

    def __init__(self, then: Callable[[int], None] | None = None) -> None:
        self.picks = 0
        self._then = then
        self._candidates: Any = ()

    def picker(self, candidates: Any, previous: Any) -> Any:
        """Itself."""
        self._candidates = candidates
        return self

    def pick(self, call: Any, now: Any, rng: Any) -> Any:
        """The first."""
        self.picks += 1
        if self._then is not None:
            self._then(self.picks)
        return self._candidates[0]


class Told:
    """A resolver of the test's own: it says what it is told, and keeps what happened to it."""

    def __init__(self, *known: lb.Endpoint, note: str = "", authority: str = "") -> None:
        self.target = "told"
        self.authority = authority
        self.started = 0
        self.closed = 0
        self._known = lb.Resolution(known, note) if known or note else None
        self._listener: lb.Listener | None = None

    def start(self, listener: lb.Listener) -> None:
        """Report what was known at the start, if anything was."""
        self.started += 1
        self._listener = listener
        if self._known is not None:
            listener.update(self._known)

    def close(self) -> None:
        """Count it."""
        self.closed += 1

    def say(self, *known: lb.Endpoint, note: str = "") -> None:
        """A new set."""
        assert self._listener is not None
        self._listener.update(lb.Resolution(known, note))

    def confirm(self) -> None:
        """The source was read, and nothing is new."""
        assert self._listener is not None
        self._listener.confirm()

    def fail(self, message: str) -> None:
        """The source can not be read."""
        assert self._listener is not None
        self._listener.error(message)


async def failure(call: Any) -> grpc.aio.AioRpcError:
    """The error that awaiting (or reading) ``call`` raises; ``TimeoutError`` when it hangs."""
    try:
        async with asyncio.timeout(HANGS_S):
            if hasattr(call, "__await__"):
                answer = await call
            else:
                answer = [message async for message in call]
    except grpc.aio.AioRpcError as error:
        return error
    raise AssertionError(f"no error, but {answer!r}")


async def ready(channel: Channel, count: int) -> None:
    """Wait until so many endpoints are connected."""
    channel.get_state(try_to_connect=True)
    await eventually(
        lambda: connected(channel) >= count,
        f"{count} endpoints are connected",
    )


def lb_tasks() -> list[str]:
    """The names of the library's own tasks that have not ended."""
    return sorted(t.get_name() for t in asyncio.all_tasks() if t.get_name().startswith("lb"))


async def each(messages: Iterable[bytes]) -> AsyncIterator[bytes]:
    """As an asynchronous iterator."""
    for message in messages:
        yield message


OURS = (
    "LogicalCall",
    "Call",
    "Attempt",
    "Outcome",
    "Outbox",
    "Race",
    "UnaryUnaryCall",
    "_UnaryUnaryCall",
    "UnaryStreamCall",
)
"""What a call consists of, by the names of the classes."""


@contextlib.contextmanager
def collected() -> Iterator[Counter[str]]:
    """What of `OURS` only the collector could free, of all that became garbage inside; filled at the end."""
    found: Counter[str] = Counter()
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        yield found
        gc.collect()
        found.update(name for item in gc.garbage if (name := type(item).__name__) in OURS)
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
