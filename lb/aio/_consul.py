"""Talking to a Consul agent: py-consul's HTTP layer, our parameters, one kind of error.

py-consul's own calls send neither ``stale`` nor a read time-out that fits the wait, and drop parts of a
registration, so requests go through its HTTP layer (`_consul_http`). aiohttp's errors and timeouts become
`ConsulError` here, and only here::

    Exception
    └── ConsulError            the agent's address, what was asked, why it failed
        ├── .status is None    it could not be reached, or did not answer in time
        └── .status == 4xx/5xx it answered, and refused

The environment is that of Consul's own tools: ``CONSUL_HTTP_ADDR`` (``host:port`` or a URL;
several, separated by commas, are tried in turn), ``CONSUL_HTTP_TOKEN_FILE`` (wins) or
``CONSUL_HTTP_TOKEN``, ``CONSUL_HTTP_SSL``, ``CONSUL_HTTP_SSL_VERIFY``, ``CONSUL_CACERT``,
``CONSUL_CLIENT_CERT`` and ``CONSUL_CLIENT_KEY``.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lb.core import checks
from lb.core.peers import one_line
from lb.core.target import CONSUL_PORT, join_host_port, split_host_port

# What a proxy answers when it waited too long, or lost its upstream.
_CUT = (502, 504)
_REDIRECTS = (301, 302, 303, 307, 308)


class ConsulError(Exception):
    """An agent of Consul did not give what was asked. The message names the agent and says why."""

    def __init__(self, agent: str, reason: str, status: int | None = None, *, lost: bool = False) -> None:
        super().__init__(f"consul {agent}: {reason}")
        self.agent: str = agent
        """Which agent, as ``host:port``."""
        self.status: int | None = status
        """The HTTP status of its answer; None if there was no answer."""
        self.lost: bool = lost or status in _CUT
        """Whether a question that was sent got no answer because the agent ended, or a proxy cut it off."""

    @property
    def overloaded(self) -> bool:
        """Whether the agent asked to be left alone for a while."""
        return self.status in (429, 503)


@dataclass(frozen=True, slots=True)
class AgentAddress:
    """One agent and how to talk to it. ``token_file`` is read for each request."""

    host: str
    port: int
    scheme: str = "http"
    verify: bool | str = True
    cert: tuple[str, str] | None = None
    token: str = field(default="", repr=False)
    token_file: str = ""

    @property
    def name(self) -> str:
        """``host:port``, as shown in errors."""
        return join_host_port(self.host, self.port)


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer of any status. ``headers`` ignores case; ``body`` is text."""

    status: int
    headers: Mapping[str, str]
    body: str

    def json(self) -> Any:
        """The decoded body. Raises ``ValueError`` when it is no JSON."""
        return json.loads(self.body)


def agents_from(base: str | None, env: Mapping[str, str] = os.environ) -> tuple[AgentAddress, ...]:
    """The agents named by ``base`` (``host:port`` or a URL, several by commas), else by ``env``.

    Raises ``ValueError`` (``TypeError`` if ``base`` is no string): the variable, its value and what is accepted.
    """
    if base is not None:
        checks.string("consul", base, "host:port or a URL, or None", empty=True)
    where, text = ("consul", base) if base else ("CONSUL_HTTP_ADDR", env.get("CONSUL_HTTP_ADDR", ""))
    scheme = "https" if _flag(env, "CONSUL_HTTP_SSL", default=False) else "http"
    verify: bool | str = _flag(env, "CONSUL_HTTP_SSL_VERIFY", default=True)
    if verify and env.get("CONSUL_CACERT"):
        verify = env["CONSUL_CACERT"]
    cert, key = env.get("CONSUL_CLIENT_CERT", ""), env.get("CONSUL_CLIENT_KEY", "")
    if bool(cert) != bool(key):
        raise ValueError("CONSUL_CLIENT_CERT and CONSUL_CLIENT_KEY: one is given without the other; expected both")
    return tuple(
        _agent(
            part.strip(),
            where,
            AgentAddress(
                "",
                CONSUL_PORT,
                scheme,
                verify,
                (cert, key) if cert else None,
                env.get("CONSUL_HTTP_TOKEN", ""),
                env.get("CONSUL_HTTP_TOKEN_FILE", ""),
            ),
        )
        for part in (text or f"127.0.0.1:{CONSUL_PORT}").split(",")
    )


def _agent(text: str, where: str, like: AgentAddress) -> AgentAddress:
    scheme, separator, rest = text.rpartition("://")
    scheme = scheme.lower() if separator else like.scheme
    if scheme not in ("http", "https"):
        raise ValueError(f"{where}: scheme of {text!r} is {scheme!r}; expected host:port, http:// or https://")
    host, port = split_host_port(rest.rstrip("/"), where=where, default_port=CONSUL_PORT)
    return AgentAddress(host, port, scheme, like.verify, like.cert, like.token, like.token_file)


