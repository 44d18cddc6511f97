"""Trellis rings, bit packing and distortion, against a plain restatement of the recurrence."""

import numpy as np
import pytest
import torch

from exltune.errors import UsageError
from exltune.exl3.codebooks import CODEBOOKS, HALF_BITS, INTEGER_BITS, check_bits, codebook_values
from exltune.exl3.hadamard import hadamard_matrix
from exltune.exl3.packing import TENSOR_CORE_PERM, pack_states, step_bits, unpack_states, words_per_tile
from exltune.exl3.quantizer import quantize_linear
from exltune.exl3.trellis import decode_states, encode_tiles

RATES = [(codebook, bits) for codebook in CODEBOOKS for bits in INTEGER_BITS]
RATES += [("mul1", bits) for bits in HALF_BITS]


def forward(tile, values, steps, start, first_costs):
    """Costs after each of the 256 positions from `start` on; every state is tried at every position."""
    states = np.arange(65536)
    costs, rows = first_costs, {}
    for n in range(256):
        i = (start + n) % 256
        node_bits = 16 - steps[(i + 1) % 256]
        total = (costs[states >> steps[i]] + (values - tile[i]) ** 2).reshape(-1, 1 << node_bits)
        costs, branch = total.min(axis=0), total.argmin(axis=0)
        rows[i] = (costs, (branch << node_bits) | np.arange(1 << node_bits))
    return rows


def walk_back(rows, steps, last, first, node):
    states = {}
    for i in range(last, first - 1, -1):
        states[i] = rows[i][1][node]
        node = states[i] >> steps[i]
    return states, node


def plain_encode(tile, codebook, bits):
    """The two-pass tail-biting search in float64 numpy."""
    values, steps = codebook_values(codebook).astype(np.float64), step_bits(bits)
    rows = forward(tile, values, steps, 128, np.zeros(65536 >> steps[128]))
    _, seam = walk_back(rows, steps, 127, 0, int(rows[127][0].argmin()))
    forced = np.full(65536 >> steps[0], np.inf)
    forced[seam] = 0.0
    states, _ = walk_back(forward(tile, values, steps, 0, forced), steps, 255, 0, seam)
    return np.array([states[i] for i in range(256)])


@pytest.mark.slow
@pytest.mark.parametrize(("codebook", "bits"), [("mul1", 1), ("mul1", 2.5), ("mcg", 3), ("3inst", 5), ("mul1", 8)])
def test_encoder_finds_what_a_plain_search_finds(codebook, bits):
    tile = np.random.default_rng(3).standard_normal(256).astype(np.float32)
    expected = codebook_values(codebook)[plain_encode(tile.astype(np.float64), codebook, bits)]
    found = decode_states(encode_tiles(tile[None], bits, codebook), codebook)[0]
    assert ((found - tile) ** 2).sum() == pytest.approx(((expected - tile) ** 2).sum(), rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("codebook", "bits"), RATES)
def test_states_form_a_ring_and_survive_packing(codebook, bits):
    tiles = np.random.default_rng(5).standard_normal((3, 256)).astype(np.float32)
    states = encode_tiles(tiles, bits, codebook)
    wide, steps = states.astype(np.int64), step_bits(bits)
    shifted = (np.roll(wide, 1, axis=1) << steps) & 0xFFFF
    assert ((wide ^ shifted) >> steps == 0).all(), "each state continues the one before, around the seam too"
    packed = pack_states(states, bits)
    assert packed.shape == (3, words_per_tile(bits)) == (3, int(16 * bits))
    np.testing.assert_array_equal(unpack_states(packed, bits), states)


def test_tiles_do_not_depend_on_their_neighbours():
    tiles = np.random.default_rng(6).standard_normal((7, 256)).astype(np.float32)
    together = encode_tiles(tiles, 3, "mul1")
    np.testing.assert_array_equal(together, np.concatenate([encode_tiles(t[None], 3, "mul1") for t in tiles]))
    assert encode_tiles(tiles[:0], 3, "mul1").shape == (0, 256)


def test_tensor_core_order_is_a_permutation_that_starts_as_documented():
    assert sorted(TENSOR_CORE_PERM) == list(range(256))
    assert TENSOR_CORE_PERM[:8].tolist() == [0, 16, 128, 144, 8, 24, 136, 152]


@pytest.mark.parametrize(("bits", "codebook"), [(0, "mul1"), (9, "mul1"), (2.5, "mcg"), (4.5, "mul1"), (16, "mul1")])
def test_widths_that_do_not_exist_are_refused(bits, codebook):
    with pytest.raises(UsageError, match="do not exist"):
        check_bits(bits, codebook)


@pytest.mark.slow
@pytest.mark.parametrize(("bits", "constant"), [(2, 1.09), (3, 1.12), (4, 1.14), (5, 1.16), (6, 1.21)])
def test_distortion_of_gaussian_weights(bits, constant):
    """NMSE * 4^K with the scale searched for each matrix, as in DESIGN.md section 7, within 2 %."""
    weights = torch.from_numpy(np.random.default_rng(11).standard_normal((4, 128, 128)).astype(np.float32))
    found = [
        quantize_linear(weight, None, bits, "mul1", f"gaussian {i}")[1].rfn ** 2 for i, weight in enumerate(weights)
    ]
    assert np.mean(found) * 4**bits == pytest.approx(constant, rel=0.02)


def test_distortion_at_eight_bits():
    """As above, the median of small sets, each at its best scale: one outlier decides what a set loses here."""
    sets = np.random.default_rng(0).standard_normal((8, 32, 256)).astype(np.float32)
    best = [min(_nmse(tiles, np.float32(scale), 8) for scale in (0.74, 0.78, 0.81, 0.84, 0.88)) for tiles in sets]
    assert np.median(best) * 4**8 == pytest.approx(1.30, rel=0.02)


def _nmse(tiles, scale, bits):
    return np.mean((decode_states(encode_tiles(tiles * scale, bits, "mul1"), "mul1") / scale - tiles) ** 2)


def test_hadamard_is_orthonormal_and_symmetric():
    h = hadamard_matrix()
    torch.testing.assert_close(h @ h, torch.eye(128), atol=1e-6, rtol=0)
    assert torch.equal(h, h.T)
