"""Write ``docs/api.md`` from the docstrings of what `lb` exports.

::

    python tools/api.py            write it
    python tools/api.py --check    write nothing; exit 1 when it is stale

griffe reads sections and attributes of docstrings from the source, `inspect` the signatures; what is left
is the order of the page (`SECTIONS`) and some reStructuredText to turn into Markdown. Names that `lb`
exports and `SECTIONS` lacks are an error.
"""

from __future__ import annotations

import argparse
import enum
import importlib
import inspect
import re
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import griffe

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "api.md"
PACKAGES = ("lb", "lb.aio", "lb.aio.consul", "lb.server", "lb.server.threads", "lb.sync", "lb.testing", "lb.parts")

SECTIONS: Mapping[str, tuple[str, str]] = {
    "Channels": (
        "",
        "lb.aio.channel lb.aio.Channel lb.sync.channel lb.sync.Channel lb.deadline lb.priority lb.Priority",
    ),
    "Settings of a channel": (
        "Settings objects are immutable, and are checked when you create them. One object may serve many channels."
        " Arguments are given by name; those in seconds end in `_s`.",
        "lb.Retry lb.MethodSettings lb.Connection lb.Breaker lb.Ejection lb.Hedging lb.Budget lb.ConcurrencyLimit",
    ),
    "Policies": (
        "Which to choose when, with pictures: [policies.md](policies.md).",
        "lb.WeightedRoundRobin lb.LeastRequest lb.P2C lb.RoundRobin lb.Random lb.WeightedRandom lb.RingHash"
        " lb.PickFirst lb.Orca lb.ZoneAware lb.Subset lb.SlowStart",
    ),
    "Results of a call": (
        "",
        "lb.attempts lb.Attempt lb.core.outcome lb.Outcome lb.Verdict lb.Retryable lb.Origin lb.Snapshot"
        " lb.EndpointSnapshot",
    ),
    "Servers": (
        "For processes that are called.",
        "lb.server.Server lb.server.draining lb.server.instances lb.server.Limits lb.server.Concurrency lb.server.Rate"
        " lb.server.StartError lb.server.Meter lb.server.Admission lb.server.Places lb.server.Place"
        " lb.server.RefusedError lb.server.threads.Server lb.server.threads.Admission lb.server.threads.LoadTrailers"
        " lb.server.threads.draining"
        " lb.aio.registration lb.aio.Registration lb.aio.incoming lb.sync.incoming lb.detached"
        " lb.server.LoadTrailers lb.server.LoadReporter lb.server.cost lb.LoadReport lb.server.Around"
        " lb.server.behavior_of lb.server.Life lb.server.live lb.server.NotOpenError",
    ),
    "Tests of your own code": (
        "An example: [test_with_lb_testing.py](../examples/test_with_lb_testing.py). For blocking code, start the"
        " `Backend` in an `async` test, and run your code with `await asyncio.to_thread(function)`.",
        "lb.testing.fixtures lb.testing.Backend lb.testing.backend lb.testing.backend.Step lb.testing.backend.echo"
        " lb.testing.backend.fail lb.testing.backend.pushback lb.testing.backend.hold lb.testing.backend.hang"
        " lb.testing.backend.Gate lb.testing.backend.Received lb.testing.backend.answered_by lb.testing.Agent"
        " lb.testing.FakeClock lb.testing.clock.Timer",
    ),
    "A resolver of your own": (
        "An example: [own_resolver.py](../examples/own_resolver.py).",
        "lb.Resolver lb.Listener lb.Resolution lb.Endpoint",
    ),
    "A policy of your own": (
        "An example: [own_policy.py](../examples/own_policy.py).",
        "lb.Policy lb.Picker lb.Candidate lb.CallInfo lb.Hooks",
    ),
    "Reading instances from Consul": (
        "",
        "lb.aio.consul.Registry lb.aio.consul.Instance lb.aio.consul.ConsulError",
    ),
    "Building blocks": (
        "Useful without a channel.",
        "lb.parts.TokenBucket",
    ),
}
"""Title, a line below it, and what stands there in which order."""

