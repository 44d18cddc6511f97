"""Records, scores and tensors that survive a kill."""

import pytest
import torch
import yaml
from command_line import largest_file

from exltune.errors import CorruptFileError, DataError, RecipeError, StorageError
from exltune.exl3.linear import QuantizedLinear
from exltune.exl3.quantizer import QuantStats
from exltune.exl3.tensors import save_tensors
from exltune.schema.mix import Mix
from exltune.schema.recipe import Recipe
from exltune.schema.score import Score
from exltune.store.records import canonical, read_recipe, read_record, write_recipe, write_record
from exltune.store.tensors import TensorStore


def score(name, kl=0.125):
    return Score(mix=name, positions=3, kl_ref_mix=(kl,), kl_mix_ref=(kl,), nll=(1.5,), top_k=((3,),) * 5)


def linear(seed=0, bits=2):
    generator = torch.Generator().manual_seed(seed)
    trellis = torch.randint(-(1 << 15), 1 << 15, (8, 8, 16 * bits), generator=generator).to(torch.int16)
    return QuantizedLinear(trellis, torch.ones(128).half(), torch.ones(128).half(), "mul1")


def test_records_come_back(tmp_path):
    mix = Mix(name="größer", choices={"0.attn.q": "2.5"})
    write_record(tmp_path / "mix.json", mix)
    assert read_record(tmp_path / "mix.json", Mix) == mix


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"{", "whole file"),
        (b'{"name": "x"}', "choices: Field required"),
        (b'{"name": "x", "choices": {}, "more": 1}', "more: Extra"),
        (b'{"name": "x", "choices": {"a": 2}}', r"choices\.a"),
        (b'{"name": "\xff"}', "whole file|cannot be read"),
    ],
)
def test_records_that_are_none_name_file_and_field(tmp_path, content, words):
    (tmp_path / "mix.json").write_bytes(content)
    with pytest.raises(DataError, match=words) as caught:
        read_record(tmp_path / "mix.json", Mix)
    assert "mix.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_recipes_are_what_exllamav3_reads(tmp_path):
    recipe = Recipe(target_bpw=3.15, head_bits=6, tensors={"model.layers.0.mlp.up_proj": 3, "a.*": 2.5, "b": 16})
    write_recipe(tmp_path / "recipe.yaml", recipe)
    assert yaml.safe_load((tmp_path / "recipe.yaml").read_text()) == {
        "target_bpw": 3.15,
        "head_bits": 6.0,
        "tensors": {"model.layers.0.mlp.up_proj": 3, "a.*": 2.5, "b": 16},
    }
    assert read_recipe(tmp_path / "recipe.yaml") == recipe
    assert list(read_recipe(tmp_path / "recipe.yaml").tensors) == list(recipe.tensors)


@pytest.mark.parametrize("content", ["a: [", "\t", "tensors: {a: x}", "tensers: {}", "!!python/object:os.system {}"])
def test_recipes_that_are_none(tmp_path, content):
    (tmp_path / "recipe.yaml").write_text(content)
    with pytest.raises(RecipeError, match=r"recipe\.yaml") as caught:
        read_recipe(tmp_path / "recipe.yaml")
    assert "\n" not in str(caught.value)


def test_canonical_text_follows_content_alone():
    assert canonical({"b": 1, "a": ["ü"]}) == canonical({"a": ["ü"], "b": 1})
    assert canonical({"a": 1}) != canonical({"a": 2})


def test_tensors_come_back_with_their_notes(tmp_path):
    store = TensorStore(tmp_path / "hidden" / "job")
    assert not (tmp_path / "hidden").exists()
    stats = QuantStats(0.25, 0.5, True)
    store.put("model.a", 2, linear(), stats)
    store.put("model.a", 2.5, linear(1, 3), stats, rare=True)
    found = TensorStore(store.directory)
    assert ("model.a", 2.0) in found
    assert ("model.a", 3) not in found
    assert ("model.b", 2) not in found
    assert (found.note("model.a", 2.5).rare, found.note("model.a", 2).stats) == (True, stats)
    pending = {tensor.name: tensor for tensor in found.pending("model.a", 2)}
    for name, tensor in linear().tensors("model.a").items():
        assert torch.equal(pending[name].load(), tensor)
        assert pending[name].nbytes == tensor.nbytes
    found.remove()
    assert not (tmp_path / "hidden").exists()


def test_tensors_half_written_do_not_count(tmp_path):
    store = TensorStore(tmp_path)
    store.put("a", 2, linear(), QuantStats(0.25, 0.5, True))
    file = next(tmp_path.iterdir())
    file.rename(file.with_suffix(".partial"))
    assert ("a", 2) not in TensorStore(tmp_path)
    file.write_bytes(file.with_suffix(".partial").read_bytes()[:-1])
    with pytest.raises(CorruptFileError, match="damaged"):
        TensorStore(tmp_path).pending("a", 2)


def test_tensors_are_as_readable_as_any_file(tmp_path):
    (tmp_path / "other").write_text("")
    save_tensors(tmp_path / "a.safetensors", {"a": torch.ones(3)}, {"format": "pt"})
    assert (tmp_path / "a.safetensors").stat().st_mode == (tmp_path / "other").stat().st_mode
    with largest_file(1000), pytest.raises(StorageError, match="cannot be written"):
        save_tensors(tmp_path / "b.safetensors", {"a": torch.ones(3000)}, {"format": "pt"})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.safetensors", "other"]
