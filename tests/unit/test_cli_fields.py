"""Messages below the command line name fields, and the command line shows the options of that name."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from command_line import exltune

from exltune.cli import console
from exltune.cli.app import app
from exltune.cli.console import option_names

PACKAGE = Path(__file__).resolve().parents[2] / "exltune"
#: Words of command lines: how a result was made, what a container runs, the converter's own arguments.
COMMAND_LINES = {
    "engines/exllamav3/converter.py",
    "pipeline/common/commands.py",
    "pipeline/evaluation/compare.py",
    "pipeline/evaluation/peers.py",
    "pipeline/evaluation/tasks.py",
    "pipeline/optimization/optimize.py",
    "pipeline/publication/card_runs.py",
    "publish/tabby_files.py",
    "store/formats.py",
}


def _documentation(tree: ast.AST) -> set[int]:
    """Docstrings, which may name options."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    bodies = [node.body for node in ast.walk(tree) if isinstance(node, documented) and node.body]
    return {id(body[0].value) for body in bodies if isinstance(body[0], ast.Expr)}


def _texts(file: Path) -> Iterator[str]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    left_out = _documentation(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in left_out:
            yield node.value


def _named(text: str, options: set[str]) -> set[str]:
    """Options in a text, also one that is put together from `--` and a name."""
    words = {word.strip("`'\".,;:()=") for word in text.split()}
    return (words & options) | ({"--"} & words)


def test_no_message_below_the_command_line_names_an_option() -> None:
    options = set(option_names(typer.main.get_command(app)).values())
    assert {"--target-bpw", "--api-tokens", "--set", "--out"} <= options
    found: dict[str, set[str]] = {}
    for file in PACKAGE.rglob("*.py"):
        place = file.relative_to(PACKAGE).as_posix()
        if place.startswith("cli/"):
            continue
        for text in _texts(file):
            a_word = text in options or "\n" in text
            if not (a_word and place in COMMAND_LINES):
                found.setdefault(place, set()).update(_named(text, options))
    # A line style of matplotlib, the folder names of the Hub's cache, a line of the converter's log.
    for place in ("report/measurement/pictures.py", "publish/card_metadata.py", "engines/exllamav3/converter.py"):
        found[place].discard("--")
    assert {place: names for place, names in found.items() if names} == {}


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (("plan", "MODEL", "--context", "0"), "error: --context 0 is not above 0."),
        (("plan", "MODEL", "--bits", "3", "--gpus", "1x24GiB", "--tensor-parallel"), "--tensor-parallel needs two"),
        (("tradeoff", "MEASUREMENT", "--contexts", "1024"), "Give --vram or --gpus."),
        (("measurements", "list", "ABSENT"), "or the directory, of a measurement."),
    ],
)
def test_the_command_line_shows_options(arguments: tuple[str, ...], shown: str) -> None:
    root = PACKAGE.parent
    paths = {"MODEL": root / "models" / "qwen3", "MEASUREMENT": root / "measurements" / "qwen3.json"}
    outcome = exltune(*(paths.get(word, word) for word in arguments), "--json")
    assert shown in outcome.stderr
    assert "`" not in outcome.stderr
    assert f"error: {outcome.json['error']['message']}\n" == outcome.stderr


def test_other_fields_stay_as_they_are() -> None:
    context = type("Context", (), {})()
    context.command = typer.main.get_command(app).commands["evaluate"]  # type: ignore[attr-defined]
    context.find_root = lambda: type("Context", (), {"command": typer.main.get_command(app)})()
    token = console._RUNNING.set(context)
    try:
        told = console.with_options("Give `target_bpw`, `row_length`, `quants`, `out_scales`, `exltune inspect`")
    finally:
        console._RUNNING.reset(token)
    assert told == "Give --target-bpw, --row-length, QUANT..., `out_scales`, `exltune inspect`"
    assert console.with_options("Give `target_bpw`") == "Give `target_bpw`"
