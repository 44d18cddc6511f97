"""Limits of a quant, from plain arguments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from exltune.budget import Limits, unit_of
from exltune.library import arguments
from exltune.library.arguments import CacheArgument, SizeArgument, optional
from exltune.schema.defaults import DEFAULT_CHUNK, DEFAULT_SLOTS
from exltune.schema.hardware import Hardware, SizeUnit, Use

_BPW = "the most bits per weight, a number such as 3.15"


class BudgetArguments(TypedDict, total=False):
    """Limits, of which every one that is given holds, and how the model is used. Sizes: bytes, or text as "120GiB".

    Attributes:
        target_bpw: The most bpw, as exllamav3 counts: all linears but the head, scales included.
        size: The most that linears and head may take.
        vram: All VRAM as one pool.
        gpus: Cards in the order of their layers, "6x24GiB" or the size of every card.
        ram: System RAM for embedding and offloaded experts.
        context: Tokens in the KV cache, all sequences together.
        cache: Bits of its keys and values, "5,4", "fp16", or "auto" to trade them against weights (not for `plan`).
        chunk: Prompt tokens that are computed at a time.
        slots: Sequences at a time.
        tensor_parallel: Split by heads and experts instead of by layers.
        offload_layers: First MoE layers whose routed experts stay in RAM.
    """

    target_bpw: float | None
    size: SizeArgument | None
    vram: SizeArgument | None
    gpus: str | Sequence[SizeArgument] | None
    ram: SizeArgument | None
    context: int | None
    cache: CacheArgument | None
    chunk: int
    slots: int
    tensor_parallel: bool
    offload_layers: int


def limits_of(given: Mapping[str, Any]) -> Limits:
    """The limits that are set. Raises: UsageError."""
    hardware = Hardware(
        gpus=optional(arguments.cards, "gpus", given.get("gpus")) or (),
        vram_bytes=optional(arguments.size, "vram", given.get("vram")),
        ram_bytes=optional(arguments.size, "ram", given.get("ram")),
    )
    target = optional(lambda name, value: arguments.number(name, value, _BPW), "target_bpw", given.get("target_bpw"))
    return Limits(hardware, target, optional(arguments.size, "size", given.get("size")))


def use_of(given: Mapping[str, Any]) -> Use:
    """How the model is to be used; the cache is asked for apart. Raises: UsageError."""
    return Use(
        context=optional(arguments.whole, "context", given.get("context")),
        chunk=arguments.whole("chunk", given.get("chunk", DEFAULT_CHUNK)),
        slots=arguments.whole("slots", given.get("slots", DEFAULT_SLOTS)),
        tensor_parallel=arguments.flag("tensor_parallel", given.get("tensor_parallel", False)),
        offload_layers=arguments.whole("offload_layers", given.get("offload_layers", 0)),
    )


def unit_of_sizes(given: Mapping[str, Any]) -> SizeUnit:
    """Texts of a plan show sizes in the unit of the first that was written with one; GiB where none was."""
    written = [given.get(name) for name in ("gpus", "vram", "size", "ram")]
    return next((unit_of(one) for one in written if isinstance(one, str)), "GiB")
