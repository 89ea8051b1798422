"""What an incoming call hands on to the calls that are made for it: its deadline, cancellation and priority.

::

    client ──1 s──► A ──what is left──► B ──what is left──► C
           cancel ─►   ──── cancel ───►   ──── cancel ───►

A server's interceptor (`lb.aio.incoming`, `lb.sync.incoming`) opens a `Scope` around each handler
and puts it into a context variable; a channel of `lb` looks there when a call begins. So

- no outgoing call outlives the incoming one's deadline; the earlier of the two deadlines holds;
- when the incoming call is cancelled by its client, or its deadline passes, the outgoing ones
  that still run are cancelled, also those of tasks that the handler has spawned. What a handler
  that has ended normally left running goes on, though not beyond the deadline;
- outgoing calls have the priority of the incoming one (metadata ``lb-priority``), unless they say their own.

``channel(..., propagate=False)`` has no part in this, nor has what stands in a block of `detached`.
Blocks of `deadline` and `priority` are such scopes for code that handles no call.
Tasks inherit the context variable; threads that a handler starts do not, unless it runs them in
``contextvars.copy_context()``.

What a channel does where a call begins, with ``propagate`` set::

    scope = scopes.current()           # None outside of a handler: all that this costs there
    if scope is not None:
        deadline = scope.bound(deadline)
    call = ...
    if scope is not None:
        scope.add(call)                  # may call call.incoming_cancelled(), from any thread
        metadata = scope.headers(metadata)
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol

from lb.core import checks
from lb.core.headers import last_value
from lb.core.serving.priority import PRIORITY_KEY, Priority, priority_of

# A deadline further away is none: grpcio's threads tell a call without one that it has centuries left.
_NEVER_S = 10 * 365 * 86400.0

DEFAULT = Priority.DEFAULT

CANCELLED = "The incoming call that this one was made for was cancelled."
"""Details of a call that ended so."""


class Outgoing(Protocol):
    """A call that a channel makes. The scope holds it weakly."""

    def incoming_cancelled(self) -> None:
        """Cancel the call. Called from any thread, also after its end, and maybe twice."""


class Scope:
    """One incoming call, as outgoing ones see it.

    ``deadline`` is an instant on the monotonic clock, or None. Nothing is locked: what is added
    while another thread cancels is found by one of the two.
    """

    __slots__ = ("_calls", "cancelled", "deadline", "priority")

    def __init__(self, remaining_s: float | None, priority: Priority = Priority.DEFAULT) -> None:
        """``remaining_s`` is the time to its deadline in seconds, None without one."""
        self.priority = priority
        self.deadline = None if remaining_s is None or remaining_s > _NEVER_S else time.monotonic() + remaining_s
        self.cancelled = False
        self._calls: set[weakref.ref[Outgoing]] | None = None

    def bound(self, deadline: float | None) -> float | None:
        """The earlier of a call's own deadline and the scope's. In and out: a monotonic instant, or None."""
        inherited = self.deadline
        if inherited is None:
            return deadline
        return inherited if deadline is None or inherited < deadline else deadline

    def headers(self, metadata: tuple[Any, ...]) -> tuple[Any, ...]:
        """A call's own metadata, with the scope's priority where they have none."""
        priority = self.priority
        if priority is DEFAULT or any(key == PRIORITY_KEY for key, _ in metadata):
            return metadata
        return (*metadata, (PRIORITY_KEY, priority.text))

    def add(self, call: Outgoing) -> None:
        """Cancel ``call`` together with the scope: at once, if that is cancelled already."""
        calls = self._calls
        if calls is None:
            calls = self._calls = set()
        calls.add(weakref.ref(call, calls.discard))
        if self.cancelled:
            call.incoming_cancelled()

    def cancel(self) -> None:
        """The incoming call was cancelled: so are those made for it. From any thread."""
        self.cancelled = True
        for reference in set() if self._calls is None else self._calls.copy():
            call = reference()
            if call is not None:
                call.incoming_cancelled()

    def __repr__(self) -> str:
        left = "no deadline" if self.deadline is None else f"{self.deadline - time.monotonic():.3f} s left"
        cancelled = " cancelled" if self.cancelled else ""
        important = "" if self.priority is DEFAULT else f" {self.priority.text}"
        return f"<Scope {left}{important}{cancelled} calls={len(self._calls or ())}>"


_current: ContextVar[Scope | None] = ContextVar("lb.scope", default=None)

current: Callable[[], Scope | None] = _current.get
"""The scope of the handler that runs here, or None."""


enter: Callable[[Scope], object] = _current.set
"""Make a scope the current one, until the end of the context: a server's call has one of its own."""


