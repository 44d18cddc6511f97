"""Options that say how long to search."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from exltune.cli.options.numbers import parse_numbers, parse_time

if TYPE_CHECKING:
    from exltune.pipeline.optimization.optimize import OptimizeOptions


@dataclass(frozen=True, kw_only=True)
class SearchFlags:
    """Of every command that searches."""

    passes: Annotated[
        float, typer.Option("--passes", min=0, help="Model passes over the search set that the search may spend.")
    ] = 48.0
    time: Annotated[
        str | None, typer.Option("--time", help="Stop searching after so long, such as 2h or 45m.", show_default=False)
    ] = None
    sampler: Annotated[
        str, typer.Option("--sampler", help="Optuna's sampler of the search's knobs: tpe, gp, cmaes, nsga2, random.")
    ] = "tpe"
    storage: Annotated[
        str | None,
        typer.Option("--storage", help="URL of an Optuna storage for the search.", show_default="a SQLite file"),
    ] = None
    rules: Annotated[
        list[Path] | None, typer.Option("--rules", help="Your own rules (YAML) as one more method; repeatable.")
    ] = None
    front: Annotated[
        str | None,
        typer.Option("--front", help="Further targets in bpw, such as 2.6,3,4.", show_default=False),
    ] = None

    def options(self, seed: int) -> OptimizeOptions:
        """How to search. Raises: UsageError naming the option."""
        from exltune.pipeline.optimization.optimize import OptimizeOptions
        from exltune.search import SearchOptions, load_rules

        rules: Sequence[Path] = self.rules or ()
        return OptimizeOptions(
            search=SearchOptions(passes=self.passes, seed=seed),
            rules=tuple(load_rules(path) for path in rules),
            front=() if self.front is None else parse_numbers("--front", self.front, "2.6,3,4"),
            sampler=self.sampler,
            storage=self.storage,
            seconds=None if self.time is None else parse_time(self.time),
        )
