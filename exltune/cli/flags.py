"""Option groups: options that travel together are declared once, as the fields of a frozen dataclass.

A command takes the group as one parameter. `expanded` shows its fields to typer as options of the command, and puts the
dataclass back together when the command is called.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from typing import Annotated, Any, get_args, get_origin, get_type_hints


@dataclass(frozen=True, init=False)
class Only:
    """In `Annotated[Group, Only("engine")]`: the fields that a command takes; the others keep their defaults."""

    names: tuple[str, ...]

    def __init__(self, *names: str) -> None:
        object.__setattr__(self, "names", names)


@dataclass(frozen=True)
class _Group:
    """A parameter of a command that is an option group, and the fields of it that become options."""

    parameter: str
    kind: type[Any]
    fields: tuple[Field[Any], ...]

    def options(self) -> Iterator[inspect.Parameter]:
        """Each field as a parameter of its own."""
        hints = _hints(self.kind)
        for field in self.fields:
            default = inspect.Parameter.empty if field.default is MISSING else field.default
            yield _parameter(field.name, hints[field.name], default)

    def taken_from(self, values: dict[str, Any]) -> Any:
        """The dataclass of the values of its options, which are taken out of `values`."""
        return self.kind(**{field.name: values.pop(field.name) for field in self.fields})


def expanded(command: Callable[..., None]) -> Callable[..., None]:
    """The command with the fields of its option groups as parameters of its own; all are given by name.

    Raises: TypeError where two options have the same name, or Only names a field that the group does not have.
    """
    groups: list[_Group] = []
    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(command, eval_str=True).parameters.values():
        group = _group_of(parameter)
        if group is None:
            parameters.append(_parameter(parameter.name, parameter.annotation, parameter.default))
        else:
            groups.append(group)
            parameters.extend(group.options())
    _check_distinct(command.__name__, [parameter.name for parameter in parameters])

    def call(**values: Any) -> None:
        together = {group.parameter: group.taken_from(values) for group in groups}
        command(**together, **values)

    call.__name__, call.__doc__, call.__module__ = command.__name__, command.__doc__, command.__module__
    call.__annotations__ = {}
    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # what inspect looks for
    return call


def _hints(kind: type[Any]) -> dict[str, Any]:
    """Types of a group's fields, read once: `--help` asks for every group of every command, and must answer at once."""
    if kind not in _HINTS:
        _HINTS[kind] = get_type_hints(kind, include_extras=True)
    return _HINTS[kind]


_HINTS: dict[type[Any], dict[str, Any]] = {}


def _group_of(parameter: inspect.Parameter) -> _Group | None:
    kind, names = parameter.annotation, None
    if get_origin(kind) is Annotated:
        kind, *notes = get_args(kind)
        names = next((note.names for note in notes if isinstance(note, Only)), None)
    if not is_dataclass(kind):
        return None
    assert isinstance(kind, type)
    known = {field.name: field for field in fields(kind)}
    missing = set(names or ()) - known.keys()
    if missing:
        raise TypeError(f"{kind.__name__} has no {', '.join(sorted(missing))}")
    return _Group(parameter.name, kind, tuple(known.values() if names is None else (known[name] for name in names)))


def _parameter(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default)


def _check_distinct(command: str, names: list[str]) -> None:
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise TypeError(f"{command} takes {', '.join(sorted(twice))} twice")
