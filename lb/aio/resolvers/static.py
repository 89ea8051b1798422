"""The resolver that knows the answer already."""

from __future__ import annotations

from collections.abc import Iterable

from lb.core.endpoint import Endpoint, Listener, Resolution


class StaticResolver:
    """Endpoints that are known already, reported once, at start."""

    def __init__(self, endpoints: Iterable[Endpoint], note: str = "static") -> None:
        self._resolution = Resolution(tuple(endpoints), note)

    def start(self, listener: Listener) -> None:
        """Report them."""
        listener.update(self._resolution)

    def close(self) -> None:
        """Nothing to stop."""

    def __repr__(self) -> str:
        return f"StaticResolver({', '.join(e.address for e in self._resolution.endpoints)})"
