"""The faults, one function each: what is broken while 64 calls are in flight, and what that must cost.

A row gets a rig and the seconds its fault lasts, and returns lines of the table (most one).
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from tests.chaos.load import Load
from tests.chaos.rig import LATENCY_S, Rig, Told

_RESETS_S = 0.1


@dataclass
class Line:
    """One line of the table. ``broken`` names promises that did not hold, ``missed`` goals of speed."""

    row: str
    name: str
    load: Load
    notes: list[str] = field(default_factory=list)
    promises: int = 1
    broken: list[str] = field(default_factory=list)
    goals: int = 0
    missed: list[str] = field(default_factory=list)

    def promise(self, kept: bool, what: str) -> None:
        """One more promise."""
        self.promises += 1
        if not kept:
            self.broken.append(what)

    def goal(self, met: bool, what: str) -> None:
        """One more goal of speed."""
        self.goals += 1
        if not met:
            self.missed.append(what)


@dataclass(frozen=True)
class Row:
    """One fault: its number in the table, how long it lasts in the full form and in the short one."""

    number: str
    name: str
    run: Callable[[Rig, Row, float], Awaitable[list[Line]]]
    full_s: float = 8.0
    short_s: float = 1.0


def _line(row: Row, load: Load, name: str = "") -> Line:
    """A line with the promise of every row: no call failed."""
    line = Line(row.number, name or row.name, load)
    if load.figures.failed:
        line.broken.append(f"{load.figures.failed} of {load.figures.calls} calls failed")
    return line


async def healthy(rig: Rig, row: Row, lasts_s: float) -> list[Line]:
    """Nothing is broken: what the other rows are compared with."""
    servers = await rig.servers("abc")
    async with Load(await rig.channel(Told(*servers))) as load:
        await load.warm("a", "b", "c")
        load.fault()
        await asyncio.sleep(lasts_s)
    return [_line(row, load)]


async def _signalled(rig: Rig, row: Row, lasts_s: float, number: signal.Signals, names: str, hit: str) -> list[Line]:
    servers = await rig.servers(names)
    async with Load(await rig.channel(Told(*servers))) as load:
        await load.warm(*names)
        load.fault(*hit)
        for server in servers:
            if server.id in hit:
                server.signal(number)
        await asyncio.sleep(lasts_s)
    return [_line(row, load)]


async def killed(rig: Rig, row: Row, lasts_s: float) -> list[Line]:
    """One of three is gone at once: its connections end."""
    return await _signalled(rig, row, lasts_s, signal.SIGKILL, "abc", "a")


async def stopped(rig: Rig, row: Row, lasts_s: float) -> list[Line]:
    """One of three hangs: its connections stand, the kernel accepts more, nothing answers."""
    return await _signalled(rig, row, lasts_s, signal.SIGSTOP, "abc", "a")


async def all_but_one(rig: Rig, row: Row, lasts_s: float) -> list[Line]:
    """Four of five are gone at once."""
    return await _signalled(rig, row, lasts_s, signal.SIGKILL, "abcde", "abcd")


async def _proxied(rig: Rig, row: Row, lasts_s: float, mode: str, every_s: float = 0.0) -> list[Line]:
    servers = await rig.servers("abc")
    proxy = await rig.proxy(servers[0])
    async with Load(await rig.channel(Told(proxy, *servers[1:]))) as load:
        await load.warm("a", "b", "c")
        load.fault("a")
        loop = asyncio.get_running_loop()
        until = loop.time() + lasts_s
        await proxy.tell(mode=mode)
        while every_s and loop.time() < until:
            await asyncio.sleep(every_s)
            await proxy.tell(mode=mode)
        await asyncio.sleep(until - loop.time())
    return [_line(row, load)]


async def refusing(rig: Rig, row: Row, lasts_s: float) -> list[Line]:
    """One of three no longer listens, and closed the connections it had."""
    return await _proxied(rig, row, lasts_s, "refuse")


async def black_hole(rig: Rig, row: Row, lasts_s: float) -> list[Line]:
    """What is sent to one of three vanishes, on the old connection and on new ones."""
    return await _proxied(rig, row, lasts_s, "hole")


async def resets(rig: Rig, row: Row, lasts_s: float) -> list[Line]:
    """The connection to one of three is reset ten times a second, in the midst of calls."""
    return await _proxied(rig, row, lasts_s, "reset", _RESETS_S)


async def half_failing(rig: Rig, row: Row, lasts_s: float) -> list[Line]:
    """One of three answers UNAVAILABLE to half its calls."""
    servers = await rig.servers("abc")
    async with Load(await rig.channel(Told(*servers))) as load:
        await load.warm("a", "b", "c")
        load.fault("a")
        await servers[0].tell(failing=0.5)
        await asyncio.sleep(lasts_s)
    return [_line(row, load)]


ROWS = (
    Row("0", "all healthy", healthy),
    Row("1", "SIGKILL one of three", killed),
    Row("2", "SIGSTOP one of three", stopped, short_s=1.5),
    Row("3", "one refuses connections", refusing),
    Row("4", "black hole", black_hole, short_s=1.5),
    Row("5", "resets in mid-call", resets),
    Row("6", "one fails half its calls", half_failing),
    Row("9", "all but one of five die", all_but_one),
)
