"""Turns of pytest-xdist's workers: a test that is marked ``alone`` runs while no other test does.

A worker takes a turn for each of its tests, and shares it with the others; for a test that is marked it takes one for
itself, and keeps it for the marked tests of the same file that follow.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest


class Turns:
    """The turns of one worker: locks on two files that every worker finds; nothing is written to them."""

    def __init__(self, queue: Path, room: Path) -> None:
        self._queue, self._room = (os.open(path, os.O_RDONLY) for path in (queue, room))

    def take(self, *, alone: bool) -> None:
        """Waits until it is there."""
        # Who waits for the room is at the head of the queue, and stays there. Without a queue those who share the
        # room would follow each other, and who wants it alone would wait for ever.
        fcntl.flock(self._queue, fcntl.LOCK_EX)
        fcntl.flock(self._room, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        fcntl.flock(self._queue, fcntl.LOCK_UN)

    def end(self) -> None:
        """Others may go on."""
        fcntl.flock(self._room, fcntl.LOCK_UN)

    def close(self) -> None:
        """No more turns."""
        os.close(self._queue)
        os.close(self._room)


class Worker:
    """Takes the turns of this process' tests."""

    def __init__(self) -> None:
        self._turns = Turns(Path(__file__).parent, Path(__file__))
        self._alone = False

    def begin(self, item: pytest.Item) -> None:
        """Waits until the test may run."""
        if not self._alone:
            self._alone = _alone(item)
            self._turns.take(alone=self._alone)

    def end(self, item: pytest.Item, following: pytest.Item | None) -> None:
        """The test is over, and so are its fixtures, as far as ``following`` does not need them."""
        if not (self._alone and following is not None and _alone(following) and following.path == item.path):
            self._alone = False
            self._turns.end()


def _alone(item: pytest.Item) -> bool:
    return item.get_closest_marker("alone") is not None


def worker() -> Worker | None:
    """For this process; None where no worker is beside it."""
    return Worker() if "PYTEST_XDIST_WORKER" in os.environ else None
