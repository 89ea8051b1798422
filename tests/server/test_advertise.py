"""The address that a server registers."""

from __future__ import annotations

import pytest

from lb.server.advertise import advertised


async def test_what_is_advertised(monkeypatch: pytest.MonkeyPatch) -> None:
    """Default: what is bound; a host takes the bound port; auto takes the address that routes to Consul."""
    assert await advertised("", "127.0.0.1:7") == "127.0.0.1:7"
    assert await advertised("catalog.local", "0.0.0.0:7") == "catalog.local:7"
    assert await advertised("10.0.0.1:8", "0.0.0.0:7") == "10.0.0.1:8"
    assert await advertised("[::1]", "[::]:7") == "[::1]:7"
    monkeypatch.setenv("CONSUL_HTTP_ADDR", "http://127.0.0.1:8500")
    assert await advertised("auto", "0.0.0.0:7") == "127.0.0.1:7"
    for text, bound in (("", "0.0.0.0:7"), ("a:b:c", "127.0.0.1:7")):
        with pytest.raises(ValueError, match="expected host"):
            await advertised(text, bound)
