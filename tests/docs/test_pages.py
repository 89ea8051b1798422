"""What holds for every page: links lead somewhere, settings exist, numbers are the code's, messages are real."""

from __future__ import annotations

import dataclasses
import inspect
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from tenacity import stop_after_attempt

import lb
from lb.aio.outbox import REPLAY_LIMIT
from lb.core.quantile import LEAST_SAMPLES
from lb.core.target import REFRESH_S
from lb.core.unpicked import RESOLVER_GRACE_S
from lb.core.watch import HOLD_S

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "examples/README.md")),
    *(ROOT / "docs").glob("*.md"),
]
SETTINGS = {
    name: kind
    for name, kind in vars(lb).items()
    if inspect.isclass(kind) and dataclasses.is_dataclass(kind) and kind not in (lb.Endpoint, lb.Resolution)
}


def name_of(page: Path) -> str:
    """For the test's id."""
    return str(page.relative_to(ROOT))


def prose(page: Path) -> str:
    """Without its code."""
    return re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)


@cache
def anchors(page: Path) -> set[str]:
    """Of a page's headings, by GitHub's rule: repeated ones are numbered."""
    headings = [re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in re.findall(r"(?m)^#+ (.*)$", prose(page))]
    return {h + (f"-{headings[:i].count(h)}" if headings[:i].count(h) else "") for i, h in enumerate(headings)}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    """To a file or folder of the tree, and to a heading that it has."""
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if link.startswith("https://"):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        assert target.is_relative_to(ROOT), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_nothing_of_this_machine_is_on_a_page(page: Path) -> None:
    """No path of where it was written."""
    assert str(ROOT) not in page.read_text("utf-8")


def named_settings(page: Path) -> list[tuple[str, str, str]]:
    """Class, field and, where it follows in brackets, the value: ``Breaker.open_s`` (1 s)."""
    found = re.findall(r"`(?:lb\.)?([A-Z]\w+)\.([a-z]\w*)`(?: \((?:by default )?([\d.,]+)[^)]*\))?", prose(page))
    return [(kind, field, value) for kind, field, value in found if kind in SETTINGS]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_settings_that_are_named_exist_with_the_value_that_is_told(page: Path) -> None:
    """``Class.field``, and its default where a number stands behind it in brackets."""
    for kind, field, value in named_settings(page):
        defaults = {f.name: f for f in dataclasses.fields(SETTINGS[kind])}
        assert field in defaults or hasattr(SETTINGS[kind], field), f"{kind}.{field}"
        if value:
            assert float(value.replace(",", "")) == default(defaults[field]), f"{kind}.{field} ({value})"


def registers(argument: str) -> Any:
    """The default of an argument of a registration."""
    return inspect.signature(lb.aio.registration).parameters[argument].default


def default(field: dataclasses.Field[Any]) -> Any:
    """As a number; of a strategy that counts attempts, their number."""
    factory: Any = field.default_factory
    value = factory() if field.default is dataclasses.MISSING else field.default
    return value.max_attempt_number if isinstance(value, stop_after_attempt) else value


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_arguments_that_are_shown_exist(page: Path) -> None:
    """``lb.Class(argument=...)``, in code and in prose."""
    for kind, inside in re.findall(r"lb\.([A-Z]\w+)\(([^()]*)\)", page.read_text("utf-8")):
        known = inspect.signature(getattr(lb, kind)).parameters
        for argument in re.findall(r"(\w+)=", inside):
            assert argument in known, f"lb.{kind}({argument}=)"


@pytest.mark.parametrize(
    ("page", "name", "number"),
    [
        ("moving.md", "interval=", f"{REFRESH_S:g} s"),
        ("operating.md", "interval=", f"{REFRESH_S:g} s"),
        ("guarantees.md", "Consul", f"{HOLD_S:g} s"),
        ("guarantees.md", "resolver", f"{RESOLVER_GRACE_S:g} s"),
        ("guarantees.md", "requests", f"{REPLAY_LIMIT / 2**20:g} MiB"),
        ("guarantees.md", "delay_s=None", f"{LEAST_SAMPLES:g} calls"),
        ("operating.md", "`check_interval_s`", f"{registers('check_interval_s'):g} s"),
    ],
)
def test_constants_are_what_is_told(page: str, name: str, number: str) -> None:
    """Those that no setting has: some line of the page has the name and today's number, in whatever words."""
    lines = (ROOT / "docs" / page).read_text("utf-8").splitlines()
    assert [line for line in lines if name in line and re.search(rf"\b{re.escape(number)}\b", line)]


