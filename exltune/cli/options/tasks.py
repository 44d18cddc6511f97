"""Options of benchmark tasks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from exltune.errors import UsageError

if TYPE_CHECKING:
    from exltune.pipeline.evaluation.tasks import TaskOptions

_TASKS = typer.Option("--tasks", help="Tasks of lm-evaluation-harness: gpqa_diamond_cot_zeroshot,...")


@dataclass(frozen=True, kw_only=True)
class _TaskFlags:
    """How a served model is asked benchmark tasks."""

    include_path: Annotated[
        list[Path] | None, typer.Option("--include-path", help="Folder with task YAML files; repeatable.")
    ] = None
    served_model: Annotated[str, typer.Option("--served-model", help="Name by which the endpoint knows the model.")] = (
        "default"
    )
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1, help="Tokens of one answer, thinking included.")] = (
        8192
    )
    limit: Annotated[int | None, typer.Option("--limit", min=2, help="Documents of each task, all by default.")] = None
    concurrent: Annotated[int, typer.Option("--concurrent", min=1, help="Requests under way at once.")] = 1
    think_end: Annotated[
        str | None,
        typer.Option("--think-end", help="End of the model's thinking, where the answer holds it: </think>."),
    ] = None
    unsafe_tasks: Annotated[
        bool,
        typer.Option("--unsafe-tasks", help="Run tasks that execute the model's output."),
    ] = False

    def asked(self, tasks: str | None) -> TaskOptions:
        """The tasks, written with commas. Raises: UsageError."""
        from exltune.pipeline.evaluation.tasks import TaskOptions

        folders = tuple(self.include_path or ())
        absent = [str(folder) for folder in folders if not folder.is_dir()]
        if absent:
            raise UsageError(f"--include-path {', '.join(absent)} is not a directory")
        listed = tuple(name.strip() for name in (tasks or "").split(",") if name.strip())
        return TaskOptions(
            listed,
            folders,
            self.served_model,
            self.max_tokens,
            self.limit,
            self.concurrent,
            self.think_end,
            self.unsafe_tasks,
        )


@dataclass(frozen=True, kw_only=True)
class TaskFlags(_TaskFlags):
    """Of a command that may ask a served model benchmark tasks."""

    tasks: Annotated[str | None, _TASKS] = None

    def options(self) -> TaskOptions:
        """The questions. Raises: UsageError."""
        return self.asked(self.tasks)


@dataclass(frozen=True, kw_only=True)
class NeededTaskFlags(_TaskFlags):
    """Of a command that always asks some."""

    tasks: Annotated[str, _TASKS]

    def options(self) -> TaskOptions:
        """The questions. Raises: UsageError."""
        return self.asked(self.tasks)
