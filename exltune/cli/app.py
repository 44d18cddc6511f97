"""The app: every module of exltune/cli/commands is imported and joins by its registration.

Heavy imports happen inside the commands: `exltune --help` must answer at once.
"""

from __future__ import annotations

import pkgutil
from importlib import import_module
from typing import Annotated

import typer

from exltune import __version__
from exltune.cli import commands
from exltune.cli.console import Commands
from exltune.cli.registry import ENTRIES


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"exltune {__version__}")
        raise typer.Exit


def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Version.")
    ] = False,
) -> None:
    """Options before any command."""


def make_app() -> typer.Typer:
    """The command line of all commands that are there."""
    made = typer.Typer(
        name="exltune",
        cls=Commands,
        help="Find, prove and build the best EXL3 quant of a language model for a size budget.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    made.callback()(root)
    for module in pkgutil.iter_modules(commands.__path__):
        import_module(f"{commands.__name__}.{module.name}")
    for entry in sorted(ENTRIES, key=lambda entry: entry.place):
        entry.join(made)
    return made


app = make_app()