def test_numbers_are_told_somewhere() -> None:
    """The rule of `named_settings` finds some; else the test above proves nothing."""
    assert len([value for page in PAGES for *_, value in named_settings(page) if value]) >= 5


WORDS = "endpoint instance candidate subchannel attempt outcome verdict admission ejection panic queue budget"


@pytest.mark.parametrize("word", WORDS.split())
def test_a_word_is_explained_and_linked(word: str) -> None:
    """The glossary has it, and another page leads there."""
    glossary = ROOT / "docs" / "glossary.md"
    assert word in anchors(glossary)
    assert [page for page in PAGES if page != glossary and f"glossary.md#{word})" in page.read_text("utf-8")]


@cache
def names_of_tests() -> set[str]:
    """The names of all tests."""
    texts = [path.read_text("utf-8") for path in (ROOT / "tests").rglob("test_*.py")]
    return {name for text in texts for name in re.findall(r"def (test_\w+)", text)} | {
        path.stem for path in (ROOT / "tests").rglob("test_*.py")
    }


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_a_test_that_is_named_is_there(page: Path) -> None:
    """By file or by function, on whichever page."""
    named = set(re.findall(r"\b(test_\w+)", prose(page)))
    examples = {path.stem for path in (ROOT / "examples").glob("test_*.py")}
    assert named - names_of_tests() - examples == set()


ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text("utf-8")


@pytest.mark.parametrize("room", ["core", "aio", "aio/resolvers", "sync", "server", "telemetry", "testing"])
def test_every_file_has_its_place_on_the_map(room: str) -> None:
    """Each module of `lb` is named on the page of the architecture."""
    named = {part for name in re.findall(r"`([\w/. ]+)`", ARCHITECTURE) for part in re.split(r"[/.]", name)}
    files = {path.stem for path in (ROOT / "lb" / room).glob("*.py")} - {"__init__"}
    assert files <= named


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_a_file_that_is_named_exists(page: Path) -> None:
    """A path in backticks, from the root, from ``lb`` or from ``tests``."""
    tops = "lb|core|aio|services|tests|tools|bench|deploy|examples|docs|protos"
    for path in re.findall(rf"`((?:{tops})/[\w/]+(?:\.(?:py|md|sh|json|txt))?)`", prose(page)):
        assert any((ROOT / top / end).exists() for top in ("", "lb", "tests") for end in (path, f"{path}.py")), path


TROUBLE = (ROOT / "docs" / "troubleshooting.md").read_text("utf-8")


@cache
def source() -> str:
    """All of the library's strings, joined where they are written in parts."""
    texts = [path.read_text("utf-8") for path in (ROOT / "lb").rglob("*.py")]
    return re.sub(r'"\s*\n\s*f?"', "", "\n".join(texts))


@pytest.mark.parametrize("message", re.findall(r"(?m)^\| `([^`]+)`", TROUBLE))
def test_a_message_is_one_of_ours(message: str) -> None:
    """Its constant parts are in the source; those that are said to be grpcio's come from there."""
    row = next(line for line in TROUBLE.splitlines() if line.startswith(f"| `{message}`"))
    if "grpcio's" in row or message in ("Deadline Exceeded", "ValueError"):
        return
    for part in re.split("…", message):
        words = part.strip(" :;()")
        assert words in source(), words


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`(lb\.(?:channel|consul|dns|telemetry|\w+))`", TROUBLE))))
def test_what_is_called_lb_exists(name: str) -> None:
    """A logger, a span's attribute, or a name that the package exports."""
    assert f'"{name}"' in source() or hasattr(lb, name.removeprefix("lb."))
