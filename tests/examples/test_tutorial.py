"""``docs/tutorial.md`` works as it stands: its files are saved, its commands entered, and its output appears."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shlex
import signal
import sys
from pathlib import Path

import pytest

from tests.support.pattern import pattern

pytest.importorskip("hatchling", reason="the package is built as a wheel (extra: dev)")
pytest.importorskip("grpc_tools", reason="the page generates stubs (extra: dev)")

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "tutorial.md").read_text("utf-8")
BLOCKS = re.findall(r"(?s)(?:[Ss]ave this as `([^`\n]+)`[^\n]*\n\n)?```(\w+)\n(.*?)\n```\n", PAGE)
WITHIN_S = 120

# The shell's `python3` and `pip` for this page: nothing is downloaded, and every package comes from this environment.
PRELUDE = f"""
python3() {{ command {shlex.quote(sys.executable)} "$@"; }}
pip() {{ PYTHONPATH={shlex.quote(str(ROOT))} command {shlex.quote(sys.executable)} -m tests.support.install \
"$VIRTUAL_ENV" "${{@:2}}"; }}
"""


class Shell:
    """One bash, as a reader's terminal."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.said = ""

    async def enter(self, text: str) -> None:
        """Type; what is printed from now on belongs to it."""
        self.said = ""
        assert self.process.stdin is not None
        self.process.stdin.write(text.encode())
        await self.process.stdin.drain()

    async def until(self, *patterns: str) -> None:
        """Each pattern was printed, in whatever order."""
        assert self.process.stdout is not None
        try:
            async with asyncio.timeout(WITHIN_S):
                while not all(re.search(pattern, self.said, re.MULTILINE) for pattern in patterns):
                    read = await self.process.stdout.read(4096)
                    assert read, f"the shell has ended; it said:\n{self.said}"
                    self.said += read.decode()
        except TimeoutError:
            missing = [pattern for pattern in patterns if not re.search(pattern, self.said, re.MULTILINE)]
            pytest.fail(f"not within {WITHIN_S} s: {missing}; it said:\n{self.said}")


async def test_the_page_is_followed(tmp_path: Path, free_port: int) -> None:
    """From the empty directory to the last command, with a free port in place of Consul's."""
    folder = tmp_path / "hello"
    env = {name: value for name, value in os.environ.items() if not name.startswith(("MESH_", "OTEL_", "CONSUL_"))}
    env |= {"CONSUL_HTTP_ADDR": f"127.0.0.1:{free_port}", "PYTHONUNBUFFERED": "1"}
    env.pop("VIRTUAL_ENV", None)
    process = await asyncio.create_subprocess_exec(
        *("bash", "--norc"),
        cwd=tmp_path,
        env=env,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,
    )
    shell = Shell(process)
    try:
        await shell.enter(PRELUDE)
        for number, (name, language, text) in enumerate(BLOCKS):
            if name:
                (folder / name).write_text(f"{text}\n", "utf-8")
            elif language == "sh":
                text = text.replace("~/lb-mesh", shlex.quote(str(ROOT))).replace("8500", str(free_port))
                await shell.enter(f"{text}\necho done {number}: $?\n")
                await shell.until(rf"^done {number}: 0$")
            else:
                await shell.until(*map(pattern, text.splitlines()))
        assert process.stdin is not None
        process.stdin.close()
        async with asyncio.timeout(WITHIN_S):
            assert await process.wait() == 0
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


def test_every_block_is_known() -> None:
    """Files, commands and output, and nothing that the test above passes over."""
    kinds = {language for name, language, _ in BLOCKS if not name}
    assert kinds == {"sh", "text"}
    assert {name for name, *_ in BLOCKS} == {"", "hello.proto", "server.py", "client.py", "traced.py"}
