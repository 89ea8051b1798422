"""Targets: the string a channel is made for, parsed.

========================================================  =====================================
``consul:///catalog?dc=&tag=&near=``                      the service's instances, from Consul;
                                                          ``tag`` may be given several times, an
                                                          empty parameter counts as left out
``consul://10.0.0.5:8500/catalog``                        the same, read from the agent named
``static:///10.0.0.1:1,10.0.0.2:1?weights=1,3``           these addresses, with these weights
``dns:///host:port``                                      every A and AAAA record, kept fresh
``ipv4:10.0.0.1:1,10.0.0.2:1`` ``ipv6:[::1]:1,[::2]:1``   these addresses, one endpoint each
``host:port`` ``dns:host:port`` ``dns://server/host``     grpcio's own: handed over as one
``unix:/path`` ``unix-abstract:name`` ``vsock:1:2``       endpoint whose address is the target
========================================================  =====================================

What cannot be right under a scheme of ours (``consul:``, ``static:``) is a ``ValueError`` here,
before anything is connected. All else is grpcio's: it takes any text, and every call then fails
with its reason. So does ours, and `GrpcTarget.doubt` says early what looks wrong.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from ipaddress import ip_address
from urllib.parse import parse_qsl, unquote, urlsplit

from lb.core.endpoint import Endpoint

ACCEPTED = (
    "consul:///service, static:///host:port,host:port, dns:///host:port, or what grpcio takes "
    "(host:port, dns:, ipv4:, ipv6:, unix:, unix-abstract:, vsock:)"
)

CONSUL_PORT = 8500
# gRPC name resolution: "If no port is specified, the gRPC default port (443) is used".
GRPC_PORT = 443
_MAX_SERVICE_NAME = 255
_GRPCIO_SCHEMES = frozenset({"dns", "ipv4", "ipv6", "unix", "unix-abstract", "vsock"})
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")


@dataclass(frozen=True, slots=True)
class ConsulTarget:
    """``consul://[agent]/service?dc=&tag=&near=``.

    ``agent`` is ``host:port``, or empty: then the environment names the agent. ``tags`` must
    all be carried by an instance. ``near`` is a node's name or ``_agent``.
    """

    text: str
    service: str
    agent: str = ""
    dc: str = ""
    tags: tuple[str, ...] = ()
    near: str = ""
    scheme: str = field(default="consul", init=False)

    @property
    def authority(self) -> str:
        """The service's name: what ``:authority`` says and what a certificate must be for."""
        return self.service


@dataclass(frozen=True, slots=True)
class StaticTarget:
    """``static:///a:1,b:2?weights=1,3``, and grpcio's ``ipv4:`` and ``ipv6:`` lists."""

    text: str
    endpoints: tuple[Endpoint, ...]
    scheme: str = "static"

    @property
    def authority(self) -> str:
        """Empty: each endpoint's own."""
        return ""


@dataclass(frozen=True, slots=True)
class DnsTarget:
    """``dns:///host:port``: all addresses of a name, each an endpoint."""

    text: str
    host: str
    port: int
    scheme: str = field(default="dns", init=False)

    @property
    def authority(self) -> str:
        """``host:port`` as written, as in gRPC: a certificate is for the name, not for an address."""
        return self.text.removeprefix("dns:///")


@dataclass(frozen=True, slots=True)
class GrpcTarget:
    """A target that grpcio resolves itself: one endpoint, whose address is the target.

    ``doubt`` says what is probably wrong with it and what is accepted; empty when it looks right.
    """

    text: str
    scheme: str
    doubt: str = ""

    @property
    def authority(self) -> str:
        """Empty: grpcio's own."""
        return ""

    @property
    def endpoints(self) -> tuple[Endpoint, ...]:
        """The one endpoint."""
        return (Endpoint(self.text or "dns:"),)  # to grpcio, both are the same invalid target


Target = ConsulTarget | StaticTarget | DnsTarget | GrpcTarget


