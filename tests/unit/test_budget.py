"""Sizes against published quants and against bytes added up tensor by tensor."""

from __future__ import annotations

from typing import Any

import pytest

from exltune.budget import SizeModel, group_bytes, linear_bytes, mix_size
from exltune.errors import BudgetError
from exltune.exl3.codebooks import Codebook
from exltune.inventory import inventory_from_config
from exltune.schema.inventory import Inventory, LinearSpec, Role

GIB = 1 << 30

GLM_4_7: dict[str, Any] = {
    "architectures": ["Glm4MoeForCausalLM"],
    "hidden_size": 5120,
    "num_hidden_layers": 92,
    "num_attention_heads": 96,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "intermediate_size": 12288,
    "moe_intermediate_size": 1536,
    "n_routed_experts": 160,
    "n_shared_experts": 1,
    "first_k_dense_replace": 3,
    "vocab_size": 151552,
    "use_qk_norm": True,
    "attention_bias": True,
}
QWEN3_30B_A3B: dict[str, Any] = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "hidden_size": 2048,
    "num_hidden_layers": 48,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "intermediate_size": 6144,
    "moe_intermediate_size": 768,
    "num_experts": 128,
    "vocab_size": 151936,
}
ODD_LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "intermediate_size": 320,
    "vocab_size": 1000,
    "attention_bias": True,
}


@pytest.fixture(scope="module")
def glm() -> SizeModel:
    return SizeModel(inventory_from_config(GLM_4_7), "mcg")


@pytest.mark.parametrize(
    ("bits", "head_bits", "gib"),
    [
        *((2, 6, 82.985), (3, 6, 123.867), (4, 6, 164.749), (5, 8, 205.811)),
        *((6, 8, 246.693), (8, 8, 328.456), (16, 16, 655.690)),
    ],
)
def test_published_sizes_of_glm_4_7(glm: SizeModel, bits: int, head_bits: int, gib: float) -> None:
    assert glm.uniform_size(bits, head_bits).size_bytes / GIB == pytest.approx(gib, abs=6e-4)


def test_published_bpw(glm: SizeModel) -> None:
    assert glm.uniform_size(3, 6).bpw == pytest.approx(3.016, abs=5e-4)
    qwen = SizeModel(inventory_from_config(QWEN3_30B_A3B), "mcg")
    assert qwen.uniform_size(3, 6).bpw == pytest.approx(3.034, abs=5e-4)


def _stored_bytes(spec: LinearSpec, bits: float, codebook: Codebook) -> int:
    """Added up from the shapes and element sizes of the tensors that stand in an EXL3 file."""
    tiles = (spec.padded_in // 16) * (spec.padded_out // 16)
    trellis = tiles * int(16 * bits) * 2
    marker = 0 if codebook == "3inst" else 4
    return trellis + 2 * spec.padded_in + 2 * spec.padded_out + marker + (2 * spec.padded_out if spec.bias else 0)


@pytest.mark.parametrize("codebook", ["mul1", "mcg", "3inst"])
@pytest.mark.parametrize("bits", [1, 2, 2.5, 3.5, 8])
def test_bytes_are_those_of_the_tensors(codebook: Codebook, bits: float) -> None:
    inventory = inventory_from_config(ODD_LLAMA)
    specs = {spec.key: spec for spec in inventory.linears}
    for spec in specs.values():
        assert linear_bytes(spec, bits, codebook) == _stored_bytes(spec, bits, codebook)
    for group in (*inventory.groups, inventory.head):
        expected = sum(_stored_bytes(specs[key], bits, codebook) for key in group.tensors)
        assert group_bytes(inventory, group.id, bits, codebook) == expected


def test_a_mix_adds_up_its_groups() -> None:
    inventory = inventory_from_config(QWEN3_30B_A3B | {"num_hidden_layers": 2, "num_experts": 4})
    bits = {group.id: float(2 + i % 4) for i, group in enumerate(inventory.groups)} | {"head": 6.0}
    size = mix_size(inventory, bits, "mul1")
    routers = [spec for spec in inventory.linears if spec.role is Role.ROUTER]
    router_bytes = sum(2 * spec.in_features * spec.out_features for spec in routers)
    groups = sum(group_bytes(inventory, group.id, bits[group.id], "mul1") for group in inventory.groups)
    numel = inventory.quantizable_parameters + sum(spec.in_features * spec.out_features for spec in routers)
    assert size.size_bytes == groups + router_bytes + group_bytes(inventory, "head", 6, "mul1")
    assert size.bpw == pytest.approx(8 * (groups + router_bytes) / numel, rel=1e-12)
    assert size.head_bpw == pytest.approx(8 * group_bytes(inventory, "head", 6, "mul1") / inventory.head.numel)
    payload = sum(group.numel * bits[group.id] for group in (*inventory.groups, inventory.head)) / 8
    assert size.overhead_bytes == size.size_bytes - payload


def test_a_budget_is_met_by_the_mix_whose_bpw_it_is(glm: SizeModel) -> None:
    inventory: Inventory = glm.inventory
    for bits in (2, 3, 5, 8):
        total = sum(glm.group_bytes(group.id, bits) for group in inventory.groups)
        assert glm.budget_bytes(glm.bpw_of(total)) == total
        assert glm.check_target(glm.bpw_of(total), [2, 3, 5, 8]) == total


@pytest.mark.parametrize(("target", "side"), [(2.0, "below the smallest"), (8.5, "above the largest")])
def test_impossible_targets_name_what_is_possible(glm: SizeModel, target: float, side: str) -> None:
    with pytest.raises(BudgetError, match=rf"{side}.*2\.017 to 8\.014") as caught:
        glm.check_target(target, [2, 3, 8])
    assert caught.value.exit_code == 4


def test_small_models_have_large_overhead() -> None:
    config = QWEN3_30B_A3B | {"hidden_size": 128, "moe_intermediate_size": 128, "num_experts": 8, "head_dim": 32}
    config |= {"num_attention_heads": 4, "num_key_value_heads": 4}
    size = SizeModel(inventory_from_config(config), "mcg").uniform_size(3, 6)
    assert size.bpw > 3.25
