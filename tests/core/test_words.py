"""Core's words for what no server has seen: each needs a second proof, and is believed with it."""

from __future__ import annotations

import pytest

from lb.core.breaker import Breaker
from lb.core.candidate import Candidate, Connectivity
from lb.core.endpoint import Endpoint
from lb.core.outcome import Origin
from lb.core.words import NEWS_S, TABLE, Meaning, Words, find, handshake, names, origin

ADDRESS = "10.0.0.7:50051"
BEGAN, ENDED = 100.0, 110.0
PROVEN = {
    Meaning.NEVER_CONNECTED: Origin.UNSENT,
    Meaning.GIVEN_BACK: Origin.UNPROCESSED,
    Meaning.REFUSED: Origin.REFUSED,
    Meaning.NO_CREDENTIALS: Origin.CALLER,
}
UNPROVEN = PROVEN | {Meaning.NEVER_CONNECTED: Origin.PEER, Meaning.GIVEN_BACK: Origin.CLOSING}
EACH = pytest.mark.parametrize("words", TABLE, ids=lambda words: words.begins or words.ends)


@pytest.mark.parametrize(
    ("why", "with_tls", "without"),
    [
        ("x: Hostname Verification Check failed.", "the server's certificate is not valid for 'shop' (its host): ", ""),
        (
            "Peer name shop is not in peer certificate",
            "the server's certificate is not valid for 'shop' (its host): ",
            "",
        ),
        ("SSL_ERROR_SSL: CERTIFICATE_VERIFY_FAILED", "the server's certificate is not signed by a root", ""),
        ("SSL_ERROR_SSL: WRONG_VERSION_NUMBER", "the server does not use TLS", ""),
        (
            "Socket closed",
            "",
            "the server closed the connection before the HTTP/2 handshake. If it uses TLS, pass credentials=",
        ),
        ("Failed to connect to remote host: Connection refused", "", ""),
    ],
)
def test_what_a_handshakes_failure_means_is_said_before_cores_words(why: str, with_tls: str, without: str) -> None:
    """Where it is known; core's own words stay."""
    for secure, meant in ((True, with_tls), (False, without)):
        said = handshake(why, secure=secure, name="shop", whence="its host")
        assert said.startswith(meant or why)
        assert said.endswith(why)


def example(words: Words, address: str = ADDRESS) -> str:
    """A status in these words."""
    return f"{words.begins} (x: ipv4:{address}){words.ends}" if words.addressed else words.begins + words.ends


def candidate(lost_at: float | None = None, *, address: str = ADDRESS) -> Candidate:
    """An endpoint whose connection stands, and was lost before at that time."""
    made = Candidate(Endpoint(address), Breaker().new_state())
    made.connectivity = Connectivity.READY
    if lost_at is not None:
        made.lost_at = lost_at
    return made


def judged(details: str, of: Candidate, *, stands: bool = True) -> Origin:
    """Who is taken to have made that status, of an attempt from `BEGAN` to `ENDED`."""
    return origin(details, of, started_at=BEGAN, ended_at=ENDED, stands=stands)


@EACH
def test_words_alone_are_no_evidence(words: Words) -> None:
    """The connection has stood all the time: whatever the words, nothing is said to be unsent or unprocessed."""
    for lost_at in (None, BEGAN - 0.01):
        assert judged(example(words), candidate(lost_at)) is UNPROVEN[words.meaning]


@EACH
def test_with_the_second_proof_they_are_believed(words: Words) -> None:
    """A loss at the attempt's beginning or at its end, by what the words mean."""
    lost_at = BEGAN + 0.01 if words.meaning is Meaning.NEVER_CONNECTED else ENDED - 0.01
    assert judged(example(words), candidate(lost_at)) is PROVEN[words.meaning]
    assert judged(example(words), candidate(), stands=False) is PROVEN[words.meaning]


@EACH
def test_a_loss_at_another_time_is_no_proof(words: Words) -> None:
    """A server in its grace still answers, in the words of what its own clients meet."""
    if words.meaning is Meaning.NEVER_CONNECTED:
        assert judged(example(words), candidate(BEGAN + NEWS_S + 0.01)) is Origin.PEER
    elif words.meaning is Meaning.GIVEN_BACK:
        assert judged(example(words), candidate(ENDED - NEWS_S - 0.01)) is Origin.CLOSING


@EACH
def test_words_that_name_another_address_are_somebody_elses(words: Words) -> None:
    """A server passes on what its own client met elsewhere, while its own connection is lost, too."""
    if words.addressed:
        details = example(words, "10.0.0.9:50052")
        assert judged(details, candidate(BEGAN + 0.01), stands=False) is Origin.PEER


def test_other_words_mean_nothing() -> None:
    """What may have been sent, and what a handler says in its own words."""
    for details in ("Stream removed (Socket closed)", "recvmsg:Connection reset by peer", "no", ""):
        assert find(details) is None
        assert judged(details, candidate(ENDED), stands=False) is Origin.PEER
    assert find("Stream removed (RST_STREAM (Received RST_STREAM with error code 8))") is None


@pytest.mark.parametrize(
    ("address", "details"),
    [
        ("10.0.0.7:50051", "ipv4:10.0.0.7:50051: subchannel lost all connections"),
        ("catalog.shop:50051", "failed to connect to all addresses; last error: UNKNOWN: ipv4:10.0.0.7:50051: Failed"),
        ("[::1]:50051", "failed to connect to all addresses; last error: UNKNOWN: ipv6:%5B::1%5D:50051: Failed"),
        ("unix:/run/a.sock", "failed to connect to all addresses; last error: UNKNOWN: unix:/run/a.sock: connect"),
        ("catalog", "errors resolving catalog"),
    ],
)
def test_words_name_their_endpoint(address: str, details: str) -> None:
    """By its port or path; a port is more than the beginning of another."""
    assert names(details, address)
    assert address == "catalog" or not names(details.replace("50051", "500511").replace("a.sock", "b.sock"), address)
