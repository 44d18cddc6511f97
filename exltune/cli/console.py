"""Output for users: progress on standard error, results on standard output, errors in one line."""

from __future__ import annotations

import json
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from typer.core import TyperCommand, TyperGroup
from typer.exceptions import TyperException

from exltune.errors import ExltuneError, StorageError, UsageError

#: Tables are wider than a pipe's 80 columns.
_PIPE_COLUMNS = 160
_INTERRUPTED = 130
#: Where no bar can be drawn (a log file), a line this often.
_LINE_SECONDS = 60.0
_JSON = "exltune.json"
#: The context of the command that runs.
_RUNNING: ContextVar[Any] = ContextVar("exltune.running", default=None)
#: A field, as messages of the library name it: `target_bpw`.
_FIELD = re.compile(r"`([a-z][a-z0-9_]*)`")


def output() -> Console:
    """Standard output for people."""
    return Console(width=None if sys.stdout.isatty() else max(_PIPE_COLUMNS, shutil.get_terminal_size().columns))


def with_options(text: str) -> str:
    """The library's text with its fields as the user writes them: `target_bpw` -> --target-bpw.

    A name of the running command comes first, be it an option or an argument; then the options of all commands.
    Other fields stay as they are.
    """
    return _renamed(text, _written(_RUNNING.get()))


def _renamed(text: str, written: Mapping[str, str]) -> str:
    return _FIELD.sub(lambda found: written.get(found[1], found[0]), text)


def _written(context: Any) -> Mapping[str, str]:
    """Field -> option or argument, from the commands as they are declared."""
    if context is None:
        return {}
    return option_names(context.find_root().command) | _own_names(context.command)


def option_names(command: Any) -> dict[str, str]:
    """Field -> option, of a command and all that are below it; the field is the option's name in Python."""
    commands = getattr(command, "commands", None)
    if commands is not None:
        return {field: name for below in commands.values() for field, name in option_names(below).items()}
    names = [name for parameter in command.params for name in parameter.opts if name.startswith("--")]
    return {name[2:].replace("-", "_"): name for name in names}


def _own_names(command: Any) -> dict[str, str]:
    arguments = {
        parameter.name: parameter.metavar or parameter.name.upper()
        for parameter in command.params
        if parameter.param_type_name == "argument"
    }
    return arguments | option_names(command)


class RichReporter:
    """Progress bars with the time left, on standard error."""

    def __init__(self) -> None:
        self.console = Console(stderr=True)
        # Remarks may come from threads, which do not see the context.
        self._written = _written(_RUNNING.get())

    @contextmanager
    def stage(self, name: str) -> Iterator[Callable[[int, int, str], None]]:
        """A bar while the stage lasts, or a line every minute in a log; a line with its duration afterwards."""
        start = time.monotonic()
        if self.console.is_terminal:
            with self._bars() as bars:
                task = bars.add_task(name, total=None, what="")
                yield lambda done, total, what: bars.update(task, completed=done, total=total, what=what)
        else:
            yield _Lines(self.console, name)
        self.console.print(f"{name}: done in {time.monotonic() - start:.0f} s", highlight=False)

    def remark(self, text: str) -> None:
        """A line beside the bars."""
        self.console.print(f"{_renamed(text, self._written)}.", highlight=False, style="dim")

    def _bars(self) -> Progress:
        return Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[what]}", style="dim"),
            console=self.console,
            transient=True,
        )


class _Lines:
    """Progress as lines in a log."""

    def __init__(self, console: Console, name: str) -> None:
        self._console, self._name = console, name
        self._start = self._told = time.monotonic()
        self._first: int | None = None

    def __call__(self, done: int, total: int, what: str) -> None:
        now = time.monotonic()
        # A stage that is taken up again starts in the middle: earlier work says nothing of the pace.
        self._first = done if self._first is None else self._first
        if now - self._told < _LINE_SECONDS or not total:
            return
        self._told = now
        pace = (done - self._first) / (now - self._start)
        left = f", about {(total - done) / pace / 60:.0f} min left" if pace > 0 else ""
        self._console.print(f"{self._name}: {done / total:.0%}{left} {what}".rstrip(), highlight=False, style="dim")


@contextmanager
def errors_in_one_line(as_json: bool) -> Iterator[None]:
    """Turn a user's error into one message and its exit code; anything else is a defect and keeps its trace."""
    try:
        yield
    except ExltuneError as error:
        _fail(with_options(str(error)), type(error).__name__, error.exit_code, as_json)
    except OSError as error:
        if error.errno is None:
            raise
        where = f"{error.filename}: " if error.filename else ""
        _fail(f"{where}{error.strerror}", type(error).__name__, StorageError.exit_code, as_json)
    except KeyboardInterrupt:
        _fail("interrupted; the same command goes on where it stopped", "KeyboardInterrupt", _INTERRUPTED, as_json)


class Command(TyperCommand):
    """A command whose errors are one line, and one JSON object too where its --json was given."""

    def invoke(self, ctx: Any) -> Any:
        """Run it."""
        token = _RUNNING.set(ctx)
        try:
            with errors_in_one_line(bool(ctx.params.get("json"))):
                return super().invoke(ctx)
        finally:
            _RUNNING.reset(token)


class Commands(TyperGroup):
    """Commands whose own refusals (an unknown option, a word for a number) are JSON too where --json was given."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Arguments of the group, those of the command after them."""
        ctx.meta[_JSON] = "--json" in args
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Parse the command's arguments and run it."""
        try:
            return super().invoke(ctx)
        except TyperException as error:
            if ctx.meta[_JSON]:
                print_json(_error(error.format_message(), UsageError.__name__, error.exit_code))
            raise


def print_json(content: dict[str, Any]) -> None:
    """One JSON object on standard output."""
    sys.stdout.write(json.dumps(content) + "\n")


def _fail(message: str, kind: str, code: int, as_json: bool) -> None:
    if as_json:
        print_json(_error(message, kind, code))
    Console(stderr=True).print(f"error: {message}", style="red", highlight=False, markup=False, soft_wrap=True)
    raise typer.Exit(code)


def _error(message: str, kind: str, code: int) -> dict[str, Any]:
    return {"error": {"type": kind, "message": message, "exit_code": code}}
