"""The answer of `exltune plan`."""

from __future__ import annotations

from typing import Literal

from exltune.schema.base import Record
from exltune.schema.hardware import Recalibrated, SizeUnit

#: A limit that a plan can run against.
Limit = Literal["gpus", "vram", "ram", "target_bpw", "size"]


class GpuPlan(Record):
    """One card. capacity = weights + kv + overhead + slack; a negative slack is missing memory.

    layers: first and last decoder layer on it, None where it holds none. head: whether the output head is on it.
    """

    gpu: int
    capacity_bytes: int
    layers: tuple[int, int] | None
    head: bool
    weights_bytes: int
    kv_bytes: int
    overhead_bytes: int
    slack_bytes: int


class Remedy(Record):
    """One change that makes it fit. value: tokens, "k,v" bits, tokens of a chunk, bpw, cards to add, bytes of
    each card, bytes to add.
    """

    change: Literal["context", "cache", "chunk", "bpw", "gpus", "gpu_size", "vram", "ram"]
    value: int | float | str
    text: str


class Plan(Record):
    """Whether weights, cache and overheads fit, and the remedies.

    weights_bytes: linears and head, as exllamav3's get_storage_info counts them; disk_bytes: with embedding, norms and
    buffers, that is every tensor of the files. kv_bytes: cache at the asked context, states of sliding and linear
    layers included. overhead_bytes: over all cards. slack_bytes: of the card or pool that is closest to full.
    max_bpw: the largest average (exllamav3's bpw) that fits, its bits spread evenly; None where not even 1 bit does.
    max_context: the largest context that these weights leave room for, at most the model's own; None without a limit.
    fullest_bytes: weights and cache on the fullest card of the best contiguous split, before any overhead;
    bare_slack_bytes: bytes that that split leaves on it.
    per_gpu: as exllamav3's autosplit fills the cards where it fits, else the split that overflows least.
    binding: the tightest limit, None where no limit was given. limits: limit -> largest bpw that it allows.
    """

    fits: bool
    binding: Limit | None
    limits: dict[str, float | None]
    architecture: str
    bpw: float
    max_bpw: float | None
    head_bits: float
    weights_bytes: int
    disk_bytes: int
    kv_bytes: int
    kv_bytes_per_token: int
    overhead_bytes: int
    slack_bytes: int | None
    context: int | None
    max_context: int | None
    context_limit: int | None
    cache: str
    chunk: int
    slots: int
    ram_bytes: int
    fullest_bytes: int | None
    bare_slack_bytes: int | None
    per_gpu: tuple[GpuPlan, ...]
    remedies: tuple[Remedy, ...]
    recalibrated: tuple[Recalibrated, ...] = ()
    unit: SizeUnit = "GiB"
