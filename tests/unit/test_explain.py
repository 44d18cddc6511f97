"""What a recipe's bits bought, by hand-made numbers, and how it is drawn."""

from __future__ import annotations

import io
import json
from itertools import combinations
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
from scipy.stats import sem

from exltune.budget import SizeModel
from exltune.inventory import groups_at_level, inventory_from_config
from exltune.report.explanation_png import explanation_png
from exltune.report.heat_map import cells, folded, heat_map, layer_ranges
from exltune.report.palette import bit_colour
from exltune.schema.explain import Explanation, GroupBits, Prediction
from exltune.schema.measurement import Measurement, Probe
from exltune.schema.recipe import Recipe
from exltune.schema.search import FrontPoint
from exltune.search import load_all_rules
from exltune.search.law.gains import changes, steps_beyond, steps_taken
from exltune.search.rules.best_rule import best_rule

_ROOT = Path(__file__).parents[2]
_WIDTHS = (1, 1.5, 2, 2.5, 3, 3.5, 4, 5, 6, 7, 8, 16)
_MIB = 1 << 20


@pytest.fixture(scope="module")
def measured() -> Measurement:
    """The measurement of the small MoE that comes with exltune."""
    return Measurement.model_validate_json((_ROOT / "measurements/glm4moe.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def sizes() -> SizeModel:
    """Sizes of that model."""
    config = json.loads((_ROOT / "models/glm4moe/config.json").read_text(encoding="utf-8"))
    return SizeModel(inventory_from_config(config), "mul1")


def _bits(sizes: SizeModel, **named: float) -> dict[str, float]:
    special = {name.replace("_", ".", 2).removeprefix("g"): bits for name, bits in named.items()}
    return {group.id: special.get(group.id, 2.0) for group in sizes.inventory.groups}


def _probe(measured: Measurement, unit: str, width: float) -> Probe:
    units = {one.id: one for one in measured.exltune.groups}
    return next(probe for probe in units[unit].probes if probe.bits == width)


def test_what_was_bought(measured: Measurement, sizes: SizeModel) -> None:
    bits = _bits(sizes, g0_attn_o=4, g1_experts_down=3)
    found = steps_taken(measured, bits, sizes)
    assert {step.id for step in found} == {"0.attn.o", "1.experts.down"}
    assert found[0].kld_per_mib >= found[1].kld_per_mib
    for step in found:
        low, high = _probe(measured, step.id, 2), _probe(measured, step.id, bits[step.id])
        assert (step.from_bits, step.to_bits) == (2, bits[step.id])
        assert step.kld_nats == low.kld_nats - high.kld_nats
        assert step.size_bytes == high.size_bytes - low.size_bytes
        assert step.kld_per_mib == pytest.approx(step.kld_nats / (step.size_bytes / _MIB))
    scored = {step.id: step for step in found if step.kld_se_nats is not None}
    # The swap to 3 bits was not scored: the law tells it.
    assert scored.keys() == {"0.attn.o"}
    low, high = (_probe(measured, "0.attn.o", width) for width in (2, 4))
    difference = np.subtract(low.kld_rows, high.kld_rows)
    assert scored["0.attn.o"].kld_se_nats == pytest.approx(sem(difference))
    # The law that estimates both holds near what their rows say.
    assert np.mean(difference) == pytest.approx(scored["0.attn.o"].kld_nats, rel=0.05)
    # Without a model the measurement's own sizes say the same.
    assert steps_taken(measured, bits, None) == found


def test_upgrades_that_did_not_fit(measured: Measurement, sizes: SizeModel) -> None:
    bits = _bits(sizes, g0_attn_o=8, g0_attn_q=7)
    step = sizes.group_bytes("1.attn.q", 3) - sizes.group_bytes("1.attn.q", 2)
    found = {one.id: one for one in steps_beyond(measured, bits, sizes, step)}
    # At the top, at a width that was not measured, and small enough to fit.
    assert not {"0.attn.o", "0.attn.q", "1.attn.q"} & found.keys()
    down = found["1.experts.down"]
    assert (down.from_bits, down.to_bits) == (2, 2.5)
    assert down.missing_bytes == down.size_bytes - step > 0
    assert [one.kld_per_mib for one in found.values()] == sorted((o.kld_per_mib for o in found.values()), reverse=True)
    assert len(steps_beyond(measured, bits, sizes, 0)) > len(found)


def test_a_measurement_over_its_lowest_quant(measured: Measurement, sizes: SizeModel) -> None:
    groups = [
        unit.model_copy(update={"probes": tuple(probe for probe in unit.probes if probe.bits > 2)})
        for unit in measured.exltune.groups
    ]
    detail = measured.exltune.model_copy(update={"base": "2", "groups": tuple(groups)})
    found = steps_taken(measured.model_copy(update={"exltune": detail}), _bits(sizes, g0_attn_o=4), sizes)
    (step,) = found
    probe = next(probe for unit in groups if unit.id == "0.attn.o" for probe in unit.probes if probe.bits == 4)
    assert (step.from_bits, step.kld_se_nats) == (2, None)
    assert step.kld_nats == measured.base_kld - probe.kld_nats


def test_changes_between_mixes(sizes: SizeModel) -> None:
    here, there = _bits(sizes, g0_attn_o=4), _bits(sizes, g0_mlp_down=3)
    found = {
        change.id: (change.bits_there, change.bits_here, change.size_bytes) for change in changes(here, there, sizes)
    }
    assert found == {
        "0.attn.o": (2, 4, sizes.group_bytes("0.attn.o", 4) - sizes.group_bytes("0.attn.o", 2)),
        "0.mlp.down": (3, 2, sizes.group_bytes("0.mlp.down", 2) - sizes.group_bytes("0.mlp.down", 3)),
    }


def test_a_pair_that_changes_alike_is_one_change(sizes: SizeModel) -> None:
    alike, apart = _bits(sizes, g0_attn_k=4, g0_attn_v=4), _bits(sizes, g0_attn_v=4)
    (change,) = changes(alike, _bits(sizes), sizes)
    added = sum(sizes.group_bytes(f"0.attn.{half}", 4) - sizes.group_bytes(f"0.attn.{half}", 2) for half in "kv")
    assert (change.id, change.role, change.bits_there, change.bits_here) == ("0.attn.kv", "attn.kv", 2, 4)
    assert change.size_bytes == added
    assert [one.id for one in changes(apart, _bits(sizes), sizes)] == ["0.attn.v"]
    # Here they agree and there they do not.
    assert [one.id for one in changes(alike, apart, sizes)] == ["0.attn.k"]


def _recipe_of_search(choices: dict[str, str], measured: Measurement, standings: list[dict[str, Any]]) -> Recipe:
    rows = [{"choices": choices, "size_bytes": 1, "bpw": 3.0, **row} for row in standings]
    search = {"outcome": "search-law", "searched": True, "passes": 1.0, "rounds": [], "standings": rows}
    block = {"source": "search-law", "choices": choices, "size_bytes": 1, "head_choice": "2", "search": search}
    provenance = measured.exltune.provenance.model_dump()
    return Recipe.model_validate({"tensors": {}, "exltune": {**block, "provenance": provenance}})


def test_the_best_rule_is_judged_by_the_freshest_rows(measured: Measurement, sizes: SizeModel) -> None:
    bits = _bits(sizes, g0_attn_o=4)
    there = {name: f"{width:g}" for name, width in _bits(sizes, g0_mlp_down=3).items()}
    rows = [
        {"name": "search-law", "predicted_kld": 0.3, "search_kld": 0.2, "selection_kld": 0.25},
        {"name": "hq-like", "predicted_kld": 0.1, "search_kld": 0.3, "selection_kld": 0.4},
        {"name": "early-blocks", "predicted_kld": 0.5, "search_kld": 0.4, "selection_kld": 0.3, "choices": there},
        {"name": "uniform", "predicted_kld": 0.0, "search_kld": 0.0, "selection_kld": 0.0},
    ]
    choices = {name: f"{width:g}" for name, width in bits.items()}
    found = best_rule(bits, _recipe_of_search(choices, measured, rows), load_all_rules(), sizes, None)
    assert found is not None
    assert (found.name, found.judged_by, found.kld_there, found.kld_here) == ("early-blocks", "selection", 0.3, 0.25)
    assert {change.id for change in found.changes} == {"0.attn.o", "0.mlp.down"}
    assert found.bytes_added == sizes.group_bytes("0.attn.o", 4) - sizes.group_bytes("0.attn.o", 2)
    assert found.bytes_saved == sizes.group_bytes("0.mlp.down", 3) - sizes.group_bytes("0.mlp.down", 2)
    unscored = [{key: row[key] for key in row if "_kld" not in key or key == "predicted_kld"} for row in rows]
    found = best_rule(bits, _recipe_of_search(choices, measured, unscored), load_all_rules(), sizes, None)
    assert found is not None
    assert (found.name, found.judged_by, found.kld_here) == ("hq-like", "predicted", 0.3)


def test_without_a_search_the_measurement_predicts_the_best_rule(measured: Measurement, sizes: SizeModel) -> None:
    bits = _bits(sizes, g0_attn_o=4, g1_experts_down=3, g2_experts_down=3)
    recipe = Recipe(tensors={})
    found = best_rule(bits, recipe, load_all_rules(), sizes, measured)
    assert found is not None
    assert found.judged_by == "predicted"
    parts = {part.id: part.members for level in (3, 4) for part in groups_at_level(sizes.inventory, level)}
    there = bits | {member: change.bits_there for change in found.changes for member in parts[change.id]}
    used = sum(sizes.group_bytes(group, width) for group, width in there.items())
    budget = sum(sizes.group_bytes(group, width) for group, width in bits.items())
    assert budget - 16 * 1024 < used <= budget
    others = [best_rule(bits, recipe, [rules], sizes, measured) for rules in load_all_rules()]
    assert found.kld_there == min(one.kld_there for one in others if one and one.kld_there is not None)
    assert best_rule(bits, recipe, load_all_rules(), None, measured) is None
    assert best_rule(bits, recipe, load_all_rules(), sizes, None) is None


def _cell(layer: int, role: str, bits: float) -> GroupBits:
    return GroupBits(id=f"{layer}.{role}", role=role, layer=layer, bits=bits, size_bytes=None)


def _explanation(*groups: GroupBits, **changed: Any) -> Explanation:
    empty: dict[str, Any] = dict.fromkeys(Explanation.model_fields) | {"recipe": "r.yaml", "groups": groups}
    lists = ("widths", "bought", "upgrades", "predictions", "front", "notes")
    return Explanation.model_validate(empty | dict.fromkeys(lists, ()) | changed)


def test_layers_with_the_same_bits_share_a_row() -> None:
    downs = [_cell(layer, "experts.down", 3 if layer < 2 or layer == 90 else 2) for layer in range(92)]
    roles, rows = heat_map([_cell(0, "mlp.down", 4), _cell(0, "attn.q", 5), *downs])
    assert roles == ("attn.q", "mlp.down", "experts.down")
    assert [layers for layers, _ in folded(rows)] == ["0", "1", "2-89", "90", "91"]
    assert rows[0] == (5, 4, 3)
    assert rows[1] == (None, None, 3)
    assert layer_ranges([7, 0, 1, 2, None, 5]) == "0-2, 5, 7"


def test_pairs_are_a_column_until_something_tells_them_apart() -> None:
    groups = [
        _cell(layer, f"attn.{name}", 3).model_copy(update={"size_bytes": 5}) for layer in (0, 1) for name in "qkv"
    ]
    together = cells(groups)
    assert [cell.id for cell in together] == ["0.attn.q", "0.attn.kv", "1.attn.q", "1.attn.kv"]
    assert [cell.size_bytes for cell in together] == [5, 10, 5, 10]
    assert heat_map(together)[0] == ("attn.q", "attn.kv")
    # One layer that tells them apart does for all, and so does a measurement.
    split = [*groups[:-1], groups[-1].model_copy(update={"bits": 4.0})]
    assert cells(split) == tuple(split)
    assert cells(groups, {group.id for group in groups}) == tuple(groups)
    assert cells(groups, {"0.attn.q"}) == together
    assert heat_map(cells(split)) == (("attn.q", "attn.k", "attn.v"), {0: (3, 3, 3), 1: (3, 3, 4)})


def test_every_width_has_a_colour_of_its_own() -> None:
    for one, other in combinations(_WIDTHS, 2):
        assert max(abs(a - b) for a, b in zip(bit_colour(one), bit_colour(other), strict=True)) > 20


def _colours(png: bytes) -> dict[tuple[int, int, int], int]:
    """Pixels of every colour."""
    picture = (matplotlib.image.imread(io.BytesIO(png))[..., :3] * 255).round().astype(int)
    found, counts = np.unique(picture.reshape(-1, 3), axis=0, return_counts=True)
    return {(r, g, b): int(count) for (r, g, b), count in zip(found.tolist(), counts.tolist(), strict=True)}


def test_the_picture_has_each_width_in_its_colour_and_area() -> None:
    bits = [2, 3, 3, 6, 6, 6]
    colours = _colours(explanation_png(_explanation(*(_cell(layer, "attn.q", k) for layer, k in enumerate(bits)))))
    areas = {width: colours.get(bit_colour(width), 0) for width in _WIDTHS}
    assert {width for width, area in areas.items() if area > 500} == {2, 3, 6}
    assert areas[3] / areas[2] == pytest.approx(2, rel=0.1)
    assert areas[6] / areas[2] == pytest.approx(3, rel=0.1)


def test_front_and_predictions_are_drawn_where_they_are_known() -> None:
    cell = _cell(0, "attn.q", 3)
    front = [
        FrontPoint(
            target_bpw=t, bpw=t, size_bytes=1, winner="a", selection_kld=1 / t, selection_kld_se=0.01, predicted_kld=0.3
        )
        for t in (2.5, 3.0)
    ]
    mixes = [
        Prediction(name=n, predicted_kld=0.1, measured_kld=0.2, measured_kld_se=0.01, measured_on="search")
        for n in ("a", "b")
    ]
    shapes = [
        matplotlib.image.imread(io.BytesIO(explanation_png(_explanation(cell, **changed)))).shape[:2]
        for changed in ({}, {"front": front[:1]}, {"front": front}, {"front": front, "predictions": mixes})
    ]
    assert shapes[0] == shapes[1]
    assert shapes[2][1] > shapes[0][1]
    assert shapes[3][0] > shapes[2][0]


@pytest.mark.slow
def test_many_layers_make_a_picture_that_can_be_looked_at() -> None:
    png = explanation_png(_explanation(*(_cell(layer, "attn.q", 3) for layer in range(92))))
    height, width = matplotlib.image.imread(io.BytesIO(png)).shape[:2]
    assert height < 2000
    assert _colours(png)[bit_colour(3)] > 0.1 * height * width
