"""Options that say how much memory there is and how the model is to be used, and what they add up to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from exltune.schema.defaults import DEFAULT_CHUNK, DEFAULT_SLOTS

if TYPE_CHECKING:
    from exltune.budget import Limits
    from exltune.schema.hardware import CacheBits, SizeUnit, Use

CHUNK, SLOTS = DEFAULT_CHUNK, DEFAULT_SLOTS

Gpus = Annotated[
    str | None,
    typer.Option("--gpus", help="Cards in the order of their layers: 6x24GiB, or 24GiB,48GiB.", show_default=False),
]
Vram = Annotated[str | None, typer.Option("--vram", help="All VRAM as one pool, such as 144GiB.", show_default=False)]
Ram = Annotated[
    str | None,
    typer.Option("--ram", help="System RAM for embedding and offloaded experts, such as 64GiB.", show_default=False),
]
Size = Annotated[
    str | None,
    typer.Option("--size", help="The most that linears and head may take, such as 120GiB.", show_default=False),
]
Context = Annotated[
    int | None, typer.Option("--context", help="Tokens in the KV cache, all sequences together.", show_default=False)
]
Cache = Annotated[str, typer.Option("--cache", help="Bits of the cache's keys and values, such as 5,4, or fp16.")]
CacheOrAuto = Annotated[
    str | None,
    typer.Option(
        "--cache",
        help="Bits of the cache's keys and values, such as 5,4, or fp16; auto trades them against weights.",
        show_default=False,
    ),
]
Chunk = Annotated[int, typer.Option("--chunk", help="Tokens of a prompt that are computed at a time.")]
Slots = Annotated[
    int, typer.Option("--slots", help="Sequences at a time, each with states of its linear and sliding layers.")
]
TensorParallel = Annotated[
    bool, typer.Option("--tensor-parallel", help="Split by heads and experts instead of by layers.")
]
OffloadLayers = Annotated[
    int, typer.Option("--offload-layers", help="First MoE layers whose routed experts stay in system RAM.")
]


def limits(gpus: str | None, vram: str | None, ram: str | None, target_bpw: float | None, size: str | None) -> Limits:
    """The limits that options set. Raises: UsageError naming the option."""
    from exltune.budget import Limits, parse_gpus, parse_size
    from exltune.schema.hardware import Hardware

    hardware = Hardware(
        gpus=() if gpus is None else parse_gpus(gpus, "--gpus"),
        vram_bytes=None if vram is None else parse_size(vram, "--vram"),
        ram_bytes=None if ram is None else parse_size(ram, "--ram"),
    )
    return Limits(hardware, target_bpw, None if size is None else parse_size(size, "--size"))


def use(context: int | None, chunk: int, slots: int, tensor_parallel: bool, offload_layers: int) -> Use:
    """How the model is to be used, from options; the cache is asked for apart."""
    from exltune.schema.hardware import Use

    return Use(
        context=context, chunk=chunk, slots=slots, tensor_parallel=tensor_parallel, offload_layers=offload_layers
    )


def cache_or_auto(text: str | None) -> CacheBits | Literal["auto"] | None:
    """`5,4` -> bits of k and v, `auto` and nothing as they are. Raises: UsageError."""
    if text is None:
        return None
    return "auto" if text == "auto" else cache_bits(text)


def cache_bits(text: str) -> CacheBits:
    """`5,4` -> bits of k and v. Raises: UsageError."""
    from exltune.budget import parse_cache

    return parse_cache(text)


def shown_unit(*sizes: str | None) -> SizeUnit:
    """Sizes are printed in the units of the first that was given; GiB where none was."""
    from exltune.budget import unit_of

    given = [size for size in sizes if size is not None]
    return unit_of(given[0]) if given else "GiB"
