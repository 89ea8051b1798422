"""An instance's place in Consul, and how it is kept.

::

    async with lb.aio.registration("catalog", address="10.0.0.7:50051", id="catalog-1", weight=2) as registration:
        ...
        await registration.set_weight(5)  # in place: the check keeps its status
        ...
        await registration.drain()  # no new calls
        await asyncio.sleep(1)  # clients notice
    # gone from Consul

Consul being away is no reason for a server not to serve: registering is tried until it works,
and said in the log once. Every ``reassert_s`` the agent is asked whether it still knows the
instance. An agent that restarted may not (consul#4955): then it is registered again, with the
status its check had last, so that clients lose nothing.

Only what is missing is put back. A weight, a tag or maintenance that somebody changed in Consul
stands, and is what is registered should the agent forget it. An instance whose id was taken
by another address (a successor with the same name) gives way.

Weight 0: Consul refuses it for a passing instance, so it is registered as weight 1 with the
metadata ``weight=0``, which the resolver of ``lb`` reads as 0. Other readers of Consul see 1.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from lb.aio._consul import AgentClient, ConsulError, agents_from
from lb.core import checks
from lb.core.consul_health import WEIGHT_META, ZONE_META
from lb.core.target import join_host_port, split_host_port

_log = logging.getLogger("lb.consul")

_REQUEST_S = 2.0
_LEAVE_S = 3.0
_MAX_WEIGHT = 65535
# Consul: "the minimum timeout is 1 minute".
_DEREGISTER_LEAST_S = 60.0
# What a server may listen on, but nobody can be sent to.
_WILDCARDS = ("0.0.0.0", "::", "*")
_STATUSES = ("critical", "warning", "passing")


class Registration:
    """An instance registered in Consul; made by :func:`registration`, used as an async context manager."""

    def __init__(
        self,
        service: str,
        address: str,
        service_id: str,
        weight: int,
        warning_weight: int,
        tags: Sequence[str],
        meta: Mapping[str, str],
        check: Mapping[str, Any] | None,
        consul: str | None,
        status: str,
        reassert_s: float,
    ) -> None:
        self._service = service
        self._host, self._port = split_host_port(address, where="registration: address")
        self._id = service_id
        self._weight = weight
        self._warning_weight = warning_weight
        self._tags = tuple(tags)
        self._meta = dict(meta)
        self._check = check
        self._status = status
        self._reassert_s = reassert_s
        self._agents = agents_from(consul)
        self._clients: list[AgentClient] = []
        self._current = 0
        self._registered_at: set[int] = set()
        self._pending = True
        self._given_way = False
        self._said = ""
        self._lock = asyncio.Lock()
        self._leaving = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def id(self) -> str:
        """The instance's id in Consul."""
        return self._id

    @property
    def weight(self) -> int:
        """Its passing weight, as last set here or seen in Consul."""
        return self._weight

    @property
    def registered(self) -> bool:
        """Whether the agent knew the instance when it was asked last."""
        return bool(self._registered_at) and not self._said

    async def set_weight(self, weight: int, *, warning: int | None = None) -> None:
        """Changes the weight in place; while Consul is away it is changed once it is back.

        Raises ``ValueError`` when a weight is not a whole number from 0 to 65535.
        """
        _check_weight("weight", weight)
        _check_weight("warning", self._warning_weight if warning is None else warning)
        async with self._lock:
            self._weight = weight
            self._warning_weight = self._warning_weight if warning is None else warning
            self._pending = True
            if not self._leaving.is_set():
                await self._turn()

    async def drain(self) -> None:
        """Asks for no new calls: service maintenance on. What is in flight goes on. Never raises."""
        await self._stop_asserting()
        for number in sorted(self._registered_at):
            client = self._clients[number]
            try:
                await client.maintenance(self._id, enable=True, reason="draining", timeout_s=_REQUEST_S)
            except ConsulError as error:
                _log.warning("%s: cannot announce the drain: %s", self._id, error)

    async def close(self) -> None:
        """Leaves Consul, within a few seconds even when Consul is away. Idempotent, never raises."""
        try:
            await self._stop_asserting()
            async with asyncio.timeout(_LEAVE_S):
                for number in sorted(self._registered_at):
                    await self._deregister(number)
        except (ConsulError, TimeoutError) as error:
            _log.warning("%s: cannot deregister (Consul removes it once its check fails): %s", self._id, error)
        finally:
            self._registered_at.clear()
            clients, self._clients = self._clients, []
            for client in clients:
                await client.close()

    async def __aenter__(self) -> Registration:
        """Registers; when Consul is away, goes on trying in the background and returns."""
        try:
            self._clients = [AgentClient(agent) for agent in self._agents]
            for _ in self._agents:
                await self._turn()
                if self._registered_at:
                    break
        except BaseException:
            await self.close()
            raise
        self._task = asyncio.create_task(self._assert(), name=f"lb registration {self._id}")
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    async def _assert(self) -> None:
        while not self._leaving.is_set():
            try:
                async with asyncio.timeout(self._reassert_s):
                    await self._leaving.wait()
            except TimeoutError:
                async with self._lock:
                    await self._turn()

    async def _stop_asserting(self) -> None:
        """Lets a turn under way end: a registration cancelled now might arrive after we left."""
        self._leaving.set()
        task, self._task = self._task, None
        if task is None:
            return
        _, pending = await asyncio.wait([task], timeout=_REQUEST_S)
        if pending:
            task.cancel()
            await asyncio.wait([task])

    async def _turn(self) -> None:
        """One look at the agent; puts back what is missing. Never raises."""
        number = self._current
        client = self._clients[number]
        try:
            known = await self._look(client) if number in self._registered_at else None
            if known is not None and not self._ours(known["Service"]):
                self._give_way(known["Service"])
                return
            self._given_way = False
            if known is None:
                await self._register(number, "registered", with_check=True)
            elif self._pending:
                # Without the check: registering that again begins its interval anew.
                await self._register(number, "changed", with_check=False)
            elif not self._see(known):
                await self._register(number, "its check was gone, registered again", with_check=True)
            for other in sorted(self._registered_at - {number}):
                await self._leave_behind(other)
        except ConsulError as error:
            self._current = (number + 1) % len(self._agents)
            self._say(f"{error}; trying on")
        else:
            self._say("")

    async def _register(self, number: int, words: str, *, with_check: bool) -> None:
        client = self._clients[number]
        meta = self._meta | ({WEIGHT_META: "0"} if self._weight == 0 else {})
        await client.register(
            self._service,
            self._id,
            self._host,
            self._port,
            weights={"Passing": max(1, self._weight), "Warning": self._warning_weight},
            tags=self._tags,
            meta=meta,
            check={**self._check, "Status": self._status} if self._check and with_check else None,
            timeout_s=_REQUEST_S,
        )
        if number in self._registered_at:
            words = "registered again, the agent had forgotten it" if words == "registered" else words
        else:
            # A predecessor with this id may have died while it was draining.
            await client.maintenance(self._id, enable=False, reason="", timeout_s=_REQUEST_S)
        self._registered_at.add(number)
        self._pending = False
        where = join_host_port(self._host, self._port)
        _log.info("%s: %s (%s at %s, weight %d)", self._id, words, self._service, where, self._weight)

    async def _look(self, client: AgentClient) -> Mapping[str, Any] | None:
        """What the agent knows of the instance: its service and its checks; None when it does not."""
        reply = await client.get(f"/v1/agent/health/service/id/{self._id}", timeout_s=_REQUEST_S)
        if reply.status == 404:
            return None
        # The status code tells the health: 200 passing, 429 warning, 503 critical.
        try:
            body = reply.json()
            if reply.status in (200, 429, 503) and isinstance(body, dict) and isinstance(body["Service"], dict):
                return body
        except (KeyError, ValueError):
            pass
        raise client.refused(reply)

    def _ours(self, service: Mapping[str, Any]) -> bool:
        return (service.get("Address"), service.get("Port")) == (self._host, self._port)

    def _see(self, known: Mapping[str, Any]) -> bool:
        """Takes over what Consul says now. False when the check is missing."""
        service = known["Service"]
        meta = dict(service.get("Meta") or {})
        weights = service.get("Weights") or {}
        passing = 0 if meta.pop(WEIGHT_META, "") == "0" else int(weights.get("Passing", 1))
        if passing != self._weight:
            _log.info("%s: weight changed in Consul from %d to %d", self._id, self._weight, passing)
        self._weight, self._warning_weight = passing, int(weights.get("Warning", 1))
        self._tags, self._meta = tuple(service.get("Tags") or ()), meta
        if self._check is None:
            return True
        for check in known.get("Checks") or ():
            if check["CheckID"] == f"service:{self._id}":
                self._status = check["Status"]
                return True
        return False

    def _give_way(self, service: Mapping[str, Any]) -> None:
        if not self._given_way:
            other = join_host_port(str(service.get("Address")), int(service.get("Port") or 0))
            _log.warning("%s: the id is now that of %s; this instance gives way", self._id, other)
        self._given_way = True

    async def _leave_behind(self, number: int) -> None:
        """Registered elsewhere meanwhile: leave the agent that could not be reached, once it can."""
        try:
            await self._deregister(number)
        except ConsulError:
            return

    async def _deregister(self, number: int) -> None:
        client = self._clients[number]
        known = await self._look(client)
        # A successor may have taken the id: its registration is not ours to remove.
        if known is not None and self._ours(known["Service"]):
            await client.deregister(self._id, timeout_s=_REQUEST_S)
            _log.info("%s: deregistered", self._id)
        self._registered_at.discard(number)

    def _say(self, words: str) -> None:
        """Logs a trouble once, and its end."""
        if words and not self._said:
            _log.warning("%s: %s", self._id, words)
        elif self._said and not words:
            _log.info("%s: Consul is back", self._id)
        self._said = words

    def __repr__(self) -> str:
        state = "registered" if self.registered else "not registered"
        where = join_host_port(self._host, self._port)
        return f"Registration({self._id!r} of {self._service!r} at {where}, weight={self._weight}, {state})"


