"""Output as a page shows it, as a pattern for the output that a program prints."""

from __future__ import annotations

import re

_VARIES = re.compile(r"\b[0-9a-f]{32}\b|\d+(?:\.\d+)*|  +")


def pattern(line: str) -> str:
    """One line: numbers, trace ids and the width of columns may differ, everything else may not.

    A number that belongs to a name (``hello-1``) stands for any other one, too.
    """
    line, found = line.rstrip(), ""
    end = 0
    for match in _VARIES.finditer(line):
        varies = match.group()
        kind = " +" if varies.isspace() else "[0-9a-f]{32}" if len(varies) == 32 else r"\d+(?:\.\d+)*"
        found += re.escape(line[end : match.start()]) + kind
        end = match.end()
    return f"^{found}{re.escape(line[end:])}\\s*$"
