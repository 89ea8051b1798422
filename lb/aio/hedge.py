"""A hedged call: its attempts run beside each other, and the first answer wins.

The call's own task carries out the first attempt, or waits for what it brings if it was sent before there was a task
(`lb.aio.unary`: as long as it is alone, it needs none). A timer begins the others, each in a task of its own. When one
of these decides the call, it cancels the wait of the call's task, which then settles the call itself and returns in the
same step. So no instant lies between the two in which a cancellation could be lost: a caller cancelled before that step
gets its ``CancelledError``, and the call is CANCELLED. Which attempt may begin, and what a failure means while others
run, is ruled by `lb.core.call`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any

from lb.aio import pulse
from lb.aio._grpcio import status_now
from lb.aio.attempt import LiveAttempt
from lb.aio.records import log_raised
from lb.core.attempt import Attempt
from lb.core.call import DONE, Action, Call, Done, Failed, Others
from lb.core.outcome import LOST, Outcome, lost
from lb.core.pulse import BEAT_S

if TYPE_CHECKING:
    from lb.aio.execution import Execution
    from lb.aio.protocols import LowerCall

_ASK_AGAIN_S = 0.01
_FASTER = "another attempt was faster"


class Race:
    """The attempts of one call with one request and one response. Lives as long as the call runs."""

    __slots__ = ("_call", "_context", "_decided", "_hedges", "_next", "_request", "_task", "_tasks",
                 "_timer", "_winner_s")  # fmt: skip

    def __init__(self, call: Execution, request: bytes, context: tuple[Any, ...]) -> None:
        self._call: Execution | None = call
        self._request = request
        self._context = context
        self._hedges: list[LiveAttempt] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._next: asyncio.Future[Action | None] | None = None
        self._task: asyncio.Task[Any] | None = None
        self._decided: tuple[LiveAttempt, bytes | None] | None = None
        """The hedge that has decided the call, and its response."""
        self._winner_s: float | None = None

    @property
    def running(self) -> int:
        """How many hedges run, beside the attempt of the call's own task."""
        return len(self._hedges)

    def rivals(self, lower: LowerCall) -> int:
        """How many hedges run beside this attempt that were not given up."""
        return sum(other.lower is not lower and not other.timed_out for other in self._hedges)

    async def run(self, action: Action | None, sent: Awaitable[bytes | None] | None = None) -> bytes | None:
        """The whole call; None when it did not end OK.

        ``sent``: what this attempt brings, if it was sent already, the hedging delay ago.
        """
        call = self._call
        self._task = task = asyncio.current_task()
        assert call is not None
        assert task is not None
        cancelling = task.cancelling()
        try:
            while action is not None:
                if isinstance(action, Attempt):
                    live = call.opened(action)
                    if sent is None:
                        live.watch(action.started_at)
                        self._arm()
                        sent = live.lower.unary_unary(self._request, live.headers(), *self._context)
                    elif not live.lower.done():
                        self._begin()
                    response: bytes | None
                    response, sent = await sent, None
                    if not call.done() and status_now(live.lower).code() == 0:
                        self._won(live, time.monotonic())
                    action = call.answered(live)
                    if action is None:
                        return response if call.is_ok() else None
                    if isinstance(action, Others):
                        self._more(action)
                elif isinstance(action, Others):
                    self._next = asyncio.get_running_loop().create_future()
                    action = await self._next
                    self._next = None
                else:
                    self._disarm()
                    action = await call.wait(action)
        except BaseException as error:
            decided = self._decided
            if decided is None or task.uncancel() > cancelling:  # the caller is cancelled: that wins over any attempt
                call.abandon(error)
                self._disarm()
                raise
            live, response = decided
            call.end_as(live)
            return response if call.is_ok() else None
        return None

    def stop(self) -> None:
        """The call is decided: nothing else is wanted."""
        call, self._call = self._call, None
        if call is None:
            return
        self._disarm()
        hedges, self._hedges = self._hedges, []
        now = time.monotonic()
        for live in hedges:
            live.give_back(self._lost(live, now), now)
            live.cancel(_FASTER)
        self._wake(None)

    def _arm(self, least_s: float = 0.0) -> None:
        call = self._call
        self._disarm()
        if call is None:
            return
        delay = call.record.hedge_delay_s()
        if delay is not None:
            delay = max(delay, least_s)
            self._timer = asyncio.get_running_loop().call_later(delay, self._due, time.monotonic(), delay)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _more(self, others: Others) -> None:
        """An attempt failed while others run: what comes beside them need not wait for its turn."""
        self._disarm()
        if others.delay_s is None:
            return
        if others.delay_s > 0.0:
            self._timer = asyncio.get_running_loop().call_later(others.delay_s, self._begin)
        else:
            self._begin()

    def _due(self, since: float, delay_s: float) -> None:
        """The delay has passed. If the loop was held meanwhile it goes on: an answer may lie in the socket."""
        call = self._call
        if call is None:
            return
        left_s = call.channel.pulse.left_s(since, delay_s, time.monotonic())
        if left_s > 0.0:
            self._timer = asyncio.get_running_loop().call_later(left_s, self._due, since, delay_s)
        else:
            self._begin()

    def _begin(self) -> None:
        """One more attempt, if there is an endpoint and budget for it."""
        call = self._call
        if call is None:
            return
        self._timer = None
        attempt = call.record.hedge(time.monotonic())
        if isinstance(attempt, Failed):
            log_raised(call.channel, attempt)
        elif attempt is None:  # the budget may have more by then, or an endpoint room
            self._arm(_ASK_AGAIN_S)
        if not isinstance(attempt, Attempt):
            return
        live = LiveAttempt(call, attempt)
        try:
            live.open()
        except Exception as error:  # noqa: BLE001  # the connection was closed under us
            live.broken(repr(error))
            return
        self._hedges.append(live)
        live.watch(attempt.started_at)
        task = asyncio.get_running_loop().create_task(self._hedge(call, live), name="lb: hedge")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self._arm()

    async def _hedge(self, call: Execution, live: LiveAttempt) -> None:
        if live not in self._hedges:
            return
        try:
            response: bytes | None = await live.lower.unary_unary(self._request, live.headers(), *self._context)
        except Exception as error:  # noqa: BLE001  # what grpcio raises says nothing of the endpoint
            if live in self._hedges:
                self._hedges.remove(live)
                live.broken(repr(error))
                if not self._hedges:
                    self._failed(call, DONE)
            return
        if live not in self._hedges:
            return  # lost: given back already
        self._hedges.remove(live)
        now = time.monotonic()
        status = status_now(live.lower)
        if status.code() == 0:
            live.succeeded(status, now)
            self._won(live, now)
            self._decide(call, live, response, now)
            return
        action = call.judged(live, now)
        if isinstance(action, Others):
            self._more(action)
        elif isinstance(action, Done):
            self._decide(call, live, None, now)
        else:
            self._failed(call, action)

    def _failed(self, call: Execution, action: Action) -> None:
        """The last hedge failed. If the call's own task waits for it, that goes on; else its attempt still runs."""
        if isinstance(action, Attempt):
            call.hold(action)  # whoever cancels before the task goes on gives it back
        self._wake(action)

    def _wake(self, action: Action | None) -> None:
        if self._next is not None and not self._next.done():
            self._disarm()
            self._next.set_result(action)

    def _won(self, live: LiveAttempt, now: float) -> None:
        """Take in the winner's latency: that of the losers is not known."""
        call = self._call
        if call is not None:
            self._winner_s = took(call.record, live.attempt, now)

    def _lost(self, live: LiveAttempt, now: float) -> Outcome:
        return LOST if self._winner_s is None else lost(_ran_s(live.attempt, now), self._winner_s)

    def _decide(self, call: Execution, live: LiveAttempt, response: bytes | None, now: float) -> None:
        """A hedge has decided the call: the other attempts end now, and the call's task settles it in its next step."""
        self._decided = (live, response)
        first = call.live
        if first is not None:
            first.give_back(self._lost(first, now), now)
        assert self._task is not None
        self._task.cancel()
        if first is not None:
            first.cancel(_FASTER)
        self.stop()


def took(record: Call, attempt: Attempt, now: float) -> float:
    """How long the attempt took that brought the answer, in seconds. The method's 95th percentile learns it."""
    took_s = now - attempt.started_at
    if took_s >= BEAT_S:
        took_s = _ran_s(attempt, now)
    if record.shared.latency is not None:
        record.shared.latency.observe(took_s)
    return took_s


def _ran_s(attempt: Attempt, now: float) -> float:
    return pulse.current().pulse.ran_s(attempt.started_at, now)
