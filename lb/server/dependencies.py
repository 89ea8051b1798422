"""Whether what a server depends on is healthy: each dependency is asked every second."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable, Mapping

Check = Callable[[], Awaitable[object]]
"""Raises, or does not return, while something that the server depends on is broken."""

_log = logging.getLogger("lb.server")

_EVERY_S = 1.0
_TIMEOUT_S = 2.0
# One slow answer on a busy machine is not an outage.
_FAILURES = 2


class Dependencies:
    """What a server depends on, by name.

    Until all of them were well once, one failed check is enough for a dependency to be broken. Later it takes two
    in a row.
    """

    def __init__(self, checks: Mapping[str, Check]) -> None:
        self._checks = dict(checks)
        self._failures = dict.fromkeys(checks, 0)
        self._well_once = not checks
        self._told: dict[str, str] = {}
        self.unhealthy: dict[str, str] = dict.fromkeys(checks, "not checked yet")
        """Each by name, and why it is not healthy; empty when it is."""

    @property
    def broken(self) -> dict[str, str]:
        """Those that are not healthy, and why."""
        return {name: why for name, why in self.unhealthy.items() if why}

    def tell(self, server: str) -> dict[str, str]:
        """Log what is broken for another reason than before, or that nothing is any more. Those that are broken."""
        broken = self.broken
        if broken and broken != self._told:
            _log.warning("%s: not serving: %s", server, "; ".join(f"{name}: {why}" for name, why in broken.items()))
        elif self._told and not broken:
            _log.info("%s: serving: every check passes again", server)
        self._told = broken
        return broken

    async def watch(self, judge: Callable[[], Awaitable[None]]) -> None:
        """Check for ever, and call ``judge`` after each round. Without dependencies there is one round."""
        while True:
            await asyncio.gather(*(self._ask(name, check) for name, check in self._checks.items()))
            self._well_once = self._well_once or not self.broken
            await judge()
            if not self._checks:
                return
            await asyncio.sleep(_EVERY_S)

    async def _ask(self, name: str, check: Check) -> None:
        why = await _run(check)
        self._failures[name] = self._failures[name] + 1 if why else 0
        if not why or self._failures[name] >= _FAILURES or not self._well_once:
            self.unhealthy[name] = why

    def __repr__(self) -> str:
        return f"<Dependencies {self.unhealthy}>"


async def _run(check: Check) -> str:
    """Why a check fails; empty when it passes."""
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            answer: object = check()
            if not inspect.isawaitable(answer):
                return "the check is a plain function; with asyncio it is `async def`"
            await answer
    except TimeoutError:
        return f"no answer within {_TIMEOUT_S:g} s"
    except Exception as error:  # noqa: BLE001 - whatever a check raises is its answer
        return str(error) or type(error).__name__
    return ""
