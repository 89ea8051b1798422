"""The private parts of grpcio that `lb.aio._grpcio` stands on: when one moves, a test here says which."""

from __future__ import annotations

import asyncio
import subprocess
import sys

import grpc

import lb

BAD_CREDENTIALS = """
import asyncio, grpc, lb
from lb.testing.backend import Backend, UNARY_UNARY

async def main():
    async with Backend() as backend, grpc.aio.insecure_channel(backend.address) as channel:
        for _ in range(10):
            try:
                lb.aio.channel("static:///127.0.0.1:1", credentials="nonsense")
            except TypeError:
                pass
        assert await channel.unary_unary(UNARY_UNARY)(b"x", timeout=5) == b"x"
    print("fine")

asyncio.run(main())
"""


async def test_credentials_of_a_wrong_type_harm_nobody() -> None:
    """A ``TypeError``, and grpcio goes on working: it counts its channels to know when to stop its poller."""
    done = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", BAD_CREDENTIALS], capture_output=True, text=True, timeout=20, check=False
    )
    assert (done.returncode, done.stdout.strip()) == (0, "fine"), done.stderr[-2000:]
    assert "AssertionError" not in done.stderr


def test_the_channel_is_a_grpc_channel_for_a_type_checker() -> None:
    """Generated stubs take it without a cast. (Checked by mypy, not here: the ignore must become unused.)"""
    channel: grpc.aio.Channel = lb.aio.channel("static:///127.0.0.1:1")
    assert isinstance(channel, grpc.aio.Channel)
