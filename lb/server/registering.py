"""What a server registers in Consul: the settings, checked when the server is made."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lb.core import checks
from lb.server.address import split_host_port
from lb.server.advertise import WILDCARDS, advertised
from lb.server.mistakes import StartError
from lb.server.optional import EXTRA

if TYPE_CHECKING:
    from lb.aio import Registration

_log = logging.getLogger("lb.server")

# For checking settings before the real one is known.
_SOME_ADDRESS = "127.0.0.1:1"
_AUTO = "auto"
_GRPC = "grpc"


def registering(register: bool | Mapping[str, Any], *, health: bool, tls: bool) -> Registering | None:
    """What a server's argument ``register`` asks for; None: it is not registered. Raises as `Registering`."""
    if register is False:
        return None
    return Registering({} if register is True else register, health=health, tls=tls)


async def enter(registration: Registration, tasks: list[asyncio.Task[Any]]) -> None:
    """Register, in a task that is one of ``tasks``: when the start is cancelled, what was sent is drained before it is
    taken back.
    """
    entering = asyncio.create_task(registration.__aenter__())
    tasks.append(entering)
    await asyncio.wait([entering])
    entering.result()


class Registering:
    """What is registered, apart from the service's name.

    ``settings`` are arguments of `lb.aio.registration` by name. ``address`` may also be a host, ``auto``, or empty for
    what is bound. Without it, a server that listens on all addresses registers the one that routes to Consul.
    """

    def __init__(self, settings: Mapping[str, Any], *, health: bool, tls: bool) -> None:
        # Imported here, and Consul's client with it, before an event loop has to wait for them.
        from lb.aio._consul import load
        from lb.aio._registration import registration

        load("register")
        known = [name for name in inspect.signature(registration).parameters if name != "service"]
        for name in settings:
            if name not in known:
                raise TypeError(f"register has {checks.shown(name)}; expected one of {', '.join(known)}")
        if not health and str(settings.get("check", _GRPC)).startswith(_GRPC):
            raise ImportError(
                f"register needs the health service, which Consul asks; {EXTRA}, or register with another `check`"
            )
        self._registration = registration
        self._settings = {"check_tls": tls, **settings}
        try:
            self.entry("server", _SOME_ADDRESS)
        except (ValueError, TypeError) as error:
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(f"register: {error}") from None
        checks.string("register: address", settings.get("address") or "", empty=True)

    async def address(self, bound: str) -> str:
        """The address to register, if this one is bound. Raises ``StartError``."""
        given = self._settings.get("address")
        if not bound:
            raise StartError("listen", None, "what is registered needs a port: give one, or add one before it starts")
        wildcard = split_host_port(bound, where="bound")[0] in WILDCARDS
        asked = str((_AUTO if wildcard else "") if given is None else given)
        try:
            found = await advertised(asked, bound, self._settings.get("consul"))
        except ValueError as error:
            raise StartError("address", asked, str(error)) from None
        if given is None and wildcard and found.startswith("127."):
            _log.warning(
                "registered is %s, from which the agent of Consul on this machine is reached: clients on other machines"
                " cannot connect to it; give the address in `register`",
                found,
            )
        return found

    def entry(self, service: str, address: str) -> Any:
        """The registration, not entered yet. Raises what `lb.aio.registration` raises."""
        return self._registration(service, **{**self._settings, "address": address})