ELSEWHERE = frozenset({"lb.aio", "lb.server", "lb.sync", "lb.__version__", "lb.server.Behavior", "lb.server.Priority"})
"""Exported, and told under another name, or without need of words."""

WITHOUT_MEMBERS = frozenset({"Settings of a channel", "Policies"})
"""Sections whose classes are made, handed over, and asked by the library alone."""

MADE_ELSEWHERE = frozenset(
    {
        *("lb.aio.Channel", "lb.sync.Channel", "lb.Attempt", "lb.aio.Registration", "lb.testing.clock.Timer"),
        *("lb.Outcome", "lb.Verdict", "lb.Retryable", "lb.Origin", "lb.Snapshot", "lb.EndpointSnapshot"),
        *("lb.testing.backend.Received", "lb.aio.consul.Instance", "lb.aio.consul.ConsulError"),
        *("lb.server.NotOpenError", "lb.server.StartError", "lb.server.Meter", "lb.server.Place"),
        "lb.server.RefusedError",
    }
)
"""Classes that users meet and never make."""

_HEAD = """# API

What `lb` exports, in the order in which you need it. What may change, and how you hear of it:
[stability.md](stability.md). Written by `make docs` from the docstrings; do not edit it here.
"""
_WIDTH = 100
_MANY = 10


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    parser = argparse.ArgumentParser(description="Write docs/api.md from the docstrings of lb.")
    parser.add_argument("--check", action="store_true", help="only tell whether docs/api.md is up to date")
    check = parser.parse_args(arguments).check
    text = page()
    if check:
        if not PAGE.exists() or PAGE.read_text("utf-8") != text:
            print("docs/api.md is stale: run `make docs` and commit the result", file=sys.stderr)
            return 1
        return 0
    PAGE.write_text(text, "utf-8")
    return 0


def page() -> str:
    """The whole page. Raises ``ValueError`` when `SECTIONS` does not name what `lb` exports."""
    shown = {title: names.split() for title, (_, names) in SECTIONS.items()}
    _complete([name for names in shown.values() for name in names])
    source = griffe.load("lb", search_paths=[str(ROOT)], docstring_parser=griffe.Parser.google)
    anchors: dict[str, str] = {}
    for name in (name for names in shown.values() for name in names):
        anchor = _anchor(name)
        again = sum(a == anchor or a.startswith(f"{anchor}-") for a in anchors.values())
        anchors[name] = f"{anchor}-{again}" if again else anchor  # as GitHub does
    write = Writer(source, anchors)
    lines = [_HEAD]
    for title, names in shown.items():
        links = ", ".join(f"[{_called(name)}](#{anchors[name]})" for name in names)
        lines.append(f"- **[{title}](#{_anchor(title)})**: {links}")
    for title, names in shown.items():
        lines += ["", f"## {title}"]
        if words := SECTIONS[title][0]:
            lines.append(words)
        for name in names:
            lines += ["", *write.entry(name, members=title not in WITHOUT_MEMBERS)]
    return "\n".join(lines) + "\n"


def _complete(shown: list[str]) -> None:
    exported = {f"{package}.{name}" for package in PACKAGES for name in importlib.import_module(package).__all__}
    if missing := sorted(exported - set(shown) - ELSEWHERE):
        raise ValueError(f"tools/api.py: SECTIONS lacks {', '.join(missing)}")
    if twice := sorted({name for name in shown if shown.count(name) > 1}):
        raise ValueError(f"tools/api.py: SECTIONS has {', '.join(twice)} twice")


def _called(name: str) -> str:
    """The name as a list shows it: what is no export of a package goes by its last part."""
    package, _, last = name.rpartition(".")
    return name.removeprefix("lb.") if package in PACKAGES and package != "lb.testing" else last


