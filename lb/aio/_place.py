"""One Consul agent, and what was sent to it of an instance.

**What was sent is owned.** A registration may arrive although its answer did not: the caller was
cancelled, the agent is slow, the line broke. So a request that writes runs in a task of its own,
which nobody cancels; from the moment it is sent the instance is left at that agent, until the
agent confirms that, or says that it does not know the instance. With several agents each is left
by itself and at the same time, so that one that is away or hangs delays no other.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any

from lb.aio._consul import AgentClient, ConsulError

# For a look, and for how long a caller waits for a write.
REQUEST_S = 2.0
# For how long a write may take at an agent that answers looks.
WRITE_S = 8.0
# Looks after a write whose fate is not known: it may still be on its way.
_UNSURE_S = (0.1, 0.3, 0.6)


class Place:
    """One agent, and what was sent to it."""

    def __init__(self, client: AgentClient, id: str) -> None:
        self.client = client
        self.name = client.address.name
        self.sent = False
        """Whether a registration was sent that may be there."""
        self.owned = False
        """Whether one was confirmed."""
        self.token = ""
        """With which it was registered."""
        self._id = id
        self._trouble: object = None
        self._leaving: asyncio.Task[None] | None = None
        self._unsure = False
        self._write: asyncio.Task[None] | None = None

    async def look(self) -> dict[str, Any] | None:
        """What the agent knows of the instance: its service and its checks; None when it does not."""
        reply = await self.client.get(f"/v1/agent/health/service/id/{self._id}", timeout_s=REQUEST_S)
        if reply.status == 404:
            return None
        # The status code tells the health: 200 passing, 429 warning, 503 critical.
        try:
            body = reply.json()
            if reply.status in (200, 429, 503) and isinstance(body, dict) and isinstance(body["Service"], dict):
                return body
        except (KeyError, ValueError):
            pass
        raise self.client.refused(reply)

    async def register(self, body: Mapping[str, Any]) -> None:
        """Raises `ConsulError`. From here on the agent has to be left."""
        self.sent = True
        await self._run(self._register(body, self.client.token()))

    async def maintenance(self, reason: str, *, within_s: float = REQUEST_S) -> None:
        """Switch it on with a reason, off with none. Raises `ConsulError`."""
        params = [("enable", "true"), ("reason", reason)] if reason else [("enable", "false")]
        await self._run(self._put(f"maintenance/{self._id}", params), within_s)

    async def deregister(self) -> None:
        """Raises `ConsulError`."""
        await self._run(self._put(f"deregister/{self._id}"), WRITE_S)

    async def answered(self, within_s: float) -> None:
        """Wait until nothing that was sent before is on its way. Raises `ConsulError` when that takes longer."""
        if self._write is None:
            return
        _, pending = await asyncio.wait([self._write], timeout=within_s)
        if pending:
            raise ConsulError(self.name, f"no answer within {within_s:g} s")

    def ill(self, trouble: object) -> bool:
        """It could not be used, because of ``trouble``. Whether that is news."""
        before, self._trouble = self._trouble, trouble
        return trouble != before

    def well(self) -> bool:
        """It could be used. Whether that is news."""
        before, self._trouble = self._trouble, None
        return before is not None

    @property
    def leaving(self) -> bool:
        """Whether the instance is being left here in the background."""
        return self._leaving is not None and not self._leaving.done()

    def begin_to_leave(self, work: Coroutine[Any, Any, None]) -> None:
        """Leave in the background; `close` ends that."""
        self._leaving = asyncio.create_task(work, name=f"lb registration {self._id} moves")

    async def leave(self, ours: Callable[[dict[str, Any] | None], bool]) -> bool:
        """Deregister the instance, if it is there. Whether it was. Raises `ConsulError`."""
        # First a look: an agent that does not even answer that need not be waited for.
        known = await self.look()
        if self._write is not None:
            await self.answered(WRITE_S)
            known = await self.look()
        found, pauses = False, iter(_UNSURE_S)
        while True:
            # A successor may have taken the id: its registration is not ours to remove.
            if ours(known):
                await self.deregister()
                found = True
            if not self._unsure or (pause_s := next(pauses, None)) is None:
                break
            await asyncio.sleep(pause_s)
            known = await self.look()
        self.sent = self.owned = self._unsure = False
        return found

    async def close(self) -> None:
        """End what is on its way."""
        tasks = [task for task in (self._leaving, self._write) if task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        await self.client.close()

    async def _run(self, write: Coroutine[Any, Any, None], within_s: float = REQUEST_S) -> None:
        """Send one after the other, each in a task of its own: the caller may be cancelled, what was sent goes on."""
        try:
            while self._write is not None:
                await self.answered(within_s)
        except BaseException:
            write.close()
            raise
        task = self._write = asyncio.create_task(write, name=f"lb registration {self._id} at {self.name}")
        task.add_done_callback(self._done)
        await self.answered(within_s)
        task.result()

    def _done(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        # An answer is an answer, whatever its status; without one the agent may have done it or not.
        self._unsure = isinstance(error, ConsulError) and error.status is None
        if self._write is task:
            self._write = None

    async def _register(self, body: Mapping[str, Any], token: str) -> None:
        await self._put("register", body=body)
        self.owned, self.token = True, token

    async def _put(self, path: str, params: Sequence[tuple[str, str]] = (), body: object = None) -> None:
        reply = await self.client.put(f"/v1/agent/service/{path}", params, body, timeout_s=WRITE_S)
        if reply.status not in (200, 404):  # 404: it does not know the instance
            raise self.client.refused(reply)
