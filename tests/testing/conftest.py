"""Fixtures of the tests of `lb.testing`: backends, a real Consul, and the embedded agent."""

from __future__ import annotations

from tests.aio.conftest import backend, fleet, kind
from tests.support.consul import embedded_consul, own_registry, real_consul, registry
from tests.support.instance import instance, service

__all__ = [
    "backend",
    "embedded_consul",
    "fleet",
    "instance",
    "kind",
    "own_registry",
    "real_consul",
    "registry",
    "service",
]
