"""The user's hardware and wishes: GPUs, memory, context, cache bits; and the constants of a loaded model's overhead."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from exltune.schema.base import Record
from exltune.schema.defaults import DEFAULT_CHUNK, DEFAULT_SLOTS
from exltune.schema.mix import UNQUANTIZED_BITS

_MIB = 1 << 20
_GIB = 1 << 30

#: How sizes are printed back: as the user wrote them.
SizeUnit = Literal["GiB", "GB"]


class CacheBits(Record):
    """Bits of the KV cache's keys and values: 2..8 each, or 16 for both (fp16)."""

    k: int
    v: int

    @property
    def quantized(self) -> bool:
        """Whether exllamav3 keeps it as CacheLayer_quant."""
        return self.k != UNQUANTIZED_BITS

    def __str__(self) -> str:
        return f"{self.k},{self.v}" if self.quantized else "fp16"


FP16_CACHE = CacheBits(k=UNQUANTIZED_BITS, v=UNQUANTIZED_BITS)


class Hardware(Record):
    """Memory in bytes; every one that is given is a limit. `gpus` in the order in which layers fill them.

    vram_bytes: one pool, as if it were a single card. ram_bytes: system memory for offloaded experts and embedding.
    """

    gpus: tuple[int, ...] = ()
    vram_bytes: int | None = None
    ram_bytes: int | None = None


class Use(Record):
    """How the model is to be run.

    context: tokens of the cache over all sequences; None plans the weights alone. chunk: prefill tokens at a time.
    slots: sequences at once, each with its own sliding-window and linear-attention state (Cache's max_batch_size).
    offload_layers: how many first MoE layers keep their routed experts in system RAM.
    """

    context: int | None = None
    cache: CacheBits = FP16_CACHE
    chunk: int = DEFAULT_CHUNK
    slots: int = DEFAULT_SLOTS
    tensor_parallel: bool = False
    offload_layers: int = 0


class Overheads(Record):
    """Memory of a card beside weights and cache, in bytes; each value's source stands in its description.

    Source: exllamav3 1.6.5 at the file named. A reading of a real machine replaces any of them (`plan --calibrate`).
    """

    context_bytes: int = Field(_GIB // 2, description="CUDA context and kernels; assumed, 0.4-0.6 GiB seen")
    reserve_bytes: int = Field(_GIB // 2, description="model/model.py, load: default reserve_per_device of 0.5 GB")
    margin_bytes: int = Field(256 * _MIB, description="model/model_ls.py: EXL3_AUTOSPLIT_MARGIN_MB")
    arena_tail_bytes: int = Field(128 * _MIB, description="util/memory.py: ARENA_BLOCK_BYTES, the last one part full")
    multiprocessors: int = Field(128, description="of the card; the fused MoE kernel has buffers for every 8 of them")
    staging_pages: int = Field(256, description="modules/attention_fn/triton_paged.py: EXL3_QC_STAGING_PAGES")
    recon_batch: int = Field(16, description="modules/moe_batch_recon.py: EXL3_MOE_RECON_BATCH")
    recon_rows: int = Field(16384, description="modules/moe_batch_recon.py: EXL3_MOE_RECON_ROWS")
    recon_bytes: int = Field(256 * _MIB, description="modules/moe_batch_recon.py: EXL3_MOE_RECON_MB")
    fused_rows: int = Field(256, description="modules/block_sparse_mlp.py: EXL3_MOE_FUSED_ROWS_WIDE")
    output_rows: int = Field(32, description="model/model.py, load: max_output_size")
    offload_slot_bytes: int = Field(32 * _MIB, description="model/moe_cpu_host.py: EXL3_MOE_CPU_WSLOT_MB, 2 + 2 slots")
    host_reserve_bytes: int = Field(2 * _GIB, description="util/memory.py: EXL3_HOST_MEM_RESERVE_MB")
    transient_factor: float = Field(1.0, description="measured over computed prefill transient")
    static_factor: float = Field(1.0, description="measured over computed static buffers")


class Reading(Record):
    """Readings of one card of a real machine after a prefill, under the names of exllamav3's vram_accounting.

    Sizes in bytes, or text with a unit. largest_transient: printed by a verbose autosplit load as the card's largest
    measured transient, with the chunk that it was loaded with.
    """

    gpu: str = ""
    non_torch: int | str | None = None
    weights_arena_tail: int | str | None = None
    statics: int | str | None = None
    largest_transient: int | str | None = None
    chunk: int | None = Field(None, gt=0)


class Readings(Record):
    """A readings file: readings of cards, and constants that are known outright (a reserve of one's own)."""

    readings: tuple[Reading, ...] = ()
    constants: dict[str, int | float | str] = Field(default_factory=dict)


class Recalibrated(Record):
    """A constant that readings changed."""

    name: str
    before: float
    after: float
