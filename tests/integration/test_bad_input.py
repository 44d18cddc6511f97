"""What a user can get wrong: one message that says what, where and how to mend it, and nothing left behind."""

import json
import os
import shutil
import threading
from pathlib import Path

import pytest
import torch
from command_line import contents, exltune, fail, largest_file, succeed, write_recipe
from real_models import GLM4_MOE, LLAMA, write_model, write_text
from safetensors.torch import load_file, save_file

SHORT = ("--rows", "16", "--row-length", "32")


@pytest.fixture
def model(moe_model, tmp_path):
    """A copy of the model, to be damaged."""
    return Path(shutil.copytree(moe_model, tmp_path / "model"))


@pytest.fixture
def copies(quants, tmp_path):
    """A copy of the base quants, to be damaged."""
    return Path(shutil.copytree(quants, tmp_path / "copies"))


def change_json(file, **changes):
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def change_tensors(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def poison(name, value=float("nan")):
    def change(tensors):
        tensors[name].view(-1)[5] = value

    return change


def commands_on(model, quants, data, out):
    """Every command that reads a model."""
    return [
        ("inspect", model),
        ("quantize", model, "--out", out / "new" / "quants", *data),
        ("measure", model, "--quants", quants, "--out", out / "new" / "m.json", *data),
        ("evaluate", model, quants / "2bpw_H6", "--out", out / "new" / "e.json", *data),
        ("tune", model, "--out", out / "new" / "tune", "--target-bpw", "3", *data),
    ]


def truncate(model):
    file = model / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


def drop_tensor(model):
    change_tensors(model, lambda tensors: tensors.pop("model.layers.1.mlp.experts.2.down_proj.weight"))


def reshape_tensor(model):
    change_tensors(
        model, lambda tensors: tensors.update({"model.layers.0.mlp.up_proj.weight": torch.zeros(64, 128).bfloat16()})
    )


DAMAGED = {
    "absent": (shutil.rmtree, 10, ("no such directory",)),
    "no config": (lambda model: (model / "config.json").unlink(), 10, ("no config.json",)),
    "no weights": (lambda model: (model / "model.safetensors").unlink(), 10, ("no safetensors",)),
    "config cut": (lambda model: (model / "config.json").write_text('{"archit'), 13, ("config.json", "read")),
    "no number": (lambda model: change_json(model / "config.json", hidden_size=None), 10, ("hidden_size",)),
    "architecture": (
        lambda model: change_json(model / "config.json", architectures=["MambaForCausalLM"]),
        11,
        ("MambaForCausalLM", "Supported", "Glm4MoeForCausalLM"),
    ),
    "truncated": (truncate, 13, ("model.safetensors", "damaged")),
    "missing tensor": (drop_tensor, 12, ("model.layers.1.mlp.experts.2.down_proj.weight", "missing")),
    "other shape": (reshape_tensor, 13, ("model.layers.0.mlp.up_proj.weight", "shape")),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_models_that_are_none(model, quants, data, tmp_path, damage):
    change, code, words = DAMAGED[damage]
    change(model)
    for arguments in commands_on(model, quants, data, tmp_path):
        fail(code, str(model), *words, here=tmp_path, arguments=arguments)


@pytest.mark.parametrize(
    "name",
    ["model.embed_tokens.weight", "model.norm.weight", "model.layers.1.mlp.gate.weight", "lm_head.weight"],
)
def test_weights_that_are_no_numbers(model, quants, data, tmp_path, name):
    change_tensors(model, poison(name, float("inf") if "gate" in name else float("nan")))
    for arguments in commands_on(model, quants, data, tmp_path)[1:]:
        if arguments[0] != "measure" or name != "lm_head.weight":
            fail(14, str(model), name, "NaN", here=tmp_path, arguments=arguments)


def test_nan_in_a_later_layer_undoes_what_was_quantized(model, data, tmp_path):
    change_tensors(model, poison("model.layers.1.self_attn.o_proj.weight"))
    arguments = ("quantize", model, "--out", tmp_path / "quants", "--bits", "4", *data)
    fail(14, "model.layers.1.self_attn.o_proj.weight", "NaN", here=tmp_path, arguments=arguments)


def test_options_that_do_not_exist(moe_model, quants, measurement, data, tmp_path):
    quantize = ("quantize", moe_model, "--out", tmp_path / "q", *data)
    measure = ("measure", moe_model, "--quants", quants, "--out", tmp_path / "m.json", *data)
    tune = ("tune", moe_model, "--out", tmp_path / "t", "--target-bpw", "3", *data)
    for command in (quantize, tune):
        fail(2, "9 bits", here=tmp_path, arguments=(*command, "--bits", "2,9"))
        fail(2, "2.5 bits", "mul1", here=tmp_path, arguments=(*command, "--bits", "2.5,4", "--codebook", "mcg"))
        fail(2, "is not a list", here=tmp_path, arguments=(*command, "--bits", "two"))
        fail(2, "no numbers", here=tmp_path, arguments=(*command, "--bits", ","))
        fail(2, "nan or inf", here=tmp_path, arguments=(*command, "--head-bits", "nan"))
    for command in (measure, tune):
        fail(2, "l7", "l2", "l3", here=tmp_path, arguments=(*command, "--level", "l7"))
    for command in (quantize, measure, tune):
        fail(2, "engine", "abacus", "reference", here=tmp_path, arguments=(*command, "--engine", "abacus"))
    # What the parser itself refuses.
    for extra in (("--rows", "8"), ("--codebook", "mul2"), ("--no-such-option",)):
        outcome = exltune(*quantize, *extra)
        assert (outcome.code, outcome.stdout) == (2, "")


@pytest.mark.parametrize(
    ("target", "code", "words"),
    [("2.2", 4, "below the smallest"), ("4.3", 4, "above the largest"), ("nan", 2, "Give a")],
)
def test_targets_out_of_range(moe_model, measurement, data, tmp_path, target, code, words):
    optimize = ("optimize", measurement, "--target-bpw", target, "--out", tmp_path / "r.yaml")
    tune = ("tune", moe_model, "--target-bpw", target, "--out", tmp_path / "t", "--bits", "2,3,4", *data)
    for arguments in (optimize, tune):
        message = fail(code, target, words, here=tmp_path, arguments=arguments).stderr
        assert target == "nan" or ("2.269" in message and "4.266" in message)


def bad_texts(tmp_path):
    (tmp_path / "empty.txt").write_text("  \n")
    (tmp_path / "latin.txt").write_bytes("Grüße aus Köln. ".encode("latin-1") * 1000)
    write_text(tmp_path / "short.txt", 3, 2000)
    (tmp_path / "same.txt").write_text("The same sentence again and again. " * 3000)
    return {
        "absent.txt": ("no such text file",),
        "empty.txt": ("empty",),
        "latin.txt": ("UTF-8",),
        "short.txt": ("tokens", "16 rows", "needed"),
        "same.txt": ("rejected",),
    }


def test_texts_that_cannot_be_used(moe_model, quants, tmp_path):
    for name, words in bad_texts(tmp_path).items():
        options = ("--data", tmp_path / name, *SHORT)
        for arguments in commands_on(moe_model, quants, options, tmp_path)[1:]:
            where = () if name in ("short.txt", "same.txt") else (name,)
            fail(7, *where, *words, here=tmp_path, arguments=arguments)


@pytest.mark.parametrize(
    ("content", "word"), [(None, "no tokenizer.json"), ('{"model": ', "tokenizer.json"), ("{}", "")]
)
def test_tokenizers_that_cannot_be_used(model, quants, data, tmp_path, content, word):
    (model / "tokenizer.json").unlink()
    if content is not None:
        (model / "tokenizer.json").write_text(content)
    arguments = ("quantize", model, "--out", tmp_path / "q", *data)
    fail(7 if content is None else 13, str(model), word, here=tmp_path, arguments=arguments)


def test_a_vocabulary_that_the_model_lacks(model, data, tmp_path):
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["e"] = 4000
    (model / "tokenizer.json").write_text(json.dumps(tokenizer))
    arguments = ("quantize", model, "--out", tmp_path / "q", *data)
    fail(7, "4000", "vocabulary", "320", here=tmp_path, arguments=arguments)


def test_outputs_that_are_there_already(moe_model, quants, measurement, data, tmp_path):
    file, folder = tmp_path / "file", tmp_path / "folder"
    file.write_text("mine")
    folder.mkdir()
    (folder / "mine.txt").write_text("mine")
    target = ("--target-bpw", "3.15")
    measure = ("measure", moe_model, "--quants", quants, *data)
    evaluate = ("evaluate", moe_model, quants / "2bpw_H6", *data)
    optimize = ("optimize", measurement, *target)
    for command in (measure, evaluate, optimize):
        fail(8, str(file), "--force", here=tmp_path, arguments=(*command, "--out", file))
        for force in ((), ("--force",)):
            fail(8, str(folder), "directory", here=tmp_path, arguments=(*command, "--out", folder, *force))
    recipe = write_recipe(tmp_path, moe_model, 3)
    build = ("build", recipe, "--quants", quants, "--out")
    fail(8, str(folder), here=tmp_path, arguments=(*build, folder))
    # --force replaces models alone, never whatever else is there.
    fail(8, str(folder), "does not replace", here=tmp_path, arguments=(*build, folder, "--force"))
    for force in ((), ("--force",)):
        fail(8, str(file), here=tmp_path, arguments=(*build, file, *force))
    fail(8, str(folder), here=tmp_path, arguments=("tune", moe_model, "--out", folder, *target, *data))
    fail(8, str(folder), here=tmp_path, arguments=("demo", "--out", folder))
    succeed(*build, tmp_path / "model")
    succeed(*build, tmp_path / "model", "--force")
    succeed(*optimize, "--out", file, "--force")


def test_quants_made_otherwise_are_kept(moe_model, copies, data, tmp_path):
    quantize = ("quantize", moe_model, "--out", copies, "--bits", "2,3,4")
    other = ("--rows", "64", "--row-length", "32", *data[:3])
    fail(8, "2bpw_H6", "otherwise", here=tmp_path, arguments=(*quantize, *other))
    fail(8, "2bpw_H6", here=tmp_path, arguments=(*quantize, *data, "--codebook", "mcg"))
    # Without a note of ours it is somebody else's quant of this model, and stays.
    (copies / "2bpw_H6" / "exltune.json").unlink()
    before = contents(tmp_path)
    assert "Taking 2bpw_H6 as it is" in exltune(*quantize, *data).stderr
    assert contents(tmp_path) == before


def test_quants_of_another_model(moe_model, quants, copies, measurement, data, tmp_path):
    other = write_model(tmp_path / "other", "Glm4Moe", GLM4_MOE, seed=1)
    llama = write_model(tmp_path / "llama", "Llama", LLAMA)
    recipe = write_recipe(tmp_path, moe_model, 3)
    for model, word in ((other, "model.embed_tokens.weight"), (llama, "config.json")):
        measure = ("measure", model, "--quants", quants, "--out", tmp_path / "m.json", *data)
        evaluate = ("evaluate", model, quants / "3bpw_H6", "--out", tmp_path / "e.json", *data)
        build = ("build", recipe, "--quants", quants, "--model", model, "--out", tmp_path / "mix")
        for arguments in (measure, evaluate, build):
            fail(6, word, str(quants), str(model), here=tmp_path, arguments=arguments)
    # A fine-tune may leave norms alone; what exltune noted beside the quants tells it apart.
    tuned = Path(shutil.copytree(moe_model, tmp_path / "tuned"))
    change_tensors(tuned, poison("model.layers.0.self_attn.q_proj.weight", 0.5))
    arguments = ("measure", tuned, "--quants", quants, "--out", tmp_path / "m.json", *data)
    fail(6, "other weights", here=tmp_path, arguments=arguments)
    for model in (other, tuned):
        arguments = ("optimize", measurement, "--model", model, "--target-bpw", "3", "--out", tmp_path / "r.yaml")
        fail(6, "another model", str(model), here=tmp_path, arguments=arguments)
    # One stranger among the base quants.
    change_tensors(copies / "4bpw_H6", poison("model.norm.weight", 0.5))
    fail(
        6, "4bpw_H6", "norm", here=tmp_path, arguments=("build", recipe, "--quants", copies, "--out", tmp_path / "mix")
    )


def test_folders_without_usable_quants(moe_model, copies, data, tmp_path):
    measure = ("measure", moe_model, "--out", tmp_path / "m.json", *data, "--quants")
    evaluate = ("evaluate", moe_model, *data)
    fail(6, "no such directory", here=tmp_path, arguments=(*measure, tmp_path / "absent"))
    fail(6, "no base quants", here=tmp_path, arguments=(*measure, moe_model))
    fail(6, "no EXL3", here=tmp_path, arguments=(*evaluate, moe_model))
    _, quantize, as_reference, _, tune = commands_on(copies / "3bpw_H6", copies, data, tmp_path)
    for arguments in (quantize, tune):
        fail(10, "3bpw_H6", "is an EXL3 quant", "unquantized", here=tmp_path, arguments=arguments)
    fail(6, "4bpw_H6", "more than the reference", "3bpw_H6", here=tmp_path, arguments=as_reference)
    fail(2, "twice", here=tmp_path, arguments=(*evaluate, copies / "2bpw_H6", copies / ".." / "copies" / "2bpw_H6"))
    shutil.copytree(copies / "3bpw_H6", copies / "again")
    fail(6, "3bpw_H6 and again", "3 bits", here=tmp_path, arguments=(*measure, copies))
    shutil.rmtree(copies / "again")
    truncate(copies / "3bpw_H6")
    fail(13, "3bpw_H6", "damaged", here=tmp_path, arguments=(*measure, copies))
    fail(13, "3bpw_H6", "damaged", here=tmp_path, arguments=(*evaluate, copies / "3bpw_H6"))


def test_quants_that_lack_a_tensor_or_hold_nan(moe_model, copies, data, tmp_path):
    measure = ("measure", moe_model, "--quants", copies, "--out", tmp_path / "m.json", *data)
    evaluate = ("evaluate", moe_model, copies / "3bpw_H6", "--out", tmp_path / "e.json", *data)
    change_tensors(copies / "3bpw_H6", poison("model.layers.1.mlp.experts.3.up_proj.svh"))
    for arguments in (measure, evaluate):
        fail(14, "model.layers.1.mlp.experts.3.up_proj", here=tmp_path, arguments=arguments)
    change_tensors(copies / "3bpw_H6", lambda tensors: tensors.pop("model.layers.0.self_attn.o_proj.trellis"))
    for arguments, code in ((measure, 12), (evaluate, 6)):
        fail(code, "3bpw_H6", "model.layers.0.self_attn.o_proj", here=tmp_path, arguments=arguments)


def test_measurements_that_no_longer_fit(moe_model, copies, tmp_path):
    texts = [write_text(tmp_path / "first.txt", 1), write_text(tmp_path / "second.txt", 2)]
    file = tmp_path / "m.json"
    succeed("measure", moe_model, "--quants", copies, "--out", file, "-l2", "--data", *texts, *SHORT)
    optimize = ("optimize", file, "--target-bpw", "3", "--out", tmp_path / "r.yaml")
    kept = texts[0].read_text()
    write_text(texts[0], 7)
    fail(7, "texts", "changed", str(file), here=tmp_path, arguments=optimize)
    texts[0].unlink()
    fail(7, "first.txt", "no such text file", here=tmp_path, arguments=optimize)
    texts[0].write_text(kept)
    change_json(copies / "4bpw_H6" / "config.json", comment="another quant")
    fail(6, "4bpw_H6", "another quant", here=tmp_path, arguments=optimize)
    shutil.move(copies / "4bpw_H6", copies / ".away")
    fail(6, "4 bits", here=tmp_path, arguments=(*optimize, "--quants", copies))
    for content, word in (("{", "json"), ("{}", "base"), ('{"base": 3}', "base")):
        file.write_text(content)
        fail(7, str(file), word, here=tmp_path, arguments=optimize)
    file.unlink()
    fail(7, str(file), "No such file", here=tmp_path, arguments=optimize)


def test_a_disk_without_room(moe_model, quants, data, tmp_path):
    recipe = write_recipe(tmp_path, moe_model, 3)
    llama = write_model(tmp_path / "llama", "Llama", LLAMA)
    commands = {
        100_000: ("build", recipe, "--quants", quants, "--out", tmp_path / "new" / "mix"),
        100: ("evaluate", moe_model, quants / "2bpw_H6", "--out", tmp_path / "new" / "e.json", *data),
        101: ("measure", moe_model, "--quants", quants, "--out", tmp_path / "new" / "m.json", "-l2", *data),
        102: ("quantize", llama, "--out", tmp_path / "new" / "q", "--bits", "4", *data),
    }
    for limit, arguments in commands.items():
        # SQLite does not tell why it could not write.
        word = "run the same command again" if arguments[0] in ("measure", "evaluate") else "File too large"
        with largest_file(limit):
            fail(15, word, here=tmp_path, arguments=arguments)
    # What was under way is waited for, and nothing more is begun.
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("quantize")]


def test_places_where_nothing_can_be_written(moe_model, quants, data, tmp_path):
    file = tmp_path / "file"
    file.write_text("no directory")
    recipe = write_recipe(tmp_path, moe_model, 3)
    commands = [
        ("build", recipe, "--quants", quants, "--out", file / "mix"),
        ("quantize", moe_model, "--out", file, "--bits", "4", *data),
        ("measure", moe_model, "--quants", quants, "--out", file / "m.json", *data),
        ("tune", moe_model, "--out", file / "tune", "--target-bpw", "3", *data),
    ]
    for arguments in commands:
        fail(15, str(file), here=tmp_path, arguments=arguments)


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_directories_that_may_not_be_written(moe_model, data, tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    arguments = ("quantize", moe_model, "--out", tmp_path / "locked" / "q", "--bits", "4", *data)
    fail(15, "locked", "ermission", here=tmp_path, arguments=arguments)


def test_base_quants_of_a_fine_tune_are_no_source_for_the_recipe(measurement, copies, tmp_path):
    """Shapes, bytes and norms are alike: what was noted beside the quants and in the recipe decides."""
    recipe = tmp_path / "recipe.yaml"
    succeed("optimize", measurement, "--target-bpw", "3.3", "--out", recipe)
    for note in copies.glob("*/exltune.json"):
        content = json.loads(note.read_text())
        change_json(note, provenance=content["provenance"] | {"model_sha256": "0" * 64})
    arguments = ("build", recipe, "--quants", copies, "--out", tmp_path / "mix")
    fail(6, "another model", str(recipe), here=tmp_path, arguments=arguments)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("plan", "config.json", "--context", "1e5"), ("--context", "integer")),
        (("data", "inspect"), ("MODEL",)),
        (("tune", "model", "--bpw", "3"), ("--bpw",)),
    ],
)
def test_what_the_command_line_refuses_itself_is_json_too(arguments, words):
    outcome = exltune(*arguments, "--json")
    assert outcome.code == outcome.json["error"]["exit_code"] == 2
    assert all(word in outcome.json["error"]["message"] for word in words)
    assert exltune(*arguments).stdout == ""


