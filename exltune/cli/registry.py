"""Where commands register themselves: a file in exltune/cli/commands with one of these decorators is a command."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

import typer

from exltune.cli.console import Command
from exltune.cli.flags import expanded

F = TypeVar("F", bound=Callable[..., None])
_LAST = 100


class Section(StrEnum):
    """Headings of `exltune --help`, in its order."""

    CHAIN = "The whole chain"
    STEPS = "Its steps"
    LOOK = "Look at results"
    PLAN = "Memory"
    JUDGE = "Judge"
    TEXTS = "Texts"
    SHIP = "Serve and publish"


@dataclass(frozen=True)
class Entry:
    """A command or a group of commands, where it stands in the help, and how it joins an app."""

    section: Section
    order: int
    name: str
    join: Callable[[typer.Typer], None]

    @property
    def place(self) -> tuple[int, int, str]:
        """The key by which entries are sorted."""
        return list(Section).index(self.section), self.order, self.name


#: Registrations of the files that were imported so far.
ENTRIES: list[Entry] = []


def command(section: Section, order: int = _LAST) -> Callable[[F], F]:
    """Register a function as the command of its name; `order` is its place within the section."""

    def register(function: F) -> F:
        name, called = function.__name__, expanded(function)

        def join(app: typer.Typer) -> None:
            app.command(name, cls=Command, rich_help_panel=section.value)(called)

        ENTRIES.append(Entry(section, order, name, join))
        return function

    return register


class Group:
    """Commands under one name, such as `exltune data inspect`; made as a module's constant, it registers itself."""

    def __init__(self, name: str, help: str, section: Section, order: int = _LAST) -> None:
        self._typer = typer.Typer(name=name, help=help, no_args_is_help=True)

        def join(app: typer.Typer) -> None:
            app.add_typer(self._typer, rich_help_panel=section.value)

        ENTRIES.append(Entry(section, order, name, join))

    def command(self, name: str | None = None) -> Callable[[F], F]:
        """Register a function as a command of the group, by its own name unless another is given."""

        def register(function: F) -> F:
            self._typer.command(name or function.__name__, cls=Command)(expanded(function))
            return function

        return register
