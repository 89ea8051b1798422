"""Workers of pytest-xdist take no port from each other."""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest

from tests.support.ports import free_ports
from tests.support.servers import ROOT

CODE = """
import socket, sys
from tests.support import network
if not network.leave_the_shared_one():
    sys.exit("shared")
with socket.create_server(("127.0.0.1", int(sys.argv[1]))) as server:
    socket.create_connection(server.getsockname()).close()
"""


def test_a_port_that_is_taken_elsewhere_is_free_on_a_network_of_ones_own() -> None:
    """It can be bound there, and connected to."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        command = [sys.executable, "-c", CODE, str(taken.getsockname()[1])]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    if done.stderr == "shared\n":
        pytest.skip("needs Linux, and to be root")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("worker", [0, 1, 2])
def test_on_a_shared_network_each_worker_has_ports_of_its_own(worker: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every third is for the first of three."""
    monkeypatch.setenv("PYTEST_XDIST_WORKER", f"gw{worker}")
    monkeypatch.setenv("PYTEST_XDIST_WORKER_COUNT", "3")
    with free_ports(10) as ports:
        assert {(port - 10_000) % 3 for port in ports} == {worker}
