"""The tail-biting Viterbi search over one tile, compiled by numba once for every bit width.

A state is 16 bits; between two positions only its low bits survive, so the paths meet in *nodes*:

    out node of position i = low 16 - D(i + 1) bits of the state = in node of position i + 1,  D(i) new bits at i
    cost_out[out] = min over k of cost_in[(k, a)] + (value[(k, a, j)] - w)^2,      out = (a, j)
    k: D(i + 1) bits, a: 16 - D(i) - D(i + 1) bits, j: D(i) bits

Two passes find the ring: the first starts in the middle with free nodes and tells the node at the seam, the
second is forced to begin and end there. Only costs are stored on the way forward; branches are found again
along the one path on the way back, which keeps the inner loop to a subtract, a fused multiply-add and a minimum.
Source of the recurrence: exllamav3 1.6.5, quantize_tiles_kernel.cuh and quantize_tiles_frac_kernel.cuh.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import cast

import numba
import numpy as np
import numpy.typing as npt

from exltune.exl3.codebooks import Codebook, codebook_values
from exltune.exl3.packing import TILE

_STATES = 65536
_HALF = TILE // 2
#: By the size of j: whether vectors run along a, and how many a (or k, along j) make a block. The fastest of
#: those tried with benchmarks/encoder.py on an AVX-512 machine; other blocks cost up to half the speed.
_PLANS = {
    2: (True, 64),
    4: (True, 64),
    8: (True, 128),
    16: (False, 16),
    32: (True, 32),
    64: (False, 8),
    128: (False, 8),
    256: (False, 8),
}
_FAST = {"nnan", "nsz", "contract"}
_jit = numba.njit(nogil=True, cache=True, fastmath=_FAST, error_model="numpy")
#: Inlined by force, so that sizes given as constants reach the vectorizer as constants.
_inline = numba.njit(nogil=True, fastmath=_FAST, error_model="numpy", forceinline=True)

Floats = npt.NDArray[np.float32]
States = npt.NDArray[np.uint16]
Encoder = Callable[[Floats, Floats, Floats, Floats, Floats, States], None]


def _axes(bits_in: int, bits_out: int) -> tuple[int, int, int]:
    """Sizes of (k, a, j) for a position that brings `bits_in` bits before one that brings `bits_out`."""
    return 1 << bits_out, 1 << (16 - bits_in - bits_out), 1 << bits_in


def _plan(k_size: int, a_size: int, j_size: int) -> tuple[bool, int]:
    along_a, block = _PLANS[j_size]
    return along_a, min(block, a_size if along_a else k_size)


def arrange_values(codebook: Codebook, bits_in: int, bits_out: int) -> Floats:
    """Codebook values, flat, in the order the step reads: (j, k, a) where vectors run along a, else (k, a, j)."""
    k, a, j = _axes(bits_in, bits_out)
    values = codebook_values(codebook).reshape(k, a, j)
    return np.ascontiguousarray(values.transpose(2, 0, 1) if _PLANS[j][0] else values).reshape(-1)


@_inline
def _step_along_a(
    cost_in: Floats,
    cost_out: Floats,
    values: Floats,
    w: np.float32,
    lanes: Floats,
    k_size: int,
    a_size: int,
    j_size: int,
    block: int,
) -> None:
    """Node costs (k, a) -> (a, j), vectors along a; `lanes` (j * block,) takes the results before they interleave."""
    for a0 in range(0, a_size, block):
        for j in range(j_size):
            for a in range(block):
                best = np.float32(np.inf)
                for k in range(k_size):
                    error = values[(j * k_size + k) * a_size + a0 + a] - w
                    best = min(best, cost_in[k * a_size + a0 + a] + error * error)
                lanes[j * block + a] = best
        for a in range(block):
            for j in range(j_size):
                cost_out[(a0 + a) * j_size + j] = lanes[j * block + a]


@_inline
def _step_along_j(
    cost_in: Floats,
    cost_out: Floats,
    values: Floats,
    w: np.float32,
    lanes: Floats,
    k_size: int,
    a_size: int,
    j_size: int,
    block: int,
) -> None:
    """Node costs (k, a) -> (a, j), vectors along j."""
    for a in range(a_size):
        for k0 in range(0, k_size, block):
            for j in range(j_size):
                best = np.float32(np.inf) if k0 == 0 else cost_out[a * j_size + j]
                for k in range(block):
                    error = values[((k0 + k) * a_size + a) * j_size + j] - w
                    best = min(best, cost_in[(k0 + k) * a_size + a] + error * error)
                cost_out[a * j_size + j] = best


@_jit
def _best_branch(cost_in: Floats, table: Floats, w: np.float32, node: int, bits_in: int, bits_out: int) -> int:
    """The full state, among those that end in `node`, with the least cost."""
    best, best_state = np.float32(np.inf), node
    for k in range(1 << bits_out):
        state = (k << (16 - bits_out)) | node
        error = table[state] - w
        cost = cost_in[state >> bits_in] + error * error
        if cost < best:
            best, best_state = cost, state
    return best_state


@_jit
def _backward(
    tile: Floats, table: Floats, rows: Floats, node: int, last: int, first: int, even: int, odd: int, states: States
) -> int:
    """Fill states[0..last] along the best path into `node`; the in node of position 0. Row `first` precedes it."""
    for i in range(last, -1, -1):
        bits_in, bits_out = (even, odd) if i % 2 == 0 else (odd, even)
        state = _best_branch(rows[i - 1 if i > 0 else first], table, tile[i], node, bits_in, bits_out)
        states[i] = state
        node = state >> bits_in
    return node


@cache
def make_encoder(even: int, odd: int) -> Encoder:
    """Compiled encoder for `even` new bits at even positions and `odd` at odd ones, on one core without the GIL.

    Called with tiles (n, 256), values as `arrange_values` gives them for even and for odd positions, the plain
    codebook (65536,), scratch costs (258, 65536 >> even), and states (n, 256), which it fills.
    """
    k_even, a_even, j_even = _axes(even, odd)
    k_odd, a_odd, j_odd = _axes(odd, even)
    even_along_a, even_block = _plan(k_even, a_even, j_even)
    odd_along_a, odd_block = _plan(k_odd, a_odd, j_odd)
    most_lanes = max(j_even * even_block * even_along_a, j_odd * odd_block * odd_along_a, 1)
    nodes = _STATES >> even

    # Closures hold plain numbers only: numba's cache on disk cannot key closures over compiled functions.
    @_jit
    def encode(tiles: Floats, at_even: Floats, at_odd: Floats, table: Floats, rows: Floats, states: States) -> None:
        lanes = np.empty(most_lanes, dtype=np.float32)
        for n in range(tiles.shape[0]):
            tile = tiles[n]
            seam = -1
            for turn in range(2):
                # Turn 0 starts in the middle and keeps costs from position 255 on; turn 1 keeps them all.
                start, keep = (_HALF, _HALF - 1) if turn == 0 else (0, 0)
                rows[TILE, :nodes] = np.float32(0.0) if turn == 0 else np.float32(np.inf)
                rows[TILE, max(seam, 0)] = np.float32(0.0)
                source = TILE
                for step in range(TILE):
                    i = (start + step) % TILE
                    target = i if step >= keep else (TILE + 1 if source == TILE else TILE)
                    if i % 2 == 0:
                        if even_along_a:
                            _step_along_a(
                                rows[source], rows[target], at_even, tile[i], lanes, k_even, a_even, j_even, even_block
                            )
                        else:
                            _step_along_j(
                                rows[source], rows[target], at_even, tile[i], lanes, k_even, a_even, j_even, even_block
                            )
                    elif odd_along_a:
                        _step_along_a(
                            rows[source], rows[target], at_odd, tile[i], lanes, k_odd, a_odd, j_odd, odd_block
                        )
                    else:
                        _step_along_j(
                            rows[source], rows[target], at_odd, tile[i], lanes, k_odd, a_odd, j_odd, odd_block
                        )
                    source = target
                if turn == 0:
                    node = np.argmin(rows[_HALF - 1, :nodes])
                    seam = _backward(tile, table, rows, node, _HALF - 1, TILE - 1, even, odd, states[n])
                else:
                    _backward(tile, table, rows, seam, TILE - 1, TILE, even, odd, states[n])

    return cast(Encoder, encode)
