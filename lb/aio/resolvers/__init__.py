"""Resolvers of the asyncio shell: from a parsed target to live endpoints."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lb.aio.resolvers.static import StaticResolver
from lb.core.endpoint import Resolver

if TYPE_CHECKING:
    from lb.core.target import Target

__all__ = ["StaticResolver", "make_resolver"]


def make_resolver(target: Target) -> Resolver:
    """The resolver of a parsed target; it starts nothing.

    Here, where a channel is made, the one that it needs is imported.

    Raises ``ValueError`` when the environment names Consul's agent wrongly.
    """
    from lb.core.target import ConsulTarget, DnsTarget

    if isinstance(target, ConsulTarget):
        from lb.aio.resolvers.consul import ConsulResolver

        return ConsulResolver(target)
    if isinstance(target, DnsTarget):
        from lb.aio.resolvers.dns import DnsResolver

        return DnsResolver(target.host, target.port, refresh_s=target.interval_s)
    return StaticResolver(target.endpoints, note=target.text)
