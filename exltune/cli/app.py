"""The commands. Imports of what computes happen inside them: `exltune --help` must answer at once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from exltune import __version__
from exltune.cli import options
from exltune.cli.build import build
from exltune.cli.card import card
from exltune.cli.compare import compare, tasks
from exltune.cli.console import Commands, RichReporter, errors_in_one_line, output, print_json
from exltune.cli.data import data as data_commands
from exltune.cli.deploy import deploy
from exltune.cli.explain import explain
from exltune.cli.generate import generate
from exltune.cli.measure import measure
from exltune.cli.measurements import measurements
from exltune.cli.optimize import optimize
from exltune.cli.peers import peers
from exltune.cli.plan import plan
from exltune.cli.push import push
from exltune.cli.report import report
from exltune.cli.tradeoff import tradeoff
from exltune.cli.tune import BITS, HEAD_BITS, quantize_options, show_tune, tune

app = typer.Typer(
    name="exltune",
    cls=Commands,
    help="Find, prove and build the best EXL3 quant of a language model for a size budget.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"exltune {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Version.")
    ] = False,
) -> None:
    """Options before any command."""


@app.command()
def inspect(model: options.Model, json: options.Json = False) -> None:
    """Show what a model is made of and what it weighs at each bit width."""
    with errors_in_one_line(json):
        from exltune.cli.tables import inspection_tables
        from exltune.pipeline.quants.inspect import inspect as run

        report = run(model)
        if json:
            print_json(report.model_dump(mode="json"))
        else:
            for table in inspection_tables(report):
                output().print(table)
            typer.echo(f"Engine: {report.engine}{f' ({report.engine_remark})' if report.engine_remark else ''}")


app.command()(plan)
app.command()(explain)
app.command()(card)
app.command()(build)
app.command()(push)
app.command()(report)
app.command()(measure)
app.command()(tune)
app.command()(optimize)
app.command()(tradeoff)
app.command()(generate)
app.command()(compare)
app.command()(tasks)
app.command()(peers)
app.add_typer(data_commands)
app.add_typer(deploy)
app.add_typer(measurements)


@app.command()
def quantize(
    model: options.Model,
    out: options.Out,
    bits: options.Bits = BITS,
    head_bits: options.HeadBits = HEAD_BITS,
    codebook: options.CodebookOption = options.CodebookName.MUL1,
    hq: Annotated[
        int, typer.Option("--hq", min=0, help="exllamav3's -hq: mixes with finer select layers, to compare with.")
    ] = 0,
    data: options.Data = None,
    weights: options.Weights = None,
    samples: options.Samples = None,
    sample_tokens: options.SampleTokens = None,
    rows: options.Rows = options.ROWS,
    row_length: options.RowLength = options.ROW_LENGTH,
    seed: options.Seed = 0,
    engine: options.EngineName = "auto",
    devices: options.Devices = None,
    force: options.Force = False,
    json: options.Json = False,
) -> None:
    """Make base quants: one EXL3 directory for each bit width, e.g. OUT/3bpw_H6. Resumes after a kill."""
    with errors_in_one_line(json):
        from exltune.pipeline.quants.quantize import quantize as run

        settings = replace(quantize_options(bits, head_bits, codebook), hq=hq)
        texts = options.texts(data, weights, samples, sample_tokens, rows, row_length, seed)
        cards = options.parse_devices(devices)
        paths = run(model, out, settings, texts, engine=engine, devices=cards, force=force, reporter=RichReporter())
        if json:
            print_json({"quants": [str(path) for path in paths]})
        else:
            for path in paths:
                typer.echo(path)


@app.command()
def evaluate(
    model: options.Model,
    quants: Annotated[list[Path], typer.Argument(metavar="QUANT...", help="EXL3 directories of that model.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Also write JSON here.", show_default=False)] = None,
    data: options.Data = None,
    weights: options.Weights = None,
    samples: options.Samples = None,
    sample_tokens: options.SampleTokens = None,
    rows: options.Rows = options.ROWS,
    row_length: options.RowLength = options.ROW_LENGTH,
    seed: options.Seed = 0,
    engine: options.EngineName = "auto",
    force: options.Force = False,
    json: options.Json = False,
) -> None:
    """Compare finished quants with the model on held-out text: KL both ways, perplexity, top-k agreement."""
    with errors_in_one_line(json):
        from exltune.cli.tables import evaluation_table
        from exltune.pipeline.evaluation.evaluate import evaluate as run

        texts = options.texts(data, weights, samples, sample_tokens, rows, row_length, seed)
        found = run(model, quants, texts, out=out, engine=engine, force=force, reporter=RichReporter())
        if json:
            print_json(found.model_dump(mode="json"))
        else:
            output().print(evaluation_table(found.rows, found.provenance.reference))


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Empty, or a demo to go on with.")] = Path("demo"),
    json: options.Json = False,
) -> None:
    """Tune a small model that comes with exltune; fails unless the result beats the uniform quant."""
    with errors_in_one_line(json):
        from exltune.pipeline.demo import check_won
        from exltune.pipeline.demo import demo as run

        found = run(out, reporter=RichReporter())
        show_tune(found, out, json)
    # Standard output holds the result by now: a lost verdict is an exit code and a line beside it.
    with errors_in_one_line(as_json=False):
        check_won(found.verdict)
