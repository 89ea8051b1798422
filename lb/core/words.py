"""How core words a call that no server has looked at: the one table, by grpcio's releases.

A status from core and one from a server look alike, and a handler may pass on what a client of its own
was told, in these very words. So words alone are never evidence. Each meaning needs a second proof:

====================  ==========================================================================
meaning               second proof
====================  ==========================================================================
``NEVER_CONNECTED``   the words name the endpoint's own port or path, and its connection was lost
                      as the attempt began
``GIVEN_BACK``        the connection was lost as the attempt ended (where core names an address in
                      these words, it must be the endpoint's, too). Core does not tell of each loss: a
                      driver that is in doubt asks it by a call of its own, and tells then
``REFUSED``           none: the connection stands, and grpcio shows nothing else. (Up to 1.80 its debug
                      string has a peer or none, but by chance: also after headers of a server)
``NO_CREDENTIALS``    none: such a failure is not repeated, it only blames nobody
====================  ==========================================================================

Without the second proof a call is repeated only if its method is idempotent. With any metadata it is a
server's answer, whatever its words.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass

from lb.core.candidate import Candidate
from lb.core.outcome import Origin
from lb.core.peers import one_line

NEWS_S = 0.5
"""So far apart the news of a lost connection and the end (or the beginning) of a call on it may be taken in."""


class Meaning(enum.Enum):
    """What a status says, if core made it."""

    NEVER_CONNECTED = "never connected"
    """There was no connection to send it on."""
    GIVEN_BACK = "given back"
    """The connection closed before the call had a stream, or the server's GOAWAY leaves its stream out."""
    REFUSED = "refused"
    """RST_STREAM with REFUSED_STREAM: the server has more streams than it takes (RFC 9113, 8.7)."""
    NO_CREDENTIALS = "no credentials"
    """The caller's own plugin failed."""


@dataclass(frozen=True, slots=True)
class Words:
    """One wording. ``seen``: the releases of grpcio that were seen to use it, or how else it is known."""

    meaning: Meaning
    begins: str
    ends: str
    seen: str
    addressed: bool = False
    """It names the address that core dialled."""


_CORE = "read in core's source"
TABLE = (
    Words(Meaning.NEVER_CONNECTED, "failed to connect to all addresses", "", "1.76 to 1.85", addressed=True),
    Words(Meaning.NEVER_CONNECTED, "connections to all backends failing", "", _CORE, addressed=True),
    Words(Meaning.NEVER_CONNECTED, "empty address list", "", _CORE, addressed=True),
    Words(Meaning.NEVER_CONNECTED, "DNS resolution failed", "", "1.76", addressed=True),
    Words(Meaning.NEVER_CONNECTED, "errors resolving ", "", "1.81 to 1.85", addressed=True),
    Words(Meaning.NEVER_CONNECTED, "Failed to create channel to ", "", "1.85: an address that is none", addressed=True),
    Words(Meaning.GIVEN_BACK, "GOAWAY received;", "", "1.76 to 1.80"),
    Words(Meaning.GIVEN_BACK, "Stream removed (GOAWAY received;", "", "1.81 to 1.85"),
    # Calls that waited for a stream; before 1.83 they had GOAWAY's words.
    Words(Meaning.GIVEN_BACK, "", ": subchannel lost all connections", "1.83 to 1.85", addressed=True),
    Words(Meaning.GIVEN_BACK, "Transport closed", "", "1.76, 1.78"),
    Words(Meaning.GIVEN_BACK, "Stream removed (Transport closed (", "", "1.84, 1.85"),
    Words(Meaning.GIVEN_BACK, "Stream IDs exhausted", "", _CORE),
    Words(Meaning.GIVEN_BACK, "Stream removed (Stream IDs exhausted", "", _CORE),
    Words(Meaning.REFUSED, "Received RST_STREAM with error code 7", "", "1.76 to 1.80"),
    Words(Meaning.REFUSED, "Stream removed (Received RST_STREAM with error code 7 (RST_STREAM))", "", "1.81, 1.82"),
    Words(Meaning.REFUSED, "Stream removed (RST_STREAM (Received RST_STREAM with error code 7))", "", "1.83 to 1.85"),
    Words(Meaning.NO_CREDENTIALS, "Getting metadata from plugin failed", "", "1.84, 1.85"),
    Words(Meaning.NO_CREDENTIALS, "Illegal metadata", "", "1.84, 1.85"),
)


_NO_TLS = "the server does not use TLS on this port. For a plain-text server, leave out credentials="
_NO_PLAIN_TEXT = "the server closed the connection before the HTTP/2 handshake. If it uses TLS, pass credentials="
# What core says of a handshake that failed, and what that means: with credentials, and without.
_HANDSHAKES = (
    ("Hostname Verification Check failed", "the server's certificate is not valid for {name!r} ({whence})", ""),
    ("is not in peer certificate", "the server's certificate is not valid for {name!r} ({whence})", ""),
    ("CERTIFICATE_VERIFY_FAILED", "the server's certificate is not signed by a root that the credentials trust", ""),
    ("WRONG_VERSION_NUMBER", _NO_TLS, ""),
    ("HTTP_REQUEST", _NO_TLS, ""),
    ("Socket closed", "", _NO_PLAIN_TEXT),
    ("Connection reset by peer", "", _NO_PLAIN_TEXT),
)


def handshake(why: str, *, secure: bool, name: str, whence: str) -> str:
    """Why connecting failed, with what core's words mean before them where that is known.

    ``name`` is the one that a certificate must have, ``whence`` says where it was set.
    """
    for words, with_tls, without in _HANDSHAKES:
        if words in why and (meant := with_tls if secure else without):
            return f"{meant.format(name=name, whence=whence)}: {one_line(why)}"
    return one_line(why)


def find(details: str) -> Words | None:
    """The line of the table that these details match."""
    for words in TABLE:
        if details.startswith(words.begins) and details.endswith(words.ends):
            return words
    return None


def meaning(details: str) -> Meaning | None:
    """What an UNAVAILABLE without metadata says in these words, if core made it."""
    words = find(details)
    return None if words is None else words.meaning


def names(details: str, address: str) -> bool:
    """Whether details name the port (or the path) of an endpoint's address."""
    _, colon, tail = address.rpartition(":")
    return not colon or re.search(f":{re.escape(tail)}(?![0-9])", details) is not None


def origin(details: str, candidate: Candidate, *, started_at: float, ended_at: float, stands: bool) -> Origin:
    """The origin of an UNAVAILABLE without metadata, as far as is known now.

    ``stands``: whether the driver sees the endpoint connected.
    """
    words = find(details)
    if words is None or (words.addressed and not names(details, candidate.endpoint.address)):
        return Origin.PEER
    if words.meaning is Meaning.NO_CREDENTIALS:
        return Origin.CALLER  # nothing was sent, and no endpoint is to blame
    if words.meaning is Meaning.NEVER_CONNECTED:
        lost = candidate.lost_between(started_at, started_at + NEWS_S, stands=stands)
        return Origin.UNSENT if lost else Origin.PEER
    if words.meaning is Meaning.REFUSED:
        return Origin.REFUSED
    if lost_in_time(candidate, started_at, ended_at, stands=stands):
        return Origin.UNPROCESSED
    return Origin.CLOSING


def lost_in_time(candidate: Candidate, started_at: float, ended_at: float, *, stands: bool = True) -> bool:
    """Whether the connection was lost while an attempt ran on it, and as that ended."""
    return candidate.lost_between(max(started_at, ended_at - NEWS_S), ended_at + NEWS_S, stands=stands)