def registration(
    service: str,
    *,
    address: str,
    id: str | None = None,
    weight: int = 1,
    warning_weight: int = 1,
    tags: Sequence[str] = (),
    meta: Mapping[str, str] | None = None,
    zone: str = "",
    check: str | None = "grpc",
    check_interval_s: float = 1.0,
    check_tls: bool = False,
    deregister_after_s: float | None = _DEREGISTER_LEAST_S,
    consul: str | None = None,
    status: str = "critical",
    reassert_s: float = 1.0,
) -> Registration:
    """Registers an instance while the context lasts. Needs a running event loop when entered.

    Consul that is away is no error: it is asked again until it answers, the log ``lb.consul`` says so, and
    `Registration.registered` tells how it stands.

    Args:
        service: the name that clients ask for (``consul:///NAME``).
        address: ``host:port`` that clients, and the agent's check, can reach.
        id: the instance's id, unique on its agent; default ``SERVICE-HOST-PORT``.
        weight: share of the traffic while passing, 0 to 65535; 0 is none while others are there.
        warning_weight: the same while a check is in warning.
        tags: Consul tags (``consul:///NAME?tag=``).
        meta: metadata, text to text. ``weight`` is reserved.
        zone: where it runs; the metadata ``zone``.
        check: what the agent checks: ``grpc`` (``grpc.health.v1.Health``, which the server must serve; its
            answer for the whole server),
            ``grpc/NAME`` (the health of NAME), ``tcp``, an ``http://`` or ``https://`` URL, or
            None (always passing).
        check_interval_s: seconds between two checks.
        check_tls: whether the gRPC check speaks TLS.
        deregister_after_s: seconds in critical after which Consul removes the instance (at
            least 60), or None for never.
        consul: the agent, ``host:port`` or a URL; default ``CONSUL_HTTP_ADDR``, else
            127.0.0.1:8500. Several, separated by commas, are tried in turn.
        status: the check's status until it has run: ``critical``, ``warning`` or ``passing``.
        reassert_s: seconds between two looks whether the agent still knows the instance.

    Raises:
        ValueError: naming the argument, its value and what is accepted.
    """
    for name, text in (("service", service), ("id", id or "-")):
        if not isinstance(text, str) or not text or "/" in text or any(c.isspace() for c in text):
            raise ValueError(
                f"registration: {name} is {checks.shown(text)}; expected a name without blanks and slashes"
            )
    if not isinstance(address, str):
        raise ValueError(f"registration: address is {address!r}; expected host:port")
    host, port = split_host_port(address, where="registration: address")
    if host in _WILDCARDS:
        raise ValueError(f"registration: address is {address!r}; expected the one that clients connect to")
    if isinstance(tags, str) or not isinstance(tags, Sequence):
        raise ValueError(f"registration: tags is {checks.shown(tags)}; expected a sequence of texts")
    _check_weight("weight", weight)
    _check_weight("warning_weight", warning_weight)
    for name, seconds in (("check_interval_s", check_interval_s), ("reassert_s", reassert_s)):
        checks.number(f"registration: {name}", seconds, "a number of seconds > 0", above=True)
    if deregister_after_s is not None:
        checks.number(
            "registration: deregister_after_s", deregister_after_s, ">= 60, or None", least=_DEREGISTER_LEAST_S
        )
    if status not in _STATUSES:
        raise ValueError(f"registration: status is {status!r}; expected {', '.join(_STATUSES)}")
    metadata = dict(meta or {})
    for key, value in metadata.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise ValueError(f"registration: meta has {key!r}: {value!r}; expected text to text")
    if WEIGHT_META in metadata:
        raise ValueError(f"registration: meta has {WEIGHT_META!r}, which is reserved; use the argument weight")
    if zone:
        metadata[ZONE_META] = zone
    return Registration(
        service,
        address,
        id or f"{service}-{host}-{port}",
        weight,
        warning_weight,
        tags,
        metadata,
        _definition(check, host, port, check_interval_s, check_tls, deregister_after_s),
        consul,
        status,
        reassert_s,
    )


