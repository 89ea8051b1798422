"""What a test may leave behind: nothing.

A snapshot before and one after; what is new in the second and does not go away within the
grace is a leak. Looked at: tasks of the session's loop, threads, child processes, listening
sockets and open regular files of this process (the last three where ``/proc`` exists).

Not leaks: the one poller thread that ``grpc.aio`` keeps for the life of the process, core's own
threads (Python meets them when they run a plugin for credentials, and calls them dummies), and
the idle threads of the loop's default executor.
"""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from dataclasses import dataclass, field
from pathlib import Path

_PROC = "/proc/self"
_HAS_PROC = os.path.exists(_PROC)
_KEPT_THREADS = ("(_poll_wrapper)", "Dummy-", "asyncio_")
_FAMILIES = (socket.AF_INET, socket.AF_INET6)


@dataclass
class Snapshot:
    """What is alive at one moment. Keys identify, values describe."""

    found: dict[object, str] = field(default_factory=dict)

    def new_since(self, before: Snapshot) -> dict[object, str]:
        """What this one has and ``before`` has not."""
        return {key: text for key, text in self.found.items() if key not in before.found}

    def allow(self, others: dict[object, str]) -> None:
        """Count ``others`` as having been there already."""
        self.found.update(others)


def take(loop: asyncio.AbstractEventLoop | None) -> Snapshot:
    """Look at what is alive now. ``loop`` must not be running in another thread."""
    found: dict[object, str] = {}
    if loop is not None and not loop.is_closed():
        running = asyncio.tasks.current_task(loop) if loop.is_running() else None
        found |= {task: f"task {task!r}" for task in asyncio.all_tasks(loop) if task is not running}
    for thread in threading.enumerate():
        if not any(kept in thread.name for kept in _KEPT_THREADS):
            found[thread] = f"thread {thread.name}"
    for pid in _children():
        found["pid", pid] = f"child process {pid}: {_command(pid)}"
    found |= _descriptors()
    return Snapshot(found)


def _children() -> list[int]:
    pids: list[int] = []
    if _HAS_PROC:
        for thread in os.listdir(f"{_PROC}/task"):
            try:
                with open(f"{_PROC}/task/{thread}/children") as children:
                    pids += map(int, children.read().split())
            except (FileNotFoundError, ProcessLookupError):  # that thread has ended
                continue
    return pids


def _command(pid: int) -> str:
    try:
        return (
            Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip() or "zombie"
        )
    except (FileNotFoundError, ProcessLookupError):
        return "gone"


def _descriptors() -> dict[object, str]:
    found: dict[object, str] = {}
    if not _HAS_PROC:
        return found
    for fd in os.listdir(f"{_PROC}/fd"):
        try:
            target = os.readlink(f"{_PROC}/fd/{fd}")
        except FileNotFoundError:
            continue
        if target.startswith("socket:["):
            if port := _listening_port(int(fd)):
                found["listen", target] = f"listening socket on port {port}"
        elif target.startswith("/") and not target.startswith(("/dev/", "/proc/")):
            found["file", target] = f"open file {target}"
    return found


def _listening_port(fd: int) -> int:
    """0 when it does not listen. (``/proc/net/tcp`` would tell, too, in thirty times the time.)"""
    try:
        with socket.socket(fileno=os.dup(fd)) as copy:
            if copy.family in _FAMILIES and copy.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                port: int = copy.getsockname()[1]
                return port
    except OSError:  # closed meanwhile
        pass
    return 0