def parse_target(text: str) -> Target:
    """The parsed form of ``text``. Pure: looks nothing up.

    Raises ``ValueError`` naming the part, its value and what is accepted.
    """
    if not isinstance(text, str):
        raise ValueError(f"target is {text!r}; expected a string: {ACCEPTED}")
    match = _SCHEME.match(text)
    scheme = match.group(1).lower() if match else ""
    if scheme in ("consul", "static"):
        if any(c.isspace() for c in text):
            raise ValueError(f"target is {text!r}; expected no blanks and one of {ACCEPTED}")
        return _consul(text) if scheme == "consul" else _static(text)
    try:
        return _of_grpcio(text, scheme)
    except ValueError as doubt:
        return GrpcTarget(text, scheme if scheme in _GRPCIO_SCHEMES else "", str(doubt))


def _of_grpcio(text: str, scheme: str) -> Target:
    if not text or any(c.isspace() for c in text):
        raise ValueError(f"target is {text!r}; expected no blanks and one of {ACCEPTED}")
    if scheme == "dns":
        return _dns(text)
    if scheme in ("ipv4", "ipv6"):
        return _address_list(text, scheme)
    if scheme in _GRPCIO_SCHEMES:
        if len(text) == len(scheme) + 1:
            raise ValueError(f"target {text!r}: nothing after {scheme}:; expected a path or a name")
        return GrpcTarget(text, scheme)
    if "://" in text:
        raise ValueError(f"target {text!r}: unknown scheme {scheme or text.split('://')[0]!r}; expected {ACCEPTED}")
    # No scheme: `localhost:50051` only looks like one.
    split_host_port(text, where=f"target {text!r}", default_port=GRPC_PORT)
    return GrpcTarget(text, "")


def split_host_port(text: str, *, where: str, default_port: int | None = None) -> tuple[str, int]:
    """``host:port``, ``[v6]:port`` or, with a default port, ``host`` alone, as (host, port).

    The host comes back without brackets. Raises ``ValueError`` that begins with ``where``.
    """
    expected = "expected host:port" + ("" if default_port is None else " or host")
    host, port_text = text, ""
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise ValueError(f"{where}: address is {text!r}; {expected}, an IPv6 address as [::1]:port")
        port_text = rest[1:]
        missing = not rest
    elif text.count(":") > 1:
        raise ValueError(f"{where}: address is {text!r}; {expected}, an IPv6 address as [::1]:port")
    else:
        host, colon, port_text = text.partition(":")
        missing = not colon
    if not host or any(c in host for c in "/?#@,[]"):
        raise ValueError(f"{where}: host is {host!r}; {expected}")
    if missing:
        if default_port is None:
            raise ValueError(f"{where}: no port in {text!r}; {expected}")
        return host, default_port
    if not (port_text.isascii() and port_text.isdigit() and 0 < int(port_text) < 65536):
        raise ValueError(f"{where}: port is {port_text!r}; expected a number from 1 to 65535")
    return host, int(port_text)


