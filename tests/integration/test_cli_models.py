"""Other models through the command line: biases, tied heads, padded dims, other names of things, other codebooks."""

import json

import pytest
import torch
import yaml
from command_line import contents, succeed
from real_models import QWEN2, QWEN3_MOE, write_model
from safetensors.torch import load_file

from exltune.exl3.directory import QuantDir


@pytest.fixture(scope="module")
def qwen2(data, tmp_path_factory):
    """Biases, a tied head and an MLP of 160, with an mcg quant at 4 bits."""
    root = tmp_path_factory.mktemp("qwen2")
    model = write_model(root / "model", "Qwen2", QWEN2)
    quantize = ("quantize", model, "--out", root / "quants", "--bits", "4", "--head-bits", "4", "--codebook", "mcg")
    assert succeed(*quantize, *data) == {"quants": [str(root / "quants" / "4bpw_H4")]}
    return model, root / "quants" / "4bpw_H4"


def test_biases_and_padding(qwen2):
    model, quant = qwen2
    checkpoint, tensors = load_file(model / "model.safetensors"), load_file(quant / "model.safetensors")
    for name in ("q_proj", "k_proj", "v_proj"):
        bias = checkpoint[f"model.layers.0.self_attn.{name}.bias"]
        stored = tensors[f"model.layers.0.self_attn.{name}.bias"]
        assert stored.dtype == torch.float16
        assert torch.equal(stored[: len(bias)], bias.half())
        assert not stored[len(bias) :].any()
    assert tensors["model.layers.0.mlp.down_proj.trellis"].shape == (256 // 16, 128 // 16, 64)
    assert tensors["model.layers.0.mlp.down_proj.mcg"].shape == ()
    restored = QuantDir(quant).load("model.layers.0.mlp.down_proj").dequantize()[:160, :128].T
    weight = checkpoint["model.layers.0.mlp.down_proj.weight"].float()
    assert (restored - weight).norm() / weight.norm() < 0.12


def test_a_tied_head_is_untied(qwen2, data):
    model, quant = qwen2
    assert json.loads((model / "config.json").read_text())["tie_word_embeddings"]
    assert not json.loads((quant / "config.json").read_text())["tie_word_embeddings"]
    assert "lm_head.trellis" in load_file(quant / "model.safetensors")
    row = succeed("evaluate", model, quant, *data)["rows"][0]
    assert 0 < row["kl_ref_quant"] < 0.2
    assert row["top_1"] > 0.5


def test_linears_left_unquantized(qwen2, data, tmp_path):
    """16 bits come from the model itself: of nothing but the head the KL is nearly none."""
    model, quant = qwen2
    groups = succeed("inspect", model)["groups"]
    keys = [key for group in groups[:-1] for key in group["tensors"]]
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({"tensors": {"*": 4, "*_proj": 16}}))
    built = succeed("build", recipe, "--quants", quant.parent, "--model", model, "--out", tmp_path / "mix")
    tensors, checkpoint = load_file(tmp_path / "mix" / "model.safetensors"), load_file(model / "model.safetensors")
    for key in keys:
        assert torch.equal(tensors[f"{key}.weight"], checkpoint[f"{key}.weight"].half())
    # By exllamav3's count: bytes as stored, over weights with their padding.
    assert 10 < built["bpw"] < 11
    rows = succeed("evaluate", model, quant, tmp_path / "mix", *data)["rows"]
    assert rows[1]["kl_ref_quant"] < 0.5 * rows[0]["kl_ref_quant"]
    assert rows[1]["bpw"] == built["bpw"]


def test_globs_and_the_model_they_match(qwen2, tmp_path):
    _, quant = qwen2
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({"tensors": {"model.layers.*": 4}}))
    succeed("build", recipe, "--quants", quant.parent, "--out", tmp_path / "mix")
    # A mix of one width is the base quant itself, but for what is noted beside the tensors.
    ours, base = contents(tmp_path / "mix"), contents(quant)
    assert ours["model.safetensors"] == base["model.safetensors"]
    assert ours["quantization_config.json"] == base["quantization_config.json"]


def test_experts_counted_under_another_name(data, tmp_path):
    model = write_model(tmp_path / "model", "Qwen3Moe", QWEN3_MOE)
    config = json.loads((model / "config.json").read_text())
    assert config["num_local_experts"] == 2
    assert "num_experts" not in config
    quantize = ("quantize", model, "--out", tmp_path / "quants", "--bits", "4", "--codebook", "3inst", *data)
    quant = succeed(*quantize)["quants"][0]
    # exllamav3 reads the older name.
    written = json.loads((tmp_path / "quants" / "4bpw_H6" / "config.json").read_text())
    assert (written["num_experts"], written["num_local_experts"]) == (2, 2)
    del config["num_local_experts"]
    (model / "config.json").write_text(json.dumps(config | {"num_experts": 2}))
    row = succeed("evaluate", model, quant, *data)["rows"][0]
    assert 0 < row["kl_ref_quant"] < 0.2
