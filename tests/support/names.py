"""A name service for tests: what the system's resolver answers in this process."""

from __future__ import annotations

import socket
from typing import Any

import pytest

__all__ = ["Names", "names"]


class Names:
    """Answers for the names in ``known``, by addresses; other names are asked of the system. ``asked`` has them all."""

    def __init__(self) -> None:
        self.known: dict[str, list[str]] = {}
        self.asked: list[str] = []
        self._system = socket.getaddrinfo

    def getaddrinfo(self, host: Any, port: Any, *arguments: Any, **named: Any) -> list[Any]:
        """In place of ``socket.getaddrinfo``. A name without addresses does not exist."""
        if host not in self.known:
            return self._system(host, port, *arguments, **named)
        self.asked.append(host)
        if not self.known[host]:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [
            (socket.AF_INET6, socket.SOCK_STREAM, 6, "", (address, port, 0, 0))
            if ":" in address
            else (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))
            for address in self.known[host]
        ]


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Names:
    """Answers in the place of the system's resolver."""
    found = Names()
    monkeypatch.setattr(socket, "getaddrinfo", found.getaddrinfo)
    return found
