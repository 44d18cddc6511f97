"""Commands that register themselves, and option groups that become their options."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from exltune.cli import commands, registry
from exltune.cli.app import make_app
from exltune.cli.flags import Only, expanded
from exltune.cli.options.numbers import parse_time
from exltune.errors import UsageError

_HELLO = '''
import typer
from exltune.cli.registry import Section, command

@command(Section.LOOK)
def hello(name: str) -> None:
    """Greet."""
    typer.echo(f"hello {name}")
'''


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A group with an option that must be given and one with a default."""

    rows: Annotated[int, typer.Option("--rows")]
    columns: Annotated[int, typer.Option("--columns")] = 3


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A second folder of commands."""
    monkeypatch.setattr(commands, "__path__", [*commands.__path__, str(tmp_path)])
    known = list(registry.ENTRIES)
    yield tmp_path
    registry.ENTRIES[:] = known


def test_a_file_is_all_that_a_command_needs(here: Path) -> None:
    assert CliRunner().invoke(make_app(), ["hello", "there"]).exit_code == 2
    (here / "hello.py").write_text(_HELLO)
    app = make_app()
    assert CliRunner().invoke(app, ["hello", "there"]).stdout == "hello there\n"
    assert "Greet." in CliRunner().invoke(app, ["--help"]).stdout


def _run(command: object, *arguments: str) -> tuple[int, str]:
    app = typer.Typer()
    app.command()(expanded(command))  # type: ignore[arg-type]
    result = CliRunner().invoke(app, arguments)
    return result.exit_code, result.output


def test_a_group_is_put_together_again() -> None:
    def draw(*, name: str, shape: Shape, loud: bool = False) -> None:
        typer.echo(f"{name} {shape.rows}x{shape.columns} {loud}")

    assert _run(draw, "box", "--rows", "2") == (0, "box 2x3 False\n")
    assert _run(draw, "box", "--rows", "2", "--columns", "5", "--loud") == (0, "box 2x5 True\n")
    assert _run(draw, "box")[0] == 2


def test_only_some_fields_of_a_group() -> None:
    def draw(*, shape: Annotated[Shape, Only("rows")]) -> None:
        typer.echo(f"{shape.rows}x{shape.columns}")

    assert _run(draw, "--rows", "2") == (0, "2x3\n")
    assert _run(draw, "--rows", "2", "--columns", "5")[0] == 2


def test_mistakes_of_a_declaration_are_told() -> None:
    def twice(*, rows: int, shape: Shape) -> None: ...

    def unknown(*, shape: Annotated[Shape, Only("depth")]) -> None: ...

    with pytest.raises(TypeError, match="twice takes rows twice"):
        expanded(twice)
    with pytest.raises(TypeError, match="Shape has no depth"):
        expanded(unknown)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("2h", 7200), ("45m", 2700), ("1.5h", 5400), ("1h 30m", 5400), ("90s", 90), ("0.5S", 0.5), ("1d2h", 93600)],
)
def test_times(text: str, seconds: float) -> None:
    assert parse_time(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "-2h", "h", "2x", "1h soon", "45", "4.5", "1e3s"])
def test_what_is_not_a_time(text: str) -> None:
    with pytest.raises(UsageError, match="--time"):
        parse_time(text)
