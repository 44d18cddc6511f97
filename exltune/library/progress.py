"""Progress as a callback, remarks as log records: the library prints nothing."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

from exltune.engines.base import Progress

#: Called as (stage, done, total, what): the stage's name, steps that are done of all, and the work in progress.
ProgressCallback: TypeAlias = Callable[[str, int, int, str], object]

_LOG = logging.getLogger("exltune")
# Without a handler Python itself would write warnings to standard error.
_LOG.addHandler(logging.NullHandler())


class CallbackReporter:
    """Stages go to a callback (to nobody without one), remarks to the logger "exltune" at level INFO.

    The callback runs in the thread that computes: its exception ends the work, which the same call takes up again.
    """

    def __init__(self, callback: ProgressCallback | None = None) -> None:
        self._callback = callback

    @contextmanager
    def stage(self, name: str) -> Iterator[Progress]:
        """A stage that the callback is told of."""
        callback = self._callback
        if callback is None:
            yield lambda done, total, what: None
        else:

            def progress(done: int, total: int, what: str) -> None:
                callback(name, done, total, what)

            yield progress

    def remark(self, text: str) -> None:
        """A line in the log."""
        _LOG.info("%s", text)
