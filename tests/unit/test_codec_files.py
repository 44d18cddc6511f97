"""Safetensors checks, shards, configs and quant directories."""

import json

import pytest
import torch
from safetensors.torch import save_file

from exltune.errors import CorruptFileError, MissingTensorError, NotAModelError, QuantMismatchError
from exltune.exl3.directory import QuantDir
from exltune.exl3.quantizer import quantize_linear
from exltune.exl3.tensors import TensorFiles
from exltune.exl3.writer import PendingTensor, copy_side_files, write_configs, write_tensors


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "model"
    path.mkdir()
    config = {"tie_word_embeddings": True, "num_local_experts": 4}
    (path / "config.json").write_text(json.dumps(config))
    (path / "README.md").write_text("the base model's card")
    (path / "tokenizer.json").write_text("{}")
    save_file({"a": torch.arange(6.0).view(2, 3), "b": torch.ones(4, dtype=torch.bfloat16)}, path / "model.safetensors")
    return path


def test_headers_tell_shapes_and_bytes(model):
    files = TensorFiles(model)
    assert files.entry("a").shape == (2, 3)
    assert (files.entry("b").nbytes, files.entry("b").numel) == (8, 4)
    assert torch.equal(files.get("a"), torch.arange(6.0).view(2, 3))
    with pytest.raises(MissingTensorError, match="'c' is missing"):
        files.get("c")


@pytest.mark.parametrize("keep", [0, 5, 40, -1])
def test_truncated_files_are_named(model, keep):
    file = model / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:keep])
    with pytest.raises(CorruptFileError, match=r"model\.safetensors"):
        TensorFiles(model)


def test_what_is_no_model_is_refused(model, tmp_path):
    with pytest.raises(NotAModelError, match="no such directory"):
        TensorFiles(tmp_path / "absent")
    (model / "model.safetensors").unlink()
    with pytest.raises(NotAModelError, match="no safetensors"):
        TensorFiles(model)
    (model / "config.json").unlink()
    with pytest.raises(NotAModelError, match=r"no config\.json"):
        TensorFiles(model)


def test_a_missing_shard_is_named(model):
    index = {"weight_map": {"a": "model.safetensors", "z": "model-00002.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(MissingTensorError, match=r"model-00002\.safetensors"):
        TensorFiles(model)


@pytest.mark.slow
def test_a_directory_round_trips_through_shards(model, tmp_path):
    weight = torch.randn(128, 128, generator=torch.Generator().manual_seed(0))
    linear, _ = quantize_linear(weight, None, 2.5, "mul1", "x")
    stored = linear.tensors("layers.0.q") | {"norm.weight": torch.ones(8, dtype=torch.float16)}
    out = tmp_path / "quant"
    out.mkdir()
    pending = [PendingTensor(name, tensor.nbytes, lambda t=tensor: t) for name, tensor in stored.items()]
    write_tensors(out, pending, shard_bytes=linear.trellis.nbytes + 100)
    copy_side_files(model, out)
    write_configs(model, out, {"bits": 2.5, "head_bits": 6, "codebook": "mul1"})
    assert len(list(out.glob("model-*-of-*.safetensors"))) > 1
    quant = QuantDir(out)
    assert quant.keys == ("layers.0.q",)
    assert (quant.bits("layers.0.q"), quant.codebook("layers.0.q")) == (2.5, "mul1")
    assert quant.nbytes("layers.0.q") == linear.nbytes == 128 * 128 * 5 // 16 + 2 * 256 + 4
    assert torch.equal(quant.load("layers.0.q").dequantize(), linear.dequantize())
    assert not (out / "README.md").exists(), "the base model's card is not the quant's"
    config = json.loads((out / "config.json").read_text())
    assert (config["tie_word_embeddings"], config["num_experts"]) == (False, 4)
    storage = json.loads((out / "quantization_config.json").read_text())["tensor_storage"]["layers.0.q"]
    assert (storage["bits_per_weight"], storage["mul1_multiplier"]) == (2.5, 0x83DCD12D)


def test_a_model_without_trellis_is_no_quant(model):
    with pytest.raises(QuantMismatchError, match="no EXL3 tensors"):
        QuantDir(model)
