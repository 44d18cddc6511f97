"""`exltune tradeoff`: the command and its table."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from exltune.cli import options
from exltune.cli.console import output, print_json, with_options
from exltune.cli.flags import Only
from exltune.cli.registry import Section, command
from exltune.errors import BudgetError, UsageError

if TYPE_CHECKING:
    from rich.table import Table

    from exltune.schema.hardware import CacheBits
    from exltune.schema.tradeoff import Tradeoff, TradeoffRow


@command(Section.PLAN, 2)
def tradeoff(
    *,
    file: options.MeasurementFile,
    contexts: Annotated[
        str,
        typer.Option("--contexts", help="Tokens in the KV cache, such as 32768,65536,131072.", show_default=False),
    ],
    memory: Annotated[options.MemoryFlags, Only("vram", "gpus", "chunk", "slots", "tensor_parallel")],
    caches: Annotated[
        str | None,
        typer.Option(
            "--caches",
            help="Bits of the cache's keys and values, such as 'fp16;8,8;5,4'; the best of all is shown anyway.",
            show_default="fp16 and eight from 8,8 to 2,2",
        ),
    ] = None,
    head_bits: options.OneHead = None,
    model: Annotated[
        Path | None, typer.Option("--model", help="The model or its config.json, if it moved.", show_default=False)
    ] = None,
    png: options.Png = None,
    result: options.OutputFlags,
) -> None:
    """Predict the cost of context and cache bits: the best bpw and KL(ref‖mix) beside every cache at every context.

    Exit code 4 where nothing fits at all.
    """
    from exltune.pipeline.optimization.tradeoff import DEFAULT_CACHES, TradeoffOptions
    from exltune.pipeline.optimization.tradeoff import tradeoff as run

    found = run(
        file,
        TradeoffOptions(
            limits=memory.limits(),
            contexts=_contexts(contexts),
            caches=DEFAULT_CACHES if caches is None else _caches(caches),
            head=options.parse_head(head_bits),
            use=memory.use(),
        ),
        model=model,
        png=png,
        force=result.force,
        unit=memory.unit(),
    )
    if result.json:
        print_json(found.model_dump(mode="json"))
    else:
        output().print(_table(found))
        for line in (*_lines(found), *([] if png is None else [png])):
            typer.echo(with_options(str(line)))
    if not any(row.fits for row in found.rows):
        raise typer.Exit(BudgetError.exit_code)


def _table(trade: Tradeoff) -> Table:
    from rich.table import Table

    from exltune.report.tradeoff_png import memory_of

    table = Table(title=f"{trade.architecture} in {memory_of(trade)}: all predicted, KL(ref‖mix) in nats/token")
    for name in ("context", "cache", "KV cache", "weights", "bpw", "head", "KL(ref‖mix)", ""):
        table.add_column(name, justify="left" if name in ("cache", "") else "right", no_wrap=name != "")
    previous: int | None = None
    for row in trade.rows:
        if previous not in (None, row.context):
            table.add_section()
        table.add_row("" if row.context == previous else f"{row.context:,}", *_cells(row, trade))
        previous = row.context
    return table


def _cells(row: TradeoffRow, trade: Tradeoff) -> tuple[str, ...]:
    from exltune.budget import format_size

    kv = format_size(row.kv_bytes, trade.unit)
    if not row.fits or row.weights_bytes is None:
        return row.cache, kv, "-", "-", "-", "-", "does not fit"
    return (
        row.cache,
        kv,
        format_size(row.weights_bytes, trade.unit),
        f"{row.bpw:.3f}",
        f"{row.head_bits:g}",
        f"{row.predicted_kld:.4f}",
        "best" if row.best else "",
    )


def _lines(trade: Tradeoff) -> list[str]:
    """The best of every context, and why the rest does not fit."""
    lines = [] if trade.reference is None else [f"{trade.reference.told}."]
    for context in dict.fromkeys(row.context for row in trade.rows):
        best = next((row for row in trade.rows if row.best and row.context == context), None)
        if best is None:
            lines.append(f"{context:,} tokens: no cache fits.")
            continue
        beside = f"{best.bpw:.3f} bpw, predicted KL(ref‖mix) {best.predicted_kld:.4f}"
        lines.append(f"{context:,} tokens: best with cache {best.cache}, {beside}.")
    refused = [row for row in trade.rows if not row.fits]
    return lines + [f"{row.context:,} tokens, cache {row.cache}: {row.reason}" for row in refused]


def _contexts(text: str) -> tuple[int, ...]:
    numbers = options.parse_numbers("--contexts", text, "32768,65536")
    for number in numbers:
        if number != int(number):
            raise UsageError(f"--contexts {text!r} has {number:g} tokens", fix="Write whole numbers")
    return tuple(int(number) for number in numbers)


def _caches(text: str) -> tuple[CacheBits, ...]:
    """`fp16;8,8;5,4`; auto is always there. Raises: UsageError."""
    from exltune.budget import parse_cache

    parts = [part for part in text.split(";") if part.strip()]
    if not parts:
        raise UsageError("--caches names no cache", fix="For example --caches '8,8;5,4'")
    return tuple(parse_cache(part, "--caches") for part in parts if part.strip() != "auto")
