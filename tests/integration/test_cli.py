"""Every command through the command line: what it prints for machines and for people, and what it writes."""

import json
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from command_line import EXECUTABLE, contents, exltune, start, succeed
from safetensors.torch import load_file

from exltune.inventory import groups_at_level, load_inventory

COMMANDS = ("inspect", "quantize", "measure", "optimize", "explain", "build", "evaluate", "tune", "demo")
ROW = {
    *("name", "path", "size_bytes", "bpw", "head_bpw", "kl_quant_ref", "kl_quant_ref_se", "kl_ref_quant"),
    *("kl_ref_quant_se", "perplexity", "top_1", "top_2", "top_3", "top_4", "top_5", "tokens", "is_reference"),
}
HELD_OUT_TOKENS = 12 * 31
PASSES = 6


def linear_tensors(quant: Path) -> dict[str, torch.Tensor]:
    """All tensors of quantized linears and router gates, by name."""
    tensors = load_file(quant / "model.safetensors")
    parts = (".trellis", ".suh", ".svh", ".mul1", ".bias", "mlp.gate.weight")
    return {name: tensor for name, tensor in tensors.items() if name.endswith(parts)}


def test_help_answers_at_once_and_loads_nothing_heavy():
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    shown = subprocess.run([EXECUTABLE, "--help"], capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert (after.ru_utime - before.ru_utime) + (after.ru_stime - before.ru_stime) < 0.5
    assert all(command in shown.stdout for command in COMMANDS)
    heavy = {"torch", "transformers", "scipy", "numpy", "numba", "optuna", "pydantic", "exllamav3", "safetensors"}
    code = (
        "import sys\nfrom exltune.cli import main\nsys.argv = ['exltune', '--help']\n"
        f"try:\n    main()\nexcept SystemExit:\n    print(sorted({heavy} & set(sys.modules)))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_and_json(command):
    outcome = exltune(command, "--help")
    assert outcome.code == 0
    assert "--json" in outcome.stdout


def test_the_installed_command_prints_one_object_and_nothing_else(moe_model):
    process = start("inspect", moe_model, "--json")
    stdout, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    assert len(stdout.splitlines()) == 1
    assert json.loads(stdout)["architecture"] == "Glm4MoeForCausalLM"
    process = start("inspect", moe_model / "absent")
    stdout, stderr = process.communicate(timeout=120)
    assert (process.returncode, stdout) == (10, "")
    assert stderr.startswith("error: ")
    assert "Traceback" not in stderr


def test_inspect(moe_model, quants):
    report = succeed("inspect", moe_model)
    checkpoint = load_file(moe_model / "model.safetensors")
    assert report["layers"] == 2
    assert report["parameters"] == sum(tensor.numel() for tensor in checkpoint.values())
    *groups, head = report["groups"]
    assert head["id"] == "head"
    assert {"id", "role", "layer", "tensors", "numel"} <= head.keys()
    for group in groups:
        assert group["numel"] == sum(checkpoint[f"{key}.weight"].numel() for key in group["tensors"])
    assert report["quantizable_parameters"] == sum(group["numel"] for group in groups)
    for bits in ("2", "3", "4"):
        stored = linear_tensors(quants / f"{bits}bpw_H6")
        assert report["size_bytes"][bits] == sum(tensor.nbytes for tensor in stored.values())
    assert "experts.down" in exltune("inspect", moe_model).stdout


def test_quantize_writes_what_it_says_and_keeps_what_is_there(moe_model, quants, data):
    assert sorted(path.name for path in quants.iterdir()) == ["2bpw_H6", "3bpw_H6", "4bpw_H6"]
    before = contents(quants)
    again = succeed("quantize", moe_model, "--out", quants, "--bits", "4,2,3", *data)
    assert again == {"quants": [str(quants / f"{bits}bpw_H6") for bits in (2, 3, 4)]}
    assert contents(quants) == before
    for bits in (2, 3, 4):
        quant = quants / f"{bits}bpw_H6"
        assert (quant / "model.safetensors").stat().st_mode == (quant / "config.json").stat().st_mode
        config = json.loads((quant / "config.json").read_text())["quantization_config"]
        assert (config["quant_method"], config["bits"], config["head_bits"]) == ("exl3", bits, 6)
        record = json.loads((quant / "exltune.json").read_text())
        assert record["provenance"]["model_path"] == str(moe_model)
        assert all(0 < errors["rfn"] < 1 for errors in record["tensors"].values())
    # Each bit about halves the error.
    errors = [json.loads((quants / f"{bits}bpw_H6" / "exltune.json").read_text())["tensors"] for bits in (2, 3, 4)]
    for key in errors[0].keys() - {"lm_head"}:
        assert errors[0][key]["rfn"] > 1.5 * errors[1][key]["rfn"] > 2.2 * errors[2][key]["rfn"]


def test_measure_at_level_3(moe_model, quants, measurement):
    content = json.loads(measurement.read_text())
    detail = content["exltune"]
    parts = groups_at_level(load_inventory(moe_model), 3)
    assert [group["id"] for group in detail["groups"]] == [part.id for part in parts]
    members = [member for group in detail["groups"] for member in group["members"]]
    assert members == [group["id"] for group in succeed("inspect", moe_model)["groups"][:-1]]
    assert detail["quants"] == {bits: str(quants / f"{bits}bpw_H6") for bits in ("2", "3", "4")}
    assert content["base"]["dir"] == detail["quants"]["2"]
    assert content["base_kld"] == detail["mixes"][0]["kl_ref_quant"] > detail["mixes"][2]["kl_ref_quant"] > 0
    for group in detail["groups"]:
        assert [probe["bits"] for probe in group["probes"]] == [2, 3, 4]
        assert all(len(probe["kld_rows"]) == 8 and probe["kld_nats"] >= 0 for probe in group["probes"])
    assert sorted(path.name for path in measurement.parent.iterdir()) == ["measurement.json", "scores.db"]


@pytest.mark.parametrize("level", [("-l2",), ("--level", "l2"), ("-l", "2")])
def test_measure_at_level_2(moe_model, quants, data, tmp_path, level):
    out = tmp_path / "new" / "m.json"
    found = succeed("measure", moe_model, "--quants", quants, *level, "--out", out, *data)
    assert found["measurement"] == str(out)
    groups = json.loads(out.read_text())["exltune"]["groups"]
    assert [group["id"] for group in groups] == ["0.attn", "0.mlp", "1.attn", "1.shared", "1.experts"]
    assert found["groups"] == 5
    # A recipe from parts gives all groups of a part the same bits.
    succeed("optimize", out, "--target-bpw", "3.15", "--passes", 2, "--out", tmp_path / "r.yaml")


@pytest.fixture(scope="module")
def recipe(measurement, tmp_path_factory):
    """A recipe at 3.15 bpw and what optimize printed."""
    out = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    return out, succeed("optimize", measurement, "--target-bpw", "3.15", "--passes", PASSES, "--out", out)


def test_optimize_hands_over_the_best_of_all_methods(recipe):
    out, found = recipe
    content = yaml.safe_load(out.read_text())
    standings = {row["name"]: row for row in found["search"]["standings"]}
    # Methods that came to the same mix stand there once.
    assert {"uniform", "exllamav3-strategy"} < standings.keys()
    assert any(name.startswith("search") for name in standings)
    best = min(row["selection_kld"] for row in standings.values())
    assert standings[found["source"]]["selection_kld"] == best == content["exltune"]["measured_kld_nats"]
    assert found["search"]["searched"]
    assert 0 < found["search"]["passes"] <= PASSES
    assert content["achieved_bpw"] == found["achieved_bpw"] <= content["target_bpw"] == 3.15
    assert all(row["bpw"] <= 3.15 for row in standings.values())
    assert set(content["tensors"].values()) <= {2, 3, 4}


def test_optimize_without_the_quants_trusts_predictions(measurement, tmp_path):
    content = json.loads(measurement.read_text())
    for bits in content["exltune"]["quants"]:
        content["exltune"]["quants"][bits] += "-gone"
    moved = tmp_path / "moved.json"
    moved.write_text(json.dumps(content))
    outcome = exltune("optimize", moved, "--target-bpw", "3.15", "--out", tmp_path / "r.yaml", "--json")
    assert "not at hand" in outcome.stderr
    standings = outcome.json["search"]["standings"]
    assert all(row["selection_kld"] is None for row in standings)
    predicted = {row["name"]: row["predicted_kld"] for row in standings}
    assert predicted[outcome.json["source"]] == min(predicted.values())
    assert not outcome.json["search"]["searched"]


def test_build_copies_tensors_bit_for_bit(recipe, quants, tmp_path):
    file, found = recipe
    built = succeed("build", file, "--quants", quants, "--out", tmp_path / "mix")
    assert built["bpw"] == found["achieved_bpw"]
    tensors = load_file(tmp_path / "mix" / "model.safetensors")
    sources = {bits: load_file(quants / f"{bits}bpw_H6" / "model.safetensors") for bits in (2, 3, 4)}
    bits_of = yaml.safe_load(file.read_text())["tensors"]
    for name, tensor in tensors.items():
        assert torch.equal(tensor, sources[bits_of.get(name.rpartition(".")[0], 2)][name]), name
    assert tensors.keys() == sources[2].keys()
    # What a base quant notes of itself is not true of the mix.
    names = {path.name for path in (tmp_path / "mix").iterdir()}
    assert "exltune.json" not in names
    assert {"recipe.yaml", "tokenizer.json", "quantization_config.json"} <= names


def test_base_quants_are_told_from_what_lies_beside_them(moe_model, quants, recipe, measurement, data, tmp_path):
    folder = tmp_path / "quants"
    shutil.copytree(quants, folder)
    shutil.copytree(moe_model, folder / "model")
    (folder / "notes.txt").write_text("")
    file, _ = recipe
    uniform = yaml.safe_load(file.read_text()) | {"tensors": {"*": 3}}
    del uniform["exltune"]
    (tmp_path / "uniform.yaml").write_text(yaml.safe_dump(uniform))
    succeed("build", file, "--quants", folder, "--out", folder / "mix")
    succeed("build", tmp_path / "uniform.yaml", "--quants", folder, "--out", folder / "uniform")
    again = ("--target-bpw", "3.15", "--passes", PASSES, "--out", tmp_path / "again.yaml")
    succeed("optimize", measurement, "--quants", folder, *again)
    assert (tmp_path / "again.yaml").read_text() == file.read_text()
    before = contents(folder)
    succeed("quantize", folder / "model", "--out", folder, "--bits", "2,3,4", *data)
    assert contents(folder) == before


def test_evaluate(moe_model, quants, data, tmp_path):
    folders = [quants / f"{bits}bpw_H6" for bits in (2, 3, 4)]
    found = succeed("evaluate", moe_model, *folders, *data, "--out", tmp_path / "evaluation.json")
    assert json.loads((tmp_path / "evaluation.json").read_text()) == found
    assert [row["name"] for row in found["rows"]] == ["2bpw_H6", "3bpw_H6", "4bpw_H6"]
    for row, folder in zip(found["rows"], folders, strict=True):
        assert row.keys() == ROW
        assert row["path"] == str(folder)
        assert row["tokens"] == HELD_OUT_TOKENS
        assert row["size_bytes"] == sum(tensor.nbytes for tensor in linear_tensors(folder).values())
        tops = [row[f"top_{k}"] for k in range(1, 6)]
        assert tops == sorted(tops, reverse=True)
        assert 0 <= tops[-1] <= tops[0] <= 1
    kl = [row["kl_ref_quant"] for row in found["rows"]]
    assert kl == sorted(kl, reverse=True)
    shown = exltune("evaluate", moe_model, *folders, *data)
    for title in ("Quant", "Size", "bpw", "KL(quant‖ref)", "KL(ref‖quant)", "Perplexity", "Top-1", "Top-5", "4bpw_H6"):
        assert title in shown.stdout


def test_evaluate_tells_directories_of_one_name_apart(moe_model, quants, data, tmp_path):
    # "16" is what a mix calls the unquantized weights; a directory may be called so nevertheless.
    other, sixteen = tmp_path / "other" / "2bpw_H6", tmp_path / "16"
    for folder in (other, sixteen):
        shutil.copytree(quants / "2bpw_H6", folder)
    rows = succeed("evaluate", moe_model, quants / "2bpw_H6", other, sixteen, *data)["rows"]
    assert [row["name"] for row in rows] == [str(quants / "2bpw_H6"), str(other), str(sixteen)]
    assert len({row["kl_ref_quant"] for row in rows}) == 1
    assert rows[0]["kl_ref_quant"] > 0.01


def test_data_takes_several_paths_in_one_option(moe_model, quants, data, tmp_path):
    option, first, _, *rest = data
    one = succeed("evaluate", moe_model, quants / "3bpw_H6", option, first, *rest)
    both = succeed("evaluate", moe_model, quants / "3bpw_H6", *data)
    glued = succeed("evaluate", f"{option}={first}", data[2], *rest, moe_model, quants / "3bpw_H6")
    assert one["provenance"]["tokens_sha256"] != both["provenance"]["tokens_sha256"]
    assert glued["provenance"] == both["provenance"]
