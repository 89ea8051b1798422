"""How `tools/compose_check.py` finds out when Consul noticed that a container is dead."""

from __future__ import annotations

from typing import Any

import httpx2
import pytest

from tools import compose_check

CONTAINER = "0123456789abcdef"
OURS, OTHER = "payments-0123456789ab-7", "payments-ba9876543210-7"


class Consul:
    """Gives each of its answers once, the last one for ever. An answer: ids, a status, or that there is none."""

    def __init__(self, *answers: list[str] | int | None) -> None:
        self.answers = list(answers)
        self.killed_before: list[object] = []
        """The answer that came next after the kill."""

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        """An answer."""
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if answer is None:
            raise httpx2.ConnectError("refused")
        if isinstance(answer, int):
            return httpx2.Response(answer, json=[])
        return httpx2.Response(200, json=[{"Service": {"ID": id}} for id in answer])

    async def kill(self) -> None:
        """Remember when it was."""
        self.killed_before.append(self.answers[0])

    async def noticed_after(self, within_s: float = 30) -> float | None:
        """The figure."""
        async with httpx2.AsyncClient(transport=httpx2.MockTransport(self)) as client:
            return await compose_check.noticed_after(client, "payments", CONTAINER, self.kill, within_s)


@pytest.mark.parametrize("silent", [None, 500, 429])
async def test_no_answer_is_not_an_absence(silent: int | None) -> None:
    """Only an answer without the instance is: what Consul does not say, or of another instance, counts for nothing."""
    consul = Consul([OTHER], [OURS, OTHER], silent, [OURS, OTHER], silent, [OURS], [OTHER])
    noticed_s = await consul.noticed_after()
    assert consul.killed_before == [silent], "it was killed as soon as it was seen"
    assert consul.answers == [[OTHER]], "and missed in the last answer"
    assert noticed_s


@pytest.mark.parametrize("answers", [([OTHER],), ([],), (500,), (None,)])
async def test_what_never_passed_is_not_killed(answers: Any) -> None:
    """It cannot be noticed that it has gone."""
    consul = Consul(*answers)
    assert await consul.noticed_after(0.2) is None
    assert consul.killed_before == []


async def test_what_stays_is_never_noticed() -> None:
    """None, and not the time that was waited."""
    consul = Consul([OURS])
    assert await consul.noticed_after(0.2) is None
    assert consul.killed_before == [[OURS]]


async def test_who_passes_is_known_when_consul_says_so() -> None:
    """A count that others are compared with is not made of a silence."""
    async with httpx2.AsyncClient(transport=httpx2.MockTransport(Consul(None, 500, [OURS]))) as client:
        assert await compose_check.known(client, "payments") == {OURS}
    async with httpx2.AsyncClient(transport=httpx2.MockTransport(Consul(None))) as client:
        with pytest.raises(RuntimeError, match=r"did not say for 0\.2 s"):
            await compose_check.known(client, "payments", 0.2)