def _flag(env: Mapping[str, str], name: str, *, default: bool) -> bool:
    value = env.get(name, "").lower()
    if value not in ("", "true", "false", "1", "0"):
        raise ValueError(f"{name} is {value!r}; expected true or false")
    return value in ("true", "1") if value else default


def load(what: str) -> None:
    """Import Consul's client. It takes up to a second, so it is done where no event loop waits for it.

    Raises ``ImportError`` that says what ``what`` needs.
    """
    try:
        import lb.aio._consul_http  # noqa: F401  # for its time
    except ModuleNotFoundError as error:
        raise ImportError(
            f"{what} needs Consul's client ({error.name} is missing); install lb-mesh with its extra `consul`"
        ) from error


class AgentClient:
    """One agent's client. Must be made, used and closed in one running event loop.

    ``timeout_s`` bounds each silence of the agent: an answer is read as long as bytes come.
    """

    def __init__(self, address: AgentAddress) -> None:
        # Imported here because it takes long: see its first lines.
        from lb.aio._consul_http import Http

        self.address = address
        with warnings.catch_warnings():
            # py-consul passes arguments to aiohttp that are deprecated there.
            warnings.simplefilter("ignore", DeprecationWarning)
            try:
                self._http = Http(
                    f"[{address.host}]" if ":" in address.host else address.host,
                    address.port,
                    address.scheme,
                    # Without TLS there is nothing to verify, and loading the trust store takes 20 ms.
                    verify=address.verify if address.scheme == "https" else False,
                    cert=address.cert,
                )
            except OSError as error:
                raise ConsulError(address.name, f"cannot load CONSUL_CACERT or CONSUL_CLIENT_CERT: {error}") from error

    def token(self) -> str:
        """The token as it is now. Raises `ConsulError` when its file cannot be read."""
        if not self.address.token_file:
            return self.address.token
        try:
            return Path(self.address.token_file).read_text().strip()
        except OSError as error:
            raise ConsulError(self.address.name, f"CONSUL_HTTP_TOKEN_FILE cannot be read: {error}") from error

    async def get(self, path: str, params: Sequence[tuple[str, str]] = (), *, timeout_s: float) -> Reply:
        """The answer to a GET, whatever its status. Raises `ConsulError` when there is none."""
        return await self._send(self._http.get, path, params, timeout_s)

    async def put(
        self, path: str, params: Sequence[tuple[str, str]] = (), body: object = None, *, timeout_s: float
    ) -> Reply:
        """The answer to a PUT, whatever its status. Raises `ConsulError` when there is none."""
        data = "" if body is None else json.dumps(body)
        return await self._send(self._http.put, path, params, timeout_s, data=data)

    def refused(self, reply: Reply) -> ConsulError:
        """The error for an answer that is not what was asked for."""
        where = reply.headers.get("Location")
        if where is not None and reply.status in _REDIRECTS:
            words = (
                f"it redirects to {one_line(where)}, which is not followed, because the token would be sent there;"
                " name the right address as the agent's"
            )
        else:
            words = one_line(" ".join(reply.body.split())) or "no reason given"
        return ConsulError(self.address.name, f"HTTP {reply.status}: {words}", reply.status)

    async def close(self) -> None:
        """Close the connections. Idempotent."""
        await self._http.close()

    async def _send(
        self, method: Any, path: str, params: Sequence[tuple[str, str]], timeout_s: float, **more: Any
    ) -> Reply:
        """The one place where aiohttp's errors become ours."""
        import aiohttp

        name, token = self.address.name, self.token()
        headers = {"X-Consul-Token": token} if token else {}
        try:
            reply: Reply = await method(
                Reply, path, params=list(params), headers=headers, connections_timeout=timeout_s, **more
            )
        except aiohttp.ConnectionTimeoutError as error:
            raise ConsulError(name, "cannot connect: no answer") from error
        except TimeoutError as error:
            raise ConsulError(name, f"no answer within {timeout_s:g} s") from error
        except aiohttp.ClientConnectorError as error:
            raise ConsulError(name, f"cannot connect: {_words(error.os_error)}") from error
        except (aiohttp.ClientError, OSError) as error:
            raise ConsulError(name, f"connection lost: {_told(error)}", lost=True) from error
        except ValueError as error:
            raise ConsulError(name, f"the answer cannot be read: {_told(error)}") from error
        return reply


def _told(error: Exception) -> str:
    # aiohttp quotes what it could not read.
    return one_line(str(error)) or type(error).__name__


def _words(error: OSError) -> str:
    # asyncio puts "Connect call failed ('127.0.0.1', 1)" where the system's words would be.
    # Errors of the name lookup have negative numbers and words of their own.
    if error.errno is not None and error.errno > 0:
        return os.strerror(error.errno).lower()
    return str(error.strerror or error)
