"""`exltune compare`: the command."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from exltune.cli import options
from exltune.cli.console import errors_in_one_line, output, print_json, with_options
from exltune.cli.registry import Section, command
from exltune.cli.session import open_session
from exltune.errors import UsageError

if TYPE_CHECKING:
    from exltune.schema.compare import CompareResult

_TOLERANCE = "0.5%"
#: A share without % above this is taken for a percentage that was meant.
_LARGEST_BARE = 0.1
_QUANT = "EXL3 directory, or the file of an earlier comparison (FILE#candidate or FILE#baseline name one of its two)."
_ENDPOINT = "OpenAI-compatible endpoint (http://host:5000/v1), or a file of exltune tasks."


@dataclass(frozen=True, kw_only=True)
class _EndpointFlags(options.TaskFlags):
    candidate_endpoint: Annotated[
        str | None, typer.Option("--candidate-endpoint", help=_ENDPOINT, show_default=False)
    ] = None
    baseline_endpoint: Annotated[
        str | None, typer.Option("--baseline-endpoint", help=_ENDPOINT, show_default=False)
    ] = None

    def check(self) -> None:
        """Raises: UsageError where nobody is to be asked, or one server for both."""
        given = [side for side in (self.candidate_endpoint, self.baseline_endpoint) if side is not None]
        urls = [side for side in given if side.startswith(("http://", "https://"))]
        if self.tasks is not None and not urls:
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


@dataclass(frozen=True, kw_only=True)
class _CopyFlags(options.CopyFlags):
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Also write JSON here, with the sums of every row.", show_default=False),
    ] = None


@command(Section.JUDGE, 1)
def compare(
    *,
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
    data: options.DataFlags,
    trust_data: options.TrustData = False,
    tasks: _EndpointFlags,
    engine: options.EngineFlags,
    result: _CopyFlags,
) -> None:
    """Judge a quant against another of the same bytes on held-out text. Exit code 18: it lost; 17: not comparable."""
    from exltune.evaluation.compare import ALPHA
    from exltune.pipeline.evaluation.compare import CompareOptions, Side
    from exltune.pipeline.evaluation.compare import compare as run

    tasks.check()
    how = CompareOptions(tolerance=parse_tolerance(tolerance), trust_data=trust_data, tasks=tasks.options())
    sides = Side(candidate, tasks.candidate_endpoint), Side(against, tasks.baseline_endpoint)
    with open_session(reference, data, engine, out=result.out) as session:
        found = run(session, *sides, how, out=result.out, force=result.force)
    if result.json:
        print_json(found.model_dump(mode="json"))
    else:
        _show(found, ALPHA)
    # Standard output holds the result by now: a lost comparison is an exit code and a line beside it.
    with errors_in_one_line(as_json=False):
        from exltune.pipeline.evaluation.compare import check_not_lost

        check_not_lost(found)


def parse_tolerance(text: str) -> float:
    """`0.5%` and `0.005` -> 0.005. Raises: UsageError."""
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = -1.0
    if not 0 <= share < 1:
        raise UsageError(f"--tolerance {text!r} is not a share of bytes", fix="For example --tolerance 0.5%")
    if share > _LARGEST_BARE and not text.endswith("%"):
        raise UsageError(
            f"--tolerance {text} would be {share:.0%} of the bytes", fix=f"Write --tolerance {text}% or {share:.0%}"
        )
    return share


def _show(found: CompareResult, alpha: float) -> None:
    from exltune.cli.compare_tables import compare_lines, compare_table, tasks_table

    console = output()
    console.print(compare_table(found))
    if found.tasks:
        console.print(tasks_table(found.tasks))
    for line in compare_lines(found, alpha):
        typer.echo(with_options(line))
