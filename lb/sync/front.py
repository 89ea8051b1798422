"""In place of grpcio's ``cygrpc.Channel``: it takes calls from threads, and passes them to the loop where needed.

::

    any thread ──► Front ──a blocking call──► that thread
                     │
                     └──all others──► the loop's thread ──► Engine

The engine is that of `lb.aio`, with a lock around its core, and lives in the background loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import grpc

from lb.aio._grpcio import UsageError, on_monotonic_clock, on_wall_clock
from lb.aio.engine import Engine, Parts
from lb.core.endpoint import Resolver
from lb.core.settings import Settings
from lb.shared import fork, threads
from lb.sync import _grpcio, loop
from lb.sync.blocking import BlockingCall
from lb.sync.calls import Handle, LoopCall
from lb.sync.events import Batch
from lb.sync.futures import FutureCall
from lb.sync.locked import LockedBalancer, LockedCall
from lb.sync.subchannel import SharedSubchannel

if TYPE_CHECKING:
    from lb.core.snapshot import Snapshot

THREADS = Parts(
    balancer=LockedBalancer,
    record=LockedCall,
    subchannel=SharedSubchannel,
    # grpcio's layer asks for the headers of every call, so here a busy machine must not commit a call too early.
    headers_alone_s=0.25,
)
_LET_GO_S = 2.0


class _Watched:
    """What `Front.watch_connectivity_state` came to."""

    __slots__ = ("success",)

    def __init__(self, success: bool) -> None:
        self.success = success


class Front:
    """Takes calls from any thread, and carries them there or in the loop.

    It belongs to the process that used it first.
    """

    def __init__(
        self,
        target: str | Resolver,
        *,
        settings: Settings,
        credentials: grpc.ChannelCredentials | None,
        options: tuple[tuple[str, Any], ...],
        compression: grpc.Compression | None,
    ) -> None:
        self.engine = Engine(
            target,
            settings=settings,
            credentials=credentials,
            options=options,
            compression=compression,
            parts=THREADS,
            started=_nothing,  # before a fork the front is asked, for both
        )
        self.secure = credentials is not None
        self.cooperative = False
        """Whether blocking calls are carried out in the loop: beside gevent a wait in core holds up every greenlet."""
        self.closed_reason = ""
        self._closed_while_watched = False
        """Whether grpcio's thread for subscriptions may not know yet that it is closed: it may be between two watches.

        It has no subscriber left then, and ends when a watch brings nothing. An error would be told as one that nobody
        handles.
        """
        self._events: Any = None
        self._lock = threads.rlock()
        self._loop: loop.LoopThread | None = None
        self._running: set[Any] = set()
        self._rests = False

    # ---- calls ----

    def segregated_call(
        self,
        flags: int,
        method: bytes,
        host: Any,
        deadline: float | None,
        metadata: Any,
        credentials: Any,
        batches: Sequence[Batch],
        context: Any = None,
        registered_call_handle: int | None = None,
    ) -> Any:
        """A call whose caller waits for its events."""
        if self.closed_reason:
            raise ValueError(self._why_closed(_grpcio.CLOSED))
        registered = bool(registered_call_handle)
        arguments = (flags, method, host, metadata, context)
        if len(batches) == 1:
            return BlockingCall(self, arguments, deadline, credentials, batches[0][0], registered)
        self.must_wait()
        return Handle(LoopCall(self, arguments, deadline, credentials, batches, registered, threads.mailbox()))

    def integrated_call(
        self,
        flags: int,
        method: bytes,
        host: Any,
        deadline: float | None,
        metadata: Any,
        credentials: Any,
        batches: Sequence[Batch],
        context: Any = None,
        registered_call_handle: int | None = None,
    ) -> Any:
        """A call whose events go to `next_call_event`."""
        if self.closed_reason:
            raise ValueError(self._why_closed())
        arguments = (flags, method, host, metadata, context)
        registered = bool(registered_call_handle)
        if self._events is None:
            self._used()
        if len(batches) == 1 and not self.engine.measure_sizes:
            return FutureCall(self, arguments, deadline, credentials, batches[0], registered, self._events)
        return Handle(LoopCall(self, arguments, deadline, credentials, batches, registered, self._events))

    def next_call_event(self) -> Any:
        """The next event of any integrated call; waits for it."""
        return self._events.get()

    def get_registered_call_handle(self, method: bytes) -> int:
        """See `Engine.get_registered_call_handle`."""
        return self.engine.get_registered_call_handle(method)

    def _why_closed(self, words: str = "") -> str:
        """What grpcio says of a closed channel; ``words`` where it says something else of blocking calls."""
        return (
            words
            if words and self.closed_reason not in (fork.FORKED, fork.LEFT)
            else f"Cannot invoke RPC: {self.closed_reason}"
        )

    # ---- the loop ----

    def begin(self, call: Any, function: Callable[..., object], *arguments: Any) -> bool:
        """Call it in the loop, on behalf of a call that runs from now on; False when the channel is closed."""
        return self._used().soon(self._begin, call, function, arguments)

    def _begin(self, call: Any, function: Callable[..., object], arguments: tuple[Any, ...]) -> None:
        self._running.add(call)
        if self.closed_reason:  # meanwhile: the call finds itself ended
            call.end(_grpcio.CANCELLED, self.closed_reason)
        else:
            self.engine.start()
        function(*arguments)

    def ended(self, call: Any) -> None:
        """A call is over."""
        self._running.discard(call)

    def must_wait(self) -> None:
        """The caller is about to wait for the loop. Raises ``RuntimeError`` in the loop's own thread."""
        if self._used().here():
            raise RuntimeError(
                f"channel {self.engine.target}: a resolver or policy made a blocking call in lb's own thread, which"
                " would wait for itself; make the call in another thread"
            )

    def in_loop(self, function: Callable[..., object], *arguments: Any) -> bool:
        """Call it in the loop, if there is one. From any thread, also from a finalizer."""
        used = self._loop
        return used is not None and used.soon(function, *arguments)

    def _used(self) -> loop.LoopThread:
        """The loop, from the first use on."""
        used = self._loop
        if used is None:
            with self._lock:
                if self.closed_reason:
                    raise ValueError(self._why_closed())
                used = self._loop
                if used is None:
                    self._events = threads.mailbox()
                    self.cooperative = threads.green()
                    used = self._loop = loop.acquire()
                    fork.remember(self)
        return used

    # ---- connectivity and looking inside ----

    def check_connectivity_state(self, try_to_connect: bool) -> int:
        """The whole set's state, as grpcio numbers it: as it was before this call made it connect."""
        if self._closed_while_watched:
            return self.engine.check_connectivity_state(False)
        if self.closed_reason:
            raise ValueError(self._why_closed())
        state = self.engine.check_connectivity_state(False)
        if try_to_connect:
            self._used().soon(self.engine.check_connectivity_state, True)
        return state

    def watch_connectivity_state(self, last_observed: int, deadline: float | None) -> Any:
        """Wait until the state is another; the event's ``success`` is False at the deadline (wall clock)."""
        if self._closed_while_watched:
            self._closed_while_watched = False
            return _Watched(False)
        if self.closed_reason:
            raise ValueError(f"Cannot monitor channel state: {self.closed_reason}")
        observed = self._changed(last_observed, on_monotonic_clock(deadline))
        return _Watched(bool(self._used().wait(observed)))

    async def _changed(self, last_observed: int, deadline: float | None) -> bool:
        # Not before the first use of the set, which no watch is.
        try:
            return await self.engine.watch_connectivity_state(last_observed, on_wall_clock(deadline))
        except UsageError:  # closed
            return False

    def snapshot(self) -> Snapshot:
        """See `lb.sync.Channel.snapshot`."""
        balancer = self.engine.balancer
        assert isinstance(balancer, LockedBalancer)
        with balancer.lock:
            return self.engine.snapshot()

    # ---- life ----

    def close(self, code: int, details: str) -> None:
        """End running calls with this status and close everything. Idempotent; from any thread."""
        with self._lock:  # two threads may close it, or another use it for the first time just now
            if self.closed_reason:
                return
            self.closed_reason = details
            self._closed_while_watched = True
            used = self._loop
        if used is not None:
            used.soon(self._close, code, details)

    def _close(self, code: int, details: str) -> None:
        for call in list(self._running):
            call.end(code, details)
        self.engine.close()
        asyncio.get_running_loop().create_task(self._closed(), name=loop.CLOSING)

    async def _closed(self) -> None:
        await self.engine.wait_closed()
        used = self._loop
        assert used is not None
        loop.release(used)

    def let_go(self) -> bool:
        """Before a fork: close the connections until the next call; False when a call runs."""
        used = self._loop
        if used is None:
            return True
        if threads.green() or used.here():  # greenlets would run meanwhile, and might call
            return False
        gone = used.wait(self._let_go(), _LET_GO_S)
        if gone is None and used.ended(_LET_GO_S):  # it was closed, and the last one
            gone = self.engine.fall_asleep()
        return gone is True

    async def _let_go(self) -> bool:
        if self._running:
            return False
        asleep = self.engine.fall_asleep()
        if not asleep:  # threads wait for blocking calls: they keep their connections
            self._rests = True
            self.engine.rest()
        await self.engine.wait_closed()
        return asleep

    def resume(self) -> None:
        """After a fork, in the parent."""
        if self._rests:
            self._rests = False
            self.in_loop(self.engine.go_on)

    def forked(self, why: str) -> None:
        """This process is a child of the one that used the channel: nothing of it works here."""
        self._lock = threads.rlock()
        self._loop = None
        self.closed_reason = self.closed_reason or why
        self.engine.forked(why)


def _nothing(_: Engine) -> None:
    pass
