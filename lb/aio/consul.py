"""What Consul knows of a service's instances, for programs that show them and do not call them.

A channel needs none of this: it watches Consul by itself. A status page, or a check before a start, asks once::

    registry = Registry()
    try:
        for instance in await registry.instances("catalog"):
            print(instance.endpoint, instance.status)
    finally:
        await registry.close()
"""

from __future__ import annotations

from lb.aio._consul import AgentClient, ConsulError, agents_from, load
from lb.core import checks
from lb.core.consul_health import Instance, parse_answer
from lb.core.peers import one_line

__all__ = ["ConsulError", "Instance", "Registry"]


class Registry:
    """A client for the Consul agent in ``CONSUL_HTTP_ADDR``. Use and close it in one event loop.

    Args:
        consul: its agent, ``host:port`` or a URL, several separated by commas; None takes ``CONSUL_HTTP_ADDR``.
        timeout_s: how long one question may take at most, in seconds; several agents share it.

    Raises:
        ValueError: ``consul``, ``timeout_s``, or one of Consul's variables in the environment is not valid.
            Nothing is asked yet.
        TypeError: an argument has a wrong type.
    """

    def __init__(self, consul: str | None = None, *, timeout_s: float = 1.0) -> None:
        checks.number("Registry.timeout_s", timeout_s, above=True)
        self._addresses = agents_from(consul)
        self._timeout_s = timeout_s
        self._clients: list[AgentClient] = []

    async def instances(self, service: str) -> tuple[Instance, ...]:
        """All registered instances, healthy or not, from the first agent that answers.

        Raises:
            ConsulError: no agent gave an answer that can be used; the error is that of the last one.
            ImportError: Consul's client is not installed.
        """
        if not self._clients:  # they must be made in a running loop
            load("lb.aio.consul.Registry")
            self._clients = [AgentClient(address) for address in self._addresses]
        failure: ConsulError | None = None
        for client in self._clients:
            try:
                return await self._ask(client, service)
            except ConsulError as error:
                failure = error
        assert failure is not None
        raise failure

    async def close(self) -> None:
        """Close the connections. Idempotent."""
        clients, self._clients = self._clients, []
        for client in clients:
            await client.close()

    async def _ask(self, client: AgentClient, service: str) -> tuple[Instance, ...]:
        # ``stale`` answers without a leader, too.
        reply = await client.get(
            f"/v1/health/service/{service}", [("stale", "")], timeout_s=self._timeout_s / len(self._clients)
        )
        if reply.status != 200:
            raise client.refused(reply)
        try:
            return parse_answer(reply.headers, reply.json()).instances
        except ValueError as error:
            raise ConsulError(client.address.name, one_line(str(error))) from error

    def __repr__(self) -> str:
        return f"<Registry {', '.join(address.name for address in self._addresses)}>"
