"""A real Consul with access control: tokens that are rotated, and tokens that lose their rights."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from lb.aio.resolvers.consul import ConsulResolver
from lb.core.target import ConsulTarget
from tests.aio.conftest import Recorder
from tests.support.consul import Consul, Token
from tests.support.instance import Instance, register, status
from tests.support.wait import until

pytestmark = pytest.mark.consul

READ = 'service_prefix "" { policy = "read" } node_prefix "" { policy = "read" }'
WRITE = 'service_prefix "" { policy = "write" } node_prefix "" { policy = "read" }'
CHECK = {"TTL": "600s", "Status": "passing"}


@pytest.fixture
def token_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that the environment names."""
    file = tmp_path / "token"
    monkeypatch.setenv("CONSUL_HTTP_TOKEN_FILE", str(file))
    return file


@pytest.fixture
async def watched(
    acl_consul: Consul, service: str, listener: Recorder, token_file: Path
) -> AsyncIterator[tuple[Token, Recorder]]:
    """A resolver that sees three instances, and its token."""
    token = await acl_consul.new_token(READ)
    token_file.write_text(token.secret)
    for number in range(3):
        await acl_consul.register(service, f"{service}-{number}", port=number + 1, Check=CHECK)
    resolver = ConsulResolver(ConsulTarget("consul:///x", service, agent=acl_consul.address), wait_s=1.0, hold_s=0.5)
    resolver.start(listener)
    await listener.ids(*(f"{service}-{number}" for number in range(3)))
    yield token, listener
    await resolver.close()


@pytest.mark.parametrize("how", ["rights", "deleted"])
async def test_a_token_that_may_not_read_removes_nobody(
    acl_consul: Consul,
    service: str,
    watched: tuple[Token, Recorder],
    token_file: Path,
    caplog: pytest.LogCaptureFixture,
    how: str,
) -> None:
    """The last answer stands, one warning says what is missing; with the rights it goes on."""
    token, seen = watched
    with caplog.at_level(logging.WARNING, "lb.consul"):
        if how == "rights":
            await token.allow()
        else:
            await token.delete()
        await seen.until(lambda r: len(r.errors) >= 5)
        await acl_consul.deregister(f"{service}-0")
        await seen.until(lambda r: len(r.errors) >= 8)
    assert len(seen.endpoints or ()) == 3
    assert len(caplog.records) == 1
    wanted = "it needs service:read for the service and node:read for its nodes" if how == "rights" else "HTTP 403"
    assert wanted in caplog.text
    token_file.write_text((await acl_consul.new_token(READ)).secret)
    await seen.ids(f"{service}-1", f"{service}-2")


async def test_a_token_that_never_might_read_is_no_empty_service(
    acl_consul: Consul, service: str, listener: Recorder, token_file: Path
) -> None:
    """It is an error that names the right, and not the answer that nobody is registered."""
    token_file.write_text((await acl_consul.new_token('service "other" { policy = "read" }')).secret)
    await acl_consul.register(service, f"{service}-1", Check=CHECK)
    resolver = ConsulResolver(ConsulTarget("consul:///x", service, agent=acl_consul.address))
    resolver.start(listener)
    await listener.until(lambda r: r.errors or r.resolutions)
    await resolver.close()
    assert listener.resolutions == []
    assert "needs service:read for the service and node:read" in listener.errors[0]


async def test_a_rotated_token_is_registered_with(
    acl_consul: Consul, service: str, instance: Instance, token_file: Path
) -> None:
    """The old token is deleted: a check that fails after that reaches the catalog, and so does leaving."""
    old, new = await acl_consul.new_token(WRITE), await acl_consul.new_token(WRITE)
    token_file.write_text(old.secret)
    async with register(acl_consul, service, instance) as mine:
        await status(acl_consul, service, "passing")
        token_file.write_text(new.secret)
        await mine.set_weight(3)  # looks, and sees the other token
        await old.delete()
        await instance.serve(False)
        await status(acl_consul, service, "critical")
        await mine.drain()

        async def drained() -> bool:
            (entry,) = await acl_consul.health(service)
            return f"_service_maintenance:{mine.id}" in {check["CheckID"] for check in entry["Checks"]}

        await until(drained, within_s=30, what="the catalog hears of the drain")
    assert await acl_consul.instances() & {mine.id} == set()

    async def left() -> bool:
        return await acl_consul.health(service) == []

    await until(left, within_s=30, what="the catalog hears that it left")


async def test_a_token_deleted_before_the_next_is_there(
    acl_consul: Consul, service: str, instance: Instance, token_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is said once, and not registered; with the next token it is, and the check reaches the catalog again."""
    old, new = await acl_consul.new_token(WRITE), await acl_consul.new_token(WRITE)
    token_file.write_text(old.secret)
    with caplog.at_level(logging.WARNING, "lb.consul"):
        async with register(acl_consul, service, instance) as mine:
            await status(acl_consul, service, "passing")
            await old.delete()
            for _ in range(3):
                await mine.set_weight(2)
            assert not mine.registered
            token_file.write_text(new.secret)
            await mine.wait_registered()
            await instance.serve(False)
            await status(acl_consul, service, "critical")
    assert caplog.text.count("HTTP 403") == 1


async def test_a_registration_without_the_right_says_which(
    acl_consul: Consul, service: str, instance: Instance, token_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Refused once in the log, in Consul's words; it is tried until the right is there."""
    token = await acl_consul.new_token(READ)
    token_file.write_text(token.secret)
    with caplog.at_level(logging.WARNING, "lb.consul"):
        async with register(acl_consul, service, instance) as mine:
            assert not mine.registered
            for _ in range(3):
                await mine.set_weight(2)
            assert caplog.text.count("service:write") == 1
            token_file.write_text((await acl_consul.new_token(WRITE)).secret)
            await mine.wait_registered()
