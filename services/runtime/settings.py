"""Settings of a process of the mesh, from ``MESH_`` variables of the environment.

A variable with the prefix that nobody knows is an error: a misspelt setting that is silently
ignored is found much later, elsewhere. (pydantic-settings' ``extra="forbid"`` does not see
variables of the environment, so the names are checked here.)
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
import socket
from pathlib import Path
from typing import Annotated, Literal, Self, TypeVar
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from lb.server import Concurrency, Limits, Rate
from lb.server.address import split_host_port
from lb.server.supervising import how_many

PREFIX = "MESH_"

# Settings of other processes of the mesh, which share one environment with this one.
OTHERS = frozenset(
    {
        *("MESH_PORT", "MESH_DURATION", "MESH_JAEGER_QUERY", "MESH_ORDER_RATE"),
        *("MESH_CLIENT_RATE", "MESH_CLIENT_BURST", "MESH_CLIENT_HEADER"),
    }
)

CALLER_KEY = "user-agent"
"""Where a caller says who it is: gRPC's own place for it, so that it costs a call nothing (`channels.connector`)."""

_MOST = 1_000_000
_WITH_PORT = re.compile(r"(^[^:]*|\]):\d+$")

PolicyName = Literal["round_robin", "random", "weighted_round_robin", "weighted_random", "least_request", "p2c", "orca"]
LogLevel = Literal["debug", "info", "warning", "error"]


class SettingsError(ValueError):
    """A setting is unknown or invalid. The message is one line and names the variable."""


def trace_collector() -> str | None:
    """Where spans go, by OpenTelemetry's own variables; None when nowhere.

    Raises ``SettingsError`` when one is no URL: the exporter would lose every span without a word.
    """
    found = None
    for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"):
        value = os.environ.get(name)
        if value:
            try:
                found = http_url(value, example="http://127.0.0.1:4318")
            except ValueError as error:
                raise SettingsError(f"{name}={value!r}: {error}") from None
    return found


def http_url(text: str, *, example: str = "http://127.0.0.1:16686") -> str:
    """The text, when it is a URL of HTTP; else raises ``ValueError``."""
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"expected a URL such as {example}")
    return text


def _listening(text: str) -> str:
    split_host_port(text, where="MESH_LISTEN", least_port=0)
    return text


def _concurrency(text: str) -> str:
    if text != "auto" and not (text.isascii() and text.isdecimal() and int(text) <= _MOST):
        raise ValueError(f"expected auto or a whole number from 0 to {_MOST}")
    return text


def bucket(per_s: float, burst: float) -> Rate | None:
    """A rate of calls; None for 0, which is any number of them. A burst of 0 is twice the rate."""
    return Rate(per_s, max(1.0, burst or 2 * per_s)) if per_s else None


def by_method(text: str) -> dict[str, Rate]:
    """Rates of single methods, ``/package.Service/Method=50,...``. Raises ``ValueError``."""
    found: dict[str, Rate] = {}
    for entry in filter(None, (part.strip() for part in text.split(","))):
        name, _, per_s = entry.partition("=")
        try:
            found[name] = Rate(float(per_s))
            Limits(method_rates=found)
        except ValueError as error:
            raise ValueError(f"expected /package.Service/Method=50, or more of these with commas; {error}") from None
    return found


def _method_rates(text: str) -> str:
    by_method(text)
    return text


