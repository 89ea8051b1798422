"""What a server serves beside its own work, if it is installed: health and reflection."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lb.server.health import Health

EXTRA = "install lb-mesh with its extra `server`"


def health_service(asked: bool | None) -> Health | None:
    """A server's health, not served yet. None: it is not served. Raises ``ImportError`` as `wanted`."""
    if not wanted("health", "grpc_health", asked):
        return None
    from lb.server.health import Health

    return Health()


def wanted(what: str, package: str, asked: bool | None) -> bool:
    """Whether something is served: if it is ``asked`` for, or (None) if it is installed.

    Raises ``ImportError`` if it is asked for and not installed.
    """
    if asked is not None and not asked:
        return False
    try:
        import_module(package)
        found = True
    except ImportError:
        found = False
    if asked and not found:
        raise ImportError(f"{what}=True needs {package}, which is missing; {EXTRA}")
    return found
