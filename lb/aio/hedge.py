"""A hedged call: its attempts run beside each other, and the first answer wins.

The call's own task carries out the first attempt, as in a call without hedging. A timer begins
the others, each in a task of its own. When one of these decides the call, it cancels the wait of
the call's task, which then settles the call itself and returns in the same step. So no instant
lies between the two in which a cancellation could be lost: a caller cancelled before that step
gets its ``CancelledError``, and the call is CANCELLED. Which attempt may begin, and what a failure
means while others run, is ruled by `lb.core.call`.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import grpc

from lb.aio import pulse
from lb.aio._grpcio import as_with_core_retries
from lb.core.attempt import Attempt
from lb.core.call import DONE, Action, Others
from lb.core.outcome import LOST, OK, Origin, Outcome, Retryable, Verdict, lost
from lb.core.pulse import BEAT_S

if TYPE_CHECKING:
    from lb.aio.calls import LogicalCall

_ASK_AGAIN_S = 0.01
_FASTER = "another attempt was faster"


class Race:
    """The attempts of one call with one request and one response. Lives as long as the call runs."""

    __slots__ = (
        "_call",
        "_context",
        "_decision",
        "_delay_s",
        "_hedges",
        "_metadata",
        "_next",
        "_request",
        "_task",
        "_tasks",
        "_timer",
        "_winner_s",
    )

    def __init__(self, call: LogicalCall, request: bytes, metadata: tuple[Any, ...], context: tuple[Any, ...]) -> None:
        self._call: LogicalCall | None = call
        self._request = request
        self._metadata = metadata
        self._context = context
        self._hedges: dict[Attempt, Any] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._delay_s = 0.0
        self._next: asyncio.Future[Action | None] | None = None
        self._task: asyncio.Task[Any] | None = None
        self._decision: tuple[Any, Any, bytes | None] | None = None
        """The status, lower call and response by which a hedge has decided the call."""
        self._winner_s: float | None = None
        call.call.hedged = True

    @property
    def running(self) -> int:
        """How many hedges run, beside the attempt of the call's own task."""
        return len(self._hedges)

    async def run(self, action: Action | None) -> bytes | None:
        """The whole call; None when it did not end OK."""
        call = self._call
        self._task = task = asyncio.current_task()
        assert call is not None
        assert task is not None
        cancelling = task.cancelling()
        try:
            while action is not None:
                if type(action) is Attempt:
                    real = call._open_real(action)
                    if (overdue := call.call.settings.overdue) is not None:
                        overdue.add(action, call, real, action.started_at)
                    self._arm()
                    response: bytes | None = await real.unary_unary(
                        self._request, call._headers(action, self._metadata), *self._context
                    )
                    if call._status is None and real._status.code() == 0:
                        self._won(action, time.monotonic())
                    action = call._answered(real)
                    if action is None:
                        return response if call.is_ok() else None
                    if type(action) is Others:
                        self._more(action)
                elif type(action) is Others:
                    self._next = asyncio.get_running_loop().create_future()
                    action = await self._next
                    self._next = None
                    if type(action) is Attempt:
                        call._attempt = None  # taken over: opened above
                else:
                    self._disarm()
                    action = await call._pass_time(action)
        except BaseException as error:
            decision = self._decision
            if decision is None or task.uncancel() > cancelling:  # the caller is cancelled: that wins over any attempt
                call._abandon(error)
                self._disarm()
                raise
            status, real, response = decision
            (call._settle if status.code() == 0 else call._fail)(status, real._initial_metadata)
            return response if call.is_ok() else None
        return None

    def rivals(self, real: Any) -> int:
        """How many attempts run beside this one that were not given up."""
        call = self._call
        if call is None:
            return 0
        reals = [*self._hedges.values(), *((call._real,) if call._attempt is not None else ())]
        return sum(other is not real and other not in call._timed_out for other in reals)

    def stop(self) -> None:
        """The call is decided: nothing else is wanted."""
        call, self._call = self._call, None
        if call is None:
            return
        self._disarm()
        hedges, self._hedges = self._hedges, {}
        now = time.monotonic()
        for attempt, real in hedges.items():
            call.hand_back(attempt, self._lost(attempt, now), now)
            if not real.done():
                real.cancel(_FASTER)
        self._wake(None)

    def _arm(self, least_s: float = 0.0) -> None:
        call = self._call
        self._disarm()
        if call is None:
            return
        delay = call.call.hedge_delay_s()
        if delay is not None:
            self._delay_s = delay = max(delay, least_s)
            self._timer = asyncio.get_running_loop().call_later(delay, self._due)

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

    def _due(self, since: float | None = None) -> None:
        """The delay has passed. If the loop was held meanwhile it goes on: an answer may lie in the socket."""
        call, timer, delay_s = self._call, self._timer, self._delay_s
        if call is None or timer is None:
            return
        if since is None:
            since = timer.when() - delay_s
        left_s = call._channel.pulse.left_s(since, delay_s, time.monotonic())
        if left_s > 0.0:
            self._timer = asyncio.get_running_loop().call_later(left_s, self._due, since)
        else:
            self._begin()

    def _begin(self) -> None:
        """One more attempt, if there is an endpoint and budget for it."""
        call = self._call
        if call is None:
            return
        self._timer = None
        attempt = call._ask(call.call.hedge, time.monotonic())
        if type(attempt) is not Attempt:
            if attempt is None:  # the budget may have more by then, or an endpoint room
                self._arm(_ASK_AGAIN_S)
            return
        try:
            self._hedges[attempt] = real = call.lower_call(attempt)
        except Exception as error:  # noqa: BLE001  # the connection was closed under us
            call.hand_back(attempt, _internal(error), time.monotonic())
            return
        if (overdue := call.call.settings.overdue) is not None:
            overdue.add(attempt, call, real, attempt.started_at)
        task = asyncio.get_running_loop().create_task(self._hedge(call, attempt), name="lb: hedge")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self._arm()

    async def _hedge(self, call: LogicalCall, attempt: Attempt) -> None:
        real = self._hedges.get(attempt)
        if real is None:
            return
        try:
            response: bytes | None = await real.unary_unary(
                self._request, call._headers(attempt, self._metadata), *self._context
            )
        except Exception as error:  # noqa: BLE001  # what grpcio raises says nothing of the endpoint
            if self._hedges.pop(attempt, None) is not None:
                call.hand_back(attempt, _internal(error), time.monotonic())
                if not self._hedges:
                    self._failed(call, DONE)
            return
        if self._hedges.pop(attempt, None) is None:
            return  # lost: handed back already
        now = time.monotonic()
        status = real._status
        if call._channel.balancer.report is not None:
            call.report(attempt, status)
        if status.code() == 0:
            call.hand_back(attempt, OK, now)
            self._won(attempt, now)
            self._decide(call, status, real, response, now)
            return
        status = as_with_core_retries(call.in_time(real))
        outcome = call.outcome(attempt, real, status, now)
        call.hand_back(attempt, outcome, now)
        running = len(self._hedges) + (call._attempt is not None)
        action = call._ask(call.call.ended, outcome, now, committed=bool(real._initial_metadata), running=running)
        call._last = (status, real._initial_metadata)
        if type(action) is Others:
            self._more(action)
        elif action is DONE:
            self._decide(call, status, real, None, now)
        else:
            self._failed(call, action)

    def _failed(self, call: LogicalCall, action: Action) -> None:
        """The last hedge failed. If the call's own task waits for it, that goes on; else its attempt still runs."""
        if type(action) is Attempt:
            call._attempt = action  # whoever cancels before the task goes on gives it back
            call._real = None
        self._wake(action)

    def _wake(self, action: Action | None) -> None:
        if self._next is not None and not self._next.done():
            self._disarm()
            self._next.set_result(action)

    def _won(self, attempt: Attempt, now: float) -> None:
        """Take in the winner's latency: that of the losers is not known."""
        winner_s = now - attempt.started_at
        self._winner_s = winner_s if winner_s < BEAT_S else _ran_s(attempt, now)
        call = self._call
        latency = None if call is None else call.call.settings.latency
        if latency is not None:
            latency.observe(self._winner_s)

    def _lost(self, attempt: Attempt, now: float) -> Outcome:
        return LOST if self._winner_s is None else lost(_ran_s(attempt, now), self._winner_s)

    def _decide(self, call: LogicalCall, status: Any, real: Any, response: bytes | None, now: float) -> None:
        """A hedge has decided the call: the other attempts end now, and the call's task settles it in its next step."""
        self._decision = (status, real, response)
        first = call._attempt
        call._give_back(LOST if first is None else self._lost(first, now))
        assert self._task is not None
        self._task.cancel()
        call._drop_real(_FASTER)
        self.stop()


def _ran_s(attempt: Attempt, now: float) -> float:
    return pulse.current().pulse.ran_s(attempt.started_at, now)


def _internal(error: Exception) -> Outcome:
    return Outcome(grpc.StatusCode.INTERNAL, Verdict.IGNORED, Retryable.NEVER, Origin.CALLER, repr(error))
