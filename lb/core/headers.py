"""Which metadata can be sent: core refuses the rest, before anything of the call leaves the process."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

_KEY = re.compile(rb"[0-9a-z_.-]+")
_VALUE = re.compile(rb"[ -~]*")


def legal(metadata: Sequence[Any]) -> bool:
    """Whether these pairs are headers by gRPC's rules (PROTOCOL-HTTP2: Custom-Metadata).

    They have the right types already: ``str``, ``bytes``, or None, which is empty to grpcio.
    """
    for key, value in metadata:
        name, data = (text.encode() if isinstance(text, str) else text or b"" for text in (key, value))
        if not _KEY.fullmatch(name) or not (name.endswith(b"-bin") or _VALUE.fullmatch(data)):
            return False
    return True
