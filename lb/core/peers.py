"""What a peer has written, as it may stand in a log line, a span or a message of ours.

Status details, Consul's answers and errors of a name lookup are others' texts. As they came, a newline in one would
begin a log line that nobody here has written, an escape sequence would reach the reader's terminal, and one
long text could fill a log. What a call gives its caller as ``details()`` is the server's text, unchanged.
"""

from __future__ import annotations

LONGEST = 200
"""So many characters of a peer's text are shown."""


def escaped(text: str) -> str:
    r"""The text with all that is not printable written as in Python's source: ``\n``, ``\x1b``, ``\u2028``."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def one_line(text: str, longest: int = LONGEST) -> str:
    """The text `escaped`, and cut with ``…`` when it is longer than ``longest`` characters."""
    shown = escaped(text[: longest + 1])  # no more of it: it may have megabytes
    return shown if len(shown) <= longest else f"{shown[: longest - 1]}…"
