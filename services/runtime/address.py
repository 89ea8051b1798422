"""The address that an instance registers, which is not always the one that it binds."""

from __future__ import annotations

import asyncio
import os
import socket
from urllib.parse import urlsplit

from lb.server.address import join_host_port, split_host_port
from services.runtime.settings import SettingsError


async def advertised(advertise: str, bound: str) -> str:
    """The ``host:port`` to register.

    Args:
        advertise: empty (what is bound), ``host``, ``host:port``, or ``auto`` for the local address from which
            Consul is reached: in a container, the one on the network that it shares with Consul.
        bound: ``host:port`` of the server's socket.

    Raises:
        SettingsError: ``advertise`` is none of these, or the bound address is a wildcard and nothing else is given.
    """
    host, port = split_host_port(bound, where="bound")
    if not advertise:
        if host in ("0.0.0.0", "::"):
            raise SettingsError(
                f"MESH_ADVERTISE is not set, and clients cannot connect to {bound}; set MESH_ADVERTISE=auto"
            )
        return bound
    if advertise == "auto":
        return join_host_port(await _towards_consul(), port)
    if ":" not in advertise or (advertise.startswith("[") and advertise.endswith("]")):
        return join_host_port(advertise.strip("[]"), port)
    try:
        return join_host_port(*split_host_port(advertise, where=f"MESH_ADVERTISE={advertise!r}"))
    except ValueError as error:
        raise SettingsError(str(error)) from None


async def _towards_consul() -> str:
    """The local address that routes to Consul. Connecting a UDP socket chooses it and sends nothing."""
    consul = os.environ.get("CONSUL_HTTP_ADDR") or "127.0.0.1:8500"
    parts = urlsplit(consul if "://" in consul else f"//{consul}")
    host, port = parts.hostname or "127.0.0.1", parts.port or 8500
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_DGRAM)
    except OSError as error:
        raise SettingsError(f"MESH_ADVERTISE='auto': Consul's name {host!r} is not known: {error}") from None
    for family, kind, protocol, _, where in found:
        with socket.socket(family, kind, protocol) as probe:
            try:
                probe.connect(where)
            except OSError:
                continue
            return str(probe.getsockname()[0])
    raise SettingsError(f"MESH_ADVERTISE='auto': there is no route to Consul at {host}:{port}")
