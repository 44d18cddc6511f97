"""Trellis states to the bit stream that exllamav3 stores, and back.

The low bits of each state, most significant first, form a circular stream of 16-bit words; the two words of
every 32 are swapped. At a half rate the steps alternate K bits (even positions) and K + 1 bits (odd ones).
Source: exllamav3 1.6.5, exllamav3_ext/quant/pack.cu, frac.cu, modules/quant/exl3_lib/quantize.py.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

TILE = 256
WINDOW = 16


def _tensor_core_permutation() -> npt.NDArray[np.int64]:
    """Row-major index of each element of a 16x16 tile in the order the tensor-core fragments hold it, (256,)."""
    thread = np.arange(32)
    rows = (thread % 4 * 2)[:, None] + np.array([0, 1, 8, 9, 0, 1, 8, 9])  # (32, 8)
    columns = (thread // 4)[:, None] + np.array([0, 0, 0, 0, 8, 8, 8, 8])  # (32, 8)
    order: npt.NDArray[np.int64] = (rows * 16 + columns).reshape(TILE)
    return order


TENSOR_CORE_PERM = _tensor_core_permutation()
TENSOR_CORE_PERM_INVERSE = np.argsort(TENSOR_CORE_PERM)


def step_bits(bits: float) -> npt.NDArray[np.int64]:
    """New bits that each of the 256 positions brings, (256,)."""
    whole = int(bits)
    steps = np.full(TILE, whole, dtype=np.int64)
    if bits != whole:
        steps[1::2] += 1
    return steps


def words_per_tile(bits: float) -> int:
    """16-bit words that one tile of 256 weights takes."""
    return int(bits * TILE) // WINDOW


def pack_states(states: npt.NDArray[np.uint16], bits: float) -> npt.NDArray[np.int16]:
    """Pack states (n, 256) into words (n, 16 * bits)."""
    steps = step_bits(bits)
    position = np.repeat(np.arange(TILE), steps)  # (stream bits,) tile position that each stream bit comes from
    shift = np.concatenate([np.arange(s)[::-1] for s in steps])  # (stream bits,) its place within the state
    stream = (states[:, position] >> shift.astype(np.uint16)) & 1  # (n, stream bits)
    packed = (
        np.ascontiguousarray(np.packbits(stream.astype(np.uint8), axis=1)).view(">u2").astype(np.uint16)
    )  # (n, words)
    return _swap_pairs(packed).view(np.int16)


def unpack_states(packed: npt.NDArray[np.int16], bits: float) -> npt.NDArray[np.uint16]:
    """States (n, 256) from words (n, 16 * bits): each is the 16 stream bits that end with its own new bits."""
    words = _swap_pairs(np.ascontiguousarray(packed).view(np.uint16)).astype(np.uint64)  # (n, words)
    end = np.cumsum(step_bits(bits))  # (256,) stream position just after each state's window
    start = (end - WINDOW) % (words.shape[1] * WINDOW)
    word, offset = start // WINDOW, start % WINDOW
    both = (words[:, word] << np.uint64(WINDOW)) | words[:, (word + 1) % words.shape[1]]  # (n, 256), 32 bits
    states: npt.NDArray[np.uint16] = (both >> (WINDOW - offset).astype(np.uint64)).astype(np.uint16)  # keeps 16 bits
    return states


def _swap_pairs(words: npt.NDArray[np.uint16]) -> npt.NDArray[np.uint16]:
    return np.ascontiguousarray(words.reshape(len(words), -1, 2)[:, :, ::-1]).reshape(words.shape)
