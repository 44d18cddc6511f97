"""Base quants that others made: taken after a look at their weights, refused with the reason."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from command_line import fail, succeed
from safetensors.torch import load_file, save_file

from exltune.exl3.directory import QuantDir
from exltune.store.names import RECORD
from exltune.store.quants.base_quants import find_base_quants

Tensors = dict[str, torch.Tensor]


def downloaded(quant: Path, to: Path, change: Callable[[Tensors], Tensors] = dict) -> Path:
    """A copy without exltune's note, its tensors changed."""
    shutil.copytree(quant, to, ignore=shutil.ignore_patterns(RECORD))
    (file,) = to.glob("*.safetensors")
    save_file(change(load_file(file)), file)
    return to


def with_other_weights(tensors: Tensors) -> Tensors:
    """The last layer's k: as wide, as long, and of another model."""
    name = "model.layers.1.self_attn.k_proj.suh"
    return {**tensors, name: tensors[name].roll(1)}


def test_quantize_makes_only_what_is_missing(moe_model: Path, quants: Path, data: list[str], tmp_path: Path) -> None:
    theirs = downloaded(quants / "3bpw_H6", tmp_path / "GLM-exl3-3.0bpw")
    words = ["quantize", moe_model, "--out", tmp_path, "--bits", "2,3", "--head-bits", "4", *data]
    assert succeed(*words)["quants"] == [str(tmp_path / "2bpw_H4"), str(theirs)]
    assert succeed(*words)["quants"] == [str(tmp_path / "2bpw_H4"), str(theirs)]
    found = find_base_quants(tmp_path, moe_model)
    assert [(quant.bits, quant.head_bits, quant.path) for quant in found] == [
        (2.0, 4.0, tmp_path / "2bpw_H4"),
        (3.0, 6.0, theirs),
    ]
    assert found[1].provenance is None


def test_one_of_another_fine_tune_is_refused(moe_model: Path, quants: Path, data: list[str], tmp_path: Path) -> None:
    downloaded(quants / "4bpw_H6", tmp_path / "theirs", with_other_weights)
    told = ("theirs: it was made from other weights than", "model.layers.1.self_attn.k_proj is off by ")
    fail(6, *told, here=tmp_path, arguments=("quantize", moe_model, "--out", tmp_path, "--bits", "2,4", *data))
    out = ("--quants", tmp_path, "--out", tmp_path / "m.json")
    fail(6, *told, here=tmp_path, arguments=("measure", moe_model, *out, *data))


def test_another_codebook_is_refused(moe_model: Path, quants: Path, data: list[str], tmp_path: Path) -> None:
    def to_mcg(tensors: Tensors) -> Tensors:
        return {name.replace(".mul1", ".mcg"): tensor for name, tensor in tensors.items()}

    theirs = downloaded(quants / "3bpw_H6", tmp_path / "theirs", to_mcg)
    assert QuantDir(theirs).codebook("lm_head") == "mcg"
    told = "it has codebook mcg, and mul1 was asked for"
    fail(6, told, here=tmp_path, arguments=("quantize", moe_model, "--out", tmp_path, "--bits", "2,3", *data))


def test_a_quantized_embedding_is_refused(moe_model: Path, quants: Path, tmp_path: Path) -> None:
    def with_table(tensors: Tensors) -> Tensors:
        table = tensors.pop("model.embed_tokens.weight")
        rows, groups = len(table), -(-table.shape[1] // 256)
        trellis = torch.zeros(rows, groups * 65, dtype=torch.int16)
        return {**tensors, "model.embed_tokens.trellis": trellis, "model.embed_tokens.signs": torch.ones(groups, 256)}

    theirs = downloaded(quants / "3bpw_H6", tmp_path / "theirs", with_table)
    told = ("its embedding is quantized (exllamav3's --embed_bits)", "Convert it again without")
    out = ("--quants", tmp_path, "--out", tmp_path / "m.json")
    fail(6, *told, here=tmp_path, arguments=("measure", moe_model, *out))
    fail(6, *told, here=tmp_path, arguments=("evaluate", moe_model, theirs))


def test_a_mix_is_passed_over_with_a_word(
    moe_model: Path, quants: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    finer = load_file(next((quants / "4bpw_H6").glob("*.safetensors")))

    def raised(tensors: Tensors) -> Tensors:
        return tensors | {name: tensor for name, tensor in finer.items() if ".layers.0.self_attn." in name}

    downloaded(quants / "3bpw_H6", tmp_path / "3bpw-hq", raised)
    downloaded(quants / "2bpw_H6", tmp_path / "2bpw")
    (found,) = find_base_quants(tmp_path, moe_model)
    assert found.bits == 2.0
    assert "3bpw-hq is passed over: a mix of 3, 4 bits is not a base quant" in caplog.text
