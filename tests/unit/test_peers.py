"""Round-to-nearest and AWQ against brute force, and W4A16's bytes against the tensors that such a checkpoint holds."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from exltune.evaluation.peers import ALPHAS, awq, output_error, peer_layers, peer_size, round_to_nearest
from exltune.exl3.hessian import Hessian
from exltune.inventory import inventory_from_config
from exltune.schema.inventory import LinearSpec, Role
from exltune.schema.peers import PeerMethod

WIDTH, OUT, TOKENS = 48, 24, 200


@pytest.fixture
def weight() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(OUT, WIDTH, generator=generator)


@pytest.fixture
def hessian() -> Hessian:
    """Correlated inputs with a few loud channels, as transformers have them; channel 5 is silent."""
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(TOKENS, WIDTH, generator=generator) @ torch.randn(WIDTH, WIDTH, generator=generator)
    inputs[:, :3] *= 30
    inputs[:, 5] = 0
    return Hessian(inputs.T @ inputs, TOKENS)


def brute_force(weight: np.ndarray, group: int) -> np.ndarray:
    """One weight at a time."""
    rounded = np.zeros_like(weight)
    for row in range(weight.shape[0]):
        for start in range(0, weight.shape[1], group):
            part = weight[row, start : start + group]
            scale = np.float32(np.float16(np.abs(part).max() / np.float32(7.5)))
            for at, value in enumerate(part):
                step = min(7, max(-8, round(float(value / scale)))) if scale > 0 else 0
                rounded[row, start + at] = step * scale
    return rounded


@pytest.mark.parametrize("group", [16, 20, 48, 128])
def test_rounding_is_that_of_brute_force(weight: torch.Tensor, group: int) -> None:
    weight[0, :16], weight[1, :16], weight[2, 0] = 0.0, 1e-9, 40.0
    found = round_to_nearest(weight, group)
    np.testing.assert_array_equal(found.numpy(), brute_force(weight.numpy(), group))
    levels = {len(torch.unique(part)) for part in found.split(group, dim=1)[0]}
    assert max(levels) <= 16


def test_awq_at_exponent_zero_is_rounding(
    weight: torch.Tensor, hessian: Hessian, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("exltune.evaluation.peers.ALPHAS", (0.0,))
    (found,), alpha = awq([weight], hessian, 16)
    assert alpha == 0.0
    assert torch.equal(found, round_to_nearest(weight, 16))


@pytest.mark.parametrize("group", [16, 48])
def test_awq_is_never_worse_and_here_better(weight: torch.Tensor, hessian: Hessian, group: int) -> None:
    others = [weight, weight.flip(0) * 2]
    found, alpha = awq(others, hessian, group)
    inputs = np.linalg.cholesky(hessian.matrix.double().numpy() / TOKENS + 1e-6 * np.eye(WIDTH))
    before, after = 0.0, 0.0
    for old, new in zip(others, found, strict=True):
        before += np.square((round_to_nearest(old, group) - old).double().numpy() @ inputs).sum()
        after += np.square((new - old).double().numpy() @ inputs).sum()
    assert after < 0.9 * before
    assert alpha in ALPHAS
    assert alpha > 0


def test_awq_without_inputs_is_rounding(weight: torch.Tensor) -> None:
    (found,), alpha = awq([weight], Hessian(torch.zeros(WIDTH, WIDTH), 0), 16)
    assert alpha == 0.0
    assert torch.equal(found, round_to_nearest(weight, 16))


def test_the_error_is_that_of_the_output(weight: torch.Tensor) -> None:
    inputs = torch.randn(TOKENS, WIDTH, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    expected = np.square(inputs.numpy() @ weight.double().numpy().T).sum() / TOKENS
    assert output_error(weight, inputs.T @ inputs / TOKENS) == pytest.approx(expected, rel=1e-9)


def test_linears_of_one_input_share_a_scaling(weight: torch.Tensor, hessian: Hessian) -> None:
    weights = {"q": weight, "k": weight * 0.5, "down": weight}
    hessians = {"q": hessian, "k": hessian, "down": Hessian(torch.eye(WIDTH), 1)}
    layers = list(peer_layers(weights, hessians, (16, 48)))
    kinds = [(layer.method, layer.group) for layer in layers]
    assert kinds == [(method, group) for group in (16, 48) for method in (PeerMethod.RTN, PeerMethod.AWQ)]
    assert [len(layer.alphas) for layer in layers] == [0, 2, 0, 2]
    together, _ = awq([weight, weight * 0.5], hessian, 16)
    assert torch.equal(layers[1].weights["k"], together[1])
    assert torch.equal(layers[1].weights["down"], round_to_nearest(weight, 16))


def test_bytes_are_those_of_the_tensors() -> None:
    config = {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "vocab_size": 100,
        "hidden_size": 96,
        "intermediate_size": 160,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
        "tie_word_embeddings": False,
    }
    inventory = inventory_from_config(config)
    for group in (32, 64, 128):
        found = peer_size(inventory, group)
        stored = sum(sum(tensor.nbytes for tensor in tensors(spec, group)) for spec in inventory.linears)
        assert found.size_bytes == stored
        payload = sum(spec.in_features * spec.out_features for spec in inventory.linears if spec.role is not Role.HEAD)
        assert found.overhead_bytes == found.size_bytes - payload // 2 - 2 * 100 * 96
        assert found.head_bpw == 16
        assert 8 * (found.size_bytes - 2 * 100 * 96) / payload == pytest.approx(found.bpw)


def tensors(spec: LinearSpec, group: int) -> list[np.ndarray]:
    """What a W4A16 checkpoint holds of a linear."""
    if spec.role is Role.HEAD:
        return [np.zeros((spec.out_features, spec.in_features), np.float16)]
    groups = len(range(0, spec.in_features, group))
    packed = np.zeros((spec.out_features, spec.in_features // 8), np.int32)
    bias = [np.zeros(spec.out_features, np.float16)] if spec.bias else []
    return [packed, np.zeros((spec.out_features, groups), np.float16), *bias]
