"""Targets: what each form means, and what the errors say."""

from __future__ import annotations

import re

import pytest

from lb.core.endpoint import Endpoint
from lb.core.target import (
    ConsulTarget,
    DnsTarget,
    StaticTarget,
    join_host_port,
    parse_target,
    split_host_port,
)


def test_consul() -> None:
    """The service is the path; its name is the authority; the agent comes from the environment."""
    target = parse_target("consul:///catalog")
    assert target == ConsulTarget("consul:///catalog", "catalog")
    assert (target.scheme, target.authority) == ("consul", "catalog")


def test_consul_with_everything() -> None:
    """Agent, datacenter, several tags (order and repetition mean nothing), near, quoting."""
    target = parse_target("consul://agent.local/a%20b?dc=eu-1&tag=v2&tag=blue&tag=v2&near=_agent")
    assert isinstance(target, ConsulTarget)
    assert (target.agent, target.service, target.dc) == ("agent.local:8500", "a b", "eu-1")
    assert (target.tags, target.near) == (("blue", "v2"), "_agent")


def test_consul_empty_parameters() -> None:
    """An empty parameter counts as left out, so that a template of a target works."""
    target = parse_target("consul:///catalog?dc=&tag=&near=")
    assert target == ConsulTarget("consul:///catalog?dc=&tag=&near=", "catalog")


def test_consul_ipv6_agent() -> None:
    """An IPv6 agent stands in brackets and gets them back."""
    target = parse_target("consul://[::1]:18500/catalog")
    assert isinstance(target, ConsulTarget)
    assert target.agent == "[::1]:18500"


def test_static() -> None:
    """Addresses in their order, weights in the same order; the authority is each endpoint's own."""
    target = parse_target("static:///127.0.0.1:1,[::1]:2,unix:/run/x.sock?weights=1,3,0")
    assert isinstance(target, StaticTarget)
    assert target.endpoints == (
        Endpoint("127.0.0.1:1", weight=1),
        Endpoint("[::1]:2", weight=3),
        Endpoint("unix:/run/x.sock", weight=0),
    )
    assert (target.scheme, target.authority) == ("static", "")


def test_static_without_weights() -> None:
    """Every weight is 1."""
    target = parse_target("static:///a:1,b:2")
    assert isinstance(target, StaticTarget)
    assert [e.weight for e in target.endpoints] == [1, 1]


@pytest.mark.parametrize(
    ("text", "host", "port", "authority"),
    [
        ("shop.example:50051", "shop.example", 50051, "shop.example:50051"),
        ("dns:shop.example:50051", "shop.example", 50051, "shop.example:50051"),
        ("dns:/shop.example:50051", "shop.example", 50051, "shop.example:50051"),
        ("dns:///shop.example:50051", "shop.example", 50051, "shop.example:50051"),
        ("DNS:///shop.example:50051", "shop.example", 50051, "shop.example:50051"),
        ("localhost:50051", "localhost", 50051, "localhost:50051"),
        ("catalog", "catalog", 443, "catalog"),
        ("dns:///shop.example", "shop.example", 443, "shop.example"),
        ("catalog:http", "catalog", 80, "catalog:http"),
        ("catalog:https", "catalog", 443, "catalog:https"),
        ("consul:8502", "consul", 8502, "consul:8502"),
        ("static:1", "static", 1, "static:1"),
        ("dns:unix:443", "unix", 443, "unix:443"),
        ("dns:///sh%6fp:1", "shop", 1, "shop:1"),
        ("b\u00fccher.example:1", "b\u00fccher.example", 1, "b%C3%BCcher.example:1"),
    ],
)
def test_dns(text: str, host: str, port: int, authority: str) -> None:
    """With and without a scheme it is the same name; the authority is what was written, the port defaults to 443."""
    assert parse_target(text) == DnsTarget(text, host, port, authority)


@pytest.mark.parametrize("text", ["shop:1?interval=10", "dns:shop:1?interval=10", "dns:///shop:1?interval=10"])
def test_dns_interval(text: str) -> None:
    """How often it is looked up is a parameter, which is no part of the name; an empty one counts as left out."""
    target = parse_target(text)
    assert isinstance(target, DnsTarget)
    assert (target.interval_s, target.authority) == (10.0, "shop:1")
    target = parse_target(text[:-2])
    assert isinstance(target, DnsTarget)
    assert target.interval_s == 30.0


