"""The address that an instance registers, which is not always the one that it binds."""

from __future__ import annotations

import asyncio
import socket

from lb.server.address import join_host_port, split_host_port

WILDCARDS = ("0.0.0.0", "::")
"""A server may listen on these, and no client can connect to them."""


async def advertised(address: str, bound: str, consul: str | None = None) -> str:
    """The ``host:port`` to register.

    Args:
        address: empty (what is bound), ``host``, ``host:port``, or ``auto`` for the local address from which
            Consul is reached: in a container, the one on the network that it shares with Consul.
        bound: ``host:port`` of the server's socket.
        consul: the agent, as for `lb.aio.registration`.

    Raises:
        ValueError: ``address`` is none of these, or the bound one is a wildcard and nothing else is given. The message
            does not name the setting.
    """
    host, port = split_host_port(bound, where="bound")
    if not address:
        if host in WILDCARDS:
            raise ValueError(f"clients cannot connect to {bound}; expected host, host:port or auto")
        return bound
    if address == "auto":
        return join_host_port(await _towards_consul(consul), port)
    if ":" not in address or (address.startswith("[") and address.endswith("]")):
        return join_host_port(address.strip("[]"), port)
    return join_host_port(*taken_apart(address))


def taken_apart(address: str, least_port: int = 1) -> tuple[str, int]:
    """``host:port`` as both. Raises ``ValueError`` whose message does not name the setting."""
    try:
        return split_host_port(address, where="", least_port=least_port)
    except ValueError as error:
        raise ValueError(str(error).removeprefix(": ")) from None


async def _towards_consul(consul: str | None) -> str:
    """The local address that routes to Consul. Connecting a UDP socket chooses it and sends nothing."""
    # Imported here: few servers ask for it.
    from lb.aio._consul import agents_from

    agent = agents_from(consul)[0]
    host, port = agent.host, agent.port
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_DGRAM)
    except OSError as error:
        raise ValueError(f"Consul's name {host!r} is not known: {error}") from None
    for family, kind, protocol, _, where in found:
        with socket.socket(family, kind, protocol) as probe:
            try:
                probe.connect(where)
            except OSError:
                continue
            return str(probe.getsockname()[0])
    raise ValueError(f"there is no route to Consul at {host}:{port}")
