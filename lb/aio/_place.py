"""One Consul agent, and what it was told about an instance.

**Every request that was sent must be taken back.** A registration may arrive although its answer did not: the caller
was cancelled, the agent is slow, the connection broke. So each request that writes runs in a task of its own, which
is never cancelled. Once a registration was sent, leaving is repeated until the agent confirms it, or says that it
does not know the instance. With several agents, each is left in parallel, so that one that is away or hangs delays no
other.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any

from lb.aio._consul import AgentClient, ConsulError

# Seconds for a look, and for how long a caller waits for a write.
REQUEST_S = 2.0
# Seconds that a write may take at an agent that answers looks.
WRITE_S = 8.0
# Pauses before further looks, after a write without an answer: it may still be on its way.
_UNSURE_S = (0.1, 0.3, 0.6)


class Place:
    """One agent, and what was sent to it."""

    def __init__(self, client: AgentClient, id: str) -> None:
        self.client = client
        self.name = client.address.name
        self.sent = False
        """Whether the agent may have a registration of ours."""
        self.owned = False
        """Whether the agent has confirmed one."""
        self.token = ""
        """The token of the registration that was confirmed last."""
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
        """Register the instance. From here on the agent has to be left. Raises `ConsulError`."""
        self.sent = True
        await self._run(self._register(body, self.client.token()))

    async def maintenance(self, reason: str, *, within_s: float = REQUEST_S) -> None:
        """Switch maintenance on, if there is a ``reason``; else off. Raises `ConsulError`."""
        params = [("enable", "true"), ("reason", reason)] if reason else [("enable", "false")]
        await self._run(self._put(f"maintenance/{self._id}", params), within_s)

    async def deregister(self) -> None:
        """Remove the instance. Raises `ConsulError`."""
        await self._run(self._put(f"deregister/{self._id}"), WRITE_S)

    async def answered(self, within_s: float) -> None:
        """Wait until nothing that was sent before is on its way. Raises `ConsulError` when that takes longer."""
        if self._write is None:
            return
        _, pending = await asyncio.wait([self._write], timeout=within_s)
        if pending:
            raise ConsulError(self.name, f"no answer within {within_s:g} s")

    def ill(self, trouble: object) -> bool:
        """Note that it failed, because of ``trouble``. Returns whether that is news."""
        before, self._trouble = self._trouble, trouble
        return trouble != before

    def well(self) -> bool:
        """Note that it worked. Returns whether that is news."""
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
        """Remove the instance, if the agent has one that is ``ours``. Returns whether it had. Raises `ConsulError`."""
        # Look first: do not wait for an agent that does not even answer that.
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
        """Cancel what is on its way, and close the connections."""
        tasks = [task for task in (self._leaving, self._write) if task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        await self.client.close()

    async def _run(self, write: Coroutine[Any, Any, None], within_s: float = REQUEST_S) -> None:
        """Send one request at a time, each in a task of its own, which goes on if the caller is cancelled."""
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
        # Without an answer, of whatever status, the agent may have done it or not.
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
