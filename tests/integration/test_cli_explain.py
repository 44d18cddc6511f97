"""`exltune explain` on recipes of a search, foreign recipes and bad input."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import matplotlib.image
import pytest
import yaml
from command_line import exltune, fail, succeed

from exltune.report.palette import bit_colour

ROOT = Path(__file__).resolve().parents[2]
MODEL, MEASUREMENT = ROOT / "models/glm4moe", ROOT / "measurements/glm4moe.json"
OTHER_MEASUREMENT = ROOT / "measurements/qwen3moe.json"
SCORED = {"search_kld": 0.2, "search_kld_se": 0.011, "selection_kld": 0.21, "selection_kld_se": 0.012}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe with further sizes, found on the measurement that comes with exltune without its base quants."""
    folder = tmp_path_factory.mktemp("recipes")
    measured = json.loads(MEASUREMENT.read_text(encoding="utf-8"))
    absent = {choice: str(folder / "absent" / choice) for choice in measured["exltune"]["quants"]}
    measured["exltune"]["quants"] = absent
    (folder / "m.json").write_text(json.dumps(measured), encoding="utf-8")
    out = folder / "recipe.yaml"
    succeed("optimize", folder / "m.json", "--target-bpw", 3, "--front", "2.5,4", "--out", out, "--model", MODEL)
    return out


def _changed(recipe: Path, out: Path, **changes: Any) -> Path:
    content = yaml.safe_load(recipe.read_text(encoding="utf-8")) | changes
    out.write_text(yaml.safe_dump({key: value for key, value in content.items() if value is not None}))
    return out


def _foreign(recipe: Path, folder: Path) -> Path:
    """The recipe as exllamav3 would have it."""
    return _changed(recipe, folder / "foreign.yaml", exltune=None)


def _row(shown: str, *cells: str) -> bool:
    """Whether a row of some table has these cells in this order."""
    return re.search(".*".join(map(re.escape, cells)), shown) is not None


def test_json_has_what_the_terminal_shows(recipe: Path) -> None:
    arguments = ("explain", recipe, "--model", MODEL, "--measurement", MEASUREMENT)
    found, outcome = succeed(*arguments), exltune(*arguments)
    assert outcome.code == 0
    shown = outcome.stdout
    content = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    bits = {group["id"]: group["bits"] for group in found["groups"]}
    units = {unit["id"]: unit["members"] for unit in json.loads(MEASUREMENT.read_text())["exltune"]["groups"]}
    assert [part for part in bits if part.startswith("1.")] == [part for part in units if part.startswith("1.")]
    chosen = {member: bits[unit] for unit, members in units.items() for member in members}
    assert chosen == {name: float(choice) for name, choice in content["exltune"]["choices"].items() if name != "head"}
    for layer in range(4):
        assert _row(shown, f"{layer}│", *(f"{width:g}" for name, width in bits.items() if name.startswith(f"{layer}.")))
    for step in found["bought"][:12]:
        change = f"{step['from_bits']:g} -> {step['to_bits']:g}"
        # A swap that the law estimates has no rows, and so no paired error.
        error = "" if step["kld_se_nats"] is None else f" ± {step['kld_se_nats']:.4f}"
        assert _row(shown, step["id"], change, f"{step['kld_nats']:.4f}{error}")
    for step in found["upgrades"][:12]:
        assert step["missing_bytes"] > 0
        assert _row(shown, step["id"], f"{step['from_bits']:g} -> {step['to_bits']:g}", f"{step['kld_nats']:.4f}")
    rule = found["rule"]
    assert rule["changes"]
    assert rule["name"] in shown
    assert all(_row(shown, change["role"], f"{change['bits_there']:g}") for change in rule["changes"])
    assert found["predictions"][0]["name"] == content["exltune"]["source"]
    assert all(_row(shown, one["name"], f"{one['predicted_kld']:.4f}") for one in found["predictions"])
    assert [point["target_bpw"] for point in found["front"]] == [2.5, 3, 4]
    assert all(_row(shown, f"{point['bpw']:.3f}", f"{point['predicted_kld']:.4f}") for point in found["front"])
    assert all(note in shown for note in found["notes"])
    assert f"{found['achieved_bpw']:.3f} bpw" in shown


def test_measured_beside_predicted(recipe: Path, tmp_path: Path) -> None:
    block = yaml.safe_load(recipe.read_text(encoding="utf-8"))["exltune"]
    rows = [row | SCORED for row in block["search"]["standings"]]
    rows[1].pop("selection_kld")
    scored = _changed(recipe, tmp_path / "r.yaml", exltune=block | {"search": block["search"] | {"standings": rows}})
    found = succeed("explain", scored, "--model", MODEL)
    first, second = found["predictions"][:2]
    assert (first["measured_kld"], first["measured_kld_se"], first["measured_on"]) == (0.21, 0.012, "selection")
    assert (second["measured_kld"], second["measured_kld_se"], second["measured_on"]) == (0.2, 0.011, "search")
    assert found["rule"]["judged_by"] == "selection"
    shown = exltune("explain", scored, "--model", MODEL).stdout
    assert _row(shown, first["name"], "0.2100 ± 0.0120", f"{first['predicted_kld'] / 0.21:.2f}", "selection")