def _anchor(heading: str) -> str:
    """GitHub's: lower case, without punctuation, blanks as dashes."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


class Writer:
    """Entries of the page. ``anchors`` are those of all names, for links between them."""

    def __init__(self, source: Any, anchors: Mapping[str, str]) -> None:
        self._source = source
        self._anchors = anchors
        self._told: dict[str, dict[str, str]] = {}
        last = [name.rpartition(".")[2] for name in anchors]
        short = {name.rpartition(".")[2]: anchor for name, anchor in anchors.items()}
        # ``channel`` is of two packages: a link only where it is clear which one is meant.
        self._short = {name: anchor for name, anchor in short.items() if last.count(name) == 1}

    def entry(self, name: str, *, members: bool) -> Iterator[str]:
        """Heading, signature, docstring and members of one class or function."""
        found = _found(name)
        home = found.__name__ if inspect.ismodule(found) else f"{found.__module__}.{found.__qualname__}"
        told = self._source[home.removeprefix("lb.")]
        file = f"{told.module.path.replace('.', '/')}{'/__init__' if told.module.is_package else ''}.py"
        yield f"### {name}"
        if not (inspect.ismodule(found) or name in MADE_ELSEWHERE or _is_protocol(found)):
            yield from _fenced(_signature(name.rpartition(".")[2], found))
        yield from self.docstring(told)
        if members and inspect.isclass(found):
            yield from self._members(found, told)
        yield ""
        yield f"<sub>[{file}](../{file})</sub>"

    def _members(self, found: type, told: Any) -> Iterator[str]:
        lines = []
        for name, member in told.members.items():
            if name.startswith("_") or (member.docstring is None and not issubclass(found, enum.Enum)):
                continue
            if member.docstring is None:
                lines.append(f"- `{name}`")
                continue
            own = inspect.getattr_static(found, name, None)
            if member.is_function:
                words = _signature(name, own)
            else:
                words = f"{name}: {member.annotation}" if member.annotation else name
            first, *rest = list(self.docstring(member))[1:]
            lines += [f"- `{words}`: {first}", *_indented(rest)]
        if lines:
            yield from ("", *lines)

    def docstring(self, told: Any) -> Iterator[str]:
        """Its sections as Markdown, each after an empty line."""
        if told.docstring is None:
            raise ValueError(f"{told.path} has no docstring")
        for section in told.docstring.parsed:
            yield ""
            kind = section.kind.value
            if kind == "text":
                yield from self.markdown(section.value)
            elif kind == "parameters":
                # The two `channel` have most arguments in common: these are on the page once.
                before = self._told.setdefault(told.name, {}) if len(section.value) > _MANY else {}
                new = [p for p in section.value if before.get(p.name) != p.description]
                before.update({p.name: p.description for p in new})
                for parameter in new:
                    yield from self._item(f"`{parameter.name}`", parameter.description)
                if len(new) < len(section.value):
                    yield f"- all other arguments: as of {self._words(f'`lb.aio.{told.name}`')}"
            elif kind == "raises":
                for error in section.value:
                    yield from self._item(f"raises `{error.annotation}`", error.description)
            else:
                raise ValueError(f"{told.path}: tools/api.py has no words for a section {kind!r}")

    def _item(self, name: str, text: str) -> Iterator[str]:
        first, *rest = self.markdown(text)
        yield f"- {name}: {first}"
        yield from _indented(rest)

    def markdown(self, text: str) -> Iterator[str]:
        """What docstrings here use of reStructuredText, as Markdown. Paragraphs become one line each."""
        blocks = _blocks(text)
        for number, block in enumerate(blocks):
            if number:
                yield ""
            if block.startswith(("    ", "=")):
                yield from _fenced(textwrap.dedent(block))
            elif block.startswith(("- ", "* ")):
                for item in re.split(r"\n(?=[-*] )", block):
                    yield "- " + self._words(item[2:])
            else:
                yield self._words(block.removesuffix("::") + (":" if block.endswith("::") else ""))

    def _words(self, text: str) -> str:
        text = re.sub(r"\s*\n\s*", " ", text)
        text = re.sub(r":\w+:(`[^`]+`)", r"\1", text)
        # Literals first, so that what stands in them is no reference.
        parts = re.split(r"``(.+?)``", text)
        parts[::2] = [re.sub(r"`([^`]+)`", self._reference, part) for part in parts[::2]]
        parts[1::2] = [f"`{part}`" for part in parts[1::2]]
        return "".join(parts)

    def _reference(self, match: re.Match[str]) -> str:
        name = match[1].lstrip("~")
        anchor = self._anchors.get(name) or self._short.get(name)
        return f"[`{name}`](#{anchor})" if anchor else f"`{name}`"


def _found(name: str) -> Any:
    package, _, attribute = name.rpartition(".")
    home = importlib.import_module(package)
    return getattr(home, attribute) if hasattr(home, attribute) else importlib.import_module(name)


def _is_protocol(found: Any) -> bool:
    return bool(getattr(found, "_is_protocol", False))


def _blocks(text: str) -> list[str]:
    """Paragraphs, lists, and indented blocks as a whole."""
    found: list[str] = []
    for block in re.split(r"\n\s*\n", text.strip("\n")):
        if found and block.startswith("    ") and found[-1].startswith("    "):
            found[-1] += f"\n\n{block}"
        elif found and block.strip() == "::":
            continue
        else:
            found.append(block)
    return [block for block in found if block.strip() != "::"]


def _fenced(text: str) -> Iterator[str]:
    language = "text" if text.startswith(("python ", "=")) else "python"
    yield from (f"```{language}", *text.splitlines(), "```")


def _indented(lines: Iterable[str]) -> Iterator[str]:
    for line in lines:
        yield f"  {line}" if line else ""


def _signature(name: str, found: Any) -> str:
    """As one would write the call, with types and defaults; a line for each argument when it is long."""
    try:
        signature = inspect.signature(found)
    except ValueError:
        return name
    arguments = []
    star = False
    for parameter in signature.parameters.values():
        if parameter.name == "self":
            continue
        if parameter.kind is parameter.KEYWORD_ONLY and not star:
            arguments.append("*")
        star = star or parameter.kind in (parameter.KEYWORD_ONLY, parameter.VAR_POSITIONAL)
        arguments.append(_parameter(parameter))
    returns = signature.return_annotation
    arrow = "" if inspect.isclass(found) or returns in (signature.empty, "None") else f" -> {returns}"
    head = "async " if inspect.iscoroutinefunction(found) else ""
    line = f"{head}{name}({', '.join(arguments)}){arrow}"
    if len(line) <= _WIDTH or not _is_entry(found):
        return line
    body = "".join(f"    {argument},\n" for argument in arguments)
    return f"{head}{name}(\n{body}){arrow}"


def _is_entry(found: Any) -> bool:
    """Whether its signature has a block of its own: members stand in a list, in one line."""
    return is_dataclass(found) or inspect.isclass(found) or "." not in found.__qualname__


def _parameter(parameter: inspect.Parameter) -> str:
    text = str(parameter.replace(annotation=parameter.empty, default=parameter.empty))  # with its stars
    if parameter.annotation is not parameter.empty:
        text += f": {parameter.annotation}"
    if parameter.default is not parameter.empty:
        default = parameter.default
        simple = isinstance(default, (int, float, str, tuple, type(None)))
        enumerated = f"{type(default).__name__}.{default.name}" if hasattr(default, "name") else "..."
        text += f" = {default!r}" if simple else f" = {enumerated}"
    return text


if __name__ == "__main__":
    sys.exit(main())
