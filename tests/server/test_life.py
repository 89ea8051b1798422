"""The life of a process: in which order its parts come, and what ends them."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from typing import Any

import pytest

from lb.server import Life, NotOpenError, live

END = signal.SIGUSR1


def end() -> None:
    """Give this process a reason to end."""
    os.kill(os.getpid(), END)


class Told(Life):
    """A life that writes down what happens to it. ``hangs`` names the parts that end only when they are cancelled."""

    def __init__(self, *hangs: str, on: Callable[[str], None] = lambda part: None) -> None:
        self.told: list[str] = []
        self._hangs = hangs
        self._on = on

    async def start(self) -> None:
        """First."""
        await self._part("start")

    async def run(self) -> None:
        """Second."""
        await self._part("run")

    async def leave(self, because: str) -> None:
        """Third."""
        await self._part("leave", because)

    async def close(self) -> None:
        """Last."""
        await self._part("close")

    async def _part(self, name: str, *words: str) -> None:
        self.told.append(" ".join((name, *filter(None, words))))
        self._on(name)
        if name in self._hangs:
            try:
                await asyncio.Event().wait()
            finally:
                self.told.append(f"{name} was cancelled")


async def lived(life: Told, parent_fd: int | None = None) -> list[str]:
    """What happened in a whole life."""
    async with asyncio.timeout(30):
        await live(life, parent_fd=parent_fd, signals=(END,))
    return life.told


def at(part: str, times: int = 1) -> Callable[[str], None]:
    """Reasons to end while this part is under way."""

    def on(name: str) -> None:
        for _ in range(times if name == part else 0):
            asyncio.get_running_loop().call_soon(end)

    return on


async def test_a_life_that_ends_by_itself() -> None:
    """Each part comes once, in order, and leaving is told no reason."""
    assert await lived(Told()) == ["start", "run", "leave", "close"]


async def test_the_first_reason_ends_the_work() -> None:
    """What runs is cancelled; then the process leaves, and knows why."""
    assert await lived(Told("run", on=at("run"))) == ["start", "run", "run was cancelled", "leave SIGUSR1", "close"]


async def test_a_reason_while_it_starts() -> None:
    """The start is cancelled, nothing runs; what was begun is left well."""
    told = await lived(Told("start", on=at("start")))
    assert told == ["start", "start was cancelled", "leave SIGUSR1", "close"]


async def test_the_second_reason_ends_the_leaving() -> None:
    """The first one lets it leave, the second one does not wait for that."""

    def on(name: str) -> None:
        if name in ("run", "leave"):
            asyncio.get_running_loop().call_soon(end)

    told = await lived(Told("run", "leave", on=on))
    assert told[2:] == ["run was cancelled", "leave SIGUSR1", "leave was cancelled", "close"]


async def test_leaving_has_a_time(caplog: pytest.LogCaptureFixture) -> None:
    """Who hangs then is cancelled and closed, without a second reason; the log says so."""
    life = Told("run", "leave", on=at("run"))
    async with asyncio.timeout(30):
        await live(life, signals=(END,), leave_s=0.001)
    assert life.told[2:] == ["run was cancelled", "leave SIGUSR1", "leave was cancelled", "close"]
    assert "the time for leaving has passed, 0.001 s" in caplog.text


@pytest.mark.parametrize("leave_s", [None, 60.0])
async def test_a_timeout_of_its_own_is_an_error(leave_s: float | None) -> None:
    """One that leaving raises is not taken for the end of its time."""

    def on(name: str) -> None:
        if name == "leave":
            raise TimeoutError("of its own")

    life = Told(on=on)
    with pytest.raises(TimeoutError, match="of its own"):
        await live(life, signals=(END,), leave_s=leave_s)
    assert life.told == ["start", "run", "leave", "close"]


@pytest.mark.parametrize(("leave_s", "error"), [(-1.0, ValueError), ("30", TypeError)])
async def test_a_wrong_time_is_told(leave_s: Any, error: type[Exception]) -> None:
    """By name, and nothing starts."""
    life = Told()
    with pytest.raises(error, match=r"^leave_s is "):
        await live(life, signals=(END,), leave_s=leave_s)
    assert life.told == []


async def test_one_reason_ends_the_leaving_of_a_life_that_ended_by_itself() -> None:
    """It leaves already: who asks for its end once does not wait."""
    assert await lived(Told("leave", on=at("leave"))) == ["start", "run", "leave", "leave was cancelled", "close"]


@pytest.mark.parametrize("part", ["start", "run", "leave"])
async def test_an_error_ends_the_life(part: str) -> None:
    """It is raised, no other part follows, and everything is closed."""

    def on(name: str) -> None:
        if name == part:
            raise RuntimeError("broken")

    life = Told(on=on)
    with pytest.raises(RuntimeError, match="broken"):
        await lived(life)
    parts = ["start", "run", "leave"]
    assert life.told == [*parts[: parts.index(part) + 1], "close"]


async def test_the_supervisors_end_is_a_reason() -> None:
    """End-of-file is one, whatever came before it; the descriptor stays open, and is watched no more."""
    reading, writing = os.pipe()

    def on(name: str) -> None:
        if name == "run":
            os.write(writing, b"not yet")
            os.close(writing)

    try:
        assert (await lived(Told("run", on=on), reading))[2:] == [
            "run was cancelled",
            "leave the supervisor is gone",
            "close",
        ]
        assert not asyncio.get_running_loop().remove_reader(reading)
    finally:
        os.close(reading)


async def test_a_descriptor_that_is_not_open() -> None:
    """It is named at once; nothing starts."""
    reading, writing = os.pipe()
    os.close(reading)
    os.close(writing)
    life = Told()
    with pytest.raises(NotOpenError, match=f"^{reading}: "):
        await lived(life, reading)
    assert life.told == []


async def test_signals_are_given_back() -> None:
    """After a life they do what they did before it."""
    before = signal.getsignal(END)
    await lived(Told())
    assert signal.getsignal(END) == before


async def test_signals_are_heard_in_the_main_thread_alone() -> None:
    """Elsewhere a life says so, and is closed."""
    life = Told()
    with pytest.raises(RuntimeError, match=r"only the main thread hears signals; elsewhere pass signals=\(\)"):
        await asyncio.to_thread(lambda: asyncio.run(live(life, signals=(END,))))
