"""The container's entry point: run one module of the mesh, its instance named after the container.

    python start.py services.catalog

A process id would not do: it is 6 one day and 8 the next, at the same address, and Consul would
know the old instance beside the new one.
"""

import os
import socket
import sys

name = sys.argv[1].rpartition(".")[2]
os.environ.setdefault("MESH_INSTANCE_ID", f"{name}-{socket.gethostname()}")
os.execv(sys.executable, [sys.executable, "-m", *sys.argv[1:]])