def test_png(recipe: Path, tmp_path: Path) -> None:
    found = succeed("explain", recipe, "--model", MODEL, "--png", tmp_path / "new" / "map.png")
    picture = (matplotlib.image.imread(tmp_path / "new" / "map.png")[..., :3] * 255).round().astype(int)
    seen = {tuple(colour) for colour in picture.reshape(-1, 3).tolist()}
    widths = {group["bits"] for group in found["groups"]}
    assert len(widths) > 2
    assert {width for width in (1, 1.5, 2, 2.5, 3, 3.5, 4, 5, 6, 7, 8) if bit_colour(width) in seen} == widths


def test_a_recipe_without_our_block_needs_a_model(recipe: Path, tmp_path: Path) -> None:
    foreign = _foreign(recipe, tmp_path)
    fail(5, "foreign.yaml", "no exltune block", "--model", here=tmp_path, arguments=("explain", foreign))
    found = succeed("explain", foreign, "--model", MODEL / "config.json")
    assert found["groups"] == succeed("explain", recipe, "--model", MODEL)["groups"]
    assert (found["source"], found["rule"], found["predictions"]) == (None, None, [])
    found = succeed("explain", foreign, "--model", MODEL, "--measurement", MEASUREMENT)
    assert found["rule"]["judged_by"] == "predicted"
    assert found["bought"]
    assert found["upgrades"]


def test_a_recipe_with_our_block_needs_nothing(recipe: Path, tmp_path: Path) -> None:
    block = yaml.safe_load(recipe.read_text(encoding="utf-8"))["exltune"]
    block["provenance"]["model_path"] = str(tmp_path / "gone")
    moved = _changed(recipe, tmp_path / "moved.yaml", exltune=block)
    found = succeed("explain", moved)
    bits = {group["id"]: group["bits"] for group in succeed("explain", recipe, "--model", MODEL)["groups"]}
    assert {group["id"]: group["bits"] for group in found["groups"]} == bits
    assert (found["architecture"], found["left_bytes"], found["rule"]) == (None, None, None)
    assert any("`model`" in note for note in found["notes"])
    assert succeed("explain", moved, "--measurement", MEASUREMENT)["bought"]


def test_a_split_pair_has_columns_of_its_own_and_a_note(recipe: Path, tmp_path: Path) -> None:
    tensors = yaml.safe_load(recipe.read_text(encoding="utf-8"))["tensors"]
    first = "model.layers.0.self_attn.v_proj"
    split = _changed(recipe, tmp_path / "split.yaml", tensors=tensors | {first: 8 if tensors[first] < 8 else 2})
    found = succeed("explain", split, "--model", MODEL, "--measurement", MEASUREMENT)
    roles = {group["role"] for group in found["groups"]}
    assert {"attn.k", "attn.v", "shared.gate_up"} <= roles
    assert "attn.kv" not in roles
    assert [note for note in found["notes"] if "Two widths within attn.kv of layer 0:" in note]
    # It was measured as one, so that what this one bought is unknown.
    assert "0.attn.kv" not in {step["id"] for step in found["bought"]}
    assert "--keep-fused" in exltune("explain", split, "--model", MODEL).stdout
    plain = succeed("explain", recipe, "--model", MODEL)
    assert "attn.kv" in {group["role"] for group in plain["groups"]}
    assert not any("Two widths" in note for note in plain["notes"])


def test_bad_input(recipe: Path, tmp_path: Path) -> None:
    ours, foreign = (recipe, "--model", MODEL), (_foreign(recipe, tmp_path), "--model", MODEL)
    other = ROOT / "models/qwen3moe"
    (tmp_path / "map.png").write_bytes(b"mine")
    (tmp_path / "own.yaml").write_text("name: hq-like\ndescription: x\nrules: [{source: x, bits: 3}]")
    cases: tuple[tuple[tuple[object, ...], int, tuple[str, ...]], ...] = (
        ((*ours, "--measurement", OTHER_MEASUREMENT), 6, ("qwen3moe.json", "another model")),
        ((*foreign, "--measurement", OTHER_MEASUREMENT), 6, ("qwen3moe.json", "another model")),
        ((*ours, "--measurement", tmp_path / "none.json"), 7, ("none.json",)),
        ((recipe, "--model", other), 5, ("matches no quantizable linear", "Qwen3Moe")),
        ((recipe, "--model", tmp_path), 10, ("config.json",)),
        ((*ours, "--png", tmp_path / "map.png"), 8, ("map.png", "--force")),
        ((*ours, "--png", tmp_path), 8, ("directory",)),
        ((*ours, "--png", tmp_path / "map.png" / "x.png"), 15, ("map.png",)),
        ((*ours, "--rules", tmp_path / "own.yaml"), 2, ("own.yaml", "hq-like")),
        ((tmp_path / "none.yaml",), 5, ("none.yaml",)),
    )
    for arguments, code, words in cases:
        fail(code, *words, here=tmp_path, arguments=("explain", *arguments))
    succeed("explain", *ours, "--png", tmp_path / "map.png", "--force")
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")
