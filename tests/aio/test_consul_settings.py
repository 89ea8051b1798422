"""Where Consul is and how to talk to it: the environment of Consul's own tools."""

from __future__ import annotations

import pytest

from lb.aio.consul import ConsulError
from tests.support import doors


@pytest.mark.parametrize(
    ("base", "env", "wanted"),
    [
        (None, {}, [("127.0.0.1", 8500, "http")]),
        (None, {"CONSUL_HTTP_ADDR": ""}, [("127.0.0.1", 8500, "http")]),
        (None, {"CONSUL_HTTP_ADDR": "c:1"}, [("c", 1, "http")]),
        (None, {"CONSUL_HTTP_ADDR": "c"}, [("c", 8500, "http")]),
        (None, {"CONSUL_HTTP_ADDR": "https://c:1/"}, [("c", 1, "https")]),
        (None, {"CONSUL_HTTP_ADDR": "c:1", "CONSUL_HTTP_SSL": "true"}, [("c", 1, "https")]),
        (None, {"CONSUL_HTTP_ADDR": "http://c:1", "CONSUL_HTTP_SSL": "true"}, [("c", 1, "http")]),
        (
            None,
            {"CONSUL_HTTP_ADDR": "a:1, http://b:2,[::1]:3"},
            [("a", 1, "http"), ("b", 2, "http"), ("::1", 3, "http")],
        ),
        ("d:4", {"CONSUL_HTTP_ADDR": "c:1"}, [("d", 4, "http")]),
    ],
)
def test_addresses(base: str | None, env: dict[str, str], wanted: list[tuple[str, int, str]]) -> None:
    """host:port or a URL, several by commas; an argument wins over the environment."""
    assert [(a.host, a.port, a.scheme) for a in doors.consul().agents_from(base, env)] == wanted


def test_tls_and_token() -> None:
    """CA, client certificate and token come along; switched-off verification too; the token is in no repr."""
    env = {
        "CONSUL_CACERT": "ca.pem",
        "CONSUL_CLIENT_CERT": "c.pem",
        "CONSUL_CLIENT_KEY": "k.pem",
        "CONSUL_HTTP_TOKEN": "secret",
    }
    (agent,) = doors.consul().agents_from("https://c", env)
    assert (agent.verify, agent.cert, agent.token) == ("ca.pem", ("c.pem", "k.pem"), "secret")
    assert "secret" not in repr(agent)
    (careless,) = doors.consul().agents_from("https://c", env | {"CONSUL_HTTP_SSL_VERIFY": "false"})
    assert careless.verify is False


@pytest.mark.parametrize(
    ("env", "words"),
    [
        ({"CONSUL_HTTP_ADDR": "unix:///x"}, "CONSUL_HTTP_ADDR: scheme of 'unix:///x' is 'unix'; expected host:port"),
        ({"CONSUL_HTTP_ADDR": "c:x"}, "CONSUL_HTTP_ADDR: port is 'x'"),
        ({"CONSUL_HTTP_ADDR": "a:1,,b:2"}, "CONSUL_HTTP_ADDR: host is ''"),
        ({"CONSUL_HTTP_SSL": "maybe"}, "CONSUL_HTTP_SSL is 'maybe'; expected true or false"),
        ({"CONSUL_CLIENT_CERT": "c.pem"}, "one is given without the other"),
    ],
)
def test_bad_variables(env: dict[str, str], words: str) -> None:
    """Each names the variable, its value and what is accepted."""
    with pytest.raises(ValueError, match=words):
        doors.consul().agents_from(None, env)


async def test_token_file_that_is_not_there() -> None:
    """An unreadable token file is an error of the request, with its name."""
    client = doors.consul().AgentClient(doors.consul().AgentAddress("127.0.0.1", 1, token_file="/nonexistent/token"))
    with pytest.raises(ConsulError, match=r"CONSUL_HTTP_TOKEN_FILE cannot be read: .*/nonexistent/token"):
        await client.get("/v1/status/leader", timeout_s=1)
    await client.close()


async def test_ca_that_is_not_there() -> None:
    """An unreadable CA is an error that names the variable."""
    with pytest.raises(ConsulError, match="cannot load CONSUL_CACERT"):
        doors.consul().AgentClient(doors.consul().AgentAddress("127.0.0.1", 1, "https", verify="/nonexistent/ca.pem"))
