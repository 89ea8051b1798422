"""A network for each of pytest-xdist's workers, with a loopback and nothing else: Linux, as root.

Many tests stop a server and look at what its clients do, or start another one at its port. With a network for all
workers, a server of another worker could be given that port in between.
"""

from __future__ import annotations

import ctypes
import fcntl
import socket
import struct
import sys

_CLONE_NEWNET = 0x40000000
_SIOCSIFFLAGS, _IFF_UP, _IFF_RUNNING = 0x8914, 0x1, 0x40


def leave_the_shared_one() -> bool:
    """Whether this thread, and threads and processes that it starts from now on, have a network of their own."""
    if not sys.platform.startswith("linux") or ctypes.CDLL(None).unshare(_CLONE_NEWNET) != 0:
        return False
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", _IFF_UP | _IFF_RUNNING))
    return True
