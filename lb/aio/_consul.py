"""Talking to a Consul agent: py-consul's client, our parameters, one kind of error.

py-consul's health reads send neither ``stale`` nor a read time-out that fits the wait, so
reads go through its HTTP layer; registering goes through its API. It raises its own errors,
aiohttp's and timeouts: all of them become :class:`ConsulError` here, and only here::

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
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from lb.aio import pulse
from lb.core.target import CONSUL_PORT, join_host_port, split_host_port

T = TypeVar("T")

_BODY_SHOWN = 200
_NEVER_S = 7 * 86400.0
# The errors that py-consul raises without the number, by their names.
_STATUS = {"ACLDisabled": 401, "ACLPermissionDenied": 403, "NotFound": 404}


class ConsulError(Exception):
    """An agent did not give what was asked. ``status`` is its HTTP status, None without an answer."""

    def __init__(self, agent: str, reason: str, status: int | None = None) -> None:
        super().__init__(f"consul {agent}: {reason}")
        self.agent = agent
        self.status = status

    @property
    def overloaded(self) -> bool:
        """Whether the agent asked to be left alone for a while."""
        return self.status in (429, 503)


@dataclass(frozen=True, slots=True)
class AgentAddress:
    """One agent and how to talk to it. ``token_file`` is read anew for each request."""

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

    Raises ``ValueError`` naming the variable, its value and what is accepted.
    """
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


class AgentClient:
    """One agent's client. Must be made, used and closed in one running event loop."""

    def __init__(self, address: AgentAddress) -> None:
        # Here and not above: aiohttp is half of the import time of `lb`, which may never meet Consul.
        import consul.aio  # type: ignore[import-untyped]  # the package carries no types

        self.address = address
        host = f"[{address.host}]" if ":" in address.host else address.host
        with warnings.catch_warnings():
            # py-consul passes arguments to aiohttp that are deprecated there.
            warnings.simplefilter("ignore", DeprecationWarning)
            try:
                self._client = consul.aio.Consul(
                    host=host,
                    port=address.port,
                    scheme=address.scheme,
                    # Without TLS there is nothing to verify, and loading the trust store takes 20 ms.
                    verify=address.verify if address.scheme == "https" else False,
                    cert=address.cert,
                )
            except OSError as error:
                raise ConsulError(address.name, f"cannot load CONSUL_CACERT or CONSUL_CLIENT_CERT: {error}") from error

    async def get(self, path: str, params: Sequence[tuple[str, str]] = (), *, timeout_s: float) -> Reply:
        """The answer to a GET, whatever its status. Raises :class:`ConsulError` when there is none."""
        headers = {"X-Consul-Token": token} if (token := self._token()) else {}
        return await self._translated(
            self._client.http.get(
                lambda r: Reply(r.code, r.headers, r.body),
                path,
                params=list(params),
                headers=headers,
                connections_timeout=_NEVER_S,  # `_translated` has the time-out, which knows when the loop was held
            ),
            timeout_s,
        )

    def refused(self, reply: Reply) -> ConsulError:
        """The error for an answer that is not what was asked for."""
        words = " ".join(reply.body.split())[:_BODY_SHOWN] or "no reason given"
        return ConsulError(self.address.name, f"HTTP {reply.status}: {words}", reply.status)

    async def register(
        self,
        service: str,
        service_id: str,
        host: str,
        port: int,
        *,
        weights: Mapping[str, int],
        tags: Sequence[str],
        meta: Mapping[str, str],
        check: Mapping[str, Any] | None,
        timeout_s: float,
    ) -> None:
        """Registers an instance. A check that exists under the same id keeps its status."""
        await self._translated(
            self._client.agent.service.register(
                service,
                service_id=service_id,
                address=host,
                port=port,
                weights=dict(weights),
                tags=list(tags),
                meta=dict(meta),
                check=dict(check) if check else None,
                token=self._token() or None,
            ),
            timeout_s,
        )

    async def deregister(self, service_id: str, *, timeout_s: float) -> bool:
        """Removes an instance; False when the agent did not know it."""
        done = self._client.agent.service.deregister(service_id, token=self._token() or None)
        return bool(await self._translated(done, timeout_s))

    async def maintenance(self, service_id: str, *, enable: bool, reason: str, timeout_s: float) -> bool:
        """Switches an instance's maintenance mode; False when the agent did not know it."""
        words = "true" if enable else "false"
        done = self._client.agent.service.maintenance(service_id, words, reason=reason, token=self._token() or None)
        return bool(await self._translated(done, timeout_s))

    async def close(self) -> None:
        """Closes the connections. Idempotent."""
        await self._client.close()

    def _token(self) -> str:
        if not self.address.token_file:
            return self.address.token
        try:
            return Path(self.address.token_file).read_text().strip()
        except OSError as error:
            raise ConsulError(self.address.name, f"CONSUL_HTTP_TOKEN_FILE cannot be read: {error}") from error

    async def _translated(self, request: Awaitable[T], timeout_s: float) -> T:
        """The one place where py-consul's and aiohttp's errors become ours."""
        import aiohttp
        from consul.exceptions import ConsulException  # type: ignore[import-untyped]  # as above

        name = self.address.name
        try:
            async with pulse.timeout(timeout_s):
                return await request
        except TimeoutError as error:
            raise ConsulError(name, f"no answer within {timeout_s:g} s") from error
        except ConsulException as error:
            # "400 Invalid Weights: ..."; for 401 and 403 py-consul leaves the number out.
            words = " ".join(str(error).split())[:_BODY_SHOWN]
            first = words.split(" ", 1)[0]
            status = int(first) if len(first) == 3 and first.isdigit() else _STATUS.get(type(error).__name__)
            raise ConsulError(name, f"HTTP {words}" if first == str(status) else words, status) from error
        except aiohttp.ClientConnectorError as error:
            raise ConsulError(name, f"cannot connect: {_words(error.os_error)}") from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise ConsulError(name, f"connection lost: {error or type(error).__name__}") from error


def _words(error: OSError) -> str:
    # asyncio puts "Connect call failed ('127.0.0.1', 1)" where the system's words would be.
    # Errors of the name lookup have negative numbers and words of their own.
    if error.errno is not None and error.errno > 0:
        return os.strerror(error.errno).lower()
    return str(error.strerror or error)
