"""What is wrong with a channel's arguments is said when it is made: which one, what it is, and what is expected."""

from __future__ import annotations

import copy
import inspect
import json
import pickle
from collections.abc import Callable
from typing import Any

import pytest

import lb
import lb.sync
from tests.support.calls import RETRY_POLICY

MAKERS = [lb.aio.channel, lb.sync.channel]
TARGET = "static:///127.0.0.1:1"
BAD_SETTINGS: list[Any] = [
    pytest.param({"target": "consul:///"}, ValueError, "consul:///", id="no service"),
    pytest.param({"target": "static:///"}, ValueError, "static:///", id="no endpoint"),
    pytest.param({"target": "static:///host"}, ValueError, "host", id="no port"),
    pytest.param({"target": "static:///h:1,h:2?weights=1"}, ValueError, "weights", id="too few weights"),
    pytest.param({"target": "static:///h:1?weights=-1"}, ValueError, "-1", id="a negative weight"),
    pytest.param({"target": 7}, TypeError, "7", id="not a target"),
    pytest.param({"target": None}, TypeError, "None", id="no target"),
    pytest.param({"policy": "best"}, ValueError, "best", id="unknown policy"),
    pytest.param({"policy": 3}, TypeError, "3", id="not a policy"),
    pytest.param({"policy": lb.RoundRobin}, TypeError, "RoundRobin", id="a class for a policy"),
    pytest.param({"retry": 3}, TypeError, "lb.Retry", id="not a retry"),
    pytest.param({"retry": lb.Breaker()}, TypeError, "lb.Retry", id="a breaker for a retry"),
    pytest.param({"breaker": 3}, TypeError, "lb.Breaker", id="not a breaker"),
    pytest.param({"breaker": True}, TypeError, "False (off)", id="True for a breaker"),
    pytest.param({"methods": {"Get": 1}}, ValueError, "/package.Service/Method", id="not the name of a method"),
    pytest.param({"timeout_s": 0}, ValueError, "timeout_s is 0", id="no timeout"),
    pytest.param({"credentials": "secret"}, TypeError, "credentials", id="not credentials"),
    pytest.param({"interceptors": [object()]}, (ValueError, TypeError), "nterceptor", id="not an interceptor"),
    pytest.param({"options": [("grpc.x", object())]}, TypeError, "", id="an option of a wrong type"),
    pytest.param({"options": [("grpc.x",)]}, (TypeError, ValueError), "", id="an option without a value"),
]


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


@pytest.mark.parametrize("make", MAKERS, ids=["aio", "sync"])
@pytest.mark.parametrize(("settings", "error", "words"), BAD_SETTINGS)
def test_a_bad_setting_is_refused_when_the_channel_is_made(
    make: Callable[..., Any], settings: dict[str, Any], error: Any, words: str
) -> None:
    """Not at the first call; the message names what was given or what is accepted."""
    with pytest.raises(error) as raised:
        make(**{"target": TARGET, **settings})
    assert words in str(raised.value)


@pytest.mark.parametrize("make", MAKERS, ids=["aio", "sync"])
def test_a_bad_document_is_refused_at_construction(make: Callable[..., Any]) -> None:
    """In words that name the path; nothing has begun by then. (grpcio makes a channel whose calls all fail.)"""
    bad = {"methodConfig": [{"name": [{}], "retryPolicy": {**RETRY_POLICY, "maxAttempts": 1}}]}
    words = r"service config: methodConfig\[0\].retryPolicy.maxAttempts is 1; expected a whole number >= 2"
    with pytest.raises(ValueError, match=words):
        make(TARGET, service_config=bad)
    with pytest.raises(ValueError, match=words):
        make(TARGET, options=[("grpc.service_config", json.dumps(bad))])
    with pytest.raises(ValueError, match="not valid JSON"):
        make(TARGET, service_config="{")
    with pytest.raises(TypeError, match="service config"):
        make(TARGET, service_config=7)


def test_both_channels_take_the_same_arguments() -> None:
    """What one knows, the other does."""
    ours, theirs = (inspect.signature(module.channel).parameters for module in (lb.sync, lb.aio))
    assert list(ours) == list(theirs)
