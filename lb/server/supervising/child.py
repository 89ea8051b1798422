"""What to run under one name, and its process of the moment."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Spec:
    """What to run under one name.

    ``env`` is added to the supervisor's own environment. ``stop_order`` orders the end: the
    lowest goes first, and the next ones are asked to end once it is gone. ``on_line`` sees each
    line of output first and returns True to keep it off the screen. A process that
    ends with a status of ``hopeless`` is not started again.
    """

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    stop_order: int = 0
    on_line: Callable[[str], bool] | None = None
    hopeless: frozenset[int] = frozenset()


class Child:
    """One name: its process of the moment, and the task that starts it again."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.process: asyncio.subprocess.Process | None = None
        self.output: asyncio.Task[None] | None = None
        self.task: asyncio.Task[None] | None = None
        self.started_at = 0.0
        self.starts = 0

    @property
    def pid(self) -> int | None:
        """Its process, while there is one."""
        return self.process.pid if self.process is not None and self.process.returncode is None else None

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal; SIGKILL reaches what it has started, too."""
        if self.pid is None:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if number is signal.SIGKILL:
                os.killpg(self.pid, number)  # with whatever it has started itself
            else:
                os.kill(self.pid, number)

    def __repr__(self) -> str:
        return f"<Child {self.spec.name} pid={self.pid} starts={self.starts}>"