def _check_weight(name: str, weight: int) -> None:
    if isinstance(weight, bool) or not isinstance(weight, int) or not 0 <= weight <= _MAX_WEIGHT:
        raise ValueError(f"registration: {name} is {weight!r}; expected a whole number from 0 to {_MAX_WEIGHT}")


def _definition(
    check: str | None, host: str, port: int, interval_s: float, tls: bool, deregister_s: float | None
) -> Mapping[str, Any] | None:
    if check is None:
        return None
    target = join_host_port(host, port)
    kind, _, name = check.partition("/")
    what: dict[str, Any]
    if kind == "grpc":
        what = {"GRPC": f"{target}/{name}" if name else target, "GRPCUseTLS": tls}
    elif check == "tcp":
        what = {"TCP": target}
    elif check.startswith(("http://", "https://")):
        what = {"HTTP": check}
    else:
        raise ValueError(f"registration: check is {check!r}; expected grpc, grpc/NAME, tcp, an http(s):// URL or None")
    what["Interval"] = _duration(interval_s)
    # A busy instance may answer late; a dead one refuses at once.
    what["Timeout"] = _duration(max(2.0, interval_s))
    if deregister_s is not None:
        what["DeregisterCriticalServiceAfter"] = _duration(deregister_s)
    return what


def _duration(seconds: float) -> str:
    return f"{max(1, round(seconds * 1000))}ms"
