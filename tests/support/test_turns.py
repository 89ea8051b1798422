"""A test that is marked ``alone`` is alone, and has its turn."""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.turns import Turns
from tests.sync.kit import HANGS_S, eventually

Make = Callable[[], Turns]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """Makes the turns of one more worker."""
    files = tmp_path / "queue", tmp_path / "room"
    for file in files:
        file.touch()
    with ExitStack() as stack:

        def another() -> Turns:
            turns = Turns(*files)
            stack.callback(turns.close)
            return turns

        yield another


class Taker(threading.Thread):
    """Takes a turn, which may have to wait, and ends it when it is told to."""

    def __init__(self, turns: Turns, *, alone: bool) -> None:
        super().__init__()
        self.inside, self.go = threading.Event(), threading.Event()
        self._turns, self._alone = turns, alone

    def run(self) -> None:
        """The turn."""
        self._turns.take(alone=self._alone)
        self.inside.set()
        self.go.wait(HANGS_S)
        self._turns.end()

    def leave(self) -> None:
        """Ends the turn."""
        self.go.set()
        self.join(HANGS_S)


def somebody_waits(file: Path) -> bool:
    """Whether the head of the queue waits for the room."""
    queue = os.open(file, os.O_RDONLY)
    try:
        fcntl.flock(queue, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(queue)
    return False


def test_turns_are_shared(make: Make) -> None:
    """Tests without the mark run beside each other."""
    one, other = make(), make()
    one.take(alone=False)
    other.take(alone=False)
    one.end()
    other.end()


def test_who_is_alone_waits_for_others_and_they_for_it(make: Make, tmp_path: Path) -> None:
    """It comes after those who are inside, and before those who ask later, although these could share the room."""
    inside = make()
    inside.take(alone=False)
    alone, later = Taker(make(), alone=True), Taker(make(), alone=False)
    alone.start()
    eventually(lambda: somebody_waits(tmp_path / "queue"))
    later.start()
    assert not alone.inside.is_set()
    inside.end()
    assert alone.inside.wait(HANGS_S)
    assert not later.inside.is_set()
    alone.leave()
    assert later.inside.wait(HANGS_S)
    later.leave()
