"""One linear: LDL factors, error feedback, scales, padding, dead channels, determinism."""

import numpy as np
import pytest
import torch

from exltune.errors import NonFiniteError
from exltune.exl3 import scale
from exltune.exl3.hessian import Hessian, block_ldl
from exltune.exl3.ldlq import ldlq, proxy_error, rows_to_tiles, tiles_to_rows
from exltune.exl3.quantizer import prepare_hessian, quantize_linear
from exltune.exl3.scale import search_scale
from exltune.exl3.trellis import encode_tiles


def weight_and_hessian(rows=256, columns=128, seed=0):
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.eye(rows) + 0.3 * torch.randn(rows, rows, generator=generator)
    inputs = torch.randn(1024, rows, generator=generator) @ mixing
    weight = 0.03 * torch.randn(rows, columns, generator=generator) * torch.rand(columns, generator=generator)
    return weight, Hessian(inputs.T @ inputs, len(inputs))


def test_block_ldl_rebuilds_the_matrix():
    _, hessian = weight_and_hessian(64)
    matrix = hessian.matrix.double()
    unit = block_ldl(matrix) + torch.eye(64, dtype=torch.float64)
    inverse = torch.linalg.inv(unit)
    middle = inverse @ matrix @ inverse.T
    blocks = torch.block_diag(*[middle[i : i + 16, i : i + 16] for i in range(0, 64, 16)])
    torch.testing.assert_close(middle, blocks, atol=1e-6 * float(matrix.max()), rtol=0)
    torch.testing.assert_close(unit @ blocks @ unit.T, matrix)


def test_tiles_and_rows_are_inverse():
    rows = torch.randn(16, 96, generator=torch.Generator().manual_seed(1))
    assert torch.equal(tiles_to_rows(rows_to_tiles(rows)), rows)


@pytest.mark.slow
@pytest.mark.parametrize("bits", [2, 4])
def test_feedback_lowers_the_proxy_error(bits):
    weight, hessian = weight_and_hessian()
    mean = hessian.matrix / hessian.count
    fed, stats = quantize_linear(weight, hessian, bits, "mul1", "w")
    plain, plain_stats = quantize_linear(weight, None, bits, "mul1", "w")
    with_feedback = proxy_error(weight, fed.dequantize(), mean)
    assert with_feedback < 0.8 * proxy_error(weight, plain.dequantize(), mean)
    assert stats.feedback
    assert not plain_stats.feedback
    assert stats.proxy_err == pytest.approx(with_feedback, rel=0.1), "the stats use the damped Hessian"


@pytest.mark.slow
def test_decoding_gives_what_the_encoder_reconstructed():
    weight, hessian = weight_and_hessian()
    rotated = prepare_hessian(hessian, 256, "w")
    linear, _ = quantize_linear(weight, rotated, 3, "mul1", "w")
    suh, svh = linear.suh.double(), linear.svh.double()
    signs = torch.linalg.norm(linear.dequantize_rotated())
    assert torch.isfinite(suh).all()
    assert torch.isfinite(svh).all()
    assert float(signs) > 0
    target = torch.randn(256, 128, generator=torch.Generator().manual_seed(2))
    quantized, states = ldlq(target, rotated.feedback, 3, "mul1")
    again = torch.cat([tiles_to_rows(_values(row)) for row in states])
    assert torch.equal(quantized, again)


def _values(states):
    from exltune.exl3.trellis import decode_states

    return decode_states(states, "mul1")


@pytest.mark.slow
def test_equal_arguments_give_equal_bytes():
    weight, hessian = weight_and_hessian()
    first, _ = quantize_linear(weight, hessian, 2.5, "mul1", "a.q_proj")
    second, _ = quantize_linear(weight.clone(), Hessian(hessian.matrix.clone(), hessian.count), 2.5, "mul1", "a.q_proj")
    for name, tensor in first.tensors("k").items():
        assert torch.equal(tensor, second.tensors("k")[name]), name
    other, _ = quantize_linear(weight, hessian, 2.5, "mul1", "b.q_proj")
    assert not torch.equal(first.trellis, other.trellis)


def test_dims_are_padded_with_zeros_and_bias_is_kept():
    weight = torch.randn(100, 72, generator=torch.Generator().manual_seed(4))
    bias = torch.arange(72.0)
    linear, stats = quantize_linear(weight, None, 4, "mcg", "odd", bias)
    whole = linear.dequantize()
    assert whole.shape == (128, 128)
    assert torch.count_nonzero(whole[:, 72:]) == 0
    assert float((whole[:100, :72] - weight).norm() / weight.norm()) < 0.09
    assert stats.rfn < 0.1
    assert torch.equal(linear.bias[:72], bias.half())
    assert torch.count_nonzero(linear.bias[72:]) == 0


def test_dead_channels_and_empty_weights_stay_zero():
    weight, hessian = weight_and_hessian(128)
    weight[:, 5] = 0.0
    weight[7] = 0.0
    linear, stats = quantize_linear(weight, hessian, 3, "mul1", "dead")
    assert torch.count_nonzero(linear.dequantize()[:, 5]) == 0
    assert torch.count_nonzero(linear.dequantize()[7]) == 0
    assert stats.rfn < 0.2
    nothing, stats = quantize_linear(torch.zeros(128, 128), hessian, 2, "mul1", "zeros")
    assert torch.count_nonzero(nothing.dequantize()) == 0
    assert stats.rfn == 0.0


@pytest.mark.slow
def test_a_hessian_that_cannot_be_used_is_left_out():
    weight, hessian = weight_and_hessian(128)
    broken = Hessian(hessian.matrix * float("nan"), hessian.count)
    for unusable in (broken, Hessian(torch.zeros(128, 128), 10), Hessian(hessian.matrix, 0)):
        _, stats = quantize_linear(weight, unusable, 3, "mul1", "w")
        assert not stats.feedback


def test_nan_weights_are_named():
    weight = torch.zeros(128, 128)
    weight[3, 4] = float("nan")
    with pytest.raises(NonFiniteError, match=r"model\.q_proj"):
        quantize_linear(weight, None, 3, "mul1", "model.q_proj")


@pytest.mark.parametrize("shape", [(128, 128), (128, 512), (512, 128)])
def test_scale_search_costs_less_than_the_encode(shape, monkeypatch):
    encoded = []
    monkeypatch.setattr(scale, "encode_tiles", lambda t, *rest: encoded.append(len(t)) or encode_tiles(t, *rest))
    search_scale(torch.randn(shape, generator=torch.Generator().manual_seed(8)), 4, "mul1")
    assert sum(encoded) < shape[0] * shape[1] // 256


@pytest.mark.slow
@pytest.mark.parametrize("bits", [3, 8])
def test_scale_search_beats_its_neighbours(bits):
    weight = 7.0 * torch.randn(128, 256, generator=torch.Generator().manual_seed(9))
    best = search_scale(weight, bits, "mul1")

    def error(factor):
        quantized, _ = ldlq(weight * factor, None, bits, "mul1")
        return float((quantized / factor - weight).square().mean())

    assert error(best) < min(error(0.8 * best), error(1.2 * best))
    assert np.isfinite(best)
