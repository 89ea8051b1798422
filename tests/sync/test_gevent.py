"""Beside gevent, in processes of their own: where greenlets stand for threads, calls wait as greenlets do."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest

from lb.shared import fork
from tests.support.tls import self_signed
from tests.sync.kit import HANGS_S, KINDS, Server, eventually, wait_for

pytestmark = pytest.mark.skipif(importlib.util.find_spec("gevent") is None, reason="needs the package gevent")

ROOT = Path(__file__).parents[2]
PATCH = "from gevent import monkey; monkey.patch_all()"
TELL = "import grpc.experimental.gevent; grpc.experimental.gevent.init_gevent()"
IMPORT = "import grpc, lb, lb.sync"
BEGINNINGS = {
    "patched": f"{PATCH}; {IMPORT}",
    "patched, and grpcio told": f"{PATCH}; {IMPORT}; {TELL}",
    "patched late": f"{IMPORT}; {PATCH}",
    "patched but for threads": f"from gevent import monkey; monkey.patch_all(thread=False); {IMPORT}",
    "grpcio told alone": f"{IMPORT}; {TELL}",
}
GREEN = [beginning for beginning in BEGINNINGS if beginning.startswith("patched") and "but" not in beginning]
"""Where a thread is a greenlet. In the others waits hold up the thread, as with a channel of grpcio's."""
BODY = """
import faulthandler, gevent
from tests.sync.kit import HANGS_S, KINDS, UU
faulthandler.dump_traceback_later(2 * HANGS_S, exit=True)
"""


def run(code: str, *arguments: str) -> list[str]:
    """What a process that runs this has printed."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=3 * HANGS_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.splitlines()


KINDS_BODY = """
import sys, time
with lb.sync.channel(f"static:///{sys.argv[1]}") as channel:
    for kind in KINDS:
        assert kind.run(channel, timeout=HANGS_S) == kind.echo()
        assert kind.finish(kind.start(channel, timeout=HANGS_S)) == kind.echo()
    grpc.channel_ready_future(channel).result(timeout=HANGS_S)
    jobs = [gevent.spawn(kind.run, channel, timeout=HANGS_S) for kind in KINDS for _ in range(20)]
    gevent.joinall(jobs)
    assert [job.value for job in jobs] == [kind.echo() for kind in KINDS for _ in range(20)]
    pool = gevent.get_hub().threadpool
    assert pool.apply(UU.run, (channel,), {"timeout": HANGS_S}) == UU.echo()
with lb.sync.channel(f"dns:///localhost:{sys.argv[1].rpartition(':')[2]}") as channel:
    assert UU.run(channel, timeout=HANGS_S) == UU.echo()
left = lb.sync.channel(f"static:///{sys.argv[1]}")
assert UU.run(left, timeout=HANGS_S) == UU.echo()
print("fine")
"""


@pytest.mark.parametrize("beginning", BEGINNINGS)
def test_calls_of_every_kind(server: Server, beginning: str) -> None:
    """They are answered, one by one and many at once, and the process ends though a channel is left open."""
    assert run(BEGINNINGS[beginning] + BODY + KINDS_BODY, server.address) == ["fine"]


TURNS = """
import sys
with lb.sync.channel(f"static:///{sys.argv[1]}") as channel:
    for kind in KINDS:
        first = gevent.spawn(kind.run, channel, timeout=HANGS_S)
        assert UU.run(channel, timeout=HANGS_S) == UU.echo()
        assert first.get() == kind.echo()
        first = gevent.spawn(lambda: kind.finish(kind.start(channel, timeout=HANGS_S)))
        assert UU.finish(UU.start(channel, timeout=HANGS_S)) == UU.echo()
        assert first.get() == kind.echo()
print("fine")
"""


@pytest.mark.parametrize("beginning", GREEN)
def test_who_waits_holds_up_no_other_greenlet(server: Server, beginning: str) -> None:
    """The server holds one call until another one has come, which the process makes in another greenlet."""
    for _ in range(2 * len(KINDS)):
        freed = threading.Event()
        server.script(wait_for(freed), lambda _, freed=freed: freed.set())  # type: ignore[misc]
    assert run(BEGINNINGS[beginning] + BODY + TURNS, server.address) == ["fine"]


ENDS = """
import sys
class Passed(Exception):
    pass
with lb.sync.channel(f"static:///{sys.argv[1]}") as channel:
    for kind in KINDS:
        for call in (kind.run, lambda *given, **named: kind.finish(kind.start(*given, **named))):
            try:
                call(channel, timeout=0.1)
            except grpc.RpcError as error:
                assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED, error
            else:
                raise AssertionError("answered")
            try:
                with gevent.Timeout(0.1, Passed):
                    call(channel, wait_for_ready=True)
            except Passed:
                pass
            else:
                raise AssertionError("answered")
        killed = gevent.spawn(kind.run, channel, wait_for_ready=True)
        gevent.sleep(0)
        killed.kill()
        assert isinstance(killed.value, gevent.GreenletExit)
with lb.sync.channel("static:///127.0.0.1:1") as channel:
    try:
        UU.run(channel, timeout=HANGS_S)
    except grpc.RpcError as error:
        assert error.code() is grpc.StatusCode.UNAVAILABLE, error
