"""For every test: skips without the real servers, its turn among several workers, and a look at what it left behind."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import time
from collections import Counter
from collections.abc import Generator

import pytest
from hypothesis import HealthCheck, settings

from tests.support import leaks, network, servers, turns
from tests.support.ports import free_ports

# How long an example takes is the machine's affair, and a run repeats the one before it.
# (`--hypothesis-profile=default` looks for other examples.)
settings.register_profile("tests", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tests")

# A shell's background job begins with SIGINT ignored, and would hand that on to the programs that tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Before the first test module imports grpcio: each server that a test stops would be worth a line to it.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")

_MOST_WORKERS = 8
_NOT_FOUND = " on PATH or in .cache/bin"
_GRACE_S = 15.0
_COLLECT_S = 0.05
_loop: asyncio.AbstractEventLoop | None = None
_before = leaks.Snapshot()
_worker = turns.worker()
if _worker is not None:
    network.leave_the_shared_one()


@pytest.fixture(scope="session", autouse=True)
async def _session_loop() -> None:
    """Tells the leak check which loop the tests run on."""
    global _loop
    _loop = asyncio.get_running_loop()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files of few tests: theirs take longest, and one that a worker began last would be waited for."""
    sizes = Counter(item.path for item in items)
    items.sort(key=lambda item: sizes[item.path])


def pytest_collection_finish() -> None:
    """Spare the collector what collecting the tests has made: a fifth of a second each time that a test asks for it."""
    gc.collect()
    gc.freeze()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip (or, in CI, fail) what needs a server that is not there."""
    for name in servers.SERVERS:
        if item.get_closest_marker(name) and servers.find(name) is None:
            reason = f"no {name}{_NOT_FOUND}: {servers.HOW_TO_GET}"
            if servers.required():
                pytest.fail(reason, pytrace=False)
            pytest.skip(reason)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """How many workers ``-n auto`` has: more than cores, because half of the time the tests wait."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(2 * cores, _MOST_WORKERS)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> Generator[None, object, object]:
    """Take the test's turn, and note what is alive before the test and its fixtures."""
    global _before
    if _worker is not None:
        _worker.begin(item)
    try:
        _before = leaks.take(_loop)
        return (yield)
    finally:
        if _worker is not None:
            _worker.end(item, nextitem)


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(
    fixturedef: pytest.FixtureDef[object],
) -> Generator[None, object, object]:
    """What a fixture of a wider scope makes is no leak of the test that was first to ask for it."""
    if fixturedef.scope == "function":
        return (yield)
    before = leaks.take(_loop)
    try:
        return (yield)
    finally:
        _before.allow(leaks.take(_loop).new_since(before))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, object, object]:
    """After the test's own fixtures are gone: is anything left?"""
    result = yield
    if item.get_closest_marker("leaks") is None and (left := _left_behind()):
        pytest.fail("left behind: " + "; ".join(sorted(left.values())), pytrace=False)
    return result


def _left_behind() -> dict[object, str]:
    begun = time.monotonic()
    collected = False
    while left := leaks.take(_loop).new_since(_before):
        waited = time.monotonic() - begun
        if waited > _GRACE_S:
            break
        if waited > _COLLECT_S and not collected:
            # A call that failed is an exception in a cycle with its frames, and keeps its connection for so long.
            gc.collect()
            collected = True
        # Closing takes a few turns of the loop, and a moment in grpcio's own threads.
        if _loop is not None and not _loop.is_closed():
            _loop.run_until_complete(asyncio.sleep(0.01))
        else:
            time.sleep(0.01)
    return left


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how to get the servers without which tests were skipped. (Reports, because workers skipped them.)"""
    reasons = [str(report.longrepr) for report in terminalreporter.stats.get("skipped", ())]
    missing = {name: sum(f"no {name}{_NOT_FOUND}" in reason for reason in reasons) for name in servers.SERVERS}
    if any(missing.values()):
        words = ", ".join(f"{count} for want of {name}" for name, count in sorted(missing.items()) if count)
        terminalreporter.write_line(f"tests not run: {words}. {servers.HOW_TO_GET}.")


@pytest.fixture
def free_port() -> int:
    """A TCP port of 127.0.0.1 that was free a moment ago, for programs that cannot bind port 0."""
    with free_ports(1) as (port,):
        pass
    return port
