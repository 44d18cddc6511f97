"""The documents against the command line: every command parses, every quoted plan is what the command prints."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from command_line import exltune
from typer.core import TyperGroup

import exltune as exltune_library
from exltune.cli import repeat_data_option
from exltune.cli.app import app

ROOT = Path(__file__).resolve().parents[2]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "examples").rglob("*.md"))]
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_INDENTED = re.compile(r"(?:^ {4}.*\n?)+", re.MULTILINE)
_INLINE = re.compile(r"`(exltune [^`]+)`")
_COMMAND = re.compile(r"^(?:\$ )?(?:\.venv/bin/)?exltune\b")
_END = re.compile(r"\s(?:\||&&|;|>|2>)\s")
_TAIL = re.compile(r" \| tail -(\d+)$")


#: Typer keeps click to itself and shows this class by its subclass alone.
UsageError = typer.BadParameter.__bases__[0]


def commands_of(page: Path) -> Iterator[list[str]]:
    """Arguments of every exltune command in a page; inline ones stripped to their first choice."""
    text = page.read_text(encoding="utf-8")
    blocks = [body for _, body in _FENCE.findall(text)]
    rest = _FENCE.sub("", text)
    blocks += [re.sub(r"^ {4}", "", block, flags=re.MULTILINE) for block in _INDENTED.findall(rest)]
    for block in blocks:
        for line in block.replace("\\\n", " ").splitlines():
            if _COMMAND.match(line):
                yield shlex.split(_END.split(line)[0].removeprefix("$ "), comments=True)[1:]
    for found in _INLINE.findall(_INDENTED.sub("", rest)):
        words = shlex.split(re.sub(r"\\?\|[^\s\]]+", "", found.replace("...", "")).translate({91: None, 93: None}))[1:]
        # A mention: the name of a command, perhaps with one option.
        if len(words) > 1 and not words[1].startswith("-"):
            yield words
        else:
            yield [words[0], "--help"]


COMMANDS = [(page.relative_to(ROOT), arguments) for page in PAGES for arguments in commands_of(page)]


def parse(arguments: list[str]) -> None:
    """As the command line does, without running anything. Raises: UsageError."""
    command = typer.main.get_command(app)
    context = typer.Context(command, info_name="exltune")
    left = repeat_data_option(arguments)
    while isinstance(command, TyperGroup):
        name, found, left = command.resolve_command(context, left)
        assert found is not None
        command, context = found, typer.Context(found, info_name=name, parent=context)
    if left != ["--help"]:
        command.make_context(command.name, list(left), parent=context.parent)


@pytest.mark.parametrize(("page", "arguments"), COMMANDS, ids=[f"{page}: {' '.join(a)}" for page, a in COMMANDS])
def test_every_command_parses(page: Path, arguments: list[str]) -> None:
    parse(arguments)


def test_the_parser_finds_what_is_wrong() -> None:
    for wrong in (["plan", "x.json", "--bit", "3"], ["deploy", "tabby", "--slots", "many"], ["nothing"], ["build"]):
        with pytest.raises(UsageError):
            parse(wrong)
    assert len(COMMANDS) > 30


def test_every_command_has_its_section() -> None:
    page = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    found = {line.removeprefix("## ").split()[0] for line in page.splitlines() if line.startswith("## ")}
    command = typer.main.get_command(app)
    assert isinstance(command, TyperGroup)
    assert set(command.list_commands(typer.Context(command))) - found == set()


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) < 1500


def quoted() -> Iterator[tuple[str, str, str]]:
    """Page, command and the output that the page says it has, from every console block."""
    for page in PAGES:
        for kind, body in _FENCE.findall(page.read_text(encoding="utf-8")):
            if kind == "console":
                command, _, output = body.partition("\n")
                yield str(page.relative_to(ROOT)), command.removeprefix("$ "), output


QUOTED = list(quoted())


@pytest.mark.parametrize(("page", "command", "output"), QUOTED, ids=[f"{page}: {line}" for page, line, _ in QUOTED])
def test_quoted_output_is_what_is_printed(
    page: str, command: str, output: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    tail = _TAIL.search(command)
    name, *arguments = shlex.split(_TAIL.sub("", command))
    assert name == "exltune"
    found = exltune(*arguments)
    assert not found.stderr
    printed = lines(found.stdout)[-int(tail[1]) :] if tail else lines(found.stdout)
    assert lines(output) == printed, f"{page}: write this instead:\n" + "\n".join(printed)


def lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.strip("\n").splitlines()]


def test_every_walk_through_quotes_a_plan() -> None:
    pages = [page for page, command, _ in QUOTED if command.startswith("exltune plan ")]
    assert {"docs/plan.md", "docs/glm-4.7.md", "docs/glm-4.5-air.md", "docs/qwen3.5-122b.md"} <= set(pages)


def python_names(text: str) -> set[str]:
    """Names of the library that the Python in a page uses: `exltune.NAME(`."""
    return set(re.findall(r"\bexltune\.(\w+)\(", text))


def test_the_library_has_the_names_of_the_docs() -> None:
    named = {name for page in PAGES for name in python_names(page.read_text(encoding="utf-8"))}
    assert {"load_measurement", "optimize", "build", "evaluate"} <= named
    assert all(callable(getattr(exltune_library, name, None)) for name in named)
