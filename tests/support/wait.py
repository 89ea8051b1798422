"""Waiting for a condition, with a deadline: what tests do instead of sleeping."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")


async def until(ask: Callable[[], Awaitable[T]], *, within_s: float, what: str, every_s: float = 0.05) -> T:
    """Ask until the answer is truthy, and return it. Raises ``TimeoutError`` naming ``what`` and the last answer."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + within_s
    while not (answer := await ask()):
        if loop.time() > deadline:
            raise TimeoutError(f"not within {within_s:g} s: {what}; the last answer was {answer!r}")
        await asyncio.sleep(every_s)
    return answer


async def eventually(condition: Callable[[], object], what: str = "", within_s: float = 30.0) -> None:
    """Wait until ``condition()`` is true. Raises ``TimeoutError`` naming ``what``."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + within_s
    while not condition():
        if loop.time() > deadline:
            raise TimeoutError(f"not within {within_s:g} s: {what or condition}")
        await asyncio.sleep(0.002)


def longer(first_s: float) -> tuple[float, ...]:
    """Times to try one after the other where a test needs one that runs out and a busy machine may need more."""
    return tuple(first_s * 5**turn for turn in range(4))
