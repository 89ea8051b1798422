"""The link between Consul and a channel. `lb.core.watch` decides what to ask and what to believe.

Consul answers "429 too many" to a client with more than 200 connections, so channels of one
loop that ask the same question of the same agents share one watch, and with it one connection.
"""

from __future__ import annotations

import asyncio
import logging
import random
from dataclasses import dataclass
from weakref import WeakKeyDictionary

from lb.aio._consul import AgentAddress, AgentClient, ConsulError, agents_from, load
from lb.core.consul_health import Answer, parse_answer
from lb.core.endpoint import Listener, Resolution
from lb.core.peers import one_line
from lb.core.target import ConsulTarget
from lb.core.watch import HOLD_S, WAIT_S, Query, Watch

_log = logging.getLogger("lb.consul")


@dataclass(frozen=True, slots=True)
class _Question:
    """What a watch asks. Resolvers with the same question share one watch."""

    agents: tuple[AgentAddress, ...]
    service: str
    dc: str
    tags: tuple[str, ...]
    near: str
    wait_s: float
    hold_s: float

    @property
    def params(self) -> list[tuple[str, str]]:
        params = [("dc", self.dc)] if self.dc else []
        params += [("near", self.near)] if self.near else []
        return params + [("tag", tag) for tag in self.tags]

    @property
    def words(self) -> str:
        parts = [f"tag {tag}" for tag in self.tags]
        return ", ".join(parts + ([f"dc {self.dc}"] if self.dc else []))


class ConsulResolver:
    """The usable instances of a service: passing or in warning, with their weights.

    Without ``agent`` in the target the agents come from ``consul`` or from the environment
    (``CONSUL_HTTP_ADDR``; several are tried in turn). Raises ``ValueError`` when that names
    no agent, and ``ImportError`` without Consul's client. ``wait_s`` bounds one blocking query,
    ``hold_s`` is how long instances are kept that Consul forgot.
    """

    def __init__(
        self,
        target: ConsulTarget,
        *,
        consul: str | None = None,
        wait_s: float = WAIT_S,
        hold_s: float = HOLD_S,
    ) -> None:
        agents = agents_from(target.agent or consul)
        load(f"target {target.text!r}")
        self._question = _Question(agents, target.service, target.dc, target.tags, target.near, wait_s, hold_s)
        self._shared: _SharedWatch | None = None
        self._listener: Listener | None = None

    def start(self, listener: Listener) -> None:
        """Begin to watch, in the running loop, or join a watch that asks the same."""
        loop = asyncio.get_running_loop()
        watches = _watches.setdefault(loop, {})
        shared = watches.get(self._question)
        if shared is None:
            shared = watches[self._question] = _SharedWatch(self._question, loop)
        self._shared, self._listener = shared, listener
        shared.join(listener)

    async def close(self) -> None:
        """Leave the watch. When the last one leaves, its task and its connections end."""
        shared, listener = self._shared, self._listener
        self._shared = self._listener = None
        if shared is None or listener is None:
            return
        if shared.leave(listener):
            _watches[shared.loop].pop(self._question, None)
            await shared.close()

    def __repr__(self) -> str:
        agents = ",".join(agent.name for agent in self._question.agents)
        return f"ConsulResolver({self._question.service!r} at {agents})"


