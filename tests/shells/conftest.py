"""Fixtures of the tests of both shells: the backends of the channel's tests."""

from __future__ import annotations

from tests.aio.conftest import backend, fleet, kind
from tests.shells.kit import shell

__all__ = ["backend", "fleet", "kind", "shell"]
