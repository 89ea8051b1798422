"""What can be known about a change within a minute: lint, types, contracts, and the tests that need no server.

    python tools/check.py          all of it: `make check`
    python tools/check.py --lint   without the tests: `make lint`

All parts run at once. Each prints a line when it ends, and what it has found if it fails; pytest's summary comes last.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUF = str(Path(sys.executable).with_name("buf"))

LINT = {
    "mypy": (sys.executable, "-m", "mypy"),
    "ruff check": (sys.executable, "-m", "ruff", "check", "."),
    "ruff format": (sys.executable, "-m", "ruff", "format", "--check", "."),
    "stubs": (sys.executable, "tools/stubs.py", "--check"),
    "contracts": (BUF, "lint"),
    "old contracts": (BUF, "breaking", "--against", "protos/released.binpb"),
}
GENERATED = {
    "docs/api.md": (sys.executable, "tools/api.py", "--check"),
    "docs/public_api.txt": (sys.executable, "tools/public_api.py", "--check"),
}
"""Tests in tests/docs check these, too."""
TESTS = (
    *("tests/core", "tests/docs", "tests/testing/test_clock.py", "tests/support/test_turns.py"),
    *("tests/support/test_doors.py", "tests/support/test_kits.py", "tests/shells/test_partners.py"),
    *("tests/aio/test_consul_settings.py", "tests/services/gateway/test_bodies.py"),
)
SLOW = (
    *("tests/core/test_comparison.py", "tests/core/test_weighted_round_robin.py"),
    "tests/core/test_limits_in_simulation.py",
    *("tests/docs/test_policies.py", "tests/docs/test_public_api.py"),
)
"""Only ``make test`` runs these: long simulations, all pictures of policies, and what `GENERATED` checks as well."""
PYTEST = (
    *(sys.executable, "-m", "pytest", "-q", "-n", str(os.cpu_count() or 1), "--dist", "loadfile"),
    *TESTS,
    *(f"--ignore={path}" for path in SLOW),
)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    parser = argparse.ArgumentParser(description="Lint, types, contracts, and the tests that need no server.")
    parser.add_argument("--lint", action="store_true", help="leave out the tests")
    parts = LINT | (GENERATED if parser.parse_args(arguments).lint else {"tests": PYTEST})
    return asyncio.run(run(parts))


async def run(parts: Mapping[str, Sequence[str]]) -> int:
    """All of them; 1 if one failed."""
    ended = await asyncio.gather(*(one(name, command) for name, command in parts.items()))
    if "tests" in parts:
        print(dict(zip(parts, ended, strict=True))["tests"][1].splitlines()[-1])
    return 0 if all(ok for ok, _ in ended) else 1


async def one(name: str, command: Sequence[str]) -> tuple[bool, str]:
    """Whether it found nothing, and what it printed."""
    begun = time.monotonic()
    process = await asyncio.create_subprocess_exec(
        *command, cwd=ROOT, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    output = (await process.communicate())[0].decode(errors="replace").rstrip()
    ok = process.returncode == 0
    print(f"{name:<20} {'ok' if ok else 'FAILED':<6} {time.monotonic() - begun:5.1f} s", flush=True)
    if not ok:
        print(output, flush=True)
    return ok, output


if __name__ == "__main__":
    sys.exit(main())
