"""What is wrong with a channel's arguments is said when it is made: which one, what it is, and what is expected."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest

import lb

MAKERS = [lb.aio.channel, lb.sync.channel]
TARGET = "static:///127.0.0.1:1"


@pytest.mark.parametrize("make", MAKERS, ids=["aio", "sync"])
@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"options": {}}, "options is {}; expected a sequence of (name, value) pairs"),
        ({"options": {"grpc.x": 1}}, "options is {'grpc.x': 1}; expected a sequence of (name, value) pairs"),
        ({"options": "grpc.x"}, "options is 'grpc.x'; expected"),
        ({"options": 3}, "options is 3; expected"),
        ({"options": [("grpc.x",)]}, "options: an item is ('grpc.x',); expected"),
        ({"options": [(1, 2)]}, "options: a name is 1; expected"),
        (
            {"options": [("grpc.x", len)]},
            "options: 'grpc.x' is <built-in function len>; expected a whole number, a string or bytes",
        ),
        ({"interceptors": 3}, "interceptors is 3; expected a sequence of"),
        ({"interceptors": {}}, "interceptors is {}; expected a sequence of"),
        ({"compression": "gzip"}, "compression is 'gzip'; expected one of grpc.Compression.NoCompression,"),
        ({"compression": 7}, "compression is 7; expected one of"),
        ({"credentials": "tls"}, "credentials is 'tls'; expected grpc.ChannelCredentials or None"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_it_is_named(make: Callable[..., Any], wrong: dict[str, Any], words: str) -> None:
    """``TypeError`` or ``ValueError`` that names the argument, its value and what is accepted."""
    with pytest.raises((TypeError, ValueError)) as caught:
        make(TARGET, **wrong)
    assert str(caught.value).startswith(words)


@pytest.mark.parametrize("make", MAKERS, ids=["aio", "sync"])
@pytest.mark.parametrize("how", [pickle.dumps, copy.copy, copy.deepcopy])
def test_a_channel_is_not_copied(make: Callable[..., Any], how: Callable[[Any], object]) -> None:
    """Pickling and copying say why they cannot be, and what to do."""
    channel = make(TARGET)
    with pytest.raises(
        TypeError, match=r"Channel static:///127.0.0.1:1> cannot be pickled or copied: .* make one where"
    ):
        how(channel)
    if isinstance(channel, lb.sync.Channel):
        channel.close()
