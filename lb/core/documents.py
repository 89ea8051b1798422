"""Reading a JSON document, with errors that name the path of each wrong field.

`read` returns the outermost object as `Fields`, from which values are taken by name and kind. If a value
is wrong, that is kept in `Problems`, and taking it returns None: so a reader goes on to the
end, and its user sees all errors at once. Fields that were not taken are noted, and otherwise ignored.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

UINT32_MAX = 2**32 - 1
_LONGEST_S = 315_576_000_000  # of a proto3 Duration: about 10,000 years
_FOR_EVER_S = 1e9  # grpcio's deadlines end before 10e9 seconds: what is later has passed
_MOST_TOLD = 20
_LARGEST = 1e300
_DURATION = re.compile(r"[0-9]{1,12}(?:\.[0-9]{1,9})?s")
_WHOLE = re.compile(r"-?[0-9]{1,20}")
_NUMBER = re.compile(r"-?[0-9]{1,300}(?:\.[0-9]+)?(?:[eE][+-]?[0-9]{1,3})?")


class Problems:
    """The errors in one document, and the notes about what was ignored or changed."""

    def __init__(self, what: str) -> None:
        """``what`` is the document's name, for messages."""
        self.what = what
        self._errors: list[str] = []
        self._notes: list[str] = []
        self._objects: list[Fields] = []

    def wrong(self, path: str, value: object, expected: str) -> None:
        """Add an error: the value at ``path`` is not accepted."""
        self.error(f"{path} is {in_json(value)}; expected {expected}")

    def error(self, sentence: str) -> None:
        """Add an error in other words; the sentence names the path."""
        self._errors.append(sentence)

    def note(self, sentence: str) -> None:
        """Add a note: something was ignored or changed."""
        self._notes.append(sentence)

    def finish(self) -> tuple[str, ...]:
        """The notes, if there was no error.

        Raises:
            ValueError: there were errors; the message has all of them (the first 20).
        """
        if self._errors:
            told = self._errors[:_MOST_TOLD]
            if len(self._errors) > _MOST_TOLD:
                told.append(f"and {len(self._errors) - _MOST_TOLD} more")
            raise ValueError(f"{self.what}: {'; '.join(told)}")
        ignored = (f"{name} is unknown, and ignored" for fields in self._objects for name in fields.left())
        return (*self._notes, *ignored)


class Fields:
    """An object of the document. Each method takes one field; None when it is absent, null or wrong."""

    def __init__(self, values: Mapping[Any, Any], path: str, problems: Problems) -> None:
        """``path`` is empty for the outermost object."""
        self._values = values
        self._problems = problems
        self._taken: set[str] = set()
        self.path = path
        problems._objects.append(self)

    def at(self, name: str) -> str:
        """The path of a field."""
        return f"{self.path}.{name}" if self.path else name

    def left(self) -> Iterable[str]:
        """The paths of the fields that were not taken."""
        return (self.at(str(name)) for name in self._values if name not in self._taken)

    def value(self, name: str) -> Any:
        """The raw value, unchecked."""
        self._taken.add(name)
        return self._values.get(name)

    def wrong(self, name: str, expected: str) -> None:
        """Add an error: the field's value is not accepted, for a reason that the reader knows."""
        value = self._values.get(name)
        if value is None:
            self._problems.error(f"{self.at(name)} is missing; expected {expected}")
        else:
            self._problems.wrong(self.at(name), value, expected)

    def whole(self, name: str, least: int = 0, most: int = UINT32_MAX, *, required: bool = False) -> int | None:
        """A whole number, which in proto3 JSON may also be a string."""
        value = self.value(name)
        if isinstance(value, str) and _WHOLE.fullmatch(value):
            value = int(value)
        if isinstance(value, int) and not isinstance(value, bool) and least <= value <= most:
            return value
        if value is not None or required:
            limit = f">= {least}" if most == UINT32_MAX else f"from {least} to {most}"
            self.wrong(name, f"a whole number {limit}")
        return None

    def number(self, name: str, *, positive: bool = False, required: bool = False) -> float | None:
        """A number >= 0, which in proto3 JSON may also be a string; ``positive``: > 0."""
        value = self.value(name)
        if isinstance(value, str) and _NUMBER.fullmatch(value):
            value = float(value)
        real = isinstance(value, (int, float)) and not isinstance(value, bool)
        if real and 0 <= value <= _LARGEST and (value > 0 or not positive):
            return float(value)
        if value is not None or required:
            self.wrong(name, f"a number {'>' if positive else '>='} 0")
        return None

    def seconds(self, name: str, *, positive: bool = False, required: bool = False) -> float | None:
        """A proto3 Duration in JSON: seconds with at most nine decimals and an ``s``. 1e9, if it is longer."""
        value = self.value(name)
        if isinstance(value, str) and _DURATION.fullmatch(value):
            seconds = float(value[:-1])
            if seconds <= _LONGEST_S and (seconds > 0 or not positive):
                return min(seconds, _FOR_EVER_S)
        if value is not None or required:
            self.wrong(name, f'seconds as text like "0.1s"{", above 0" if positive else ""}')
        return None

    def text(self, name: str) -> str | None:
        """A string."""
        value = self.value(name)
        if value is None:
            return None
        if not isinstance(value, str):
            self.wrong(name, "a string")
            return None
        try:
            value.encode()
        except UnicodeEncodeError:  # half of a surrogate pair, which JSON can write and core does not read
            self.wrong(name, "a string of whole characters")
            return None
        return value

    def flag(self, name: str) -> bool | None:
        """True or false."""
        value = self.value(name)
        if value is None or isinstance(value, bool):
            return value
        self.wrong(name, "true or false")
        return None

    def fields(self, name: str) -> Fields | None:
        """An object."""
        value = self.value(name)
        return None if value is None else fields_of(value, self.at(name), self._problems)

    def items(self, name: str) -> list[tuple[str, Any]] | None:
        """A list: each element with its path."""
        value = self.value(name)
        if isinstance(value, (list, tuple)):
            return [(f"{self.at(name)}[{index}]", element) for index, element in enumerate(value)]
        if value is not None:
            self.wrong(name, "a list")
        return None


def fields_of(value: object, path: str, problems: Problems) -> Fields | None:
    """The value as an object, or None and a problem."""
    if isinstance(value, Mapping):
        return Fields(value, path, problems)
    problems.wrong(path, value, "an object")
    return None


def read(document: str | Mapping[str, Any], problems: Problems) -> Fields:
    """The document's outermost object, from JSON text or from a mapping with its content.

    Raises:
        ValueError: the text is not JSON, is not an object, or has a name twice in one object.
        TypeError: ``document`` is neither text nor a mapping.
    """
    what = problems.what
    if isinstance(document, Mapping):
        return Fields(document, "", problems)
    if not isinstance(document, str):
        raise TypeError(f"{what} is {document!r}; expected JSON text or a mapping")
    try:
        value = json.loads(document, object_pairs_hook=_once, parse_constant=_refuse)
    except RecursionError:
        raise ValueError(f"{what}: nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"{what} is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{what} is {in_json(value)}; expected an object")
    return Fields(value, "", problems)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{in_json(twice)} occurs twice in one object")
    return values


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not a JSON number")


def in_json(value: object) -> str:
    """A value as JSON has it, shortened."""
    if value is None:
        return "null"
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, (list, tuple)):
        return "a list" if value else "an empty list"
    if not isinstance(value, (str, int, float)):
        return f"a Python {type(value).__name__}"
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > 10**30:
        return "a very large number"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."
