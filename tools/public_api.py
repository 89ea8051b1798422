"""The public API of `lb` as text, ``docs/public_api.txt``: names, signatures, fields, defaults.

::

    python tools/public_api.py            write it: the change is meant (make surface)
    python tools/public_api.py --check    write nothing; show what differs, exit 1 if something does

A test compares it with the code, so that nothing public changes by accident, and a reviewer sees each change as lines
of this file. Words are not in it: docs/api.md has them. Public is what a package of `PACKAGES` has in ``__all__``, and
of a class what is documented.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import enum
import functools
import importlib
import inspect
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import griffe
import grpc

from tools.api import MADE_ELSEWHERE, SECTIONS, WITHOUT_MEMBERS

ROOT = Path(__file__).resolve().parent.parent
FILE = ROOT / "docs" / "public_api.txt"
PACKAGES = (
    *("lb", "lb.aio", "lb.aio.consul", "lb.parts", "lb.server", "lb.server.address"),
    *("lb.server.threads", "lb.sync"),
    *("lb.testing", "lb.testing.backend", "lb.testing.clock"),
)
FIXTURES = "lb.testing.fixtures"
RENEW = "make surface"
_HEAD = f"""# The public API of lb, written by `{RENEW}`. If a change of it is meant, run that and commit this file,
# with a line in CHANGELOG.md, and one in docs/moving.md if users have to change their code.
"""
_WITHOUT_MEMBERS = frozenset(name for title in WITHOUT_MEMBERS for name in SECTIONS[title][1].split())
_CONTEXTS = {"__aenter__": "async with", "__enter__": "with"}


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    parser = argparse.ArgumentParser(description="Write docs/public_api.txt, the public API of lb as text.")
    parser.add_argument("--check", action="store_true", help="only show what has changed since it was written")
    if not parser.parse_args(arguments).check:
        FILE.write_text(text(), "utf-8")
        return 0
    changes = difference()
    print(changes, end="", file=sys.stderr)
    return 1 if changes else 0


def difference() -> str:
    """What has changed since the file was written, as a diff with a word on what to do; empty if nothing has."""
    written = FILE.read_text("utf-8") if FILE.exists() else ""
    lines = list(
        difflib.unified_diff(written.splitlines(), text().splitlines(), "docs/public_api.txt", "the code", lineterm="")
    )
    words = f"The public API has changed. If that is meant: {RENEW}, and a line in CHANGELOG.md."
    return "\n".join((*lines, "", words, "")) if lines else ""


@functools.cache
def text() -> str:
    """The whole file."""
    source = griffe.load("lb", search_paths=[str(ROOT)])
    lines = [_HEAD]
    seen: set[int] = set()
    for package in PACKAGES:
        module = importlib.import_module(package)
        for name in sorted(module.__all__):
            found = getattr(module, name)
            if inspect.ismodule(found) or name == "__version__":
                continue
            if id(found) in seen and not isinstance(found, str):  # lb.testing.backend.Backend is lb.testing.Backend
                continue
            seen.add(id(found))
            lines += [*_entry(f"{package}.{name}", found, source), ""]
    fixtures = source[FIXTURES.removeprefix("lb.")]
    lines += [f"pytest plugin {FIXTURES}", *(f"    {f}" for f in sorted(fixtures.functions) if f[0] != "_"), ""]
    return "\n".join(lines).rstrip("\n") + "\n"


def _entry(name: str, found: Any, source: Any) -> Iterator[str]:
    if not (inspect.isclass(found) or inspect.isfunction(found)):
        yield f"{name} = {found!r}" if isinstance(found, (str, tuple)) else f"{name}: a type"
        return
    if inspect.isfunction(found):
        yield from _signed(f"def {name}", found)
        return
    told = source[f"{found.__module__}.{found.__qualname__}".removeprefix("lb.")]
    if issubclass(found, enum.Enum):
        yield f"enum {name}"
        yield from (f"    {member.name}" for member in found)
        return
    if getattr(found, "_is_protocol", False):
        yield f"protocol {name}"
    elif name in MADE_ELSEWHERE:
        base = _base(found)
        yield f"class {name}({base})" if base else f"class {name}"
    else:
        yield from _signed(f"class {name}", found)
    for dunder, words in _CONTEXTS.items():
        if hasattr(found, dunder):
            yield f"    {words}"
    if name not in _WITHOUT_MEMBERS:
        yield from (f"    {line}" for line in _members(found, told, fields=name in MADE_ELSEWHERE))


def _members(found: type, told: Any, *, fields: bool) -> Iterator[str]:
    """Whatever is documented; a class's ``fields`` are in its signature already where users make it."""
    given = {f.name for f in dataclasses.fields(found)} if dataclasses.is_dataclass(found) and not fields else set()
    for name, member in sorted(told.members.items()):
        if name.startswith("_") or member.docstring is None or name in given:
            continue
        if member.is_function:
            yield from _signed(f"def {name}", inspect.getattr_static(found, name))
        else:
            yield f"{name}: {member.annotation}" if member.annotation else name


def _base(found: type) -> str:
    """What it is for others: a class of grpc's by its public name, or an error of Python's."""
    for name, kind in (("grpc.aio.Channel", grpc.aio.Channel), ("grpc.Channel", grpc.Channel)):
        if issubclass(found, kind):
            return name
    errors = [kind.__name__ for kind in found.__mro__ if kind.__module__ == "builtins" and issubclass(kind, Exception)]
    return errors[0] if errors else ""


def _signed(head: str, found: Callable[..., Any]) -> Iterator[str]:
    """A line for each argument, so that a change of one is a change of one line."""
    signature = inspect.signature(found)
    lines, star = [], False
    for parameter in signature.parameters.values():
        if parameter.name == "self":
            continue
        if parameter.kind is parameter.KEYWORD_ONLY and not star:
            lines.append("*")
        star = star or parameter.kind in (parameter.KEYWORD_ONLY, parameter.VAR_POSITIONAL)
        lines.append(_parameter(parameter, found))
    head = head.replace("def ", "async def ", 1) if inspect.iscoroutinefunction(found) else head
    result = signature.return_annotation
    arrow = "" if inspect.isclass(found) or result is signature.empty else f" -> {result}"
    if len(lines) <= 2:
        yield f"{head}({', '.join(lines)}){arrow}"
    else:
        yield from (f"{head}(", *(f"    {line}," for line in lines), f"){arrow}")


def _parameter(parameter: inspect.Parameter, found: Any) -> str:
    words = str(parameter.replace(annotation=parameter.empty, default=parameter.empty))
    if parameter.annotation is not parameter.empty:
        words += f": {parameter.annotation}"
    if parameter.default is parameter.empty:
        return words
    default = parameter.default
    if dataclasses.is_dataclass(found):
        (field,) = (f for f in dataclasses.fields(found) if f.name == parameter.name)
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
    return f"{words} = {_shown(default)}"


def _shown(value: Any) -> str:
    """As Python writes it; tenacity's strategies by what they were made with."""
    if type(value).__module__.startswith("tenacity"):
        fields = ", ".join(f"{name}={field!r}" for name, field in sorted(vars(value).items()))
        return f"{type(value).__name__}({fields})"
    return str(value) if isinstance(value, enum.Enum) else repr(value)


if __name__ == "__main__":
    sys.exit(main())