def test_a_trade_where_nothing_fits(measurement):
    memory = ("--contexts", "128,256", "--json", "--vram")
    assert exltune("tradeoff", measurement, *memory, "1MiB").code == 4
    assert exltune("tradeoff", measurement, *memory, "16GiB").code == 0


def test_a_record_of_another_kind_is_named_in_words(measurement, tmp_path):
    recipe = tmp_path / "evaluation.json"
    recipe.write_text("{}")
    fail(7, "evaluation.json", "not a valid measurement", "base", here=tmp_path, arguments=("report", recipe))


def test_quants_with_another_tokenizer(moe_model, copies, data, tmp_path):
    """Two tokens changed places: what was calibrated, and what will be served, is not what is scored."""
    file = copies / "4bpw_H6" / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    file.write_text(json.dumps(tokenizer))
    words = ("4bpw_H6", "another tokenizer", str(moe_model), f"'a' is token {vocabulary['a']} there")
    measure = ("measure", moe_model, "--quants", copies, "--out", tmp_path / "m.json", *data)
    evaluate = ("evaluate", moe_model, copies / "4bpw_H6", "--out", tmp_path / "e.json", *data)
    gate = ("compare", copies / "4bpw_H6", "--against", copies / "3bpw_H6", "--reference", moe_model, *data)
    for arguments in (measure, evaluate, gate):
        fail(6, *words, here=tmp_path, arguments=arguments)
    # Another layout of the same tokens is the same tokenizer.
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    file.write_text(json.dumps(tokenizer, indent=4))
    succeed(*evaluate)