def join_host_port(host: str, port: int) -> str:
    """``host:port``, an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _parts(text: str, accepted: Iterable[str]) -> tuple[str, str, list[tuple[str, str]]]:
    """Authority, path (without its slash, still quoted) and parameters of a URL of ours."""
    scheme, _, rest = text.partition(":")
    if not rest.startswith("//"):
        raise ValueError(f"target {text!r}: expected {scheme}:/// with three slashes")
    try:
        url = urlsplit("x:" + rest)
    except ValueError as error:
        raise ValueError(f"target {text!r}: {error}; expected {scheme}:///...") from None
    if url.fragment or "#" in text:
        raise ValueError(f"target {text!r}: a fragment (#) means nothing here")
    parameters = parse_qsl(url.query, keep_blank_values=True)
    known = tuple(accepted)
    for name, _ in parameters:
        if name not in known:
            raise ValueError(f"target {text!r}: unknown parameter {name!r}; expected {', '.join(known)}")
    return url.netloc, url.path.removeprefix("/"), parameters


def _single(text: str, parameters: list[tuple[str, str]], name: str) -> str:
    values = [value for key, value in parameters if key == name]
    if len(values) > 1:
        raise ValueError(f"target {text!r}: parameter {name} is given {len(values)} times; expected once")
    return values[0] if values else ""


def _consul(text: str) -> ConsulTarget:
    agent, path, parameters = _parts(text, ("dc", "tag", "near"))
    service = unquote(path)
    if not service:
        raise ValueError(
            f"target {text!r}: service is empty; expected consul:///service or consul://agent:port/service"
        )
    if "/" in service or len(service) > _MAX_SERVICE_NAME:
        raise ValueError(
            f"target {text!r}: service is {service!r}; expected one name without a slash, "
            f"at most {_MAX_SERVICE_NAME} characters"
        )
    if agent:
        agent = join_host_port(*split_host_port(agent, where=f"target {text!r}", default_port=CONSUL_PORT))
    # Order and repetition of tags mean nothing; sorted, equal questions share one watch.
    tags = tuple(sorted({value for key, value in parameters if key == "tag" and value}))
    return ConsulTarget(
        text,
        service,
        agent=agent,
        dc=_single(text, parameters, "dc"),
        tags=tags,
        near=_single(text, parameters, "near"),
    )


def _static(text: str) -> StaticTarget:
    authority, path, parameters = _parts(text, ("weights",))
    if authority:
        raise ValueError(
            f"target {text!r}: {authority!r} stands where nothing may; expected static:///host:port,host:port"
        )
    addresses = [unquote(part) for part in path.split(",")]
    weights = [1] * len(addresses)
    if parameters:
        parts = _single(text, parameters, "weights").split(",")
        if len(parts) != len(addresses):
            raise ValueError(
                f"target {text!r}: weights has {len(parts)} values for {len(addresses)} addresses; "
                "expected one for each"
            )
        weights = [_weight(text, part) for part in parts]
    return StaticTarget(text, _endpoints(text, addresses, weights))


def _weight(text: str, part: str) -> int:
    if not (part.isascii() and part.isdigit()):
        raise ValueError(f"target {text!r}: weights has {part!r}; expected whole numbers >= 0, such as weights=1,3")
    return int(part)


def _endpoints(text: str, addresses: list[str], weights: list[int]) -> tuple[Endpoint, ...]:
    seen: set[str] = set()
    found: list[Endpoint] = []
    for address, weight in zip(addresses, weights, strict=True):
        if address.startswith(("unix:", "unix-abstract:")) and not address.endswith(":"):
            normal = address
        else:
            normal = join_host_port(*split_host_port(address, where=f"target {text!r}"))
        if normal in seen:
            raise ValueError(f"target {text!r}: address {normal} is given twice; expected each once, with a weight")
        seen.add(normal)
        found.append(Endpoint(normal, weight=weight))
    return tuple(found)


def _dns(text: str) -> DnsTarget | GrpcTarget:
    rest = text.partition(":")[2]
    if not rest.startswith("///"):
        if not rest.strip("/"):
            raise ValueError(f"target {text!r}: no name; expected dns:///host:port")
        return GrpcTarget(text, "dns")
    host, port = split_host_port(rest[3:], where=f"target {text!r}", default_port=GRPC_PORT)
    return DnsTarget("dns:" + rest, host, port)


def _address_list(text: str, scheme: str) -> StaticTarget:
    addresses: list[str] = []
    for part in text.partition(":")[2].removeprefix("///").split(","):
        bare = scheme == "ipv6" and part.count(":") > 1 and not part.startswith("[")
        host, port = split_host_port(f"[{part}]" if bare else part, where=f"target {text!r}", default_port=GRPC_PORT)
        try:
            right = ip_address(host).version == int(scheme[-1])
        except ValueError:
            right = False
        if not right:
            raise ValueError(f"target {text!r}: {host!r} is not an {scheme} address; expected {scheme}:address:port")
        addresses.append(join_host_port(host, port))
    return StaticTarget(text, _endpoints(text, addresses, [1] * len(addresses)), scheme)
