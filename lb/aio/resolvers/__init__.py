"""Resolvers of the asyncio shell: from a parsed target to live endpoints."""

from __future__ import annotations

from lb.aio.resolvers.consul import ConsulResolver
from lb.aio.resolvers.dns import DnsResolver
from lb.aio.resolvers.static import StaticResolver
from lb.core.endpoint import Resolver
from lb.core.target import ConsulTarget, DnsTarget, Target

__all__ = ["ConsulResolver", "DnsResolver", "StaticResolver", "make_resolver"]


def make_resolver(target: Target) -> Resolver:
    """The resolver of a parsed target; it starts nothing.

    Raises ``ValueError`` when the environment names Consul's agent wrongly.
    """
    if isinstance(target, ConsulTarget):
        return ConsulResolver(target)
    if isinstance(target, DnsTarget):
        return DnsResolver(target.host, target.port, refresh_s=target.interval_s)
    return StaticResolver(target.endpoints, note=target.text)
