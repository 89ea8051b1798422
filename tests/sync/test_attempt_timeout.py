"""What passes with ``attempt_timeout_s`` in threads: another attempt where one may follow, else nothing one sees."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from tenacity import stop_after_attempt, wait_none

import lb
from lb.testing.backend import METHODS
from tests.support.calls import breakers
from tests.sync.conftest import Fleet
from tests.sync.kit import HANGS_S, UU, Kind, channel_to, eventually, failure, ready, wait_for

AT_THE_FIRST = lb.Breaker(consecutive_failures=1, failure_ratio=None, open_s=600, max_open_s=600)


@pytest.mark.parametrize("blocking", [True, False], ids=["blocking", "call object"])
def test_a_call_that_nothing_may_follow_has_its_whole_time(fleet: Fleet, kind: Kind, blocking: bool) -> None:
    """The breaker is told at ``attempt_timeout_s``, once; the answer comes later, and the caller gets it."""
    (server,) = fleet(1)
    gate = threading.Event()
    server.always = wait_for(gate)
    with (
        channel_to(server, retry=lb.Retry(attempt_timeout_s=0.05), breaker=AT_THE_FIRST) as channel,
        ThreadPoolExecutor(1) as pool,
    ):
        ready(channel, 1)
        if blocking:
            answer = pool.submit(lambda: kind.run(channel, timeout=HANGS_S))
        else:
            answer = pool.submit(lambda: kind.finish(kind.start(channel, timeout=HANGS_S)))
        eventually(lambda: breakers(channel) == ["OPEN"], "the breaker is told of the silence")
        assert not answer.done()
        gate.set()
        assert answer.result(HANGS_S) == kind.echo()
        assert breakers(channel) == ["OPEN"]  # the late answer is no second outcome
        assert channel.snapshot().endpoints[0].in_flight == 0
    assert len(server.received) == 1


@pytest.mark.parametrize("blocking", [True, False], ids=["blocking", "call object"])
def test_without_a_deadline_such_a_call_ends_unavailable(fleet: Fleet, kind: Kind, blocking: bool) -> None:
    """Nothing else would end it; the words name the setting."""
    (server,) = fleet(1)
    gate = threading.Event()
    server.always = wait_for(gate)
    with channel_to(server, retry=lb.Retry(attempt_timeout_s=0.05), breaker=AT_THE_FIRST) as channel:
        ready(channel, 1)
        error = failure(lambda: kind.run(channel) if blocking else kind.finish(kind.start(channel)))
        assert breakers(channel) == ["OPEN"]
    gate.set()
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    words = "no answer within attempt_timeout_s (0.05 s), and the method is not declared idempotent; tried "
    assert error.details().startswith(words)


def test_the_last_attempt_has_the_rest_of_the_calls_time(fleet: Fleet) -> None:
    """Of two attempts of a blocking call the first is given up in time; the second one answers late."""
    (server,) = fleet(1)
    gate = threading.Event()
    server.always = wait_for(gate)
    retry = lb.Retry(idempotent=METHODS, wait=wait_none(), stop=stop_after_attempt(2), attempt_timeout_s=0.05)
    breaker = lb.Breaker(consecutive_failures=2, failure_ratio=None, open_s=600, max_open_s=600)
    with channel_to(server, retry=retry, breaker=breaker) as channel, ThreadPoolExecutor(1) as pool:
        ready(channel, 1)
        answer = pool.submit(lambda: UU.run(channel, timeout=HANGS_S))
        eventually(lambda: breakers(channel) == ["OPEN"], "both were silent")
        assert not answer.done()
        gate.set()
        assert answer.result(HANGS_S) == UU.echo()


def test_many_threads_are_watched_at_once(fleet: Fleet) -> None:
    """Calls begin and end in many threads while others are silent: each silent one is given up, no other."""
    servers = fleet(2, workers=32)
    gate = threading.Event()
    for server in servers:
        server.script(*[wait_for(gate), None, None, None] * 8)
    retry = lb.Retry(idempotent=METHODS, wait=wait_none(), attempt_timeout_s=0.5, stop=stop_after_attempt(9))
    with channel_to(*servers, retry=retry) as channel, ThreadPoolExecutor(8) as pool:
        ready(channel, 2)
        for answer in [pool.submit(lambda: UU.run(channel, timeout=HANGS_S)) for _ in range(64)]:
            assert answer.result(HANGS_S) == UU.echo()
    gate.set()
