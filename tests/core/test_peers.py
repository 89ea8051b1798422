"""What peers write stands on one line of ours, short and readable; and each place where it does."""

from __future__ import annotations

from typing import Any

import pytest
from grpc import StatusCode
from hypothesis import given
from hypothesis import strategies as st

from lb.core import words
from lb.core.consul_health import parse_answer
from lb.core.outcome import classify
from lb.core.peers import LONGEST, escaped, one_line
from lb.core.watch import Watch
from tests.core.consul import answer, entry, known, presence

FORGED = "away\nERROR lb.channel: \x1b[31mall is lost\u2028" + "x" * 1000
BEGINS = r"away\nERROR lb.channel: \x1b[31mall is lost\u2028xxx"


def shown(text: str) -> bool:
    """Whether it has what was forged, readable and cut."""
    return BEGINS in text and text.isprintable() and text.count("x") < LONGEST


@given(st.text(st.characters()), st.integers(1, 50))
def test_one_line(text: str, longest: int) -> None:
    """All of it is printable, and no longer than that; what is so already stays as it is."""
    told = one_line(text, longest)
    assert told.isprintable()
    assert len(told) <= longest
    if text.isprintable() and len(text) <= longest:
        assert told == text


@given(st.text(st.characters()))
def test_escaped(text: str) -> None:
    """Nothing is lost, and Python reads it again."""
    told = escaped(text)
    assert told.isprintable()
    if "\\" not in text:
        assert told.encode("latin-1", "backslashreplace").decode("unicode_escape") == text


def test_a_text_of_megabytes_is_cut_first() -> None:
    """The dots say that there was more."""
    assert one_line("\x00" * (64 << 20)) == (r"\x00" * 50)[:199] + "…"
    assert one_line("y" * 200) == "y" * 200
    assert one_line("y" * 201) == "y" * 199 + "…"


def test_an_outcome_keeps_the_servers_words_and_shows_them_on_one_line() -> None:
    """``details`` are for the caller, ``reason()`` is for messages."""
    outcome = classify(StatusCode.UNAVAILABLE, details=FORGED)
    assert outcome.details == FORGED
    assert shown(outcome.reason())


def test_why_a_handshake_failed() -> None:
    """A server's certificate has texts, too."""
    assert shown(words.handshake(FORGED, secure=True, name="a", whence="b"))
    found = words.handshake(f"CERTIFICATE_VERIFY_FAILED: {FORGED}", secure=True, name="a", whence="b")
    assert found.isprintable()


def test_consuls_answers() -> None:
    """Ids, addresses, nodes and checks, in notes and in remarks."""
    ill = entry(FORGED, status="critical", output="\x1b[31m away " + "x" * 1000)
    watch = Watch("a")
    resolution = watch.answered(0.0, answer(7, ill), "consul")
    assert resolution is not None
    assert resolution.note.isprintable()
    assert resolution.note.endswith("xxx…)")
    at: Any = {"address": "10.0.0.1\n10.0.0.2", "node": "n\n1"}
    twice = [entry(FORGED, **at), entry(FORGED, 2, **(at | {"node": "n\n2"}))]
    resolution = watch.answered(1.0, answer(8, *twice), "consul")
    assert resolution is not None
    assert all(str(endpoint).isprintable() for endpoint in resolution.endpoints)
    (remark,) = watch.remarks()
    assert remark.isprintable()


def test_ids_of_consul_are_not_cut() -> None:
    """Two that differ at their end stay two."""
    ids = ["x" * 1000 + end for end in "ab"]
    found = parse_answer({"X-Consul-Index": "1"}, [entry(id, port) for port, id in enumerate(ids, 1)])
    assert [instance.endpoint.id for instance in found.instances] == ids


@pytest.mark.parametrize("owned", [False, True])
def test_whose_the_id_was_in_consul(owned: bool) -> None:
    """The name of a service that somebody registered."""
    step = presence().step(known(name=FORGED), owned=owned, rotated=False)
    assert shown(step.remark)
    assert step.words.isprintable()
