"""Recipes that cannot be built: each is refused with the key that is wrong, and nothing is written."""

import pytest
import yaml
from command_line import fail, write_recipe

EXPERT = "model.layers.1.mlp.experts.1.up_proj"
UPS = [f"model.layers.1.mlp.experts.{expert}.up_proj" for expert in range(4)]
RECIPES = {
    "unknown key": ({"tenors": {}}, 5, ("tenors",)),
    "unknown linear": ({"tensors": {"model.layers.7.mlp.up_proj": 3}}, 5, ("model.layers.7.mlp.up_proj",)),
    "unequal experts": ({"tensors": {EXPERT: 4}}, 5, ("1.experts.gate_up", "3 and 4")),
    "gate and up of experts": ({"tensors": dict.fromkeys(UPS, 4)}, 5, ("1.experts.gate_up", "3 and 4", "gate and up")),
    "bits without a quant": ({"tensors": {"model.layers.0.mlp.up_proj": 5}}, 5, ("5 bits", "2, 3, 4")),
    "unquantized without a model": ({"tensors": {"model.layers.0.mlp.up_proj": 16}}, 5, ("16", "--model")),
    "unquantized down alone": (
        {"tensors": {"model.layers.0.mlp.down_proj": 16}},
        5,
        ("model.layers.0.mlp.down_proj stays unquantized", "gate or up at 16"),
    ),
    "no number": ({"tensors": {"model.layers.0.mlp.up_proj": "three"}}, 5, ("model.layers.0.mlp.up_proj",)),
    "head without a quant": ({"head_bits": 8}, 6, ("8 bits", "only 6")),
}


@pytest.mark.parametrize("case", RECIPES)
def test_recipes_that_cannot_be_built(moe_model, quants, tmp_path, case):
    changes, code, words = RECIPES[case]
    recipe = write_recipe(tmp_path, moe_model, 3, **changes)
    arguments = ("build", recipe, "--quants", quants, "--out", tmp_path / "new" / "mix")
    fail(code, *words, here=tmp_path, arguments=arguments)


@pytest.mark.parametrize("text", ["tensors: [", "", "just words", "- 1\n- 2", "tensors: 3", "target_bpw: 3"])
def test_files_that_are_no_recipe(quants, tmp_path, text):
    (tmp_path / "r.yaml").write_text(text)
    arguments = ("build", tmp_path / "r.yaml", "--quants", quants, "--out", tmp_path / "mix")
    fail(5, "r.yaml", here=tmp_path, arguments=arguments)


def test_a_recipe_without_some_linears(moe_model, quants, tmp_path):
    content = yaml.safe_load(write_recipe(tmp_path, moe_model, 3).read_text())
    del content["tensors"][EXPERT]
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(content))
    arguments = ("build", tmp_path / "r.yaml", "--quants", quants, "--out", tmp_path / "mix")
    fail(5, EXPERT, "no bits", here=tmp_path, arguments=arguments)
