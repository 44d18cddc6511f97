"""How a pipeline tells of its progress; the command line draws bars, a library user may do as he likes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from exltune.engines.base import Progress


class Reporter(Protocol):
    """Receives the stages of long work and remarks on it."""

    def stage(self, name: str) -> AbstractContextManager[Progress]:
        """A stage of the work; call the progress with (done, total, what) while it lasts."""
        ...

    def remark(self, text: str) -> None:
        """Something that the user should know and that is no error."""
        ...


class Silent:
    """A reporter that reports nothing."""

    @contextmanager
    def stage(self, name: str) -> Iterator[Progress]:
        """A stage that nobody watches."""
        yield lambda done, total, what: None

    def remark(self, text: str) -> None:
        """Drop the remark."""
