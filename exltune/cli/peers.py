"""`exltune peers`: the command and its tables."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from exltune.cli import options
from exltune.cli.console import RichReporter, errors_in_one_line, output, print_json
from exltune.errors import UsageError

if TYPE_CHECKING:
    from exltune.schema.peers import PeersResult

_GROUPS = "32,64,128"


def peers(
    model: options.Model,
    quants: options.Quants,
    groups: Annotated[str, typer.Option("--groups", help="Group sizes of the W4A16 peers.")] = _GROUPS,
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
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Also write JSON here.", show_default=False)] = None,
    force: options.Force = False,
    json: options.Json = False,
) -> None:
    """Put round-to-nearest and AWQ-style W4A16 (simulated) beside EXL3 on the same model, tokens and bytes."""
    with errors_in_one_line(json):
        from exltune.pipeline.evaluation.peers import peers as run

        texts = options.texts(data, weights, samples, sample_tokens, rows, row_length, seed)
        found = run(
            model,
            quants,
            texts,
            groups=parse_groups(groups),
            trust_data=trust_data,
            out=out,
            force=force,
            reporter=RichReporter(),
        )
        if json:
            print_json(found.model_dump(mode="json"))
        else:
            _show(found)


def parse_groups(text: str) -> tuple[int, ...]:
    """`32,64,128` -> (32, 64, 128). Raises: UsageError."""
    numbers = options.parse_numbers("--groups", text, _GROUPS)
    if any(number < 1 or number != int(number) for number in numbers):
        raise UsageError(f"--groups {text!r} are no group sizes", fix=f"For example --groups {_GROUPS}")
    return tuple(map(int, numbers))


def _show(found: PeersResult) -> None:
    from exltune.cli.peers_tables import peers_lines, peers_table

    output().print(peers_table(found))
    for line in peers_lines(found):
        typer.echo(line)
