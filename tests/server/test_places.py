"""Places for work, used directly: what runs, what waits, what is refused, and what a refusal says."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import grpc
import pytest

from lb.server import Concurrency, Limits, Place, Places, Priority, Rate, RefusedError
from lb.testing.clock import FakeClock
from tests.support.wait import until

ONE = Concurrency(limit=1, adaptive=False, queue=1, queue_s=60.0)


class Work:
    """Work that holds its place until it is released."""

    def __init__(self, places: Places, priority: Priority = Priority.DEFAULT, client: str = "") -> None:
        self.release = asyncio.Event()
        self.entered = asyncio.Event()
        self.task = asyncio.create_task(self._run(places, priority, client))

    async def _run(self, places: Places, priority: Priority, client: str) -> Place:
        async with places.take("work", priority=priority, client=client) as place:
            self.entered.set()
            await self.release.wait()
            place.answered()
        return place


async def load_is(places: Places, load: float) -> None:
    """Wait until so much is in use: 2.0 is one that works and one that waits."""

    async def reached() -> bool:
        return places.load == load

    await until(reached, within_s=30, what=f"a load of {load}", every_s=0.0)


async def refused(work: Work) -> RefusedError:
    """The error with which work was refused."""
    with pytest.raises(RefusedError) as caught:
        await work.task
    assert not work.entered.is_set()
    return caught.value


async def test_the_newest_that_waits_goes_first_and_the_oldest_makes_room() -> None:
    """One place, and one may wait: a third drives out the second, and gets the place of the first."""
    places = Places(Limits(concurrency=ONE))
    first = Work(places)
    await first.entered.wait()
    assert places.load == 1.0
    second = Work(places)
    await load_is(places, 2.0)
    third = Work(places)
    error = await refused(second)
    assert (error.code, error.retry_s) == (grpc.StatusCode.UNAVAILABLE, 0.0)
    first.release.set()
    await third.entered.wait()
    third.release.set()
    assert not (await first.task).held
    assert not (await third.task).held
    assert places.load == 0.0


async def test_a_place_is_not_lost_to_one_that_is_gone() -> None:
    """Who waits is cancelled and cannot say so yet, when the place becomes free: another one that waits gets it."""
    places = Places(Limits(concurrency=Concurrency(limit=1, adaptive=False, queue=2, queue_s=60.0)))
    async with places.take("work") as place:
        stays = Work(places)
        await load_is(places, 2.0)
        leaves = Work(places)  # the newest is the next one
        await load_is(places, 3.0)
        leaves.task.cancel()
        place.answered()
    await asyncio.wait_for(stays.entered.wait(), 30)
    assert places.load == 1.0
    stays.release.set()
    await stays.task
    assert places.load == 0.0
    assert leaves.task.cancelled()


async def test_what_is_important_drives_out_what_is_not() -> None:
    """What waits is refused in favour of the more important, never of the less important."""
    places = Places(Limits(concurrency=ONE))
    first = Work(places)
    await first.entered.wait()
    sheddable = Work(places, Priority.SHEDDABLE)
    await load_is(places, 2.0)
    critical = Work(places, Priority.CRITICAL)
    await refused(sheddable)
    await refused(Work(places, Priority.DEFAULT))
    first.release.set()
    critical.release.set()
    await critical.task
    await first.task


async def test_what_is_cancelled_gives_its_place_back() -> None:
    """While it waits, while it works, and in the very moment in which it got its place."""
    places = Places(Limits(concurrency=ONE))
    first = Work(places)
    await first.entered.wait()
    waits = Work(places)
    await load_is(places, 2.0)
    waits.task.cancel()
    await load_is(places, 1.0)
    second = Work(places)
    await load_is(places, 2.0)
    first.release.set()
    await first.task
    second.task.cancel()  # it has its place, and does not know yet
    await asyncio.gather(waits.task, second.task, return_exceptions=True)
    assert places.load == 0.0
    third = Work(places)
    await third.entered.wait()
    third.task.cancel()
    await asyncio.gather(third.task, return_exceptions=True)
    assert places.load == 0.0


async def test_what_is_cancelled_in_the_moment_of_its_turn_gives_its_place_back() -> None:
    """It has its place, and never learns it: the place is the next one's."""
    places = Places(Limits(concurrency=ONE))
    place = places.at_once("work", "", places.clock())
    assert isinstance(place, Place)
    waits = Work(places)
    await load_is(places, 2.0)
    place.over()
    waits.task.cancel()
    await asyncio.gather(waits.task, return_exceptions=True)
    assert not waits.entered.is_set()
    assert places.load == 0.0


