"""Inventories and cache layers of known models against exllamav3's own module tree, built from the config alone.

The configs are those of real models with fewer layers and experts; every width is the real one.
"""

from __future__ import annotations

import json
import types
from pathlib import Path
from typing import Any

import pytest

from exltune.budget import SizeModel
from exltune.inventory import cache_layers, context_limit, groups_at_level, inventory_from_config
from exltune.schema.attention import CacheLayer
from exltune.schema.inventory import PAIRS, Inventory
from exltune.search.baselines.strategy import exllamav3_strategy

CONFIGS = Path(__file__).resolve().parents[1] / "fixtures" / "configs"
NAMES = sorted(file.stem for file in CONFIGS.glob("*.json") if file.stem != "deepseek-v3")
LAYERS, EXPERTS, TOKENS, SLOTS, HEAD_BITS = 5, 4, 512, 3, 6
#: What Qwen3-VL's reader wants to find beside a config with a vision tower.
PREPROCESSOR = {
    "image_processor_type": "Qwen2VLImageProcessorFast",
    "size": {"longest_edge": 16777216, "shortest_edge": 65536},
    "patch_size": 16,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}

Case = tuple[dict[str, Any], Any, Inventory, Path]


def shrunk(name: str) -> dict[str, Any]:
    """A fixture with few layers and experts."""
    config = json.loads((CONFIGS / f"{name}.json").read_text())
    text = config.get("text_config", config)
    text["num_hidden_layers"] = LAYERS
    if "layer_types" in text:
        text["layer_types"] = text["layer_types"][:LAYERS]
    for key in ("num_experts", "num_local_experts", "n_routed_experts"):
        if key in text:
            text |= {key: EXPERTS, "num_experts_per_tok": 2}
    if name == "gpt-oss-20b":
        text["sliding_window"] = 257  # Where a window less one makes a page less.
    return config


