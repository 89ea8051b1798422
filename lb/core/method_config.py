"""What a service config says, once it was read (`lb.core.service_config`): of the service, and of each method."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from lb.core.hedging import Hedging
from lb.core.policies.base import Policy
from lb.core.retry import Retry
from lb.core.throttle import Throttle


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigEntry:
    """What the document says about one method; None if it says nothing.

    ``timeout_s`` is an upper limit beside the caller's own timeout. ``wait_for_ready`` holds if the
    caller does not set it. The two sizes are in bytes of one serialized message.
    """

    retry: Retry | None = None
    hedging: Hedging | None = None
    timeout_s: float | None = None
    wait_for_ready: bool | None = None
    max_request_bytes: int | None = None
    max_response_bytes: int | None = None

    @property
    def idempotent(self) -> bool:
        """Whether the document declares that the method may run twice: a ``hedgingPolicy`` does."""
        return self.hedging is not None


NOTHING = ConfigEntry()
"""What holds for a method that the document does not name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceConfig:
    """A document that was read. Made by `lb.core.service_config.parse`.

    ``policy`` is None without ``loadBalancingConfig``, ``throttle`` without ``retryThrottling``.
    ``health`` is the service name to ask of an endpoint's health service (``""``: the server as a
    whole), None for no such check. ``notes`` are sentences about what was ignored or changed.
    """

    methods: Mapping[str, ConfigEntry] = field(default_factory=lambda: MappingProxyType({}))
    """By ``/package.Service/Method``, ``/package.Service/`` for a whole service, and ``""`` for all."""
    policy: Policy | None = None
    throttle: Throttle | None = None
    health: str | None = None
    notes: tuple[str, ...] = ()

    def method(self, name: str) -> ConfigEntry:
        """What holds for ``/package.Service/Method``: its own entry, else its service's, else the default one.

        Entries are not merged: only the most specific one counts, as in gRPC.
        """
        methods = self.methods
        for key in (name, name[: name.rfind("/") + 1], ""):
            if key in methods:
                return methods[key]
        return NOTHING
