"""Settings from the environment: what is wrong is said in one line, with exit status 2."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import MetaData

from services.runtime.database import open_database
from services.runtime.settings import Settings, SettingsError, load, trace_collector


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("MESH_")]:
        monkeypatch.delenv(name)


def test_values_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each variable sets its field; an empty one is as good as none; other processes' variables are accepted."""
    monkeypatch.setenv("MESH_WEIGHT", "5")
    monkeypatch.setenv("MESH_DATA", "/tmp/x")
    monkeypatch.setenv("MESH_ADVERTISE", "")
    monkeypatch.setenv("MESH_PORT", "8080")
    settings = load(Settings)
    assert (settings.weight, settings.data, settings.advertise) == (5, Path("/tmp/x"), "")


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("MESH_WIEGHT", "5", "did you mean MESH_WEIGHT?"),
        ("MESH_NO_SUCH_THING_AT_ALL", "5", "unknown setting"),
        ("MESH_WEIGHT", "0", "greater than or equal to 1"),
        ("MESH_WEIGHT", "a lot", "valid integer"),
        ("MESH_POLICY", "best", "'round_robin'"),
        ("MESH_DRAIN_S", "-1", "greater than or equal to 0"),
        ("MESH_DRAIN_S", "nan", "3600"),
        ("MESH_DRAIN_WAIT_S", "30", "the wait is 30; expected seconds below MESH_DRAIN_S (30), or 0"),
        ("MESH_RATE", "-1", "greater than or equal to 0"),
        ("MESH_METHOD_RATES", "Catalog=50", "expected /package.Service/Method=50"),
        ("MESH_METHOD_RATES", "/mesh.catalog.v1.Catalog/*=many", "expected /package.Service/Method=50"),
        ("MESH_CONCURRENCY", "some", "expected auto or a whole number"),
        ("MESH_CONCURRENCY", "-1", "expected auto or a whole number"),
        ("MESH_LISTEN", "8080", "expected host:port"),
        ("MESH_LISTEN", "::1:8080", "an IPv6 address as [::1]:port"),
        ("MESH_LISTEN", "127.0.0.1:65536", "expected a number from 0 to 65535"),
    ],
)
def test_what_is_wrong_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str, words: str) -> None:
    """An unknown or invalid variable is an error of one line that names it."""
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as caught:
        load(Settings)
    message = str(caught.value)
    assert name in message
    assert words in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"MESH_WIEGHT": "5"}, "catalog: MESH_WIEGHT: unknown setting, did you mean MESH_WEIGHT?"),
        ({}, "catalog: MESH_DATA: is not set"),
        ({"MESH_DATA": "data", "MESH_PARENT_FD": "999"}, "catalog: MESH_PARENT_FD=999: "),
    ],
)
def test_a_process_ends_with_one_line(tmp_path: Path, variables: dict[str, str], words: str) -> None:
    """A service with wrong settings prints one line on stderr and ends with status 2."""
    result = _start(tmp_path, variables)
    assert result.returncode == 2, result.stderr
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith(words)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (Settings(), "MESH_DATA: is not set"),
        (Settings(data=Path("/dev/null/x")), "MESH_DATA='/dev/null/x': "),
        (Settings(database_url="nonsense"), "MESH_DATABASE_URL: "),
        (Settings(database_url="nosuch+driver://x"), "MESH_DATABASE_URL: "),
        (Settings(database_url="sqlite:///x.db"), "MESH_DATABASE_URL: .* async driver"),
        (Settings(database_url="sqlite+aiosqlite:////dev/null/x.db"), "the database .* cannot be opened: "),
    ],
)
async def test_a_database_that_is_nowhere(settings: Settings, words: str) -> None:
    """A database that cannot be opened is an error of one line that says which, and why."""
    with pytest.raises(SettingsError, match=words) as caught:
        await open_database("test", settings, MetaData())
    assert "\n" not in str(caught.value)


def test_a_taken_port_is_named(tmp_path: Path) -> None:
    """A port that another process has is an error of one line, with status 2."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        result = _start(tmp_path, {"MESH_DATA": "data", "MESH_LISTEN": address})
    assert result.returncode == 2, result.stderr
    assert f"catalog: MESH_LISTEN='{address}'" in result.stderr


def _start(directory: Path, variables: dict[str, str]) -> subprocess.CompletedProcess[str]:
    root = Path(__file__).resolve().parents[3]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MESH_", "OTEL_"))}
    environment |= {"PYTHONPATH": f"{root}{os.pathsep}{root / 'stubs'}", **variables}
    command = [sys.executable, "-m", "services.catalog"]
    return subprocess.run(
        command, cwd=directory, env=environment, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.mark.parametrize("name", ["OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"])
def test_a_collector_that_is_no_url_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Spans would be lost without a word: the variable, its value and what is expected are said."""
    for other in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"):
        monkeypatch.delenv(other, raising=False)
    assert trace_collector() is None
    monkeypatch.setenv(name, "jaeger:4318")
    with pytest.raises(SettingsError, match=rf"^{name}='jaeger:4318': expected a URL"):
        trace_collector()
    monkeypatch.setenv(name, "http://jaeger:4318")
    assert trace_collector() == "http://jaeger:4318"
