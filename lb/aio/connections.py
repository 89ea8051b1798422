"""The connections of one channel, one to each endpoint: made, watched and closed."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

import grpc

from lb.aio import _grpcio
from lb.aio.subchannel import Subchannel
from lb.core.balancer import Balancer
from lb.core.candidate import Candidate, Connectivity
from lb.core.connection import Pace
from lb.core.settings import Settings

_log = logging.getLogger("lb.channel")


class Connections:
    """Makes and closes connections, and tells the balancer what becomes of them. In the channel's event loop."""

    def __init__(
        self,
        target: str,
        settings: Settings,
        balancer: Balancer,
        make: Callable[..., Subchannel],
        options: tuple[tuple[str, Any], ...],
        credentials: grpc.ChannelCredentials | None,
        compression: grpc.Compression | None,
        changed: Callable[[bool], object],
    ) -> None:
        """``changed`` is called after a change, and told whether the resolver should look again."""
        self._target = target
        self._settings = settings
        self._balancer = balancer
        self._make = make
        self._arguments = (options, credentials, compression)
        self._changed = changed
        self._served_by_none = False
        """Whether the log was told that no endpoint knows the service whose health is watched."""
        self._ending: set[asyncio.Future[Any]] = set()

    def open(self, candidate: Candidate) -> None:
        """Connect to an endpoint."""
        try:
            candidate.handle = self._make(
                candidate,
                *self._arguments,
                self._report,
                Pace(self._settings.connection, self._balancer.rng),
                self._settings.health,
            )
        except (ValueError, TypeError, _grpcio.UsageError) as error:
            self._balancer.set_connectivity(
                candidate, Connectivity.TRANSIENT_FAILURE, time.monotonic(), f"no connection was made: {error}"
            )

    def close(self, candidate: Candidate) -> None:
        """Close the connection to an endpoint, if there is one."""
        if candidate.handle is not None:
            self.ending(candidate.handle.close())

    def rest(self) -> None:
        """Watch the connections no more, until `go_on`. `lb.sync`."""
        for candidate in (*self._balancer.candidates, *self._balancer.leaving):
            if candidate.handle is not None:
                self.ending(candidate.handle.rest())

    def go_on(self) -> None:
        """Watch them again."""
        for candidate in (*self._balancer.candidates, *self._balancer.leaving):
            if candidate.handle is not None:
                candidate.handle.go_on()

    def ending(self, task: asyncio.Future[Any] | None) -> None:
        """`wait_closed` waits for this, too."""
        if task is not None:
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)

    async def wait_closed(self) -> None:
        """Wait until all that was closed has ended. In the channel's loop."""
        if self._ending:
            await asyncio.gather(*self._ending, return_exceptions=True)

    def _report(
        self,
        candidate: Candidate,
        state: Connectivity,
        trouble: str,
        *,
        again: bool = False,
        unserved: bool = False,
    ) -> None:
        """See `lb.aio.subchannel.Report`."""
        before, known = candidate.connectivity, candidate.trouble
        if state is before and trouble in ("", known) and unserved is candidate.unserved:
            return
        look_again = self._balancer.set_connectivity(candidate, state, time.monotonic(), trouble, unserved=unserved)
        if trouble and trouble != known and not again:
            _log.info("%s: %s: %s", self._target, candidate.endpoint, trouble)
        elif state is not before:
            _log.debug("%s: %s is %s", self._target, candidate.endpoint.id, state.value)
        if not self._served_by_none and self._balancer.nobody_serves():
            self._served_by_none = True
            _log.warning(
                "%s: no endpoint knows the service %r of health=; all endpoints are used anyway",
                self._target,
                self._settings.health,
            )
        self._changed(look_again)
