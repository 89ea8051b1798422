"""``lb.core`` is pure: time and chance are arguments, and what it imports can do no I/O."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import lb.core

ROOT = Path(lb.core.__file__).parent
MODULES = sorted(ROOT.rglob("*.py"))

# All that can be imported there. No time, asyncio, socket, threading, logging, os, io.
ALLOWED = {
    "__future__",
    "bisect",
    "collections",
    "dataclasses",
    "difflib",
    "enum",
    "functools",
    "heapq",
    "ipaddress",
    "itertools",
    "json",
    "math",
    "operator",
    "re",
    "types",
    "typing",
    "urllib.parse",
    "collections.abc",
    "tenacity",
    "importlib",  # as the statement
    "hashlib",  # a pure function of its arguments
    "struct",
    "grpc",
}
# grpcio brings channels and servers, too: only what is a name or a number.
GRPC = {"StatusCode", "RpcError"}
BUILTINS = {"open", "print", "input", "exec", "eval", "__import__"}


def _parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def faults(tree: ast.Module) -> list[str]:
    """What a module does that a pure one does not."""
    found = []
    generators = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == "random"
        for alias in node.names
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [f"import {a.name}" for a in node.names if a.name not in ALLOWED]
        elif isinstance(node, ast.ImportFrom):
            module, names = node.module or "", {a.name for a in node.names}
            if node.level or module == "lb" or (module.split(".")[0] == "lb" and not module.startswith("lb.core")):
                found.append(f"from {'.' * node.level}{module} import ...")
            elif module == "random":
                # The class, to type and to take one; the module's functions share one hidden generator.
                found += [f"from random import {name}" for name in names - {"Random"}]
            elif module == "grpc":
                found += [f"from grpc import {name}" for name in names - GRPC]
            elif module not in ALLOWED and not module.startswith("lb.core"):
                found.append(f"from {module} import ...")
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if node.value.id == "grpc" and node.attr not in GRPC:
                found.append(f"grpc.{node.attr}")
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            if node.func.id in BUILTINS:
                found.append(f"{node.func.id}()")
            elif node.func.id in generators:
                found.append(f"{node.func.id}() of its own")
        elif isinstance(node, (ast.AsyncFunctionDef, ast.Await, ast.Global)):
            found.append(type(node).__name__)
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_imports_nothing_that_acts(path: Path) -> None:
    """Only itself, tenacity, two names of grpc, and what the standard library has without clock, I/O, locks or logs."""
    assert faults(_parsed(path)) == []


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        ("import time", "import time"),
        ("from time import monotonic", "from time import ..."),
        ("import asyncio.events", "import asyncio.events"),
        ("import random", "import random"),
        ("from random import random", "from random import random"),
        ("from lb.aio import channel", "from lb.aio import ..."),
        ("from . import x", "from . import ..."),
        ("import grpc\ngrpc.insecure_channel('x')", "grpc.insecure_channel"),
        ("def f():\n    import socket", "import socket"),
        ("print(1)", "print()"),
        ("from random import Random as R\nrng = R()", "R() of its own"),
        ("async def f(): ...", "AsyncFunctionDef"),
    ],
)
def test_a_fault_is_found(source: str, fault: str) -> None:
    """The check itself sees what it must not let through."""
    assert fault in faults(ast.parse(source))


def test_the_whole_core_was_looked_at() -> None:
    """The modules that decide are among those checked."""
    names = {path.name for path in MODULES}
    assert {"outcome.py", "retry.py", "call.py", "balancer.py", "breaker.py", "budget.py", "base.py"} <= names


def test_importing_it_draws_no_chance_and_starts_no_thread() -> None:
    """In a new interpreter: the global generator is as it was, and only the main thread runs."""
    code = (
        "import random, threading, tenacity, grpc; random.seed(1); before = random.getstate();"
        "import lb.core.call, lb.core.snapshot, lb.core.watch, lb.core.consul_health, lb.core.target, lb.core.policies;"
        "assert random.getstate() == before; assert threading.active_count() == 1, threading.enumerate()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)
