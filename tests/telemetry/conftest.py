"""Fixtures of the telemetry's tests: those of the channel's."""

from __future__ import annotations

from tests.aio.conftest import backend, fleet, kind

__all__ = ["backend", "fleet", "kind"]
