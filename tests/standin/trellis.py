"""Tiles on disk and back, restated from the CUDA sources of exllamav3 1.6.5: the oracle for exltune.exl3.

Sources: exllamav3_ext/quant/codebook.cuh (codebooks), exl3_dq.cuh and pack.cu (integer rates), frac.cu (half
rates), reconstruct.cu (tensor-core order). Written for clarity; nothing here is fast.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.generic]

#: Positions 1, 3, 5, ... of every 16 take one bit more at a half rate.
HALF_RATE_MASK = 0xAAAA


@lru_cache
def codebook(name: str) -> npt.NDArray[np.float16]:
    """Value of each of the 65536 states, fp16; name is "3inst", "mcg" or "mul1"."""
    state = np.arange(1 << 16, dtype=np.uint64)
    if name == "mul1":
        product = ((state * 0x83DCD12D) & 0xFFFFFFFF).astype("<u4")
        byte_sum = product.view(np.uint8).reshape(-1, 4).sum(axis=1, dtype=np.uint16)
        factor, offset = np.array([0x1EEE, 0xC931], dtype=np.uint16).view(np.float16).astype(np.float64)
        # A fused multiply-add rounds once: float64 holds the exact sum.
        return ((byte_sum + 0x6400).view(np.float16).astype(np.float64) * factor + offset).astype(np.float16)
    product = {"3inst": state * 89226354 + 64248484, "mcg": state * 0xCBAC1FED}[name]
    bits = (((product & 0xFFFFFFFF) & 0x8FFF8FFF) ^ 0x3B603B60).astype("<u4")
    halves = bits.view(np.float16).reshape(-1, 2)
    return halves[:, 0] + halves[:, 1]


def new_bits(rate: float, mask: int = HALF_RATE_MASK) -> npt.NDArray[np.int64]:
    """(256,) how many new bits each weight of a tile brings at 1..8 or a half rate."""
    whole = int(rate)
    if rate == whole:
        return np.full(256, whole)
    position = np.arange(256) % 16
    return whole + ((mask >> position) & 1)


def pack(states: Array, rate: float) -> npt.NDArray[np.int16]:
    """States (n, 256) uint16 to tiles (n, 16 * rate) int16: the new bits of each, first bit first."""
    values = states.astype(np.uint16)
    widths = new_bits(rate)
    columns = [(values[:, i] >> shift) & 1 for i in range(256) for shift in range(widths[i] - 1, -1, -1)]
    stream = np.stack(columns, axis=1).astype(np.uint8)
    words = np.packbits(stream, axis=1).view(">u4")  # MSB first, in words of 32 bits
    return np.ascontiguousarray(words.astype("<u4")).view(np.int16)


def unpack(packed: Array, rate: float) -> npt.NDArray[np.uint16]:
    """Tiles (n, 16 * rate) int16 to states (n, 256) uint16: the 16 bits that end with a weight's own, on a ring."""
    words = np.ascontiguousarray(packed).view("<u4").astype(">u4")
    stream = np.unpackbits(words.view(np.uint8), axis=1)  # (n, 256 * rate)
    ends = np.cumsum(new_bits(rate))
    window = (ends[:, None] - 16 + np.arange(16)) % stream.shape[1]
    weight = 1 << np.arange(15, -1, -1)
    return (stream[:, window].astype(np.uint32) @ weight.astype(np.uint32)).astype(np.uint16)


@lru_cache
def element_of_position() -> npt.NDArray[np.int64]:
    """(256,) row-major element of a 16x16 tile that each ring position holds: 32 lanes of 8, as the MMA wants them."""
    lane, item = np.divmod(np.arange(256), 8)
    row = 2 * (lane % 4) + (item & 1) + 8 * ((item >> 1) & 1)
    column = lane // 4 + 8 * (item >> 2)
    return row * 16 + column


def reconstruct(packed: Array, rate: float, name: str) -> npt.NDArray[np.float16]:
    """Packed tensor (in/16, out/16, 16 * rate) to the weight in the rotated basis, fp16 (in, out)."""
    tiles_in, tiles_out, words = packed.shape
    out = np.empty((tiles_in, 16, tiles_out, 16), dtype=np.float16)
    for row in range(tiles_in):  # One row of tiles at a time bounds the memory of the unpacked bits.
        values = codebook(name)[unpack(packed[row].reshape(tiles_out, words), rate)]
        tiles = np.empty_like(values)
        tiles[:, element_of_position()] = values
        out[row] = tiles.reshape(tiles_out, 16, 16).transpose(1, 0, 2)
    return out.reshape(tiles_in * 16, tiles_out * 16)
