"""The interpreter is held while threads call: what has arrived counts, and no endpoint is blamed."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import lb
import lb.sync
from lb.testing.backend import METHODS
from tests.support.calls import unblamed
from tests.support.stalls import STRICT, addresses, hold_interpreter
from tests.sync.kit import HANGS_S, KINDS, UU, Kind, ready

__all__ = ["addresses"]


def connected(addresses: list[str], **settings: Any) -> Any:
    """A channel to all of them, READY."""
    channel = lb.sync.channel("static:///" + ",".join(addresses), **settings)
    ready(channel, len(addresses))
    return channel


def held(runs: Callable[[Kind], object], count: int, held_s: float) -> list[Any]:
    """What calls of all kinds come to, made in threads one after the other while the interpreter is held at times."""
    with ThreadPoolExecutor(8) as pool:
        answers = [(kind, pool.submit(runs, kind)) for _ in range(count) for kind in KINDS]
        for _ in range(3):
            hold_interpreter(held_s)
            answers += [(kind, pool.submit(runs, kind)) for _ in range(count) for kind in KINDS]
        return [(kind, answer.result(HANGS_S)) for kind, answer in answers]


def test_answers_that_arrived_meanwhile_count(addresses: list[str]) -> None:
    """Calls that block and call objects, held for longer than ``attempt_timeout_s``: each is OK, nobody is blamed."""
    retry = lb.Retry(attempt_timeout_s=0.6, idempotent=METHODS)
    with connected(addresses, retry=retry, breaker=lb.Breaker(**STRICT, slow_call_s=0.6)) as channel:

        def run(kind: Kind) -> tuple[Any, list[int]]:
            blocking = kind.run(channel, timeout=HANGS_S)
            call = kind.start(channel, timeout=HANGS_S)
            return (blocking, kind.finish(call)), [attempt.number for attempt in lb.attempts(call)]

        for kind, (answers, attempts) in held(run, 8, 1.0):
            assert answers == (kind.echo(), kind.echo())
            assert attempts == [1]
        assert unblamed(channel), str(channel.snapshot())


def test_the_line_moves_on_after_a_stall(addresses: list[str]) -> None:
    """Threads that wait for a place wait ``queue_s`` of the time for which the interpreter ran."""
    limit = lb.ConcurrencyLimit(limit=1, queue=100, queue_s=1.0)
    with connected(addresses, limit=limit) as channel, ThreadPoolExecutor(32) as pool:
        answers = [pool.submit(UU.run, channel, timeout=HANGS_S) for _ in range(60)]
        hold_interpreter(1.5)
        for answer in answers:
            assert answer.result(HANGS_S) == UU.echo()
        assert unblamed(channel), str(channel.snapshot())