def priority_in(metadata: Iterable[Any] | None) -> Priority:
    """The priority that an incoming call's metadata have; the last one counts."""
    return priority_of(last_value(metadata, PRIORITY_KEY))


@contextmanager
def detached() -> Iterator[None]:
    """A block whose calls inherit nothing from the incoming call: no deadline, no cancellation, no priority.

    It is for work that goes on after the caller is gone::

        with lb.detached():
            task = asyncio.create_task(stub.WriteAudit(record, timeout=5))

    Tasks that begin in the block stay detached. A task that the handler awaits is cancelled with the handler's own
    task.
    """
    token = _current.set(None)
    try:
        yield
    finally:
        _current.reset(token)


@contextmanager
def deadline(timeout_s: float) -> Iterator[None]:
    """A block in which every call ends within ``timeout_s`` seconds of the block's beginning.

    It is for code outside of gRPC handlers, such as a web request or a job::

        with lb.deadline(2):
            product = await catalog.GetProduct(request)
            await orders.PlaceOrder(order)  # in what is left of the 2 s

    It applies to calls in this thread, and in tasks that begin in the block. Calls in other threads do not inherit it,
    unless you copy the context::

        with lb.deadline(60), ThreadPoolExecutor(8) as pool:
            futures = [pool.submit(copy_context().run, catalog.GetProduct, request) for request in requests]

    Blocks may be nested, and may be inside a handler: the earliest deadline holds, and calls are cancelled with the
    incoming one. Only calls are limited, and not those of channels with ``propagate=False`` or in a block of
    `detached`.

    Args:
        timeout_s: seconds, >= 0.

    Raises:
        ValueError: ``timeout_s`` is negative or not finite.
        TypeError: ``timeout_s`` is not a number.
    """
    checks.number("timeout_s", timeout_s)
    around = _current.get()
    token = _current.set(_Within(timeout_s, around, DEFAULT if around is None else around.priority))
    try:
        yield
    finally:
        _current.reset(token)


@contextmanager
def priority(importance: Priority) -> Iterator[None]:
    """A block whose calls have this priority: servers that are full refuse the least important calls first.

    It is for code outside of gRPC handlers, such as a web request or a job, and for the part of a handler that is more
    or less important than the rest::

        with lb.priority(lb.Priority.SHEDDABLE):
            await catalog.Reindex(request)

    It applies to calls in this thread, and in tasks that begin in the block. A handler's calls have the priority of the
    incoming call by themselves, if its server has the interceptor `lb.aio.incoming` or `lb.sync.incoming`. The priority
    travels in the metadata as ``lb-priority``; a call that has this key in metadata of its own keeps it. Deadlines and
    cancellation of a block or handler around it hold as before. Not for channels with ``propagate=False``.

    Args:
        importance: ``CRITICAL``, ``DEFAULT`` or ``SHEDDABLE``.

    Raises:
        TypeError: ``importance`` is not a `Priority`.
    """
    if not isinstance(importance, Priority):
        raise TypeError(f"importance is {checks.shown(importance)}; expected an lb.Priority")
    token = _current.set(_Within(None, _current.get(), importance))
    try:
        yield
    finally:
        _current.reset(token)


class _Within(Scope):
    """A scope with a deadline or priority of its own, and the cancellation of the one around it."""

    __slots__ = ("_around",)

    def __init__(self, timeout_s: float | None, around: Scope | None, priority: Priority) -> None:
        super().__init__(timeout_s, priority)
        self._around = around
        if around is not None:
            self.deadline = around.bound(self.deadline)

    def add(self, call: Outgoing) -> None:
        """See `Scope.add`: nothing cancels the block itself."""
        if self._around is not None:
            self._around.add(call)


class Bound(_Within):
    """The time that a server gives the handler of one call, which runs in ``task``."""

    __slots__ = ("task",)

    def __init__(self, timeout_s: float, around: Scope | None, task: object) -> None:
        super().__init__(timeout_s, around, DEFAULT if around is None else around.priority)
        self.task = task
