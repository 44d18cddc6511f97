"""Inventory of tiny checkpoints that transformers itself writes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from exltune.errors import (
    CorruptFileError,
    MissingTensorError,
    NotAModelError,
    QuantMismatchError,
    UnsupportedArchitectureError,
)
from exltune.inventory import (
    check_same_model,
    groups_at_level,
    inventory_from_config,
    load_inventory,
    model_fingerprint,
    read_config,
    unquantized_tensor_names,
)
from exltune.schema.inventory import Role

_SMALL = {
    "vocab_size": 256,
    "hidden_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "intermediate_size": 256,
    "max_position_embeddings": 64,
    "pad_token_id": None,
}
_MOE = {"moe_intermediate_size": 128, "num_experts_per_tok": 2, "norm_topk_prob": True}
_VARIANTS: dict[str, tuple[str, dict[str, object]]] = {
    "llama": ("llama", {}),
    "llama-biased-tied": ("llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    "mistral": ("mistral", {}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {}),
    "qwen3_moe": ("qwen3_moe", {**_MOE, "num_local_experts": 4}),
    "glm4_moe": ("glm4_moe", {**_MOE, "n_routed_experts": 4, "use_qk_norm": True, "attention_bias": True}),
    "glm4_moe-two-shared": ("glm4_moe", {**_MOE, "n_routed_experts": 4, "n_shared_experts": 2}),
}


def _build(variant: str) -> PreTrainedModel:
    model_type, more = _VARIANTS[variant]
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **{**_SMALL, **more}))


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, int]]:
    """Directory and parameter count of every variant."""
    root = tmp_path_factory.mktemp("checkpoints")
    made = {}
    for variant in _VARIANTS:
        model = _build(variant)
        model.save_pretrained(root / variant)
        made[variant] = (root / variant, sum(p.numel() for p in model.parameters()))
    return made


@pytest.fixture
def glm(checkpoints: dict[str, tuple[Path, int]], tmp_path: Path) -> Path:
    """A copy of the Glm4Moe checkpoint that a test may damage."""
    return Path(shutil.copytree(checkpoints["glm4_moe"][0], tmp_path / "glm"))


def _edit_config(path: Path, **changes: object) -> None:
    config = json.loads((path / "config.json").read_text()) | changes
    (path / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not ...}))


def _edit_tensors(path: Path, **changes: torch.Tensor | None) -> None:
    file = path / "model.safetensors"
    tensors = {k: v for k, v in (load_file(file) | changes).items() if v is not None}
    save_file(tensors, file, metadata={"format": "pt"})


@pytest.mark.parametrize("variant", _VARIANTS)
def test_inventory_accounts_for_every_tensor_that_transformers_writes(
    checkpoints: dict[str, tuple[Path, int]], variant: str
) -> None:
    path, parameters = checkpoints[variant]
    inventory = load_inventory(path)
    buffers = sum(4 for spec in inventory.linears if spec.role is Role.ROUTER and "glm" in variant)
    assert inventory.parameters == parameters + buffers
    expected = set(unquantized_tensor_names(read_config(path)))
    for spec in inventory.linears:
        if spec.role is Role.ROUTER or (spec.role is Role.HEAD and inventory.tied_head):
            continue
        expected |= {f"{spec.key}.weight"} | ({f"{spec.key}.bias"} if spec.bias else set())
    assert expected == set(load_file(path / "model.safetensors"))


@pytest.mark.parametrize("variant", _VARIANTS)
def test_config_alone_gives_the_same_inventory(checkpoints: dict[str, tuple[Path, int]], variant: str) -> None:
    path, _ = checkpoints[variant]
    assert inventory_from_config(read_config(path)) == load_inventory(path)


def test_glm_groups(checkpoints: dict[str, tuple[Path, int]]) -> None:
    inventory = load_inventory(checkpoints["glm4_moe"][0])
    assert [group.id for group in inventory.groups[:14]] == [
        *("0.attn.q", "0.attn.k", "0.attn.v", "0.attn.o", "0.mlp.gate", "0.mlp.up", "0.mlp.down"),
        *("1.attn.q", "1.attn.k", "1.attn.v", "1.attn.o", "1.shared.gate", "1.shared.up", "1.shared.down"),
    ]
    experts = next(group for group in inventory.groups if group.id == "1.experts.gate_up")
    assert experts.tensors[:2] == ("model.layers.1.mlp.experts.0.gate_proj", "model.layers.1.mlp.experts.0.up_proj")
    assert experts.numel == 4 * 2 * 128 * 128
    assert (inventory.head.id, inventory.head.tensors) == ("head", ("lm_head",))
    assert inventory.quantizable_parameters == sum(group.numel for group in inventory.groups)


def test_parts_at_all_levels(checkpoints: dict[str, tuple[Path, int]]) -> None:
    inventory = load_inventory(checkpoints["glm4_moe"][0])
    singles, parts = groups_at_level(inventory, 4), groups_at_level(inventory, 2)
    assert [(part.id, part.role, part.members) for part in singles] == [
        (group.id, group.role, (group.id,)) for group in inventory.groups
    ]
    assert [part.id for part in parts[:5]] == ["0.attn", "0.mlp", "1.attn", "1.shared", "1.experts"]
    assert parts[2].members == ("1.attn.q", "1.attn.k", "1.attn.v", "1.attn.o")
    assert sum(part.numel for part in parts) == inventory.quantizable_parameters
    with pytest.raises(ValueError, match="level"):
        groups_at_level(inventory, 5)
    layers, halves = groups_at_level(inventory, 0), groups_at_level(inventory, 1)
    assert [part.id for part in layers] == [str(layer) for layer in range(inventory.layers)]
    assert [part.id for part in halves[:4]] == ["0.attn", "0.mlp", "1.attn", "1.mlp"]
    assert [member.split(".")[1] for member in halves[3].members] == ["shared"] * 3 + ["experts"] * 2
    for coarse in (layers, halves, groups_at_level(inventory, 3)):
        assert [member for part in coarse for member in part.members] == [group.id for group in inventory.groups]


def test_pairs_of_level_3(checkpoints: dict[str, tuple[Path, int]]) -> None:
    inventory = load_inventory(checkpoints["glm4_moe"][0])
    parts = {part.id: part for part in groups_at_level(inventory, 3)}
    assert list(parts)[:5] == ["0.attn.q", "0.attn.kv", "0.attn.o", "0.mlp.gate_up", "0.mlp.down"]
    assert {id_: part.members for id_, part in parts.items() if len(part.members) > 1 and part.layer == 1} == {
        "1.attn.kv": ("1.attn.k", "1.attn.v"),
        "1.shared.gate_up": ("1.shared.gate", "1.shared.up"),
    }
    assert all(part.id == f"{part.layer}.{part.role}" for part in parts.values())
    numel = {group.id: group.numel for group in inventory.groups}
    assert all(part.numel == sum(numel[member] for member in part.members) for part in parts.values())


@pytest.mark.parametrize("key", ["num_experts", "num_local_experts", "n_routed_experts"])
def test_expert_count_has_three_names(checkpoints: dict[str, tuple[Path, int]], tmp_path: Path, key: str) -> None:
    path = Path(shutil.copytree(checkpoints["qwen3_moe"][0], tmp_path / "model"))
    _edit_config(path, **({"num_experts": ..., "num_local_experts": ..., "n_routed_experts": ...} | {key: 4}))
    assert load_inventory(path) == load_inventory(checkpoints["qwen3_moe"][0])


def test_layers_beyond_the_last_are_ignored(glm: Path) -> None:
    _edit_tensors(glm, **{"model.layers.3.eh_proj.weight": torch.ones(128, 256)})
    assert load_inventory(glm).layers == 3


def test_stored_head_unties(checkpoints: dict[str, tuple[Path, int]], tmp_path: Path) -> None:
    path = Path(shutil.copytree(checkpoints["llama-biased-tied"][0], tmp_path / "model"))
    assert load_inventory(path).tied_head
    _edit_tensors(path, **{"lm_head.weight": torch.ones(256, 128)})
    assert not load_inventory(path).tied_head


def test_what_is_no_model(tmp_path: Path, glm: Path) -> None:
    with pytest.raises(NotAModelError, match="no such directory"):
        read_config(tmp_path / "nowhere")
    with pytest.raises(NotAModelError, match=r"config\.json"):
        read_config(tmp_path)
    _edit_config(glm, hidden_size="wide")
    with pytest.raises(NotAModelError, match="hidden_size"):
        load_inventory(glm)
    (glm / "config.json").write_text("{")
    with pytest.raises(CorruptFileError):
        load_inventory(glm)
    (glm / "config.json").write_text("[]")
    with pytest.raises(CorruptFileError):
        load_inventory(glm)


def test_unsupported_architectures_name_the_supported(glm: Path) -> None:
    _edit_config(glm, architectures=["MambaForCausalLM"])
    with pytest.raises(UnsupportedArchitectureError, match=r"MambaForCausalLM.*Glm4MoeForCausalLM"):
        load_inventory(glm)
    _edit_config(glm, architectures=["Glm4MoeForCausalLM"], n_group=2)
    with pytest.raises(UnsupportedArchitectureError, match="n_group"):
        load_inventory(glm)
    _edit_config(glm, n_group=1, intermediate_size=70000)
    with pytest.raises(UnsupportedArchitectureError, match="slices"):
        load_inventory(glm)


@pytest.mark.parametrize(
    "name",
    ["model.layers.2.mlp.experts.3.down_proj.weight", "model.norm.weight", "model.layers.0.self_attn.q_proj.bias"],
)
def test_a_missing_tensor_is_named(glm: Path, name: str) -> None:
    _edit_tensors(glm, **{name: None})
    with pytest.raises(MissingTensorError, match=name.replace(".", r"\.")):
        load_inventory(glm)


def test_tensors_that_do_not_fit_the_config(glm: Path) -> None:
    _edit_tensors(glm, **{"lm_head.weight": torch.ones(256, 128).to(torch.float8_e4m3fn)})
    with pytest.raises(UnsupportedArchitectureError, match="F8_E4M3"):
        load_inventory(glm)
    _edit_tensors(glm, **{"lm_head.weight": torch.ones(200, 128)})
    with pytest.raises(CorruptFileError, match=r"lm_head\.weight has shape \(200, 128\)"):
        load_inventory(glm)


def _as_exl3(path: Path, bits: int) -> None:
    """Replace every linear by EXL3 tensors of the right shapes."""
    inventory = load_inventory(path)
    changes: dict[str, torch.Tensor | None] = {}
    for spec in inventory.linears:
        if spec.role is Role.ROUTER:
            continue
        tiles = (spec.padded_in // 16, spec.padded_out // 16)
        changes[f"{spec.key}.weight"] = None
        changes[f"{spec.key}.trellis"] = torch.zeros(*tiles, 16 * bits, dtype=torch.int16)
        changes[f"{spec.key}.suh"] = torch.ones(spec.padded_in, dtype=torch.float16)
        changes[f"{spec.key}.svh"] = torch.ones(spec.padded_out, dtype=torch.float16)
    _edit_tensors(path, **changes)


@pytest.mark.parametrize("variant", ["glm4_moe", "llama-biased-tied"])
def test_an_exl3_directory_has_the_inventory_of_its_model(
    checkpoints: dict[str, tuple[Path, int]], tmp_path: Path, variant: str
) -> None:
    model = checkpoints[variant][0]
    quant = Path(shutil.copytree(model, tmp_path / "quant"))
    _as_exl3(quant, 3)
    assert load_inventory(quant) == load_inventory(model)
    check_same_model(model, quant)


def test_quants_of_other_models_are_refused(glm: Path, tmp_path: Path) -> None:
    quant = Path(shutil.copytree(glm, tmp_path / "quant"))
    _as_exl3(quant, 2)
    spoiled = iter(Path(shutil.copytree(quant, tmp_path / f"spoiled{i}")) for i in range(9))

    def refuse(path: Path, match: str) -> None:
        with pytest.raises(QuantMismatchError, match=match):
            check_same_model(glm, path)

    _edit_tensors(path := next(spoiled), **{"model.norm.weight": torch.full((128,), 0.5)})
    refuse(path, r"model\.norm\.weight has other values")
    _edit_tensors(path := next(spoiled), **{"lm_head.svh": None})
    refuse(path, r"lm_head\.svh is missing")
    _edit_tensors(path := next(spoiled), **{"lm_head.trellis": torch.zeros(8, 8, 32, dtype=torch.int16)})
    refuse(path, r"lm_head\.trellis has shape")
    _edit_config(path := next(spoiled), num_hidden_layers=2)
    refuse(path, "other sizes")
    _edit_config(path := next(spoiled), rms_norm_eps=0.5)
    refuse(path, r"rms_norm_eps is 0\.5")
    file = (path := next(spoiled)) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(CorruptFileError):
        check_same_model(glm, path)


def test_fingerprint_follows_content_alone(glm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = model_fingerprint(glm)
    assert model_fingerprint(shutil.copytree(glm, tmp_path / "copy")) == before
    _edit_config(glm, transformers_version="9.9")
    assert model_fingerprint(glm) == before
    _edit_tensors(glm, **{"model.norm.weight": torch.full((128,), 0.5)})
    changed = model_fingerprint(glm)
    assert changed != before
    monkeypatch.setattr("exltune.inventory.identity._WHOLE_BYTES", 0)
    monkeypatch.setattr("exltune.inventory.identity._MIB", 64)
    sampled = model_fingerprint(glm)
    assert sampled not in (before, changed)
    file = glm / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(bytes(content))
    assert model_fingerprint(glm) != sampled
