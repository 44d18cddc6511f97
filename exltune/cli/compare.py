"""`exltune compare` and `exltune tasks`: the commands and their tables."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from exltune.cli import options
from exltune.cli.console import RichReporter, errors_in_one_line, output, print_json
from exltune.errors import UsageError

if TYPE_CHECKING:
    from exltune.pipeline.evaluation.tasks import TaskOptions
    from exltune.schema.compare import CompareResult

_TOLERANCE = "0.5%"
#: A share without % above this is taken for a percentage that was meant.
_LARGEST_BARE = 0.1
_QUANT = "EXL3 directory, or the file of an earlier gate (FILE#candidate or FILE#baseline name one of its two)."
_ENDPOINT = "OpenAI-compatible endpoint (http://host:5000/v1), or a file of exltune tasks."

Tasks = Annotated[
    str | None, typer.Option("--tasks", help="Tasks of lm-evaluation-harness: gpqa_diamond_cot_zeroshot,...")
]
Include = Annotated[list[Path] | None, typer.Option("--include-path", help="Folder with task YAML files; repeatable.")]
ServedModel = Annotated[str, typer.Option("--served-model", help="Name by which the endpoint knows the model.")]
MaxTokens = Annotated[int, typer.Option("--max-tokens", min=1, help="Tokens of one answer, thinking included.")]
Limit = Annotated[int | None, typer.Option("--limit", min=2, help="Documents of each task, all by default.")]
Concurrent = Annotated[int, typer.Option("--concurrent", min=1, help="Requests under way at once.")]
ThinkEnd = Annotated[
    str | None, typer.Option("--think-end", help="What ends the model's thinking, where the answer holds it: </think>.")
]
Unsafe = Annotated[bool, typer.Option("--unsafe-tasks", help="Run tasks that execute what the model wrote.")]


def compare(
    candidate: Annotated[Path, typer.Argument(metavar="CANDIDATE", help=_QUANT)],
    against: Annotated[Path, typer.Option("--against", metavar="BASELINE", help=_QUANT, show_default=False)],
    reference: Annotated[
        Path,
        typer.Option(
            "--reference",
            metavar="MODEL",
            help="The unquantized model, or the EXL3 quant that stands for it.",
            show_default=False,
        ),
    ],
    tolerance: Annotated[str, typer.Option("--tolerance", help="By how much the bytes may differ.")] = _TOLERANCE,
    data: options.Data = None,
    weights: options.Weights = None,
    samples: options.Samples = None,
    sample_tokens: options.SampleTokens = None,
    rows: options.Rows = options.ROWS,
    row_length: options.RowLength = options.ROW_LENGTH,
    seed: options.Seed = 0,
    trust_data: Annotated[
        bool, typer.Option("--trust-data", help="Take quants that may have been calibrated on the held-out text.")
    ] = False,
    tasks: Tasks = None,
    candidate_endpoint: Annotated[
        str | None, typer.Option("--candidate-endpoint", help=_ENDPOINT, show_default=False)
    ] = None,
    baseline_endpoint: Annotated[
        str | None, typer.Option("--baseline-endpoint", help=_ENDPOINT, show_default=False)
    ] = None,
    include_path: Include = None,
    served_model: ServedModel = "default",
    max_tokens: MaxTokens = 8192,
    limit: Limit = None,
    concurrent: Concurrent = 1,
    think_end: ThinkEnd = None,
    unsafe_tasks: Unsafe = False,
    engine: options.EngineName = "auto",
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Also write JSON here, with the sums of every row.", show_default=False),
    ] = None,
    force: options.Force = False,
    json: options.Json = False,
) -> None:
    """Judge a quant against another of the same bytes on held-out text. Exit code 18: it lost; 17: not comparable."""
    with errors_in_one_line(json):
        from exltune.evaluate.compare import ALPHA
        from exltune.pipeline.evaluation.compare import CompareOptions, Side
        from exltune.pipeline.evaluation.compare import compare as run

        asked = _asked(tasks, include_path, served_model, max_tokens, limit, concurrent, think_end, unsafe_tasks)
        _check_endpoints(tasks, candidate_endpoint, baseline_endpoint)
        settings = CompareOptions(
            data=options.texts(data, weights, samples, sample_tokens, rows, row_length, seed),
            tolerance=parse_tolerance(tolerance),
            trust_data=trust_data,
            tasks=asked,
            engine=engine,
        )
        sides = Side(candidate, candidate_endpoint), Side(against, baseline_endpoint)
        found = run(*sides, reference, settings, out=out, force=force, reporter=RichReporter())
        if json:
            print_json(found.model_dump(mode="json"))
        else:
            _show(found, ALPHA)
    # Standard output holds the result by now: a lost gate is an exit code and a line beside it.
    with errors_in_one_line(as_json=False):
        from exltune.pipeline.evaluation.compare import check_not_lost

        check_not_lost(found)


def tasks(
    endpoint: Annotated[str, typer.Argument(metavar="URL", help="Endpoint, such as http://localhost:5000/v1.")],
    names: Annotated[
        str, typer.Option("--tasks", help="Tasks of lm-evaluation-harness: gpqa_diamond_cot_zeroshot,...")
    ],
    out: options.Out,
    include_path: Include = None,
    served_model: ServedModel = "default",
    max_tokens: MaxTokens = 8192,
    limit: Limit = None,
    concurrent: Concurrent = 1,
    think_end: ThinkEnd = None,
    unsafe_tasks: Unsafe = False,
    force: options.Force = False,
    json: options.Json = False,
) -> None:
    """Ask a served model benchmark tasks (lm-evaluation-harness); a gate compares two such files."""
    with errors_in_one_line(json):
        from exltune.cli.compare_tables import runs_table
        from exltune.pipeline.evaluation.tasks import run_tasks

        asked = _asked(names, include_path, served_model, max_tokens, limit, concurrent, think_end, unsafe_tasks)
        found = run_tasks(endpoint, asked, out=out, force=force, reporter=RichReporter())
        if json:
            print_json(found.model_dump(mode="json"))
        else:
            output().print(runs_table(found))
            typer.echo(out)


def parse_tolerance(text: str) -> float:
    """`0.5%` and `0.005` -> 0.005. Raises: UsageError."""
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = -1.0
    if not 0 <= share < 1:
        raise UsageError(f"--tolerance {text!r} is no share of bytes", fix="For example --tolerance 0.5%")
    if share > _LARGEST_BARE and not text.endswith("%"):
        raise UsageError(
            f"--tolerance {text} would be {share:.0%} of the bytes", fix=f"Write --tolerance {text}% or {share:.0%}"
        )
    return share


def _asked(
    names: str | None,
    include: list[Path] | None,
    model: str,
    max_tokens: int,
    limit: int | None,
    concurrent: int,
    think_end: str | None,
    unsafe: bool,
) -> TaskOptions:
    from exltune.pipeline.evaluation.tasks import TaskOptions

    absent = [str(folder) for folder in include or () if not folder.is_dir()]
    if absent:
        raise UsageError(f"--include-path {', '.join(absent)} is no directory")
    listed = tuple(name.strip() for name in (names or "").split(",") if name.strip())
    return TaskOptions(listed, tuple(include or ()), model, max_tokens, limit, concurrent, think_end, unsafe)


def _check_endpoints(tasks: str | None, candidate: str | None, baseline: str | None) -> None:
    given = [side for side in (candidate, baseline) if side is not None]
    urls = [side for side in given if side.startswith(("http://", "https://"))]
    if tasks is not None and not urls:
        raise UsageError(
            "--tasks has nobody to ask",
            fix="Give --candidate-endpoint and --baseline-endpoint: a URL, or a file that exltune tasks wrote",
        )
    if len(urls) == 2 and urls[0] == urls[1]:
        raise UsageError(
            "both endpoints are the same server",
            where=urls[0],
            fix="Serve one quant after the other and run exltune tasks on each, then give its two files",
        )


def _show(found: CompareResult, alpha: float) -> None:
    from exltune.cli.compare_tables import compare_lines, compare_table, tasks_table

    console = output()
    console.print(compare_table(found))
    if found.tasks:
        console.print(tasks_table(found.tasks))
    for line in compare_lines(found, alpha):
        typer.echo(line)
