"""Whether gRPC reaches a name through an HTTP CONNECT proxy, by `gRFC A1`_'s first case.

There the proxy resolves the name: the client must not, for its own name service may not know it or know
another address. So a name that goes through a proxy is one endpoint, which grpcio connects to by the name.
All others are resolved here, and then grpcio must not decide again, by an address that no ``no_proxy`` names.

What is read, in which order, and how ``no_proxy`` is matched is as in core from 1.84 on
(``src/core/handshaker/http_connect/http_proxy_mapper.cc``; before, ``no_proxy=host`` exempted ``localhost``, too,
and ``.host`` not ``host`` itself); a test asks grpcio itself. A proxy for addresses (A1's second case) is core's
alone, and goes on working.

.. _gRFC A1: https://github.com/grpc/proposal/blob/master/A1-http-connect-proxy-support.md
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

Options = Sequence[tuple[str, Any]]

_ENABLED = "grpc.enable_http_proxy"
_PROXY = "grpc.http_proxy"


def proxied(host: str, options: Options, environment: Mapping[str, str]) -> bool:
    """Whether a channel with these options goes to ``host``, which is no literal address, through a proxy."""
    given = dict(options)
    if not given.get(_ENABLED, True):
        return False
    if isinstance(given.get(_PROXY), (str, bytes)):
        proxy = given[_PROXY]
    else:
        names = ("grpc_proxy", "https_proxy", "http_proxy")
        proxy = next((environment[name] for name in names if name in environment), "")
    if not _usable(proxy.decode(errors="replace") if isinstance(proxy, bytes) else proxy):
        return False
    exempt = environment.get("no_grpc_proxy", environment.get("no_proxy", ""))
    domains = {entry.strip().lower().removeprefix(".") for entry in exempt.split(",")} - {""}
    name = host.lower()
    return name not in domains and not name.endswith(tuple(f".{domain}" for domain in domains))


def resolved(options: Options) -> tuple[tuple[str, Any], ...]:
    """The options for connections to addresses that were looked up here: directly, whatever the environment says."""
    return (*(option for option in options if option[0] != _ENABLED), (_ENABLED, 0))


def _usable(proxy: str) -> bool:
    try:
        url = urlsplit(proxy)
    except ValueError:
        return False
    return url.scheme == "http" and bool(url.netloc)
