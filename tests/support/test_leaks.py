"""The leak check sees what it is there to see."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.support import leaks

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")


async def test_a_task_is_seen_until_it_has_ended() -> None:
    """A task that still runs is new; once it has ended it is not."""
    loop = asyncio.get_running_loop()
    before = leaks.take(loop)
    task = asyncio.create_task(asyncio.Event().wait())
    assert list(leaks.take(loop).new_since(before)) == [task]
    task.cancel()
    await asyncio.wait([task])
    assert not leaks.take(loop).new_since(before)


def test_a_thread_is_seen() -> None:
    """A thread that still runs is new; once joined it is not."""
    before = leaks.take(None)
    go = threading.Event()
    thread = threading.Thread(target=go.wait)
    thread.start()
    assert list(leaks.take(None).new_since(before)) == [thread]
    go.set()
    thread.join()
    assert not leaks.take(None).new_since(before)


@linux
def test_a_child_process_is_seen_even_as_a_zombie() -> None:
    """A child counts until somebody has waited for it."""
    before = leaks.take(None)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        assert list(leaks.take(None).new_since(before)) == [("pid", child.pid)]
        child.kill()
    assert not leaks.take(None).new_since(before)


@linux
def test_a_listening_socket_and_an_open_file_are_seen(tmp_path: Path) -> None:
    """Both are new while they are open."""
    before = leaks.take(None)
    with socket.create_server(("127.0.0.1", 0)) as server, (tmp_path / "x").open("w"):
        texts = list(leaks.take(None).new_since(before).values())
        expected = {f"listening socket on port {server.getsockname()[1]}", f"open file {tmp_path / 'x'}"}
        assert set(texts) == expected
    assert not leaks.take(None).new_since(before)
