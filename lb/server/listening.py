"""Where a server listens, and why it cannot."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Sequence
from typing import Any

import grpc

from lb.core import checks
from lb.server.address import join_host_port
from lb.server.advertise import taken_apart
from lb.server.mistakes import StartError

_SO_REUSEPORT = "grpc.so_reuseport"
BAD_SETTING = 2
"""The status of a process that a new start cannot help."""


class Processes:
    """Those that run this program, this one included (`lb.server.instances`)."""

    count = 1


def checked(listen: str) -> tuple[str, int]:
    """The host and the port, which may be 0. Raises ``StartError``, or ``TypeError`` for what is no string."""
    checks.string("listen", listen, "host:port")
    if listen.startswith(("unix:", "unix-abstract:")):
        raise StartError("listen", listen, "is a socket; expected host:port, or None with add_insecure_port() for it")
    try:
        return taken_apart(listen, least_port=0)
    except ValueError as error:
        raise StartError("listen", listen, str(error)) from None


def apart(listen: str, options: Sequence[tuple[str, Any]]) -> None:
    """Ends a process that is one of several, and would listen where the others do: a new start cannot help it.

    ``SystemExit``, for any other exception ends a process with a status with which it is started again, for ever.
    """
    shared = any(name == _SO_REUSEPORT and value for name, value in options)
    if Processes.count > 1 and checked(listen)[1] and not shared:
        why = f"{Processes.count} processes of lb.server.instances() cannot have one port; expected port 0"
        print(StartError("listen", listen, why), file=sys.stderr, flush=True)
        raise SystemExit(BAD_SETTING)


def bind(server: grpc.aio.Server, listen: str, credentials: grpc.ServerCredentials | None) -> int:
    """Make a server listen there. Its port; raises ``StartError``."""
    try:
        port = server.add_secure_port(listen, credentials) if credentials else server.add_insecure_port(listen)
    except RuntimeError:
        port = 0
    if not port:
        raise StartError("listen", listen, f"cannot listen there: {_why(*checked(listen))}")
    return port


def told(address: str, port: int) -> str:
    """The address of a port that was added: with the port that it got; a socket's path as it is."""
    try:
        return join_host_port(taken_apart(address, least_port=0)[0], port)
    except ValueError:
        return address


def with_default(options: Sequence[tuple[str, Any]]) -> Sequence[tuple[str, Any]]:
    """Channel arguments with which two servers share no port, unless they say so."""
    given = tuple(options)
    return given if any(name == _SO_REUSEPORT for name, _ in given) else (*given, (_SO_REUSEPORT, 0))


def _why(host: str, port: int) -> str:
    """Why nobody can listen there: grpcio does not say."""
    try:
        for family, kind, protocol, _, address in socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        ):
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
                probe.listen()
    except socket.gaierror as error:
        return error.strerror or "no such host"
    except OSError as error:
        return os.strerror(error.errno or 0)
    return "the reason is not known; are the credentials right?"
