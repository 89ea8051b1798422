"""What grpcio's channel does not do: choosing, retries, breakers, hedges and limits, for threads."""

from __future__ import annotations

import contextlib
import copy
import logging
import pickle
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

import grpc
import pytest
from tenacity import stop_after_attempt, stop_never, wait_fixed, wait_none

import lb
from lb.sync.front import Front
from lb.testing.backend import METHODS
from tests.sync.conftest import Fleet
from tests.sync.interceptors import Recorder
from tests.sync.kit import (
    HANGS_S,
    IDEMPOTENT,
    SU,
    UU,
    Kind,
    Server,
    channel_to,
    eventually,
    fail,
    failure,
    in_flight,
    ready,
    wait_for,
)

Code = grpc.StatusCode


def names(servers: list[Server]) -> list[int]:
    """How many calls each server got."""
    return [len(server.received) for server in servers]


def drained(channel: Any) -> None:
    """No attempt is left in flight."""
    eventually(lambda: in_flight(channel) == 0, "nothing is in flight")


# ---- choosing ----


def test_calls_are_spread(fleet: Fleet, kind: Kind) -> None:
    """Each endpoint gets its share, of every kind of call, blocking or not."""
    servers = fleet(3)
    with channel_to(*servers, policy="round_robin") as channel:
        ready(channel, 3)
        for _ in range(6):
            assert kind.run(channel) == kind.echo()
            assert kind.finish(kind.start(channel)) == kind.echo()
        assert names(servers) == [4, 4, 4]
        drained(channel)


