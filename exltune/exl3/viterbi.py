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

import numba
import numpy as np
import numpy.typing as npt

from exltune.exl3.codebooks import Codebook, codebook_values
from exltune.exl3.packing import TILE

_STATES = 65536
_HALF = TILE // 2
#: Vector width that the innermost loop should at least fill.
_LANES = 16
_BLOCK = 64
_FAST = {"nnan", "nsz", "contract"}
_jit = numba.njit(nogil=True, cache=True, fastmath=_FAST, error_model="numpy")

Floats = npt.NDArray[np.float32]
Encoder = Callable[[Floats, Floats, Floats, Floats, Floats, npt.NDArray[np.uint16]], None]


def _axes(bits_in: int, bits_out: int) -> tuple[int, int, int]:
    """Sizes of (k, a, j) for a position that brings `bits_in` bits before one that brings `bits_out`."""
    return 1 << bits_out, 1 << (16 - bits_in - bits_out), 1 << bits_in


def arrange_values(codebook: Codebook, bits_in: int, bits_out: int) -> Floats:
    """Codebook values in the order that the step kernel reads them: (j, k, a) where j is short, else (k, a, j)."""
    k, a, j = _axes(bits_in, bits_out)
    values = codebook_values(codebook).reshape(k, a, j)
    return np.ascontiguousarray(values.transpose(2, 0, 1) if j < _LANES else values)


def _make_step(bits_in: int, bits_out: int) -> Callable[..., None]:
    """Kernel for one position: node costs (k, a) -> node costs (a, j)."""
    k_size, a_size, j_size = _axes(bits_in, bits_out)
    if j_size < _LANES:
        return _make_step_along_a(k_size, a_size, j_size)
    return _make_step_along_j(k_size, a_size, j_size)


def _make_step_along_a(k_size: int, a_size: int, j_size: int) -> Callable[..., None]:
    block = min(a_size, _BLOCK)

    @_jit
    def step(cost_in: Floats, cost_out: Floats, values: Floats, w: np.float32, scratch: Floats) -> None:
        for a0 in range(0, a_size, block):
            for j in range(j_size):
                for a in range(block):
                    best = np.float32(np.inf)
                    for k in range(k_size):
                        error = values[j, k, a0 + a] - w
                        best = min(best, cost_in[k * a_size + a0 + a] + error * error)
                    scratch[j, a] = best
            for a in range(block):
                for j in range(j_size):
                    cost_out[(a0 + a) * j_size + j] = scratch[j, a]

    return step


def _make_step_along_j(k_size: int, a_size: int, j_size: int) -> Callable[..., None]:
    block = min(k_size, _LANES)

    @_jit
    def step(cost_in: Floats, cost_out: Floats, values: Floats, w: np.float32, scratch: Floats) -> None:
        for a in range(a_size):
            cost_out[a * j_size : (a + 1) * j_size] = np.float32(np.inf)
            for k0 in range(0, k_size, block):
                for j in range(j_size):
                    best = cost_out[a * j_size + j]
                    for k in range(block):
                        error = values[k0 + k, a, j] - w
                        best = min(best, cost_in[(k0 + k) * a_size + a] + error * error)
                    cost_out[a * j_size + j] = best

    return step


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


@cache
def make_encoder(whole: int, half: bool) -> Encoder:
    """Compiled encoder for `whole` bits, or `whole` + 0.5 where `half`; tiles are spread over numba's threads.

    Called with tiles (n, 256), values in the order of even and of odd positions (`arrange_values`), the plain
    codebook (65536,), scratch costs (threads, 258, 65536 >> whole) and states (n, 256), which it fills.
    """
    other = whole + 1 if half else whole
    even_step, odd_step = _make_step(whole, other), _make_step(other, whole)
    j_size = 1 << other

    @_jit
    def forward(tile: Floats, even: Floats, odd: Floats, rows: Floats, scratch: Floats, start: int, keep: int) -> None:
        # rows[256] and rows[257] alternate while nothing is kept; rows[i] holds the costs after position i.
        source = 256
        for n in range(TILE):
            i = (start + n) % TILE
            target = i if n >= keep else (257 if source == 256 else 256)
            if i % 2 == 0:
                even_step(rows[source], rows[target], even, tile[i], scratch)
            else:
                odd_step(rows[source], rows[target], odd, tile[i], scratch)
            source = target

    @_jit
    def backward(
        tile: Floats, table: Floats, rows: Floats, node: int, last: int, first: int, states: npt.NDArray[np.uint16]
    ) -> int:
        for i in range(last, -1, -1):
            bits_in, bits_out = (whole, other) if i % 2 == 0 else (other, whole)
            source = i - 1 if i > 0 else first
            state = _best_branch(rows[source], table, tile[i], node, bits_in, bits_out)
            states[i] = state
            node = state >> bits_in
        return node

    @_jit
    def encode_tile(
        tile: Floats,
        even: Floats,
        odd: Floats,
        table: Floats,
        rows: Floats,
        scratch: Floats,
        states: npt.NDArray[np.uint16],
    ) -> None:
        seam_nodes = _STATES >> whole
        rows[256, :seam_nodes] = np.float32(0.0)
        forward(tile, even, odd, rows, scratch, _HALF, _HALF - 1)
        node = np.argmin(rows[_HALF - 1, :seam_nodes])
        seam = backward(tile, table, rows, node, _HALF - 1, TILE - 1, states)
        rows[256, :seam_nodes] = np.float32(np.inf)
        rows[256, seam] = np.float32(0.0)
        forward(tile, even, odd, rows, scratch, 0, 0)
        rows[256, :seam_nodes] = np.float32(np.inf)
        rows[256, seam] = np.float32(0.0)
        backward(tile, table, rows, seam, TILE - 1, 256, states)

    @numba.njit(parallel=True, nogil=True, cache=True, fastmath=_FAST, error_model="numpy")
    def encode(
        tiles: Floats, even: Floats, odd: Floats, table: Floats, rows: Floats, states: npt.NDArray[np.uint16]
    ) -> None:
        workers = rows.shape[0]
        for worker in numba.prange(workers):
            scratch = np.empty((j_size, _BLOCK), dtype=np.float32)
            for n in range(worker, tiles.shape[0], workers):
                encode_tile(tiles[n], even, odd, table, rows[worker], scratch, states[n])

    return encode