@pytest.mark.parametrize(
    ("text", "address", "authority"),
    [
        ("127.0.0.1:1", "127.0.0.1:1", "127.0.0.1:1"),
        ("dns:///127.0.0.1", "127.0.0.1:443", "127.0.0.1"),
        ("[::1]:1", "[::1]:1", "[::1]:1"),
        ("dns:[::1]:1", "[::1]:1", "[::1]:1"),
        ("::1", "[::1]:443", "::1"),
        ("[fe80::1%eth0]:1", "[fe80::1%eth0]:1", "[fe80::1%25eth0]:1"),
        ("dns:///[fe80::1%25eth0]:1", "[fe80::1%eth0]:1", "[fe80::1%25eth0]:1"),
    ],
)
def test_a_literal_address_is_one_endpoint(text: str, address: str, authority: str) -> None:
    """There is nothing to look up."""
    assert parse_target(text) == StaticTarget(text, (Endpoint(address),), "dns", authority)


def test_a_name_for_a_proxy() -> None:
    """What a proxy resolves is one endpoint under its name, in a form that grpcio can only take for a name."""
    target = parse_target("unix.example:1")
    assert isinstance(target, DnsTarget)
    found = target.unresolved()
    assert found == StaticTarget(
        "unix.example:1", (Endpoint("dns:///unix.example:1"),), "dns", "unix.example:1", found.doubt
    )
    assert "goes through a proxy" in found.doubt


@pytest.mark.parametrize(
    ("text", "scheme", "address"),
    [
        ("dns://8.8.8.8:53/host:1", "dns", "dns://8.8.8.8:53/host:1"),
        ("dns://8.8.8.8/host:1", "dns", "dns://8.8.8.8:53/host:1"),
        ("dns://[::1]/host", "dns", "dns://[::1]:53/host"),
        ("unix:/run/x.sock", "unix", "unix:/run/x.sock"),
        ("unix:x y.sock", "unix", "unix:x y.sock"),
        ("unix:///run/x.sock", "unix", "unix:///run/x.sock"),
        ("unix-abstract:name", "unix-abstract", "unix-abstract:name"),
        ("vsock:1:2", "vsock", "vsock:1:2"),
        ("xds:///name", "xds", "xds:///name"),
    ],
)
def test_what_grpcio_resolves_itself(text: str, scheme: str, address: str) -> None:
    """It is one endpoint, whose address is the target; grpcio takes a name server as address and port only."""
    target = parse_target(text)
    assert isinstance(target, StaticTarget)
    assert target == StaticTarget(text, (Endpoint(address),), scheme, doubt=target.doubt)
    assert bool(target.doubt) == (scheme == "dns")


@pytest.mark.parametrize(
    ("text", "addresses"),
    [
        ("ipv4:10.0.0.1:1,10.0.0.2", ["10.0.0.1:1", "10.0.0.2:443"]),
        ("ipv4:///10.0.0.1:1", ["10.0.0.1:1"]),
        ("ipv6:[::1]:1,[fe80::2]:2", ["[::1]:1", "[fe80::2]:2"]),
        ("ipv6:::1", ["[::1]:443"]),
    ],
)
def test_address_lists(text: str, addresses: list[str]) -> None:
    """Each address of a list is an endpoint of its own, so that it is balanced over."""
    target = parse_target(text)
    assert isinstance(target, StaticTarget)
    assert [e.address for e in target.endpoints] == addresses


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("consul:///a b", "has a space or an invisible character"),
        ("consul:catalog", "expected consul:/// with three slashes"),
        ("consul:///", "service is empty"),
        ("consul://catalog", "expected consul:///service or consul://agent:port/service"),
        ("consul:///a/b", "service is 'a/b'; expected one name without a slash"),
        ("consul:///..", "service is '..'; expected one name"),
        ("consul:///%2e", "service is '.'; expected one name"),
        ("consul:///a%00b", r"service is 'a\\x00b'; expected one name"),
        ("consul:///a?passing=1", "unknown parameter 'passing'; expected dc, tag, near"),
        ("consul:///a?dc=x&dc=y", "parameter dc is given 2 times"),
        ("consul:///a#b", "fragment"),
        ("consul://host:0/a", "port is '0'; expected a number from 1 to 65535"),
        ("consul://[::1/a", "target 'consul://\\[::1/a': "),
        ("static:///", "host is ''; expected host:port"),
        ("static://a:1,b:2", "unexpected 'a:1,b:2'"),
        ("static:///a", "no port in 'a'; expected host:port"),
        ("static:///a:x", "port is 'x'"),
        ("static:///a:1,", "host is ''"),
        ("static:///a:1,a:1", "address a:1 is given twice"),
        ("static:///::1:5", "an IPv6 address as"),
        ("static:///a:1,b:2?weights=1", "1 in weights for 2 in addresses; expected one weight for each address"),
        ("static:///a:1?weights=-1", "weights has '-1'; expected whole numbers >= 0"),
        ("static:///a:1?weights=1.5", "weights has '1.5'"),
        ("static:///a:1?weights=", "weights has ''"),
        ("static:///a:1?weight=1", "unknown parameter 'weight'; expected weights"),
    ],
)
def test_errors_name_the_part(text: str, says: str) -> None:
    """Every bad target is a ValueError with the part, its value and what is accepted."""
    with pytest.raises(ValueError, match=says):
        parse_target(text)


