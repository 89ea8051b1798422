"""A process of the mesh: its settings, its log, its traces, and its life."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import TypeVar

from lb.server import Life, NotOpenError, live
from services.runtime import logs, telemetry
from services.runtime.describe import version
from services.runtime.settings import Settings, SettingsError, load

S = TypeVar("S", bound=Settings)


def main(name: str, kind: type[S], make: Callable[[S, telemetry.Telemetry], Life]) -> None:
    """Run a process named ``name``. Exit status 2, and one line, when a setting is wrong.

    ``kind`` is what it reads from the environment; ``make`` is called in the running loop.
    """
    with told_in_one_line(name):
        settings = load(kind)
        identity = settings.identity(name)
        logs.setup(name, identity, settings.log_level)
        traces = telemetry.setup(name, identity, version())
        try:
            run(lambda: make(settings, traces), settings)
        finally:
            traces.close()


def run(make: Callable[[], Life], settings: Settings) -> None:
    """Live the life that ``make`` makes in a new loop. Raises ``SettingsError``."""

    async def whole() -> None:
        await live(make(), parent_fd=settings.parent_fd, leave_s=settings.drain_s)

    try:
        asyncio.run(whole())
    except NotOpenError as error:
        raise SettingsError(f"MESH_PARENT_FD={error}") from None


@contextlib.contextmanager
def told_in_one_line(name: str) -> Iterator[None]:
    """A block whose ``SettingsError`` ends the process with one line and exit status 2."""
    try:
        yield
    except SettingsError as error:
        print(f"{name}: {error}", file=sys.stderr)
        sys.exit(2)
