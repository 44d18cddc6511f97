"""Rows that other distributions add to a table by entry point: listed by name, imported when they are chosen."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points

from exltune.errors import UsageError

#: Errors of importing a stranger's module: absent or half installed packages, other versions of them.
_IMPORT_ERRORS = (ImportError, AttributeError, SyntaxError, OSError, RuntimeError)


@dataclass(frozen=True)
class Plugins:
    """The entry points of a group, beside a table of our own.

    noun: a row's name in errors ("engine"). group: of the entry points. own: names of the table's own rows.
    """

    noun: str
    group: str
    own: Collection[str]

    def names(self) -> tuple[str, ...]:
        """All names, our own first; nothing is imported."""
        found = {entry.name for entry in entry_points(group=self.group)}
        return (*self.own, *sorted(found.difference(self.own)))

    def find(self, name: str) -> EntryPoint | None:
        """The entry point of a name, None for a row of our own.

        Raises: UsageError for a name that nobody or more than one distribution gives.
        """
        found = entry_points(group=self.group, name=name)
        givers = ["exltune"] * (name in self.own) + [_giver(entry) for entry in found]
        if not givers:
            raise UsageError(f"there is no {self.noun} {name!r}", fix=f"Choose one of: {', '.join(self.names())}")
        if len(givers) > 1:
            raise UsageError(
                f"the {self.noun} {name!r} is given by {' and by '.join(givers)}", fix="Uninstall all but one of them"
            )
        return next(iter(found), None)

    def load(self, entry: EntryPoint) -> object:
        """The object of an entry point. Raises: UsageError where it cannot be imported."""
        try:
            return entry.load()
        except _IMPORT_ERRORS as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise self.refused(entry, f"cannot be imported ({reason})") from error

    def refused(self, entry: EntryPoint, reason: str) -> UsageError:
        """The error for an entry point that is of no use; reason: "cannot ...", "is not ..."."""
        return UsageError(
            f"the {self.noun} {entry.name!r} {reason}",
            where=f"entry point {entry.value} of {_giver(entry)}",
            fix=f"Install a version of it that fits, or choose one of: {', '.join(self.own)}",
        )


def _giver(entry: EntryPoint) -> str:
    return "another distribution" if entry.dist is None else f"{entry.dist.name} {entry.dist.version}"