async def test_a_place_is_given_back_once() -> None:
    """However often it is said that the work has ended."""
    places = Places(Limits(concurrency=ONE))
    async with places.take("work") as place:
        place.answered()
        place.answered()
        place.over()
        place.begun()
    assert places.load == 0.0
    assert "given back" in repr(place)


async def test_one_that_waits_too_long_is_refused() -> None:
    """The time in the queue is bounded, and nobody has to come by for it to end."""
    places = Places(Limits(concurrency=Concurrency(limit=1, adaptive=False, queue_s=0.001)))
    first = Work(places)
    await first.entered.wait()
    assert (await refused(Work(places))).code is grpc.StatusCode.UNAVAILABLE
    first.release.set()
    await first.task


async def test_a_rate_says_when_to_come_back_and_how_much_is_left() -> None:
    """Each client has its own; time gives it back; without rates there is nothing to tell."""
    clock = FakeClock()
    places = Places(Limits(client_rate=Rate(2.0, burst=2.0)), clock=clock)
    assert places.left("a") == 2.0
    for left in (1.0, 0.0):
        async with places.take("work", client="a"):
            assert places.left("a") == left
    error = await refused(Work(places, client="a"))
    assert (error.code, error.retry_s) == (grpc.StatusCode.RESOURCE_EXHAUSTED, 0.5)
    async with places.take("work", client="b"):
        pass
    clock.advance(0.5)
    async with places.take("work", client="a"):
        pass
    assert Places().left("a") is None


async def test_what_was_in_use_is_an_average_since_it_was_asked() -> None:
    """Over all the time, whether the work has ended or not; a moment says little where work is short."""
    clock = FakeClock()
    places = Places(Limits(concurrency=Concurrency(limit=4, adaptive=False)), clock=clock)
    assert places.used() == 0.0
    async with places.take("work"):
        clock.advance(1.0)
        async with places.take("work"):
            clock.advance(1.0)
    clock.advance(1.0)
    assert places.used() == pytest.approx(3.0 / 3.0 / 4)
    async with places.take("work"):
        clock.advance(1.0)
        assert places.used() == pytest.approx(1 / 4)
        clock.advance(1.0)
    clock.advance(3.0)
    assert places.used() == pytest.approx(1 / 4 / 4)
    none = Places(Limits(concurrency=None), clock=clock)
    async with none.take("work"):
        clock.advance(1.0)
        assert none.used() == 0.0


async def test_the_limit_learns_from_the_time_since_the_work_began() -> None:
    """What a client took before, such as for its body, counts as nothing: the limit does not shrink for it."""

    async def limit_after_slow(*, begins: bool) -> float:
        clock = FakeClock()
        places = Places(Limits(concurrency=Concurrency(limit=8, max_limit=8)), clock=clock)
        for slow_s in [0.0] * 40 + [1.0] * 20:
            async with AsyncExitStack() as others:
                while places.load < 0.75:
                    await others.enter_async_context(places.take("others"))
                async with places.take("work") as place:
                    clock.advance(slow_s)
                    if begins:
                        place.begun()
                    clock.advance(0.01)
                    place.answered()
        async with places.take("work"):
            return 1.0 / places.load

    assert await limit_after_slow(begins=True) > await limit_after_slow(begins=False)
