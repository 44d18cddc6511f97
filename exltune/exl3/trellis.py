"""Encode and decode 16x16 tiles of weights as tail-biting trellis rings."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from exltune.exl3.codebooks import Codebook, check_bits, codebook_values
from exltune.exl3.packing import TILE
from exltune.exl3.viterbi import arrange_values, make_encoder

_arranged = cache(arrange_values)
_scratch = threading.local()
#: Fewer tiles than this take less time than handing them to a thread on a busy machine.
_TILES_PER_WORKER = 32


def encode_tiles(tiles: npt.NDArray[np.float32], bits: float, codebook: Codebook) -> npt.NDArray[np.uint16]:
    """States (n, 256) whose codebook values are nearest, in squared error, to tiles (n, 256) in tensor-core order.

    Many tiles are spread over all cores; few are not worth waking a thread for, and run without the GIL in this
    one. Raises: UsageError for a width that the codebook lacks.
    """
    check_bits(bits, codebook)
    tiles = np.ascontiguousarray(tiles, dtype=np.float32)
    states = np.empty(tiles.shape, dtype=np.uint16)
    even = int(bits)
    odd = even + (bits != even)
    encoder, table = make_encoder(even, odd), codebook_values(codebook)
    at_even, at_odd = _arranged(codebook, even, odd), _arranged(codebook, odd, even)

    def encode(part: slice) -> None:
        encoder(tiles[part], at_even, at_odd, table, _cost_rows(65536 >> even), states[part])

    workers = min(cores(), len(tiles) // _TILES_PER_WORKER)
    if workers <= 1:
        encode(slice(None))
    else:
        bounds = np.linspace(0, len(tiles), workers + 1).astype(int)
        list(_pool().map(encode, [slice(low, high) for low, high in pairwise(bounds)]))
    return states


def decode_states(states: npt.NDArray[np.uint16], codebook: Codebook) -> npt.NDArray[np.float32]:
    """Codebook values (n, 256) of states (n, 256)."""
    return codebook_values(codebook)[states]


@cache
def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(cores(), thread_name_prefix="encode")


def _cost_rows(nodes: int) -> npt.NDArray[np.float32]:
    """A thread's own scratch (256 + 2, nodes), kept from call to call: at low widths it is tens of MiB."""
    size = (TILE + 2) * nodes
    memory: npt.NDArray[np.float32] | None = getattr(_scratch, "memory", None)
    if memory is None or memory.size < size:
        memory = np.empty(size, dtype=np.float32)
        _scratch.memory = memory
    return memory[:size].reshape(TILE + 2, nodes)
