"""How a pipeline tells of its progress; the command line draws bars, a library user may do as he likes."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from exltune.budget import format_size
from exltune.engines.base import Engine, Progress


class Reporter(Protocol):
    """Receives the stages of long work and remarks on it."""

    def stage(self, name: str) -> AbstractContextManager[Progress]:
        """A stage of the work; call the progress with (done, total, what) while it lasts."""
        ...

    def remark(self, text: str) -> None:
        """Something that the user should know and that is not an error."""
        ...


class Silent:
    """A reporter that reports nothing."""

    @contextmanager
    def stage(self, name: str) -> Iterator[Progress]:
        """A stage that nobody watches."""
        yield lambda done, total, what: None

    def remark(self, text: str) -> None:
        """Drop the remark."""


def tell_peaks(reporter: Reporter, engine: Engine) -> None:
    """Say how much memory this process took at most, and its engine of one device."""
    ram = format_size(peak_ram_bytes(), "GiB")
    vram = f", {format_size(engine.stats.vram_bytes, 'GiB')} of a device" if engine.stats.vram_bytes else ""
    reporter.remark(f"Peak memory: {ram} of RAM{vram}")


def peak_ram_bytes() -> int:
    """The most main memory that this process ever had."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
