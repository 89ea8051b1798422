"""Targets: the string a channel is made for, parsed.

========================================================  =====================================
``consul:///catalog?dc=&tag=&near=``                      the service's instances, from Consul;
                                                          ``tag`` may be given several times, an
                                                          empty parameter counts as left out
``consul://10.0.0.5:8500/catalog``                        the same, read from the agent named
``static:///10.0.0.1:1,10.0.0.2:1?weights=1,3``           these addresses, with these weights
``host:port`` ``dns:host:port`` ``dns:///host:port``      every A and AAAA record, kept fresh;
                                                          ``?interval=10``: looked up every 10 s.
                                                          A literal address is one endpoint
``ipv4:10.0.0.1:1,10.0.0.2:1`` ``ipv6:[::1]:1,[::2]:1``   these addresses, one endpoint each
``dns://10.0.0.53:53/host:port``                          grpcio's own: it asks that name server,
``unix:/path`` ``unix-abstract:name`` ``vsock:1:2``       and connects to what it finds first.
``xds:///name``                                           One endpoint, whose address is the target
========================================================  =====================================

What the names mean is what `gRPC's naming`_ says; without a scheme that is known, a target is a
DNS name. What cannot be right is a ``ValueError`` here, before anything is connected; where
one mistake explains it, the error says what was probably meant.

.. _gRPC's naming: https://github.com/grpc/grpc/blob/master/doc/naming.md
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from lb.core.endpoint import Endpoint

ACCEPTED = (
    "consul:///service, static:///host:port,host:port, or what grpcio takes "
    "(host:port, dns:, ipv4:, ipv6:, unix:, unix-abstract:, vsock:, xds:)"
)

CONSUL_PORT = 8500
REFRESH_S = 30.0
"""How often a DNS name is looked up."""
# gRPC name resolution: "If no port is specified, the gRPC default port (443) is used".
GRPC_PORT = 443
_DNS_PORT = 53
# The names of ports that grpcio knows.
_NAMED_PORTS = {"http": "80", "https": "443"}
_MAX_SERVICE_NAME = 255
_MOST_INTERVAL_S = 86400.0
_LEAST_INTERVAL_S = 0.1
_LOCAL = frozenset({"unix", "unix-abstract"})
_HANDED_OVER = _LOCAL | {"vsock", "xds", "google-c2p", "google-c2p-experimental"}
_SCHEMES = ("consul", "static", "dns", "ipv4", "ipv6", *sorted(_HANDED_OVER))
_NEVER_IN_A_HOST = frozenset("/?#@,[]{}<>$*\\\"'|^`")  # also what a template that was not filled in leaves
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
    """Endpoints that the target itself names: ``static:``, ``ipv4:``, ``ipv6:``, a literal address.

    Also a target that grpcio resolves itself: one endpoint, whose address is the target. With an
    empty ``authority`` each endpoint has its own, as grpcio makes it from the address. ``doubt``
    says why there is one endpoint where several might be expected.
    """

    text: str
    endpoints: tuple[Endpoint, ...]
    scheme: str = "static"
    authority: str = ""
    doubt: str = ""


@dataclass(frozen=True, slots=True)
class DnsTarget:
    """``dns:///host:port?interval=``: all addresses of a name, each an endpoint.

    ``authority`` is ``host:port`` as written, as in gRPC: a certificate is for the name, not for
    an address. ``interval_s`` is how often the name is looked up, in seconds.
    """

    text: str
    host: str
    port: int
    authority: str
    interval_s: float = REFRESH_S
    scheme: str = field(default="dns", init=False)

    def unresolved(self) -> StaticTarget:
        """The same name as one endpoint, for a proxy that resolves it (gRFC A1)."""
        address = f"dns:///{quote(join_host_port(self.host, self.port), safe=_PLAIN)}"
        doubt = "it goes through a proxy, which resolves it: one endpoint, which is not balanced (see no_proxy)"
        return StaticTarget(self.text, (Endpoint(address),), self.scheme, self.authority, doubt)


Target = ConsulTarget | StaticTarget | DnsTarget
_PLAIN = "[]:!$&'()*+,;="  # what core leaves as it is in an authority


def parse_target(text: str) -> Target:
    """The parsed form of ``text``. Pure: looks nothing up.

    Raises ``ValueError`` naming the part, its value and what is accepted.
    """
    if not isinstance(text, str):
        raise ValueError(f"target is {text!r}; expected a string: {ACCEPTED}")
    try:
        return _parse(text)
    except ValueError as error:
        meant = next((guess for guess in _guesses(text) if guess != text and _parses(guess)), "")
        if not meant:
            raise
        raise ValueError(f"{error}. Did you mean {meant!r}?") from None


def _parse(text: str) -> Target:
    if not text:
        raise ValueError(f"target is ''; expected one of {ACCEPTED}")
    scheme = _scheme(text)
    checked = text[0] + text[-1] + text.replace(" ", "") if scheme in _LOCAL else text  # a path may have blanks
    if " " in checked or not checked.isprintable():
        raise ValueError(f"target {text!r} has a space or an invisible character; expected one of {ACCEPTED}")
    if scheme == "consul":
        return _consul(text)
    if scheme == "static":
        return _static(text)
    if scheme in ("ipv4", "ipv6"):
        return _address_list(text, scheme)
    if scheme in _HANDED_OVER:
        return _handed_over(text, scheme)
    if not scheme and "://" in text:
        raise ValueError(f"target {text!r}: unknown scheme {text.split('://')[0]!r}; expected {ACCEPTED}")
    return _dns(text, scheme)


def _scheme(text: str) -> str:
    """The scheme in lower case, if it is one that has a meaning. `localhost:50051` only looks as if it had one."""
    match = _SCHEME.match(text)
    scheme = match.group(1).lower() if match else ""
    if scheme not in _SCHEMES or (scheme in ("consul", "static") and text[len(scheme) + 1 :].isdigit()):
        return ""  # as in gRPC: a name to look up, such as that of the host "consul"
    return scheme


def _guesses(text: str) -> Iterable[str]:
    """What may have been meant by a string that is not a target. Most of these are not targets either."""
    bare = text.strip()
    yield bare
    scheme, colon, rest = bare.partition(":")
    if not colon:
        return
    rest = rest.lstrip("/")
    from difflib import get_close_matches  # for a target that is wrong alone

    for known in get_close_matches(scheme.lower(), _SCHEMES, n=1, cutoff=0.7):
        yield f"{known}:///{rest}"
        yield f"{known}:{rest}"
    if "://" in bare or scheme.lower() in ("dns", "ipv4", "ipv6"):
        yield f"dns:///{rest.rstrip('/')}"
    yield f"static:///{bare}"


def _parses(text: str) -> bool:
    try:
        _parse(text)
    except ValueError:
        return False
    return True


def split_host_port(text: str, *, where: str, default_port: int | None = None, least_port: int = 1) -> tuple[str, int]:
    """``host:port``, ``[v6]:port`` or, with a default port, ``host`` alone, as (host, port).

    The host comes back without brackets. ``least_port`` 0 is for servers, which take a free port for it. Raises
    ``ValueError`` that begins with ``where``.
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
    if not host or not _NEVER_IN_A_HOST.isdisjoint(host):
        raise ValueError(f"{where}: host is {host!r}; {expected}")
    if missing:
        if default_port is None:
            raise ValueError(f"{where}: no port in {text!r}; {expected}")
        return host, default_port
    port = int(port_text) if port_text.isascii() and port_text.isdigit() and len(port_text) <= 9 else -1
    if not least_port <= port <= 65535:
        raise ValueError(f"{where}: port is {port_text!r}; expected a number from {least_port} to 65535")
    return host, port


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
    return url.netloc, url.path.removeprefix("/"), _parameters(text, url.query, accepted)