class Settings(BaseSettings):
    """What every process of the mesh reads. A process with more settings derives from it."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_ignore_empty=True, extra="ignore", frozen=True)

    listen: Annotated[str, AfterValidator(_listening)] = "127.0.0.1:0"
    """Where the server listens, ``host:port``; port 0 takes a free one."""
    advertise: str = ""
    """What is registered: ``host``, ``host:port`` or ``auto`` (the address that routes to Consul);
    by default what it listens on."""
    instance_id: str = ""
    """Default: ``<service>-<hostname>-<pid>``."""
    weight: int = Field(default=1, ge=1, le=65535)
    """Share of the calls, relative to the other instances."""
    zone: str = ""
    """Where the instance stands, free text."""
    data: Path | None = None
    """Directory of the SQLite files, shared by the instances of a service."""
    database_url: str = ""
    """SQLAlchemy URL with an asyncio driver; wins over ``data``."""
    policy: PolicyName = "weighted_round_robin"
    """How the channels to other services choose an instance."""
    drain_s: float = Field(default=30.0, ge=0, le=3600)
    """How long leaving may take after SIGTERM, all in all, in seconds."""
    drain_wait_s: float = Field(default=1.0, ge=0, le=60, validate_default=True)
    """How long the instance says that it leaves before its port closes, in seconds; below ``drain_s``, or 0."""
    concurrency: Annotated[str, AfterValidator(_concurrency)] = "auto"
    """How many calls run at once: ``auto`` finds out, 0 is any number."""
    rate: float = Field(default=1000.0, ge=0, le=_MOST)
    """Calls a second of an instance, in the long run; 0 is any number."""
    burst: float = Field(default=0.0, ge=0, le=_MOST)
    """Calls at once beyond the rate; 0 is twice the rate."""
    method_rates: Annotated[str, AfterValidator(_method_rates)] = ""
    """Calls a second of single methods: ``/package.Service/Method=50,/package.Service/*=200``."""
    caller_rate: float = Field(default=0.0, ge=0, le=_MOST)
    """The same of each service that calls; 0 is any number."""
    caller_burst: float = Field(default=0.0, ge=0, le=_MOST)
    """Calls at once beyond it; 0 is twice the rate."""
    timeout_s: float = Field(default=60.0, gt=0, le=86_400)
    """How long a call may take whose caller set no deadline, or a later one, in seconds."""
    log_level: LogLevel = "info"
    """The least level that is logged."""
    parent_fd: int | None = Field(default=None, ge=0)
    """Inherited end of a pipe: end-of-file on it means that the supervisor died."""

    @field_validator("drain_wait_s")
    @classmethod
    def _leaves_time(cls, wait_s: float, info: ValidationInfo) -> float:
        all_s = info.data.get("drain_s")  # absent, if it is wrong itself
        if all_s is not None and wait_s and wait_s >= all_s:
            raise ValueError(f"the wait is {wait_s:g}; expected seconds below MESH_DRAIN_S ({all_s:g}), or 0")
        return wait_s

    @property
    def limits(self) -> Limits:
        """What an instance of a service takes on."""
        return Limits(
            concurrency=self.places(Concurrency()),
            rate=bucket(self.rate, self.burst),
            method_rates=by_method(self.method_rates),
            client_rate=bucket(self.caller_rate, self.caller_burst),
            client_key=CALLER_KEY,
            timeout_s=self.timeout_s,
        )

    def places(self, auto: Concurrency) -> Concurrency | None:
        """How many calls run at once, where ``auto`` is what follows the latency."""
        if self.concurrency == "auto":
            return auto
        limit = int(self.concurrency)
        return dataclasses.replace(auto, limit=limit, adaptive=False) if limit else None

    def identity(self, service: str) -> str:
        """The id of this process, as an instance of ``service``."""
        return self.instance_id or f"{service}-{socket.gethostname()}-{os.getpid()}"


def _instances(text: str) -> str:
    how_many(text)
    return text


class ServiceSettings(Settings):
    """What a business service reads."""

    instances: Annotated[str, AfterValidator(_instances)] = "1"
    """How many processes of it: a number, or ``auto`` for one for each CPU that they may use."""

    @model_validator(mode="after")
    def _a_port_each(self) -> Self:
        if how_many(self.instances) > 1:
            if split_host_port(self.listen, where="MESH_LISTEN", least_port=0)[1]:
                raise ValueError("with several instances each takes a free port; expected MESH_LISTEN with port 0")
            if _WITH_PORT.search(self.advertise):
                raise ValueError("with several instances each has a port of its own; expected MESH_ADVERTISE without")
        return self


S = TypeVar("S", bound=Settings)


def load(kind: type[S]) -> S:
    """Read settings from the environment.

    Raises:
        SettingsError: a ``MESH_`` variable is unknown, or has a value that is not accepted.
    """
    known = {PREFIX + name.upper() for name in kind.model_fields} | OTHERS
    for name in sorted(os.environ):
        if name.upper().startswith(PREFIX) and name.upper() not in known:
            close = difflib.get_close_matches(name.upper(), known, n=1)
            raise SettingsError(f"{name}: unknown setting" + (f", did you mean {close[0]}?" if close else ""))
    try:
        return kind()
    except ValidationError as error:
        problems = [_line(problem["loc"], problem["msg"]) for problem in error.errors()]
        raise SettingsError("; ".join(problems)) from None


def _line(location: tuple[int | str, ...], message: str) -> str:
    name = PREFIX + str(location[0]).upper() if location else PREFIX + "INSTANCES"
    text = message.removeprefix("Value error, ").removeprefix(f"{name}: ")
    return f"{name}={os.environ.get(name, '')!r}: {text[:1].lower()}{text[1:]}"
