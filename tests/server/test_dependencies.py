"""When what a server depends on counts as broken."""

from __future__ import annotations

import asyncio
import logging

import pytest

from lb.server.dependencies import Dependencies

FAILS = RuntimeError("not today")


async def judged(*answers: Exception | None) -> list[str]:
    """What is wrong with a dependency after each of these answers of its check."""
    left = list(answers)
    seen: list[str] = []
    enough = asyncio.Event()

    async def check() -> None:
        answer = left.pop(0)
        if answer is not None:
            raise answer

    async def judge() -> None:
        seen.append(dependencies.unhealthy["database"])
        if not left:
            enough.set()
            await asyncio.Event().wait()  # until it is cancelled

    dependencies = Dependencies({"database": check})
    assert dependencies.broken == {"database": "not checked yet"}
    watching = asyncio.create_task(dependencies.watch(judge))
    await asyncio.wait_for(enough.wait(), 60)
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
    return seen


async def test_before_it_was_well_once() -> None:
    """One failure is enough, and one good answer is, too."""
    assert await judged(FAILS, None) == ["not today", ""]


async def test_one_failure_is_no_outage() -> None:
    """Later it takes two in a row, and one good answer to end that."""
    assert await judged(None, FAILS, None, FAILS, FAILS, None) == ["", "", "", "", "not today", ""]


async def test_an_error_without_words() -> None:
    """Its kind is told."""
    assert await judged(KeyError()) == ["KeyError"]


async def test_without_dependencies() -> None:
    """There is one round, in which nothing is broken."""
    rounds: list[int] = []

    async def judge() -> None:
        rounds.append(len(dependencies.broken))

    dependencies = Dependencies({})
    await asyncio.wait_for(dependencies.watch(judge), 30)
    assert rounds == [0]


async def test_what_is_broken_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    """Each reason once, and that it is over."""
    caplog.set_level(logging.INFO, "lb.server")
    dependencies = Dependencies({"database": never_asked, "cache": never_asked})
    for database, cache in (("away", ""), ("away", ""), ("slow", "away"), ("", ""), ("", "")):
        dependencies.unhealthy.update(database=database, cache=cache)
        dependencies.tell("test")
    assert caplog.messages == [
        "test: not serving: database: away",
        "test: not serving: database: slow; cache: away",
        "test: serving: every check passes again",
    ]


async def never_asked() -> None:
    """A check."""
