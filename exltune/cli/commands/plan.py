"""`exltune plan`: the command and its tables."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from exltune.cli import options
from exltune.cli.console import output, print_json, with_options
from exltune.cli.registry import Section, command

if TYPE_CHECKING:
    from rich.table import Table

    from exltune.schema.hardware import Recalibrated, SizeUnit
    from exltune.schema.plan import Plan

#: Exit code of a plan that does not fit, as BudgetError's.
DOES_NOT_FIT = 4


_Source = Annotated[
    Path,
    typer.Argument(metavar="MODEL_OR_CONFIG", help="Model or EXL3 directory, a recipe (.yaml) or a config (.json)."),
]
_Bits = Annotated[
    float | None, typer.Option("--bits", help="A uniform quant (3) or an average bpw (3.15).", show_default=False)
]
_HeadBits = Annotated[
    float | None, typer.Option("--head-bits", help="Bits of the output head: 6 unless given.", show_default=False)
]


@dataclass(frozen=True, kw_only=True)
class _MemoryFlags(options.MemoryFlags):
    cache: Annotated[
        str | None, typer.Option("--cache", help="Bits of the cache's keys and values, such as 5,4, or fp16.")
    ] = "fp16"


@command(Section.PLAN, 1)
def plan(
    *,
    source: _Source,
    memory: _MemoryFlags,
    bits: _Bits = None,
    head_bits: _HeadBits = None,
    model: options.RecipeModel = None,
    calibrate: options.Calibrate = None,
    json: options.Json = False,
) -> None:
    """Check the fit of weights, KV cache and overheads on your GPUs. Exit code 4 where they do not fit."""
    from exltune.pipeline.deployment.plan import PlanOptions
    from exltune.pipeline.deployment.plan import plan as run

    found = run(
        source,
        memory.limits(),
        memory.use().model_copy(update={"cache": memory.cache_bits()}),
        options=PlanOptions(bits, head_bits),
        model=model,
        readings=calibrate,
        unit=memory.unit(),
    )
    if json:
        print_json(found.model_dump(mode="json"))
    else:
        _show(found)
    if not found.fits:
        raise typer.Exit(DOES_NOT_FIT)


def _show(plan: Plan) -> None:
    console = output()
    console.print(_sizes(plan))
    if plan.per_gpu:
        console.print(_cards(plan))
    for line in _lines(plan):
        typer.echo(with_options(line))


def _sizes(plan: Plan) -> Table:
    from rich.table import Table

    from exltune.budget import format_size

    table = Table(title=f"{plan.architecture} at {_bpw(plan):.3f} bpw, head {plan.head_bits:g} bits")
    table.add_column("part", no_wrap=True)
    table.add_column("size", justify="right", no_wrap=True)
    table.add_column("of it", no_wrap=True)
    context = "no --context asked" if plan.context is None else f"{plan.context:,} tokens at {plan.cache}"
    for name, size_bytes, note in (
        ("weights", plan.weights_bytes, f"{format_size(plan.disk_bytes, plan.unit)} on disk, with embedding and norms"),
        ("KV cache", plan.kv_bytes, f"{context}, {plan.kv_bytes_per_token:,} bytes per token"),
        ("overhead", plan.overhead_bytes, f"CUDA, reserve, prefill of {plan.chunk} tokens, copies"),
        ("system RAM", plan.ram_bytes, "embedding, offloaded experts"),
    ):
        table.add_row(name, format_size(size_bytes, plan.unit), note)
    return table


def _cards(plan: Plan) -> Table:
    from rich.table import Table

    from exltune.budget import format_size

    table = Table(title="Cards" if plan.fits else "Cards, in the split that overflows least")
    for name in ("GPU", "layers", "weights", "KV cache", "overhead", "left"):
        table.add_column(name, justify="right", no_wrap=True)
    for card in plan.per_gpu:
        layers = "-" if card.layers is None else f"{card.layers[0]}-{card.layers[1]}"
        sizes = (card.weights_bytes, card.kv_bytes, card.overhead_bytes, card.slack_bytes)
        table.add_row(
            f"{card.gpu}: {format_size(card.capacity_bytes, plan.unit)}",
            f"{layers}, head" if card.head else layers,
            *(format_size(size, plan.unit) for size in sizes),
        )
    return table


def _lines(plan: Plan) -> list[str]:
    """The verdict, the binding limit, the largest size, remedies, changes by readings."""
    lines = [_verdict(plan)]
    if plan.bare_slack_bytes is not None and not plan.fits:
        lines.append(_before_overhead(plan))
    limited = plan.binding is not None
    if limited and plan.max_bpw is not None:
        lines.append(f"Largest average that fits: {_largest(plan.max_bpw):.3f} bpw.")
    if limited and plan.max_context is not None:
        lines.append(f"Largest context with these weights: {plan.max_context:,} tokens.")
    if plan.remedies:
        lines.append(f"Any one of these makes it fit: {'; '.join(remedy.text for remedy in plan.remedies)}.")
    lines += [_changed(found, plan.unit) for found in plan.recalibrated]
    return lines


def _bpw(plan: Plan) -> float:
    """The plan's own, never above the largest that fits as that is shown."""
    return min(plan.bpw, _largest(plan.max_bpw)) if plan.fits and plan.max_bpw is not None else plan.bpw


def _largest(bpw: float) -> float:
    """Rounded down, so that the number shown fits."""
    return int(bpw * 1e3) / 1e3


def _verdict(plan: Plan) -> str:
    if plan.binding is None:
        return "No limit was given: add --gpus, --vram, --size or --target-bpw."
    if not plan.fits:
        return f"It does not fit: {_option(plan)} is exceeded."
    return f"It fits. {_option(plan)} is the tightest limit."


def _before_overhead(plan: Plan) -> str:
    from exltune.budget import format_size

    held, left = plan.fullest_bytes or 0, plan.bare_slack_bytes or 0
    card = "The fullest card of the best split" if len(plan.per_gpu) > 1 else "The card"
    rest = "are left for overheads" if left >= 0 else "too much without any overhead"
    size = format_size(abs(left), plan.unit)
    return f"{card} holds {format_size(held, plan.unit)} of weights and cache: {size} {rest}."


def _changed(constant: Recalibrated, unit: SizeUnit) -> str:
    from exltune.budget import format_size

    before, after = (
        format_size(value, unit) if constant.name.endswith("_bytes") else f"{value:g}"
        for value in (constant.before, constant.after)
    )
    return f"{constant.name}: {before} -> {after}, from readings"


def _option(plan: Plan) -> str:
    return f"--{(plan.binding or '').replace('_', '-')}"
