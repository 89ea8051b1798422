"""Targets: what each form means, and what the errors say."""

from __future__ import annotations

import pytest

from lb.core.endpoint import Endpoint
from lb.core.target import (
    ConsulTarget,
    DnsTarget,
    GrpcTarget,
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


def test_dns() -> None:
    """Ours with three slashes; the authority is what was written, the port defaults to 443."""
    assert parse_target("dns:///shop.example:50051") == DnsTarget("dns:///shop.example:50051", "shop.example", 50051)
    target = parse_target("dns:///shop.example")
    assert target == DnsTarget("dns:///shop.example", "shop.example", 443)
    assert target.authority == "shop.example"


@pytest.mark.parametrize(
    ("text", "scheme"),
    [
        ("localhost:50051", ""),
        ("catalog", ""),
        ("[::1]:50051", ""),
        ("dns:host:1", "dns"),
        ("dns://8.8.8.8/host:1", "dns"),
        ("unix:/run/x.sock", "unix"),
        ("unix:///run/x.sock", "unix"),
        ("unix-abstract:name", "unix-abstract"),
    ],
)
def test_grpcio_keeps_its_meaning(text: str, scheme: str) -> None:
    """What grpcio resolves is handed over unchanged, as one endpoint."""
    target = parse_target(text)
    assert target == GrpcTarget(text, scheme)
    assert target.endpoints == (Endpoint(text),)
    assert target.authority == ""


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
        ("consul:///a b", "expected no blanks"),
        ("consul:catalog", "expected consul:/// with three slashes"),
        ("consul:///", "service is empty"),
        ("consul://catalog", "expected consul:///service or consul://agent:port/service"),
        ("consul:///a/b", "service is 'a/b'; expected one name without a slash"),
        ("consul:///a?passing=1", "unknown parameter 'passing'; expected dc, tag, near"),
        ("consul:///a?dc=x&dc=y", "parameter dc is given 2 times"),
        ("consul:///a#b", "fragment"),
        ("consul://host:0/a", "port is '0'; expected a number from 1 to 65535"),
        ("consul://[::1/a", "target 'consul://\\[::1/a': "),
        ("static:///", "host is ''; expected host:port"),
        ("static://a:1,b:2", "'a:1,b:2' stands where nothing may"),
        ("static:///a", "no port in 'a'; expected host:port"),
        ("static:///a:x", "port is 'x'"),
        ("static:///a:1,", "host is ''"),
        ("static:///a:1,a:1", "address a:1 is given twice"),
        ("static:///::1:5", "an IPv6 address as"),
        ("static:///a:1,b:2?weights=1", "weights has 1 values for 2 addresses; expected one for each"),
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


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "expected no blanks and one of consul:///service"),
        ("consull:///catalog", "unknown scheme 'consull'; expected consul:///service"),
        ("http://host:1", "unknown scheme 'http'"),
        ("dns:///", "host is ''"),
        ("dns:///a:99999", "port is '99999'"),
        ("dns:", "no name"),
        ("ipv4:host:1", "'host' is not an ipv4 address"),
        ("ipv4:[::1]:1", "'::1' is not an ipv4 address"),
        ("ipv6:127.0.0.1:1", "'127.0.0.1' is not an ipv6 address"),
        ("unix:", "nothing after unix:"),
        ("localhost:http2", "port is 'http2'"),
        (":50051", "host is ''"),
        ("foo/bar", "host is 'foo/bar'"),
        ("[::]:0", "port is '0'"),
        (" host:1", "expected no blanks"),
    ],
)
def test_what_grpcio_would_try_is_left_to_it(text: str, says: str) -> None:
    """Any text outside our own schemes is a target, as in grpcio; the doubt names the part and what is accepted."""
    target = parse_target(text)
    assert isinstance(target, GrpcTarget)
    assert says in target.doubt
    assert len(target.endpoints) == 1