def test_not_a_string() -> None:
    """Something else than text is refused by the same error type."""
    with pytest.raises(ValueError, match="expected a string"):
        parse_target(7)  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["127.0.0.1:80", "[::1]:80", "host.example:65535"])
def test_split_and_join(text: str) -> None:
    """Joining what was split gives the text back."""
    assert join_host_port(*split_host_port(text, where="x")) == text


def test_a_server_may_listen_on_port_0() -> None:
    """It takes a free one; a client cannot call it."""
    assert split_host_port("[::1]:0", where="x", least_port=0) == ("::1", 0)
    for least_port, text in ((1, "a:0"), (0, "a:65536"), (0, "a:-1")):
        with pytest.raises(ValueError, match=f"^x: port is '{text[2:]}'; expected a number from {least_port} to 65535"):
            split_host_port(text, where="x", least_port=least_port)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "target is ''; expected one of consul:///service"),
        (" ", "has a space or an invisible character"),
        ("dns:///", "no name to look up"),
        ("dns:///a:99999", "port is '99999'"),
        ("dns:", "host is ''"),
        ("dns://ns.example/host:1", "the name server is 'ns.example'; expected its address"),
        ("dns://8.8.8.8/host:1?interval=3", "grpcio does these lookups; expected no parameters"),
        ("host:1?intervall=3", "unknown parameter 'intervall'; expected interval"),
        ("host:1?interval=0", "interval is '0'; expected seconds from 0.1 to 86400"),
        ("host:1?interval=soon", "interval is 'soon'"),
        ("host:1?interval=nan", "interval is 'nan'"),
        ("127.0.0.1:1?interval=-1", "interval is '-1'"),
        ("host:1#part", "fragment"),
        ("unix:", "nothing after unix:"),
        ("unix-abstract:", "nothing after unix-abstract:"),
        ("vsock:x", "'x' after vsock:; expected two numbers"),
        ("localhost:http2", "port is 'http2'"),
        (":50051", "host is ''"),
        ("foo/bar", "host is 'foo/bar'"),
        ("${HOST}:50051", "host is '${HOST}'"),
        ("{host}:50051", "host is '{host}'"),
        ("<host>", "host is '<host>'"),
        ("'host':1", "host is \"'host'\""),
        ("[::]:0", "port is '0'"),
        ("a\0b:1", "has a space or an invisible character"),
        ("unix:/a\nb", "has a space or an invisible character"),
    ],
)
def test_what_cannot_be_right_is_an_error(text: str, says: str) -> None:
    """Also in grpcio's forms; the words name the part and what is accepted."""
    with pytest.raises(ValueError, match=re.escape(says)) as raised:
        parse_target(text)
    assert "Did you mean" not in str(raised.value)


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        (" host:1", "host:1"),
        ("host:1\n", "host:1"),
        (" consul:///catalog", "consul:///catalog"),
        ("unix:/run/x.sock ", "unix:/run/x.sock"),
        ("consull:///catalog?dc=a", "consul:///catalog?dc=a"),
        ("consul:catalog", "consul:///catalog"),
        ("consul:/catalog", "consul:///catalog"),
        ("consul://catalog", "consul:///catalog"),
        ("statics:///a:1,b:2", "static:///a:1,b:2"),
        ("static:a:1,b:2", "static:///a:1,b:2"),
        ("static://a:1", "static:///a:1"),
        ("a:1,b:2", "static:///a:1,b:2"),
        ("dns://host:1", "dns:///host:1"),
        ("dns://host", "dns:///host"),
        ("dns:///host:1/", "dns:///host:1"),
        ("dsn:///host:1", "dns:///host:1"),
        ("http://host:1", "dns:///host:1"),
        ("https://host/", "dns:///host"),
        ("grpc://host:1", "dns:///host:1"),
        ("tcp://10.0.0.1:1", "dns:///10.0.0.1:1"),
        ("ipv4:host:1", "dns:///host:1"),
        ("ipv4:[::1]:1", "dns:///[::1]:1"),
        ("ipv6:127.0.0.1:1", "dns:///127.0.0.1:1"),
        ("ipv4://10.0.0.1:1", "ipv4:///10.0.0.1:1"),
        ("unix://run/x.sock", "unix:///run/x.sock"),
    ],
)
def test_did_you_mean(text: str, meant: str) -> None:
    """Where one mistake explains it, the error names the target that was meant, which is one."""
    with pytest.raises(ValueError, match=re.escape(f". Did you mean {meant!r}?") + "$"):
        parse_target(text)
    parse_target(meant)
