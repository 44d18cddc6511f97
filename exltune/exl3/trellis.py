"""Encode and decode 16x16 tiles of weights as tail-biting trellis rings."""

from __future__ import annotations

import threading

import numba
import numpy as np
import numpy.typing as npt

from exltune.exl3.codebooks import Codebook, check_bits, codebook_values
from exltune.exl3.packing import TILE
from exltune.exl3.viterbi import arrange_values, make_encoder

_scratch = threading.local()


def encode_tiles(tiles: npt.NDArray[np.float32], bits: float, codebook: Codebook) -> npt.NDArray[np.uint16]:
    """States (n, 256) whose codebook values are nearest, in squared error, to tiles (n, 256) in tensor-core order.

    Raises: UsageError for a width that the codebook lacks.
    """
    check_bits(bits, codebook)
    tiles = np.ascontiguousarray(tiles, dtype=np.float32)
    states = np.empty(tiles.shape, dtype=np.uint16)
    whole, half = int(bits), bits != int(bits)
    other = whole + half
    encoder = make_encoder(whole, half)
    even, odd = arrange_values(codebook, whole, other), arrange_values(codebook, other, whole)
    encoder(tiles, even, odd, codebook_values(codebook), _cost_rows(65536 >> whole), states)
    return states


def decode_states(states: npt.NDArray[np.uint16], codebook: Codebook) -> npt.NDArray[np.float32]:
    """Codebook values (n, 256) of states (n, 256)."""
    return codebook_values(codebook)[states]


def _cost_rows(nodes: int) -> npt.NDArray[np.float32]:
    """Scratch (threads, 256 + 2, nodes), kept from call to call: at low widths it is tens of MiB a thread."""
    shape = (numba.get_num_threads(), TILE + 2, nodes)
    rows: npt.NDArray[np.float32] | None = getattr(_scratch, "rows", None)
    if rows is None or rows.shape != shape:
        rows = np.empty(shape, dtype=np.float32)
        _scratch.rows = rows
    return rows