class _SharedWatch:
    """One watch, its task, and its listeners."""

    def __init__(self, question: _Question, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._question = question
        self._watch = Watch(
            question.service,
            asked=question.words,
            agents=len(question.agents),
            keep_order=bool(question.near),
            wait_s=question.wait_s,
            hold_s=question.hold_s,
        )
        self._rng = random.Random()
        self._clients: dict[AgentAddress, AgentClient] = {}
        self._listeners: list[Listener] = []
        self._resolution: Resolution | None = None
        self._error = ""
        self._said: dict[AgentAddress, object] = {}
        """What the log last said about each agent that fails."""
        self._task = loop.create_task(self._run(), name=f"lb consul watch {question.service}")

    def join(self, listener: Listener) -> None:
        self._listeners.append(listener)
        if self._resolution is not None:
            self._tell(listener, self._resolution)
        if self._error:
            self._tell(listener, self._error)

    def leave(self, listener: Listener) -> bool:
        """Remove a listener. Returns whether it was the last one."""
        self._listeners = [other for other in self._listeners if other is not listener]
        return not self._listeners

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])

    async def _run(self) -> None:
        try:
            await self._pump()
        finally:  # also when the loop ends and nobody has closed the channel
            for client in self._clients.values():
                await client.close()

    async def _pump(self) -> None:
        watch, clock = self._watch, self.loop.time
        while True:
            if (delay := watch.pace(clock())) > 0:
                await asyncio.sleep(delay)
                continue
            agent, asked_at = self._question.agents[watch.agent], clock()
            try:
                answer = await self._ask(agent, watch.query)
            except Exception as error:  # noqa: BLE001  # a bug, here or in py-consul: the set must not stay as it is for ever
                if isinstance(error, ConsulError) and error.lost and watch.cut(clock() - asked_at):
                    continue
                delay = watch.failed(self._rng, overloaded=isinstance(error, ConsulError) and error.overloaded)
                self._failed(agent, error)
                await asyncio.sleep(delay)
                continue
            self._error = ""
            self._said.pop(agent, None)
            if not self._changed(watch.answered(clock(), answer, f"consul {agent.name}")):
                for listener in tuple(self._listeners):
                    self._tell(listener, None)

    async def _ask(self, agent: AgentAddress, query: Query) -> Answer:
        params = self._question.params + ([("stale", "")] if query.stale else [])
        if query.index is not None:
            params += [("index", str(query.index)), ("wait", f"{round(query.wait_s * 1000)}ms")]
        client = self._clients.get(agent)
        if client is None:
            client = self._clients[agent] = AgentClient(agent)
        reply = await client.get(f"/v1/health/service/{self._question.service}", params, timeout_s=query.timeout_s)
        if reply.status != 200:
            raise client.refused(reply)
        try:
            return parse_answer(reply.headers, reply.json())
        except ValueError as error:
            raise ConsulError(agent.name, one_line(str(error))) from error

    def _failed(self, agent: AgentAddress, error: Exception) -> None:
        ours = isinstance(error, ConsulError)
        self._error = str(error) if ours else f"consul {agent.name}: {error!r}"
        # Agents are asked in turn, and their words may differ each time (a request's id): each trouble is told once.
        said = (isinstance(error, ConsulError) and error.status) or self._error
        if self._said.get(agent) != said:
            _log.warning("%s: %s", self._question.service, self._error, exc_info=None if ours else error)
        self._said[agent] = said
        for listener in tuple(self._listeners):
            self._tell(listener, self._error)

    def _tell(self, listener: Listener, news: Resolution | str | None) -> None:
        """Tell one listener. If it raises, the others still hear."""
        try:
            if isinstance(news, Resolution):
                listener.update(news)
            elif news is None:
                listener.confirm()
            else:
                listener.error(news)
        except Exception:  # noqa: BLE001  # a user's listener may raise anything
            _log.exception("%s: a listener raised", self._question.service)

    def _changed(self, resolution: Resolution | None) -> bool:
        """Tell all listeners of a change, if there is one. Returns whether there was."""
        for remark in self._watch.remarks():
            _log.warning("%s: %s", self._question.service, remark)
        if resolution is None:
            return False
        if self._resolution != resolution:
            addresses = ", ".join(f"{e.id}={e.address} x{e.weight}" for e in resolution.endpoints)
            _log.info(
                "%s: %d endpoints (%s) [%s]",
                self._question.service,
                len(resolution.endpoints),
                resolution.note,
                addresses,
            )
        self._resolution = resolution
        for listener in tuple(self._listeners):
            self._tell(listener, resolution)
        return True


_watches: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[_Question, _SharedWatch]] = WeakKeyDictionary()