print("fine")
"""


@pytest.mark.parametrize("beginning", GREEN)
def test_waits_end(server: Server, beginning: str) -> None:
    """By a call's own time-out, by gevent's, by the end of the greenlet, and when nobody can be reached."""
    server.always = wait_for(threading.Event())
    assert run(BEGINNINGS[beginning] + BODY + ENDS, server.address) == ["fine"]


CREDENTIALS = """
import sys
class Token(grpc.AuthMetadataPlugin):
    def __call__(self, context, callback):
        gevent.sleep(0.01)  # it may ask somebody
        callback((("x-token", "secret"),), None)
options = [("grpc.ssl_target_name_override", "catalog")]
trusted = grpc.ssl_channel_credentials(open(sys.argv[2], "rb").read())
with lb.sync.channel(f"static:///{sys.argv[1]}", credentials=trusted, options=options) as channel:
    token = grpc.metadata_call_credentials(Token())
    for kind in KINDS:
        assert kind.run(channel, credentials=token, timeout=HANGS_S) == kind.echo()
        assert kind.finish(kind.start(channel, credentials=token, timeout=HANGS_S)) == kind.echo()
print("fine")
"""


@pytest.mark.parametrize("beginning", GREEN)
def test_call_credentials(beginning: str, tmp_path: Path) -> None:
    """Core asks for them in a thread of its own, where no greenlet ever runs; they are had all the same."""
    catalog = self_signed("catalog")
    (tmp_path / "certificate.pem").write_bytes(catalog.certificate)
    server = Server(credentials=grpc.ssl_server_credentials([(catalog.key, catalog.certificate)]))
    try:
        lines = run(BEGINNINGS[beginning] + BODY + CREDENTIALS, server.address, str(tmp_path / "certificate.pem"))
        assert lines == ["fine"]
        assert {received.metadata.get("x-token") for received in server.received} == {"secret"}
    finally:
        server.stop()


# ---- gunicorn ----

APP = """
import os, time, grpc, lb
method, address = "/lb.testing.Echo/UnaryUnary", os.environ["BACKEND"]
made = lb.sync.channel(f"static:///{address}")
if os.environ["USED"]:
    assert made.unary_unary(method)(b"x", timeout=30) == b"x"

def app(environ, start_response):
    try:
        if environ["PATH_INFO"] == "/worker":
            answer = str(os.getpid()).encode()
        elif environ["PATH_INFO"] == "/new":
            with lb.sync.channel(f"static:///{address}") as channel:
                answer = channel.unary_unary(method)(b"new", timeout=30)
        else:
            answer = made.unary_unary(method)(b"made", timeout=30)
        status = "200 OK"
    except Exception as error:
        status, answer = "500 Error", str(error).encode()
    start_response(status, [("content-length", str(len(answer)))])
    return [answer]
"""


WORKERS = ("-k", "gevent", "-w", "2", "-b", "127.0.0.1:0", "--no-control-socket")


@contextmanager
def gunicorn(folder: Path, server: Server, *options: str, used: bool = False) -> Iterator[str]:
    """Two gevent workers of gunicorn's that serve `APP`, and their address."""
    (folder / "app.py").write_text(APP)
    log = folder / "log"
    with log.open("w") as written:
        process = subprocess.Popen(
            [sys.executable, "-m", "gunicorn", *WORKERS, *options, "app:app"],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT), "BACKEND": server.address, "USED": "1" if used else ""},
            stderr=written,
        )
    try:
        eventually(lambda: log.read_text().count("Booting worker") == 2 or process.poll() is not None, "workers")
        found = re.search(r"Listening at: (http://\S+)", log.read_text())
        assert found is not None, log.read_text()
        address = found[1]
        workers: set[str] = set()
        # One that is told to end before it serves does not hear it.
        eventually(lambda: workers.add(get(f"{address}/worker")[1]) or len(workers) == 2, "both workers serve")  # type: ignore[func-returns-value]
        yield address
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(HANGS_S)
    # A worker that crashes or hangs is replaced, and gunicorn says so.
    assert log.read_text().count("Booting worker") == 2, log.read_text()
    assert process.returncode == 0, log.read_text()


def get(url: str) -> tuple[int, str]:
    """Status and body."""
    try:
        with urllib.request.urlopen(url, timeout=HANGS_S) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


@pytest.mark.parametrize("options", [(), ("--preload",)], ids=["", "preload"])
def test_gunicorn(server: Server, tmp_path: Path, options: tuple[str, ...]) -> None:
    """Workers call through a channel that was made at import, before the fork or after it, and through new ones."""
    with gunicorn(tmp_path, server, *options) as address, ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(get, [f"{address}/made", f"{address}/new"] * 20))
    assert answers == [(200, "made"), (200, "new")] * 20


def test_gunicorn_with_a_channel_that_was_used_before_the_fork(server: Server, tmp_path: Path) -> None:
    """No worker crashes or hangs: that channel is an error that says why, and new ones work."""
    with gunicorn(tmp_path, server, "--preload", used=True) as address, ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(get, [f"{address}/made", f"{address}/new"] * 8))
    assert answers == [(500, f"Cannot invoke RPC: {fork.LEFT}"), (200, "new")] * 8
