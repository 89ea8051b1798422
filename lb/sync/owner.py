"""What calls of `lb.sync` need of their channel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from lb.aio.engine import Engine


class Owner(Protocol):
    """The channel of a call. From any thread, unless said otherwise."""

    @property
    def engine(self) -> Engine:
        """Carries out what the caller's own thread does not."""

    @property
    def secure(self) -> bool:
        """Whether its connections may carry call credentials."""

    @property
    def cooperative(self) -> bool:
        """Whether blocking calls are carried out in the loop."""

    @property
    def closed_reason(self) -> str:
        """Why it takes no more calls; empty while it does."""

    def begin(self, call: Any, function: Callable[..., object], *arguments: Any) -> bool:
        """Call a function in the loop for a call that runs from now on; False when the channel is closed."""

    def ended(self, call: Any) -> None:
        """A call that was begun is over."""

    def must_wait(self) -> None:
        """The caller is about to wait for the loop. Raises ``RuntimeError`` in the loop's own thread."""

    def in_loop(self, function: Callable[..., object], *arguments: Any) -> bool:
        """Call a function in the loop; False when there is none. Also from a finalizer."""
