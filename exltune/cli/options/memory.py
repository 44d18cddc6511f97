"""Options of the memory at hand and the use of the model, and their sum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from exltune.schema.defaults import DEFAULT_CHUNK, DEFAULT_SLOTS

if TYPE_CHECKING:
    from exltune.budget import Limits
    from exltune.schema.hardware import CacheBits, SizeUnit, Use


@dataclass(frozen=True, kw_only=True)
class MemoryFlags:
    """Of every command that fits something into a budget."""

    target_bpw: Annotated[
        float | None,
        typer.Option(
            "--target-bpw",
            help="The most bpw, as exllamav3 counts: all linears but the head, scales included.",
            show_default=False,
        ),
    ] = None
    size: Annotated[
        str | None,
        typer.Option("--size", help="The most that linears and head may take, such as 120GiB.", show_default=False),
    ] = None
    vram: Annotated[
        str | None, typer.Option("--vram", help="All VRAM as one pool, such as 144GiB.", show_default=False)
    ] = None
    gpus: Annotated[
        str | None,
        typer.Option("--gpus", help="Cards in the order of their layers: 6x24GiB, or 24GiB,48GiB.", show_default=False),
    ] = None
    context: Annotated[
        int | None,
        typer.Option("--context", help="Tokens in the KV cache, all sequences together.", show_default=False),
    ] = None
    cache: Annotated[
        str | None,
        typer.Option(
            "--cache",
            help="Bits of the cache's keys and values, such as 5,4, or fp16; auto trades them against weights.",
            show_default=False,
        ),
    ] = None
    chunk: Annotated[int, typer.Option("--chunk", help="Prompt tokens that are computed at a time.")] = DEFAULT_CHUNK
    slots: Annotated[
        int, typer.Option("--slots", help="Sequences at a time, each with states of its linear and sliding layers.")
    ] = DEFAULT_SLOTS
    tensor_parallel: Annotated[
        bool, typer.Option("--tensor-parallel", help="Split by heads and experts instead of by layers.")
    ] = False
    ram: Annotated[
        str | None,
        typer.Option(
            "--ram", help="System RAM for embedding and offloaded experts, such as 64GiB.", show_default=False
        ),
    ] = None
    offload_layers: Annotated[
        int, typer.Option("--offload-layers", help="First MoE layers whose routed experts stay in system RAM.")
    ] = 0

    def limits(self) -> Limits:
        """The limits that are set. Raises: UsageError naming the option."""
        from exltune.budget import Limits, parse_size
        from exltune.schema.hardware import Hardware

        hardware = Hardware(
            gpus=self.cards(),
            vram_bytes=None if self.vram is None else parse_size(self.vram, "--vram"),
            ram_bytes=None if self.ram is None else parse_size(self.ram, "--ram"),
        )
        return Limits(hardware, self.target_bpw, None if self.size is None else parse_size(self.size, "--size"))

    def cards(self) -> tuple[int, ...]:
        """Bytes of each card, in order. Raises: UsageError naming the option."""
        from exltune.budget import parse_gpus

        return () if self.gpus is None else parse_gpus(self.gpus, "--gpus")

    def use(self) -> Use:
        """How the model is to be used; the cache is asked for apart."""
        from exltune.schema.hardware import Use

        return Use(
            context=self.context,
            chunk=self.chunk,
            slots=self.slots,
            tensor_parallel=self.tensor_parallel,
            offload_layers=self.offload_layers,
        )

    def cache_bits(self) -> CacheBits | None:
        """Bits of k and v, if they are given. Raises: UsageError."""
        from exltune.budget import parse_cache

        return None if self.cache is None else parse_cache(self.cache)

    def cache_or_auto(self) -> CacheBits | Literal["auto"] | None:
        """Bits of k and v, or `auto`, if given. Raises: UsageError."""
        return "auto" if self.cache == "auto" else self.cache_bits()

    def unit(self) -> SizeUnit:
        """Sizes are printed in the units of the first that was given; GiB where none was."""
        from exltune.budget import unit_of

        given = [size for size in (self.gpus, self.vram, self.size, self.ram) if size is not None]
        return unit_of(given[0]) if given else "GiB"
