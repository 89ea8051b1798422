"""Parts of a channel that are useful by themselves.

They have no clock and do no I/O: the caller gives the time, in monotonic seconds.

::

    from lb.parts import TokenBucket

    bucket = TokenBucket(rate=100, burst=20)
    wait_s = bucket.take(time.monotonic())  # 0.0: taken; else: how long to wait, and nothing was taken
"""

from __future__ import annotations

from lb.core.token_bucket import TokenBucket

__all__ = ["TokenBucket"]
