"""py-consul's HTTP layer, with a time-out for each silence instead of one for the whole answer.

In a file of its own because it is loaded only where Consul is used: aiohttp is half of the import time of `lb`,
and py-consul is an extra (``lb-mesh[consul]``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import aiohttp
import consul.aio  # type: ignore[import-untyped]  # the package carries no types

_CONNECT_S = 5.0
_LONGEST_ANSWER_S = 300.0

Callback = Callable[[int, Mapping[str, str], str], Any]


class Http(consul.aio.HTTPClient):  # type: ignore[misc]  # untyped, as above
    """One agent's connections. Must be made, used and closed in one running event loop."""

    async def _request(
        self,
        callback: Callback,
        method: str,
        uri: str,
        headers: dict[str, str] | None,
        data: str | None = None,
        connections_timeout: float = 0.0,
        **_: Any,
    ) -> Any:
        """As py-consul's, but ``connections_timeout`` bounds each silence, not the whole answer.

        An answer of 5,000 instances over a slow line takes longer than any limit that would find a dead agent soon.
        A redirect is an answer, and is not followed: aiohttp would send the token to the other place, too.
        """
        timeout = aiohttp.ClientTimeout(
            total=connections_timeout + _LONGEST_ANSWER_S,
            connect=min(_CONNECT_S, connections_timeout),
            sock_read=connections_timeout,
        )
        async with self._session.request(
            method, uri, headers=headers, data=data, timeout=timeout, allow_redirects=False
        ) as response:
            return callback(response.status, response.headers, await response.text("utf-8"))
