"""Inventories from configs alone: known models' sizes, and what a bad config is told."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from exltune.errors import CorruptFileError, MissingTensorError, NotAModelError, UnsupportedArchitectureError
from exltune.inventory import (
    ARCHITECTURES,
    cache_layers,
    check_same_model,
    context_limit,
    inventory_from_config,
    load_inventory,
    load_unquantized,
    model_shape,
)
from exltune.inventory.layout import unquantized_shapes
from exltune.schema.inventory import Role

_CONFIGS = Path(__file__).resolve().parents[1] / "fixtures" / "configs"
_MOONLIGHT = {"hidden_size": 256, "num_hidden_layers": 2, "num_attention_heads": 2, "n_routed_experts": 2} | {
    **{"kv_lora_rank": 128, "qk_nope_head_dim": 64, "qk_rope_head_dim": 32, "v_head_dim": 64},
    **{"intermediate_size": 256, "moe_intermediate_size": 128, "vocab_size": 256, "n_shared_experts": 0},
}


def _config(name: str) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((_CONFIGS / f"{name}.json").read_text())
    return config


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        *(("llama-3.1-8b", 8.03), ("qwen3-4b", 4.02), ("qwen3-30b-a3b", 30.5), ("glm-4-9b", 9.40)),
        *(("phi-3-mini", 3.82), ("mixtral-8x7b", 46.7), ("gpt-oss-120b", 116.83), ("gpt-oss-20b", 20.91)),
        *(("kimi-k2", 1026), ("moonlight-16b-a3b", 16.0), ("qwen3.5-35b-a3b", 35), ("qwen3.5-122b-a10b", 122)),
    ],
)
def test_parameters_as_published(name: str, billions: float) -> None:
    digits = len(str(billions).partition(".")[2])
    assert round(inventory_from_config(_config(name)).parameters / 1e9, digits) == billions


def test_every_row_has_a_config() -> None:
    classes = {_config(file.stem)["architectures"][0] for file in _CONFIGS.glob("*.json")}
    alone = {"MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3_5ForCausalLM", "Qwen3_5MoeForCausalLM"}
    assert classes | alone == set(ARCHITECTURES)


def test_text_configs_need_no_nesting() -> None:
    nested = _config("qwen3.5-35b-a3b")
    flat = nested["text_config"] | {"architectures": ["Qwen3_5MoeForCausalLM"]}
    assert inventory_from_config(flat).linears == inventory_from_config(nested).linears
    assert cache_layers(flat) == cache_layers(nested)
    assert context_limit(flat) == context_limit(nested) == 262144


def test_the_vocabulary_may_stand_beside_the_nested_config() -> None:
    config = _config("qwen3.5-35b-a3b")
    outer = config | {"vocab_size": 1000}
    assert inventory_from_config(outer).vocab_size == 1000
    del outer["text_config"]["vocab_size"]
    assert inventory_from_config(outer).vocab_size == 1000


def test_layer_types_and_interval_say_the_same() -> None:
    config = _config("qwen3.5-27b")
    by_list = inventory_from_config(config)
    del config["text_config"]["layer_types"]
    assert inventory_from_config(config) == by_list
    assert [layer.kind for layer in cache_layers(config)[:4]] == ["linear", "linear", "linear", "full"]


def test_mlp_layer_types_are_counted() -> None:
    config = _config("glm-4.7-flash")
    expected = inventory_from_config(config | {"first_k_dense_replace": 2})
    kinds = ["dense"] * 2 + ["sparse"] * 45
    assert inventory_from_config(config | {"mlp_layer_types": kinds}) == expected
    with pytest.raises(UnsupportedArchitectureError, match="mlp_layer_types has dense layers behind"):
        inventory_from_config(config | {"mlp_layer_types": kinds[::-1]})


def test_gates_are_in_no_group() -> None:
    inventory = inventory_from_config(_config("qwen3-next-80b-a3b"))
    grouped = {key for group in inventory.groups for key in group.tensors}
    gates = [spec for spec in inventory.linears if spec.role is Role.GATE]
    assert [(spec.key.rpartition(".")[2], spec.out_features) for spec in gates[:3]] == [
        *(("in_proj_ba", 64), ("shared_expert_gate", 1), ("in_proj_ba", 64)),
    ]
    assert not grouped & {spec.key for spec in gates}


def test_a_limit_is_not_needed() -> None:
    assert context_limit({"architectures": ["LlamaForCausalLM"]}) is None
    with pytest.raises(NotAModelError, match=r"max_position_embeddings is -1 .*positive"):
        context_limit({"max_position_embeddings": -1})


_WRONG: tuple[Any, ...] = (None, 0, -4, True, "4096", 2.5, [4096])


@pytest.mark.parametrize("value", _WRONG)
@pytest.mark.parametrize(
    ("name", "field"),
    [
        *(("llama-3.1-8b", key) for key in ("num_hidden_layers", "hidden_size", "num_attention_heads", "vocab_size")),
        *(("mixtral-8x7b", key) for key in ("intermediate_size", "num_local_experts")),
        *(("kimi-k2", key) for key in ("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")),
        *(("glm-4.7", key) for key in ("moe_intermediate_size", "n_routed_experts", "intermediate_size")),
        *(("gpt-oss-20b", key) for key in ("sliding_window", "num_local_experts")),
        *(("qwen3.5-35b-a3b", key) for key in ("hidden_size", "vocab_size", "num_experts")),
    ],
)
def test_bad_numbers_name_their_field(name: str, field: str, value: Any) -> None:
    config = _config(name)
    config.get("text_config", config)[field] = value
    problem = "is missing" if value is None else "where a positive whole number is needed"
    with pytest.raises(NotAModelError, match=rf"here\.json: .*{field}.*{problem}.*Correct config\.json"):
        cache_layers(config, "here.json")


@pytest.mark.parametrize("value", [0, -1, True, "8", 0.5])
@pytest.mark.parametrize(
    ("name", "field"),
    [
        *(("llama-3.1-8b", key) for key in ("num_key_value_heads", "head_dim")),
        *(("qwen3.5-27b", key) for key in ("linear_num_value_heads", "linear_conv_kernel_dim")),
        *(("kimi-k2", key) for key in ("q_lora_rank",)),
    ],
)
def test_numbers_with_a_default_are_checked_too(name: str, field: str, value: Any) -> None:
    config = _config(name)
    config.get("text_config", config)[field] = value
    with pytest.raises(NotAModelError, match=field):
        inventory_from_config(config)


def _list(entries: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda config: config.update(layer_types=entries)


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (_list(None), "layer_types is not a list of 24"),
        (_list(["full_attention"]), "layer_types is not a list of 24"),
        (_list("full_attention"), "layer_types is not a list of 24"),
        (_list(["linear_attention"] * 24), "layer_types holds 'linear_attention' where one of sliding_attention"),
        (_list([7] * 24), "layer_types holds 7"),
        (lambda config: config.update(first_k_dense_replace=1, architectures="GptOss"), "architectures is 'GptOss'"),
        (lambda config: config.update(architectures=[3]), r"architectures is \[3\]"),
    ],
)
def test_bad_lists(damage: Callable[[dict[str, Any]], Any], match: str) -> None:
    config = _config("gpt-oss-20b")
    damage(config)
    with pytest.raises(NotAModelError, match=match):
        inventory_from_config(config)


@pytest.mark.parametrize(("value", "match"), [(None, "text_config is missing"), ([], r"text_config is \[\]")])
def test_bad_nesting(value: Any, match: str) -> None:
    with pytest.raises(NotAModelError, match=match):
        inventory_from_config(_config("qwen3.5-27b") | {"text_config": value})


def test_what_exllamav3_does_not_load() -> None:
    with pytest.raises(UnsupportedArchitectureError, match="n_group is 8, and exllamav3 loads DeepseekV3"):
        inventory_from_config(_config("deepseek-v3"))
    with pytest.raises(UnsupportedArchitectureError, match=r"'MambaForCausalLM'.*GptOssForCausalLM"):
        cache_layers(_config("llama-3.1-8b") | {"architectures": ["MambaForCausalLM"]})
    with pytest.raises(UnsupportedArchitectureError, match=r"'\(none\)'"):
        inventory_from_config({})


@pytest.fixture
def moonlight_quant(tmp_path: Path) -> Path:
    """A small EXL3 directory of a class that exltune only plans."""
    config = _config("moonlight-16b-a3b") | _MOONLIGHT
    (tmp_path / "config.json").write_text(json.dumps(config))
    tensors = {
        name: torch.zeros(dims, dtype=torch.float16) for name, dims in unquantized_shapes(model_shape(config)).items()
    }
    for spec in (spec for spec in inventory_from_config(config).linears if not spec.role.fp16):
        tensors[f"{spec.key}.trellis"] = torch.zeros(spec.padded_in // 16, spec.padded_out // 16, 32, dtype=torch.int16)
        tensors[f"{spec.key}.suh"] = torch.zeros(spec.padded_in, dtype=torch.float16)
        tensors[f"{spec.key}.svh"] = torch.zeros(spec.padded_out, dtype=torch.float16)
    save_file(tensors, tmp_path / "model.safetensors")
    return tmp_path


def test_a_quant_of_a_planned_class_can_be_read_for_planning(moonlight_quant: Path) -> None:
    config = json.loads((moonlight_quant / "config.json").read_text())
    assert load_inventory(moonlight_quant, planning=True) == inventory_from_config(config)
    (moonlight_quant / "config.json").write_text(json.dumps(config | {"kv_lora_rank": 256}))
    with pytest.raises(CorruptFileError, match=r"kv_[ab]\w+\.weight has shape"):
        load_inventory(moonlight_quant, planning=True)
    (moonlight_quant / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(MissingTensorError, match=r"model\.layers\.2"):
        load_inventory(moonlight_quant, planning=True)


def test_planned_classes_are_refused_before_any_work(moonlight_quant: Path) -> None:
    for refused in (
        lambda: load_inventory(moonlight_quant),
        lambda: load_unquantized(moonlight_quant),
        lambda: check_same_model(moonlight_quant, moonlight_quant),
    ):
        with pytest.raises(UnsupportedArchitectureError, match=r"plans DeepseekV3.*These can: Llama.*Glm4Moe\w+\.$"):
            refused()