def _parameters(text: str, query: str, accepted: Iterable[str]) -> list[tuple[str, str]]:
    if "#" in text:
        raise ValueError(f"target {text!r}: a target has no fragment (#)")
    parameters = parse_qsl(query, keep_blank_values=True)
    known = tuple(accepted)
    for name, _ in parameters:
        if name not in known:
            raise ValueError(f"target {text!r}: unknown parameter {name!r}; expected {', '.join(known)}")
    return parameters


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
    # "." and ".." would be another path of Consul's, and nothing that cannot be printed names anything.
    if "/" in service or service in (".", "..") or not service.isprintable() or len(service) > _MAX_SERVICE_NAME:
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
        raise ValueError(f"target {text!r}: unexpected {authority!r}; expected static:///host:port,host:port")
    addresses = [unquote(part) for part in path.split(",")]
    weights = [1] * len(addresses)
    if parameters:
        parts = _single(text, parameters, "weights").split(",")
        if len(parts) != len(addresses):
            raise ValueError(
                f"target {text!r}: {len(parts)} in weights for {len(addresses)} in addresses; "
                "expected one weight for each address"
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


def _dns(text: str, scheme: str) -> DnsTarget | StaticTarget:
    name, _, query = (text[len(scheme) + 1 :] if scheme else text).partition("?")
    parameters = _parameters(text, query, ("interval",))
    interval_s = _interval(text, parameters)
    if scheme and name.startswith("//"):
        server, _, name = name[2:].partition("/")
        if not name:
            raise ValueError(f"target {text!r}: no name to look up; expected dns:///host:port")
        if server:
            return _asked_of(text, server, name, parameters)
    elif scheme:
        name = name.removeprefix("/")
    written = unquote(name) if scheme else name
    host, port = _host_port(written, text)
    authority = quote(written, safe=_PLAIN)
    if _ip_version(host) is not None:
        return StaticTarget(text, (Endpoint(join_host_port(host, port)),), "dns", authority)
    return DnsTarget(text, host, port, authority, interval_s)


def _host_port(written: str, text: str) -> tuple[str, int]:
    if written.count(":") > 1 and _ip_version(written) is not None:
        return written, GRPC_PORT
    host, colon, port = written.rpartition(":")
    if port in _NAMED_PORTS:
        written = f"{host}{colon}{_NAMED_PORTS[port]}"
    return split_host_port(written, where=f"target {text!r}", default_port=GRPC_PORT)


def _asked_of(text: str, server: str, name: str, parameters: list[tuple[str, str]]) -> StaticTarget:
    """``dns://server/host:port``: grpcio asks that name server, which it takes as ``address:port`` only."""
    host, port = split_host_port(server, where=f"target {text!r}", default_port=_DNS_PORT)
    if _ip_version(host) is None:
        raise ValueError(
            f"target {text!r}: the name server is {host!r}; expected its address as in dns://10.0.0.53/host:port, "
            "or dns:///host:port"
        )
    if parameters:
        raise ValueError(f"target {text!r}: grpcio does these lookups; expected no parameters")
    _host_port(unquote(name), text)
    address = f"dns://{join_host_port(host, port)}/{name}"
    doubt = "grpcio asks that name server: one endpoint, whatever it finds, which is not balanced"
    return StaticTarget(text, (Endpoint(address),), "dns", doubt=doubt)


def _ip_version(host: str) -> int | None:
    """4 or 6; None for what is no address."""
    from ipaddress import ip_address  # for some targets alone

    try:
        return ip_address(host).version
    except ValueError:
        return None


def _interval(text: str, parameters: list[tuple[str, str]]) -> float:
    given = _single(text, parameters, "interval")
    if not given:
        return REFRESH_S
    try:
        interval_s = float(given)
    except ValueError:
        interval_s = 0.0
    if not _LEAST_INTERVAL_S <= interval_s <= _MOST_INTERVAL_S:
        raise ValueError(
            f"target {text!r}: interval is {given!r}; expected seconds from {_LEAST_INTERVAL_S:g} "
            f"to {_MOST_INTERVAL_S:g}, such as interval=10"
        )
    return interval_s


def _handed_over(text: str, scheme: str) -> StaticTarget:
    rest = text[len(scheme) + 1 :]
    if not rest.strip("/"):
        raise ValueError(f"target {text!r}: nothing after {scheme}:; expected a path or a name")
    if scheme in _LOCAL and rest.startswith("//") and not (scheme == "unix" and rest.startswith("///")):
        raise ValueError(f"target {text!r}: expected {scheme}:name{' or unix:///path' if scheme == 'unix' else ''}")
    if scheme == "vsock" and not re.fullmatch(r"\d+:\d+", rest):
        raise ValueError(f"target {text!r}: {rest!r} after vsock:; expected two numbers, vsock:cid:port")
    return StaticTarget(text, (Endpoint(text),), scheme)


def _address_list(text: str, scheme: str) -> StaticTarget:
    addresses: list[str] = []
    for part in text.partition(":")[2].removeprefix("///").split(","):
        bare = scheme == "ipv6" and part.count(":") > 1 and not part.startswith("[")
        host, port = split_host_port(f"[{part}]" if bare else part, where=f"target {text!r}", default_port=GRPC_PORT)
        if _ip_version(host) != int(scheme[-1]):
            raise ValueError(f"target {text!r}: {host!r} is not an {scheme} address; expected {scheme}:address:port")
        addresses.append(join_host_port(host, port))
    return StaticTarget(text, _endpoints(text, addresses, [1] * len(addresses)), scheme)
