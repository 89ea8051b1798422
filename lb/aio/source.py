"""Where a channel's endpoints come from.

::

    target ──origin_of──► Origin ──► Source ──start──► the resolver ──► Reports ──► the channel
                                       ▲                                              │
                                       └─────────── look_again ◄── a connection is lost
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import logging
import os
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lb.aio.resolvers import StaticResolver, make_resolver
from lb.core.balancer import Balancer
from lb.core.candidate import Connectivity
from lb.core.endpoint import Endpoint, Listener, Resolution, Resolver

_log = logging.getLogger("lb.channel")

_LOOK_AGAIN_S = 1.0


@dataclass(frozen=True, slots=True)
class Origin:
    """What a target means to a channel. ``options``: its channel options, with what follows from the target."""

    name: str
    """As messages and snapshots call it."""
    authority: str
    """The name that servers are called by; empty: the address of each."""
    resolver: Resolver
    options: tuple[tuple[str, Any], ...]


def origin_of(target: str | bytes | Resolver, options: tuple[tuple[str, Any], ...]) -> Origin:
    """Read a channel's target; starts nothing.

    Raises:
        ValueError: it cannot be read, or the environment names Consul's agent wrongly.
        TypeError: it is neither a string nor a resolver.
    """
    if isinstance(target, bytes):  # grpcio takes them too
        target = target.decode(errors="backslashreplace")  # a backslash is in no target
    if not isinstance(target, str):
        if not callable(getattr(target, "start", None)) or not callable(getattr(target, "close", None)):
            raise TypeError(f"target is {target!r}; expected a string, or a resolver with start() and close()")
        name = str(getattr(target, "target", type(target).__name__))
        return Origin(name, str(getattr(target, "authority", "")), target, options)
    # Here, as all that only some channels need: `import lb` is for every process.
    from lb.core.proxy import proxied, resolved
    from lb.core.target import DnsTarget, StaticTarget, parse_target

    parsed = parse_target(target)
    if isinstance(parsed, DnsTarget):
        if proxied(parsed.host, options, os.environ):
            parsed = parsed.unresolved()
        else:
            options = resolved(options)
    if isinstance(parsed, StaticTarget) and parsed.doubt:
        _log.warning("%s: %s", parsed.text, parsed.doubt)
    return Origin(parsed.text, parsed.authority, make_resolver(parsed), options)


class Source:
    """A channel's resolver. Used in the channel's event loop; `close` may be called from elsewhere."""

    def __init__(self, origin: Origin, balancer: Balancer) -> None:
        self._target = origin.name
        self._resolver = origin.resolver
        self._resolve_now: Callable[[], object] | None = getattr(origin.resolver, "resolve_now", None)
        self._balancer = balancer
        self._loop: asyncio.AbstractEventLoop | None = None
        self._again: asyncio.TimerHandle | None = None
        self._closed = False

    @property
    def fixed(self) -> bool:
        """Whether its first answer is its only one, and so does not age."""
        return isinstance(self._resolver, StaticResolver)

    def start(self, listener: Listener) -> None:
        """Let it report to ``listener``. An error of the user's own resolver is logged, and reported as an answer."""
        self._loop = asyncio.get_running_loop()
        start: Callable[[Listener], object] = self._resolver.start
        try:
            # In a context of its own: the first caller may be in the middle of a trace.
            begun = contextvars.Context().run(start, listener)
            if inspect.iscoroutine(begun):
                begun.close()
                raise TypeError("start() is a coroutine function; expected a plain one that makes a task")
        except Exception as error:  # noqa: BLE001  # a user's resolver may raise anything
            _log.exception("%s: the resolver did not start", self._target)
            listener.update(Resolution((), f"the resolver did not start: {error!r}"))

    def look_again(self, then_s: float = _LOOK_AGAIN_S) -> None:
        """Ask the resolver to look again, and once more after ``then_s`` seconds if an endpoint is not connected.

        The source may know of a replacement a moment later. Pauses double, for an address may be dead for ever.
        """
        loop = self._loop
        if self._resolve_now is None or self._closed or loop is None:
            return
        self.rest()
        # Weak: a channel that was forgotten must not be kept by its timer.
        self._again = loop.call_later(then_s, _look_again, weakref.ref(self), then_s)
        try:
            begun = self._resolve_now()
            if inspect.iscoroutine(begun):
                begun.close()
                raise TypeError("resolve_now() is a coroutine function; expected a plain one that makes a task")
        except Exception:  # noqa: BLE001  # a user's resolver may raise anything
            _log.exception("%s: the resolver's resolve_now() raised", self._target)

    def look_on(self, passed_s: float) -> None:
        """The pause after a look is over: look again if an endpoint is still not connected."""
        self._again = None
        if any(candidate.connectivity is not Connectivity.READY for candidate in self._balancer.candidates):
            self.look_again(2 * passed_s)

    def rest(self) -> None:
        """Do not look again until the next loss of a connection."""
        if self._again is not None:
            self._again.cancel()
            self._again = None

    def close(self) -> asyncio.Future[Any] | None:
        """Close the resolver; returns what still has to end in the loop."""
        self._closed = True
        self.rest()
        try:
            closing = self._resolver.close()
        except Exception:  # noqa: BLE001  # a user's resolver may raise anything
            _log.exception("%s: the resolver's close() raised", self._target)
            return None
        if inspect.isawaitable(closing):
            if self._loop is not None and not self._loop.is_closed():
                return asyncio.ensure_future(closing, loop=self._loop)
            if inspect.iscoroutine(closing):  # never started, or its loop is gone: nothing to wait for
                closing.close()
        return None


class Reports:
    """What a resolver reports to, from any thread: checks it, and passes it on in the channel's loop."""

    def __init__(
        self,
        in_loop: Callable[[Callable[[Any], object], Any], None],
        updated: Callable[[Resolution], object],
        failed: Callable[[str], object],
        confirmed: Callable[[float], object],
    ) -> None:
        self._in_loop = in_loop
        self._updated = updated
        self._failed = failed
        self._confirmed = confirmed

    def update(self, resolution: Resolution) -> None:
        """See `lb.Listener`."""
        # Checked here, where the resolver's own stack shows who said it.
        if not isinstance(resolution, Resolution):
            raise TypeError(f"update() was given {resolution!r}; expected an lb.Resolution")
        for endpoint in resolution.endpoints:
            if not isinstance(endpoint, Endpoint):
                raise TypeError(f"update() was given the endpoint {endpoint!r}; expected an lb.Endpoint")
        self._in_loop(self._updated, resolution)

    def error(self, message: str) -> None:
        """See `lb.Listener`."""
        self._in_loop(self._failed, message)

    def confirm(self) -> None:
        """See `lb.Listener`."""
        self._confirmed(time.monotonic())


def _look_again(reference: weakref.ref[Source], passed_s: float) -> None:
    source = reference()
    if source is not None:
        source.look_on(passed_s)
