"""`exltune tune`: the command, and what it and the demo show."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from exltune.cli import memory, options
from exltune.cli.console import RichReporter, errors_in_one_line, output, print_json
from exltune.cli.optimize import Passes, Time, search_options
from exltune.schema.defaults import DEFAULT_HEAD_BITS, DEFAULT_WIDTHS

if TYPE_CHECKING:
    from exltune.pipeline.quants.quantize import QuantizeOptions
    from exltune.schema.evaluation import TuneResult

BITS, HEAD_BITS = ",".join(f"{bits:g}" for bits in DEFAULT_WIDTHS), f"{DEFAULT_HEAD_BITS:g}"
#: What a tune begins with: half rates, where the codebook has them, and heads of 3 to 8 bits.
WIDE_BITS, WIDE_HEAD_BITS = "2,2.5,3,3.5,4,5,6,8", "auto"


def tune(
    model: options.Model,
    out: options.Out,
    target_bpw: options.TargetBpw = None,
    size: memory.Size = None,
    vram: memory.Vram = None,
    gpus: memory.Gpus = None,
    context: memory.Context = None,
    cache: memory.CacheOrAuto = None,
    chunk: memory.Chunk = memory.CHUNK,
    slots: memory.Slots = memory.SLOTS,
    tensor_parallel: memory.TensorParallel = False,
    ram: memory.Ram = None,
    offload_layers: memory.OffloadLayers = 0,
    bits: Annotated[
        str | None,
        typer.Option("--bits", help="Bit widths of the base quants.", show_default=f"{WIDE_BITS}; not mul1: {BITS}"),
    ] = None,
    head_bits: options.HeadBits = WIDE_HEAD_BITS,
    codebook: options.CodebookOption = options.CodebookName.MUL1,
    level: options.Level = "l3",
    data: options.Data = None,
    weights: options.Weights = None,
    samples: options.Samples = None,
    sample_tokens: options.SampleTokens = None,
    rows: options.Rows = options.ROWS,
    row_length: options.RowLength = options.ROW_LENGTH,
    seed: options.Seed = 0,
    passes: Passes = 48.0,
    time: Time = None,
    engine: options.EngineName = "auto",
    json: options.Json = False,
) -> None:
    """Run the whole chain from a model to a tuned, proven quant. The same command again goes on after a kill.

    The search mixes the widths of --bits; with several --head-bits it chooses the head's too, in the same bytes.
    """
    with errors_in_one_line(json):
        from exltune.pipeline.tune import tune as run
        from exltune.search.space.space import SpaceOptions

        widths = bits or (WIDE_BITS if codebook is options.CodebookName.MUL1 else BITS)
        settings = quantize_options(widths, head_bits, codebook)
        asked = SpaceOptions(
            limits=memory.limits(gpus, vram, ram, target_bpw, size),
            use=memory.use(context, chunk, slots, tensor_parallel, offload_layers),
            cache=memory.cache_or_auto(cache),
            head="auto" if len(settings.head_bits) > 1 else None,
        )
        texts = options.texts(data, weights, samples, sample_tokens, rows, row_length, seed)
        number = options.parse_level(level)
        found = run(
            model,
            out,
            asked,
            settings,
            texts,
            level=number,
            search=search_options(passes, time, seed),
            engine=engine,
            reporter=RichReporter(),
        )
        show_tune(found, out, json)


def quantize_options(bits: str, head_bits: str, codebook: options.CodebookName) -> QuantizeOptions:
    """Base quants from options. Raises: UsageError."""
    from exltune.pipeline.quants.quantize import QuantizeOptions

    return QuantizeOptions(*options.parse_quants(bits, head_bits), codebook.codebook)


def show_tune(result: TuneResult, out: Path, json: bool) -> None:
    """What a tune came to, as tables or JSON."""
    from exltune.cli.tables import evaluation_table, standings_table, verdict_lines
    from exltune.pipeline.tune import evaluation_of

    if json:
        print_json(result.model_dump(mode="json"))
        return
    output().print(standings_table(result.verdict.standings))
    output().print(evaluation_table(evaluation_of(out).rows))
    for line in verdict_lines(result.verdict):
        typer.echo(line)
    typer.echo(f"Recipe: {result.recipe}\nModel:  {result.model}")