def test_threads_share_one_sequence(fleet: Fleet) -> None:
    """Calls from many threads at once are counted rightly: shares and loads are exact."""
    servers = fleet(3)
    with channel_to(*servers, policy="round_robin") as channel:
        ready(channel, 3)

        def work() -> None:
            for _ in range(25):
                UU.run(channel)

        threads = [threading.Thread(target=work) for _ in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(HANGS_S)
        assert names(servers) == [100, 100, 100]
        assert sum(endpoint.picks for endpoint in channel.snapshot().endpoints) == 300
        drained(channel)


class ByMetadata:
    """A policy that reads the call's metadata."""

    name = "by_metadata"
    needs_metadata: ClassVar[bool] = True

    def picker(self, candidates: Any, previous: Any) -> Any:
        """Itself."""
        self._candidates = candidates
        return self

    def pick(self, call: Any, now: float, rng: Any) -> Any:
        """The one whose index is told."""
        return self._candidates[int(dict(call.metadata)["x-index"])]


def test_a_policy_that_reads_metadata(fleet: Fleet, kind: Kind) -> None:
    """It is asked when the metadata is known."""
    servers = fleet(3)
    with channel_to(*servers, policy=ByMetadata()) as channel:
        ready(channel, 3)
        for index in (2, 2, 0):
            kind.run(channel, metadata=(("x-index", str(index)),))
        assert names(servers) == [1, 0, 2]


def test_a_policy_that_raises_ends_the_call_with_its_words(server: Server, kind: Kind) -> None:
    """The call ends INTERNAL and says why; nothing hangs."""
    with channel_to(server, policy=ByMetadata()) as channel:
        ready(channel, 1)
        error = failure(lambda: kind.run(channel, timeout=HANGS_S))
        assert error.code() is Code.INTERNAL
        assert "the policy by_metadata failed: KeyError" in error.details()
        drained(channel)


# ---- breakers ----


@pytest.mark.parametrize(
    "mistake",
    [{"metadata": (("X-Upper", "7"),)}, {"metadata": (("x", "\n"),)}, {"metadata": (("", "x"),)}, {"timeout": 1e12}],
    ids=["upper case", "newline", "no key", "300 centuries"],
)
def test_a_callers_mistake_blames_no_endpoint(fleet: Fleet, kind: Kind, mistake: Any) -> None:
    """What core refuses to send says nothing of an endpoint: no breaker opens, nothing is retried or left in flight."""
    servers = fleet(2)
    with channel_to(*servers, breaker=lb.Breaker(consecutive_failures=1), retry=IDEMPOTENT) as channel:
        ready(channel, 2)
        for call in (lambda: kind.run(channel, **mistake), lambda: kind.finish(kind.start(channel, **mistake))):
            error = failure(call)
            assert error.code() in (Code.INTERNAL, Code.DEADLINE_EXCEEDED)
            assert len(lb.attempts(error)) <= 1
        drained(channel)
        assert [(e.breaker, e.last_error) for e in channel.snapshot().endpoints] == [("CLOSED", "")] * 2
        assert names(servers) == [0, 0]
        assert kind.run(channel) == kind.echo()


@pytest.mark.parametrize("policy", ["weighted_round_robin", "least_request", "p2c"])
def test_who_answers_badly_is_left_out(fleet: Fleet, kind: Kind, policy: str) -> None:
    """One of two answers UNIMPLEMENTED at once, an old build: it is out and says why, and back once it is well."""
    servers = fleet(2)
    servers[0].always = fail(Code.UNIMPLEMENTED, "old build")
    breaker = lb.Breaker(open_s=0.15, max_open_s=0.15, jitter=0.0)
    with channel_to(*servers, policy=policy, breaker=breaker) as channel:
        ready(channel, 2)

        def first() -> Any:
            with contextlib.suppress(grpc.RpcError):
                kind.run(channel)
            return channel.snapshot().endpoints[0]

        seen: list[str] = []

        def out() -> bool:
            seen.append(first().why)
            return "elsewhere" in seen[-1]

        eventually(out, "it is out")
        words = r"0 of \d+ calls were answered well here, \d+ of \d+ elsewhere; UNIMPLEMENTED: old build"
        assert re.fullmatch(rf"breaker open for 0\.\d s more \({words}\)", seen[-1])
        servers[0].always = None
        eventually(lambda: first().breaker == "CLOSED", "it is back")
        for _ in range(10):
            assert kind.run(channel) == kind.echo()
        drained(channel)


def test_when_all_answer_badly_nobody_is_left_out(fleet: Fleet) -> None:
    """Most calls are for what is missing everywhere."""
    servers = fleet(3)
    for server in servers:
        server.always = fail(Code.NOT_FOUND)
    with channel_to(*servers, policy="least_request") as channel:
        ready(channel, 3)
        for _ in range(300):
            assert failure(lambda: UU.run(channel)).code() is Code.NOT_FOUND
        assert [endpoint.breaker for endpoint in channel.snapshot().endpoints] == ["CLOSED"] * 3
        assert not channel.snapshot().panic


# ---- retries ----


def test_an_idempotent_call_goes_to_another_endpoint(fleet: Fleet, kind: Kind) -> None:
    """A call that fails UNAVAILABLE is tried again on another endpoint; the caller sees the answer alone."""
    servers = fleet(3)
    for server in servers:
        server.script(fail(Code.UNAVAILABLE))
    with channel_to(*servers, retry=IDEMPOTENT) as channel:
        ready(channel, 3)
        assert kind.run(channel) == kind.echo()
        assert names(servers) == [1, 1, 2] or sorted(names(servers)) == [1, 1, 2]
        drained(channel)


def test_a_retry_of_a_future(fleet: Fleet, kind: Kind) -> None:
    """So is a future, and an iterator."""
    servers = fleet(2)
    servers[0].script(fail(Code.UNAVAILABLE))
    servers[1].script(fail(Code.UNAVAILABLE))
    with channel_to(*servers, retry=IDEMPOTENT) as channel:
        ready(channel, 2)
        call = kind.start(channel)
        assert kind.finish(call) == kind.echo()
        assert [attempt.number for attempt in lb.attempts(call)] == [1, 2, 3]
        drained(channel)


def test_headers_commit_a_call(server: Server, kind: Kind) -> None:
    """A response that had begun is the caller's (gRFC A6), also when its end comes with the headers."""

    def begin_and_fail(context: Any) -> None:
        context.send_initial_metadata((("x-head", "1"),))
        context.abort(Code.UNAVAILABLE, "gone")

    server.always = begin_and_fail
    retry = lb.Retry(idempotent=METHODS, wait=wait_none(), budget=lb.Budget(min_per_s=1e6))
    with channel_to(server, retry=retry) as channel:
        for _ in range(40):
            call = kind.start(channel)
            assert call.code() is Code.UNAVAILABLE
            assert len(lb.attempts(call)) == 1
        drained(channel)


@pytest.mark.parametrize("kind", [UU, SU], ids=str)
def test_attempts_of_the_error_that_was_raised(fleet: Fleet, kind: Kind) -> None:
    """``with_call`` tells them for a call that went well, and the error for one that did not."""
    servers = fleet(2)
    with channel_to(*servers, retry=IDEMPOTENT, policy="round_robin") as channel:
        ready(channel, 2)
        both = kind.stub(channel).with_call(kind.argument())
        assert [attempt.number for attempt in lb.attempts(both[1])] == [1]
        assert lb.attempts(both) == lb.attempts(both[1])
        servers[0].always = servers[1].always = fail(Code.UNAVAILABLE, "no")
        error = failure(lambda: kind.run(channel))
        assert error.details() == "no"
        assert [attempt.number for attempt in lb.attempts(error)] == [1, 2, 3, 4]
        assert {attempt.address for attempt in lb.attempts(error)} == {server.address for server in servers}
        with pytest.raises(TypeError, match="expected what a call gave"):
            lb.attempts(both[0])
        words = error.debug_error_string()  # the attempts in it harm no one who copies or pickles it
        assert pickle.loads(pickle.dumps(words)) == copy.deepcopy(words) == copy.copy(words) == words


def test_attempts_under_interceptors(server: Server, kind: Kind) -> None:
    """They are found there, too."""
    with channel_to(server, interceptors=[Recorder("one"), Recorder("two")]) as channel:
        ready(channel, 1)
        call = kind.start(channel)
        kind.finish(call)
        assert len(lb.attempts(call)) == 1
        if kind in (UU, SU):
            _, call = kind.stub(channel).with_call(kind.argument())
            assert len(lb.attempts(call)) == 1


def test_all_attempts_share_one_deadline(fleet: Fleet, kind: Kind) -> None:
    """A call waits for no retry beyond its time-out."""
    servers = fleet(2)
    servers[0].always = servers[1].always = fail(Code.UNAVAILABLE, "no")
    retry = lb.Retry(idempotent=METHODS, wait=wait_fixed(90), stop=stop_after_attempt(10))
    with channel_to(*servers, retry=retry) as channel:
        ready(channel, 2)
        error = failure(lambda: kind.run(channel, timeout=30))
        assert error.code() is Code.UNAVAILABLE
        assert sum(names(servers)) == 1


def test_an_attempts_own_timeout_leaves_time_for_another(fleet: Fleet) -> None:
    """An endpoint that hangs is given up in time, and another one answers."""
    servers = fleet(2)
    gate = threading.Event()
    servers[0].always = wait_for(gate)
    retry = lb.Retry(idempotent=METHODS, wait=wait_none(), stop=stop_never, attempt_timeout_s=0.2)
    with channel_to(*servers, retry=retry, policy="round_robin") as channel:
        ready(channel, 2)
        for _ in range(2):
            assert UU.run(channel, timeout=HANGS_S) == UU.echo()
        assert names(servers)[0] >= 1
        drained(channel)
    gate.set()


def test_a_pause_between_attempts_is_cut_short(server: Server) -> None:
    """Closing the channel ends a call that waits for its next attempt."""
    server.always = fail(Code.UNAVAILABLE)
    budget = lb.Budget(ratio=0, min_per_s=1)
    retry = lb.Retry(idempotent=METHODS, wait=wait_fixed(60), stop=stop_after_attempt(3), budget=budget)
    with channel_to(server, retry=retry) as channel:
        ready(channel, 1)
        full = channel.snapshot().retry_budget
        errors: list[Any] = []
        thread = threading.Thread(target=lambda: errors.append(failure(lambda: UU.run(channel))))
        thread.start()
        future = UU.start(channel)
        # Each has paid for its next attempt.
        eventually(lambda: channel.snapshot().retry_budget <= full - 2)
        assert future.cancel()
    thread.join(HANGS_S)
    assert [error.code() for error in errors] == [Code.CANCELLED]


def test_a_channel_that_is_closed_while_the_callers_thread_has_the_call(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two attempts of a blocking call the loop may end: the call is CANCELLED, as one that was waiting."""
    server.always = fail(Code.UNAVAILABLE)
    with channel_to(server, retry=IDEMPOTENT) as channel:
        ready(channel, 1)
        monkeypatch.setattr(Front, "begin", lambda *_: False)
        error = failure(lambda: UU.run(channel))
        assert (error.code(), error.details()) == (Code.CANCELLED, "Channel closed!")
        drained(channel)


def test_a_server_dies_under_load(fleet: Fleet) -> None:
    """Idempotent calls from many threads meet no failure when an endpoint goes away."""
    servers = fleet(3)
    with channel_to(*servers, retry=lb.Retry(idempotent=METHODS)) as channel:
        ready(channel, 3)
        stop = threading.Event()
        done: list[int] = []
        errors: list[Any] = []

        def work(blocking: bool) -> None:
            while not stop.is_set():
                try:
                    if blocking:
                        UU.run(channel, timeout=HANGS_S)
                    else:
                        UU.finish(UU.start(channel, timeout=HANGS_S))
                except grpc.RpcError as error:
                    errors.append(error)
                done.append(1)

        threads = [threading.Thread(target=work, args=(i % 2 == 0,)) for i in range(8)]
        for thread in threads:
            thread.start()
        eventually(lambda: len(done) > 100, within_s=HANGS_S)
        servers[1].stop()
        before = len(done)
        eventually(lambda: len(done) > before + 200, within_s=HANGS_S)
        stop.set()
        for thread in threads:
            thread.join(HANGS_S)
        assert errors == []
        drained(channel)


# ---- breaker, hedging, limits, service config ----


def test_an_endpoint_that_keeps_failing_is_avoided(fleet: Fleet, caplog: pytest.LogCaptureFixture) -> None:
    """An endpoint that fails is left out after a while, whichever thread meets its failures; the log says so."""
    servers = fleet(2)
    servers[0].always = fail(Code.INTERNAL)
    breaker = lb.Breaker(consecutive_failures=3, open_s=60)
    with (
        caplog.at_level(logging.INFO, "lb.channel"),
        channel_to(*servers, breaker=breaker, policy="round_robin") as channel,
    ):
        ready(channel, 2)
        failures = 0
        for _ in range(20):
            try:
                UU.run(channel)
            except grpc.RpcError:
                failures += 1
        assert failures == 3
        assert names(servers)[0] == 3
    assert len([r for r in caplog.records if ": 3 failures in a row; INTERNAL" in r.getMessage()]) == 1


def test_the_hedge_wins_and_the_first_is_cancelled(fleet: Fleet) -> None:
    """A call that gets no answer in time is sent to another endpoint, too, and the first answer wins."""
    servers = fleet(2)
    gate = threading.Event()
    servers[0].always = wait_for(gate)
    hedging = lb.Hedging(delay_s=0.05)
    with channel_to(*servers, retry=IDEMPOTENT, hedging=hedging, policy="round_robin") as channel:
        ready(channel, 2)
        for _ in range(2):
            assert UU.run(channel) == UU.echo()
            assert UU.finish(UU.start(channel)) == UU.echo()
        assert names(servers)[0] >= 1
        drained(channel)
    gate.set()


def test_a_burst_keeps_the_limit(fleet: Fleet) -> None:
    """No endpoint gets more calls at once than it may; those beyond wait in line, or are refused."""
    servers = fleet(2)
    most = [0, 0]
    now = [0, 0]
    lock = threading.Lock()

    def step_of(i: int) -> Any:
        def step(context: Any) -> None:
            with lock:
                now[i] += 1
                most[i] = max(most[i], now[i])
            threading.Event().wait(0.005)
            with lock:
                now[i] -= 1

        return step

    for i, server in enumerate(servers):
        server.always = step_of(i)
    with channel_to(*servers, limit=lb.ConcurrencyLimit(limit=2, queue=100, queue_s=HANGS_S)) as channel:
        ready(channel, 2)
        errors: list[Any] = []

        def work() -> None:
            for _ in range(5):
                try:
                    UU.run(channel)
                    UU.finish(UU.start(channel))
                except grpc.RpcError as error:
                    errors.append(error)

        threads = [threading.Thread(target=work) for _ in range(10)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(HANGS_S)
        assert errors == []
        assert max(most) <= 2
        drained(channel)


def test_more_than_the_line_holds_is_refused_at_once(server: Server) -> None:
    """At once, where no line is allowed."""
    gate = threading.Event()
    server.always = wait_for(gate)
    with channel_to(server, limit=lb.ConcurrencyLimit(limit=1, queue=0), retry=lb.Retry(enabled=False)) as channel:
        ready(channel, 1)
        running = UU.start(channel)
        eventually(lambda: server.received)
        error = failure(lambda: UU.run(channel))
        assert error.code() is Code.UNAVAILABLE
        assert "concurrency limit" in error.details()
        gate.set()
        assert UU.finish(running) == UU.echo()


# ---- errors in words ----


def test_a_resolver_of_ones_own(fleet: Fleet) -> None:
    """It may tell from any thread; endpoints come and go under calls."""
    servers = fleet(2)

    class Told:
        target = "told"
        listener: Any = None
        closed = threading.Event()

        def start(self, listener: Any) -> None:
            self.listener = listener

        def close(self) -> None:
            self.closed.set()

    told = Told()
    with lb.sync.channel(told) as channel:
        call = UU.start(channel, timeout=HANGS_S)
        eventually(lambda: told.listener is not None)
        told.listener.update(lb.Resolution((lb.Endpoint(servers[0].address),)))
        assert UU.finish(call) == UU.echo()
        told.listener.update(lb.Resolution((lb.Endpoint(servers[1].address),)))
        eventually(lambda: UU.run(channel) == UU.echo() and names(servers)[1] > 0)
    assert told.closed.wait(HANGS_S)


def test_closing_ends_calls_on_an_endpoint_that_left(fleet: Fleet) -> None:
    """A blocking call runs on one that the resolver names no longer: it ends with the channel, as all do."""
    servers = fleet(2)
    gate = threading.Event()
    servers[0].always = wait_for(gate)

    class Told:
        target = "told"

        def start(self, listener: Any) -> None:
            self.listener = listener
            listener.update(lb.Resolution((lb.Endpoint(servers[0].address),)))

        def close(self) -> None:
            pass

    told = Told()
    channel = lb.sync.channel(told)
    with ThreadPoolExecutor(1) as pool:
        states: list[Any] = []
        channel.subscribe(states.append, try_to_connect=True)
        ready(channel, 1)
        call = pool.submit(lambda: failure(lambda: UU.run(channel)))
        try:
            eventually(lambda: servers[0].received)
            told.listener.update(lb.Resolution((lb.Endpoint(servers[1].address),)))
            eventually(lambda: [e.address for e in channel.snapshot().endpoints] == [servers[1].address])
            channel.close()
            assert call.result(HANGS_S).code() is Code.CANCELLED
        finally:
            gate.set()
            channel.close()