@pytest.fixture(scope="module", params=NAMES)
def case(request: pytest.FixtureRequest, exllamav3: types.ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Case:
    """Config, exllamav3's module tree of it, our inventory, and the directory."""
    config = shrunk(request.param)
    directory = tmp_path_factory.mktemp(request.param)
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
    model = exllamav3.Model.from_config(exllamav3.Config.from_directory(str(directory)))
    return config, model, inventory_from_config(config), directory


def test_linears(case: Case) -> None:
    from exllamav3.modules import Linear

    _, model, inventory, _ = case
    theirs = {m.key: (m.in_features, m.out_features, m.qmap is not None) for m in model if isinstance(m, Linear)}
    quantized = {key for group in (*inventory.groups, inventory.head) for key in group.tensors}
    ours = {}
    for spec in inventory.linears:
        grouped = spec.key in quantized
        dims = (spec.padded_in, spec.padded_out) if grouped else (spec.in_features, spec.out_features)
        ours[spec.key] = (*dims, grouped)
    assert ours == theirs


def test_strategy_key_for_key(case: Case) -> None:
    from exllamav3.conversion.allocation import create_q_strategy

    _, model, inventory, _ = case
    for bpw, hq, half_steps in ((2.1, 0, False), (2.57, 1, True), (3.15, 0, True), (4.25, 2, False), (6.66, 1, False)):
        theirs, _ = create_q_strategy(model, None, model.config, bpw, HEAD_BITS, 4, hq, half_steps=half_steps)
        assert theirs.pop("lm_head") == HEAD_BITS
        assert exllamav3_strategy(inventory, bpw, half_steps=half_steps, hq=hq) == theirs


def test_groups_follow_the_optimizer_targets(case: Case) -> None:
    _, model, inventory, _ = case
    finest = {key: i for m in model.modules for i, keys in leaves(m.optimizer_targets(), m.key) for key in keys}
    for group in inventory.groups:
        assert len({finest[key] for key in group.tensors}) == 1, group.id
    keys = {group.id: group.tensors for group in inventory.groups}
    # Of latent and linear attention it swaps more at a time.
    for part in (one for one in groups_at_level(inventory, 3) if one.role in PAIRS.values()):
        tensors = {key for member in part.members for key in keys[member]}
        assert tensors == {key for key in finest if finest[key] == finest[min(tensors)]}, part.id


def leaves(targets: list[Any], where: str) -> list[tuple[str, list[str]]]:
    """Lists of keys within nested lists, each with a name."""
    if targets and all(isinstance(item, str) for item in targets):
        return [(where, targets)]
    return [leaf for i, item in enumerate(targets) for leaf in leaves(item, f"{where}/{i}")]


@pytest.mark.parametrize("bits", [3, 2.5])
def test_sizes_are_those_of_get_storage_info(exllamav3: types.ModuleType, case: Case, bits: float) -> None:
    """Of a quant whose file is a header over a hole: exllamav3 reads sizes from headers alone."""
    _, model, inventory, directory = case
    write_imagined_quant(directory / "model.safetensors", model, inventory, bits)
    built = exllamav3.Model.from_config(exllamav3.Config.from_directory(str(directory)))
    (directory / "model.safetensors").unlink()
    bpw, head_bpw, vram_bits = built.get_storage_info()
    size = SizeModel(inventory, "mul1").uniform_size(bits, HEAD_BITS)
    assert 8 * size.size_bytes == vram_bits
    assert size.bpw == pytest.approx(bpw, rel=1e-12)
    assert size.head_bpw == pytest.approx(head_bpw, rel=1e-12)


def write_imagined_quant(file: Path, model: Any, inventory: Inventory, bits: float) -> None:
    """Headers of what exllamav3 would store for its own linears; only the biases follow our inventory."""
    from exllamav3.modules import Linear

    biased = {spec.key for spec in inventory.linears if spec.bias}
    tensors: dict[str, tuple[str, tuple[int, ...]]] = {}
    for m in (m for m in model if isinstance(m, Linear)):
        if m.qmap is None:
            tensors[f"{m.key}.weight"] = ("F16", (m.out_features, m.in_features))
        else:
            width = HEAD_BITS if m.qbits_key == "head_bits" else bits
            tensors[f"{m.key}.trellis"] = ("I16", (m.in_features // 16, m.out_features // 16, int(16 * width)))
            tensors[f"{m.key}.suh"] = ("F16", (m.in_features,))
            tensors[f"{m.key}.svh"] = ("F16", (m.out_features,))
            tensors[f"{m.key}.mul1"] = ("I32", ())
        if m.key in biased:
            tensors[f"{m.key}.bias"] = ("F16", (m.out_features,))
    header, offset = {}, 0
    for name, (dtype, dims) in tensors.items():
        end = offset + (4 if dtype == "I32" else 2)
        for dim in dims:
            end = offset + (end - offset) * dim
        header[name] = {"dtype": dtype, "shape": list(dims), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    with file.open("wb") as handle:
        handle.write(len(text).to_bytes(8, "little") + text)
        handle.truncate(8 + len(text) + offset)


def paged_bytes(layer: CacheLayer, bits: tuple[int, int] | None) -> int:
    """Bytes of TOKENS tokens as DESIGN.md section 6 has them."""
    if layer.kind == "mla":
        latent = layer.kv_lora_rank // 32 * (4 * bits[0] + 2) if bits else 2 * layer.kv_lora_rank
        return TOKENS * (latent + 2 * layer.qk_rope_head_dim)
    width = layer.kv_heads * layer.head_dim
    return TOKENS * (width // 32 * (4 * sum(bits) + 4) if bits else 4 * width)


@pytest.mark.parametrize("bits", [None, (5, 4)])
def test_cache_layers(case: Case, bits: tuple[int, int] | None) -> None:
    from exllamav3.cache import Cache, CacheLayer_fp16, CacheLayer_quant

    config, model, _, _ = case
    more = {"layer_type": CacheLayer_quant, "k_bits": bits[0], "v_bits": bits[1]} if bits else {}
    cache = Cache(model, TOKENS, max_batch_size=SLOTS, **({"layer_type": CacheLayer_fp16} | more))
    ours = cache_layers(config)
    assert [layer.layer for layer in ours] == list(range(LAYERS))
    paged = {layer.layer: paged_bytes(layer, bits) for layer in ours if layer.kind in ("full", "mla")}
    states = {layer.layer: SLOTS * layer.state_bytes for layer in ours if layer.kind in ("sliding", "linear")}
    assert {index: layer.storage_size() for (index, _), layer in cache.layers.items()} == paged
    assert {index: layer.storage_size() for (index, _), layer in cache.recurrent_layers.items()} == states
    cache.detach_from_model()


def test_heads_and_limit(case: Case) -> None:
    config, model, _, _ = case
    assert {layer.q_heads for layer in cache_layers(config) if layer.kind != "linear"} == {model.config.num_q_heads}
    assert context_limit(config) == model.config.max_position_embeddings


def test_parameters_are_those_of_transformers(case: Case) -> None:
    import torch
    import transformers

    config, _, inventory, _ = case
    text = config.get("text_config", config)
    made = transformers.AutoConfig.for_model(**{key: v for key, v in text.items() if key != "architectures"})
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(made)
    buffers = sum(b.numel() for name, b in model.named_buffers() if name.endswith("e_score_correction_bias"))
    assert inventory.parameters == sum(p.numel() for p in model.parameters()) + buffers
