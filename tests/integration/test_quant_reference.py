"""A quant as the reference, where the unquantized model is not at hand: measured, searched and judged, never mixed."""

import json
import shutil

import pytest
import yaml
from command_line import exltune, fail, succeed

ALL = ("--budget", "all")
AGAINST = "The reference is 4bpw_H6, an EXL3 quant of 4.27 bpw, not the unquantized model"


@pytest.fixture(scope="module")
def reference(quants):
    """The quant with the most bits."""
    return quants / "4bpw_H6"


@pytest.fixture(scope="module")
def measured(reference, quants, data, tmp_path_factory):
    """A measurement against it, all base quants but itself swapped in."""
    out = tmp_path_factory.mktemp("against") / "measurement.json"
    outcome = exltune("measure", reference, "--quants", quants, "--out", out, *ALL, *data)
    assert outcome.code == 0, outcome.stderr
    assert AGAINST in " ".join(outcome.stderr.split())
    assert "4bpw_H6 is the reference itself" in outcome.stderr
    return out


@pytest.fixture(scope="module")
def recipe(measured, tmp_path_factory):
    """What optimize made of it, and what it said."""
    out = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    outcome = exltune("optimize", measured, "--target-bpw", "3.6", "--passes", "2", "--out", out)
    assert outcome.code == 0, outcome.stderr
    return out, outcome.stdout


def probes(file):
    detail = json.loads(file.read_text())["exltune"]
    return [probe for unit in (*detail["groups"], *detail["wider"]) for probe in unit["probes"]]


def test_its_own_swaps_are_zero_by_definition_and_not_scored(measured, measurement):
    detail = json.loads(measured.read_text())["exltune"]
    assert detail["provenance"]["reference"]["name"] == "4bpw_H6"
    assert detail["provenance"]["reference"]["bits"] == 4
    for unit in detail["groups"]:
        own = [probe["choice"] for probe in unit["probes"] if probe["of_reference"]]
        assert own == ["4"]
    for probe in probes(measured):
        if probe["of_reference"]:
            assert (probe["kld_nats"], probe["kld_rows"], probe["estimated"]) == (0.0, [], False)
        else:
            assert probe["kld_nats"] > 0
    assert [row["kl_ref_quant"] is None for row in detail["mixes"]] == [False, False, True]
    assert not any(probe["of_reference"] for probe in probes(measurement))


def test_its_heads_are_those_of_the_others_byte_for_byte(measured):
    """Base quants with equal head bits have equal heads: no swap at all."""
    (head,) = (unit for unit in json.loads(measured.read_text())["exltune"]["wider"] if unit["id"] == "head")
    assert [probe["of_reference"] for probe in head["probes"]] == [True]


def test_a_tenth_estimates_around_it(reference, quants, data, measured, tmp_path):
    out = tmp_path / "few.json"
    found = succeed("measure", reference, "--quants", quants, "--out", out, "--budget", "23", *data)
    assert found["probes"]["reused"] == 0
    truth, estimates = probes(measured), probes(out)
    assert any(probe["estimated"] for probe in estimates)
    for true, guess in zip(truth, estimates, strict=True):
        assert guess["of_reference"] == true["of_reference"]
        if true["of_reference"]:
            assert (guess["kld_nats"], guess["estimated"]) == (0.0, False)
        else:
            low, high = guess["kld_ci95_nats"]
            assert 0 < low < guess["kld_nats"] < high


def test_the_search_and_its_recipe_say_so(recipe, quants, tmp_path):
    file, told = recipe
    assert AGAINST in told
    assert yaml.safe_load(file.read_text())["exltune"]["provenance"]["reference"]["name"] == "4bpw_H6"
    succeed("build", file, "--quants", quants, "--out", tmp_path / "built")
    assert AGAINST in succeed("explain", file)["notes"]


def test_a_trade_says_so(measured):
    arguments = ("tradeoff", measured, "--vram", "8GiB", "--contexts", "256", "--caches", "fp16")
    assert AGAINST in exltune(*arguments).stdout
    assert succeed(*arguments)["reference"]["name"] == "4bpw_H6"


def test_the_report_says_so_and_leaves_the_zeros_out(measured, tmp_path):
    content = succeed("report", measured, "--out", tmp_path / "report.html")["content"]
    assert AGAINST in content["notes"]
    assert content["widths"] == ["2", "3"]
    assert all(probe["bits"] < 4 for group in content["groups"] for probe in group["probes"])
    assert AGAINST in (tmp_path / "report.html").read_text()


def test_an_evaluation_names_it_and_marks_its_own_row(reference, quants, data, tmp_path):
    out = tmp_path / "evaluation.json"
    shown = exltune("evaluate", reference, quants / "3bpw_H6", reference, "--out", out, *data)
    assert shown.code == 0, shown.stderr
    words = " ".join(shown.stdout.split())
    assert AGAINST in words
    assert "0 by definition" in words
    rows = json.loads(out.read_text())["rows"]
    assert [row["is_reference"] for row in rows] == [False, True]
    assert (rows[1]["kl_ref_quant"], rows[0]["kl_ref_quant"] > 0) == (0.0, True)


def test_a_card_says_so(reference, quants, data, moe_model, tmp_path):
    file, plain = tmp_path / "evaluation.json", tmp_path / "plain.json"
    succeed("evaluate", reference, quants / "3bpw_H6", reference, "--out", file, *data)
    named = ("--base-model", "zai-org/GLM-4.7", "--license", "mit")
    arguments = ("card", quants / "3bpw_H6", reference, *named, "--evaluation", file)
    page = tmp_path / "page" / "README.md"
    succeed(*arguments, "--out", page)
    text = page.read_text()
    assert "the reference (ref) is 4bpw_H6, an EXL3 quant of 4.27 bpw, **not** the unquantized model" in text
    assert "| the reference | the reference |" in text
    assert "0.0000" not in text
    assert "- Reference, 4bpw_H6: sha256" in text
    succeed("evaluate", moe_model, quants / "2bpw_H6", "--out", plain, *data)
    both = (*arguments, "--evaluation", plain, "--out", tmp_path / "both" / "README.md")
    fail(6, "a quant of 4.27 bpw", str(moe_model), "against one reference", here=tmp_path, arguments=both)


def test_a_gate_says_so_and_refuses_the_reference_as_a_side(reference, quants, data, tmp_path):
    sides = (quants / "3bpw_H6", "--against", quants / "2bpw_H6", "--reference", reference, "--tolerance", "60%")
    shown = exltune("compare", *sides, *data, "--out", tmp_path / "gate.json")
    assert shown.code == 0, shown.stderr
    assert AGAINST in shown.stdout
    own = ("compare", reference, "--against", quants / "3bpw_H6", "--reference", reference, "--tolerance", "60%", *data)
    fail(17, "the candidate is the reference itself", "0 by definition", here=tmp_path, arguments=own)


def test_gates_against_other_references_are_refused_by_name(reference, moe_model, quants, data, tmp_path):
    file = tmp_path / "gate.json"
    sides = (quants / "3bpw_H6", "--against", quants / "2bpw_H6", "--tolerance", "60%", *data)
    succeed("compare", *sides, "--reference", reference, "--out", file)
    mixed = ("compare", file, "--against", quants / "2bpw_H6", "--reference", moe_model, "--tolerance", "60%", *data)
    fail(17, "against another reference, the 4.27 bpw quant", here=tmp_path, arguments=mixed)


def test_a_search_against_another_reference_is_refused_by_name(measured, measurement, reference, moe_model, tmp_path):
    more = ("--target-bpw", "3.6", "--out", tmp_path / "recipe.yaml")
    quant_to_plain = ("optimize", measured, "--model", moe_model, *more)
    fail(6, "is against the 4.27 bpw quant", "the unquantized model", here=tmp_path, arguments=quant_to_plain)
    plain_to_quant = ("optimize", measurement, "--model", reference, *more)
    fail(6, "is against the unquantized model", "the 4.27 bpw quant", here=tmp_path, arguments=plain_to_quant)


def test_probes_are_kept_apart_in_one_store(measured, measurement, tmp_path):
    both = shutil.copy(measurement.with_name("scores.db"), tmp_path / "both.db")
    merged = succeed("measurements", "merge", both, measured.parent)
    assert merged["known"] == 0
    sets = succeed("measurements", "list", both)["sets"]
    assert [found["context"]["reference"] and found["context"]["reference"]["name"] for found in sets] == [
        None,
        "4bpw_H6",
    ]
    assert "against 4bpw_H6" in exltune("measurements", "list", both).stdout
    for suffix in ("csv", "jsonl"):
        file, fresh = tmp_path / f"probes.{suffix}", tmp_path / f"{suffix}.db"
        succeed("measurements", "export", both, "--out", file)
        succeed("measurements", "merge", fresh, file)
        assert succeed("measurements", "list", fresh)["sets"] == sets


def test_the_reference_has_the_most_bits(quants, data, tmp_path):
    coarse = ("measure", quants / "3bpw_H6", "--quants", quants, "--out", tmp_path / "m.json", *data)
    fail(6, "4bpw_H6", "it has 4 bits, more than the reference", "of 3", here=tmp_path, arguments=coarse)
    alone = tmp_path / "quants"
    shutil.copytree(quants / "4bpw_H6", alone / "copied")
    itself = ("measure", quants / "4bpw_H6", "--quants", alone, "--out", tmp_path / "m.json", *data)
    fail(6, "copied", "it is the reference itself", "fewer bits", here=tmp_path, arguments=itself)


@pytest.mark.parametrize("command", ["quantize", "tune", "peers"])
def test_making_quants_needs_the_weights(reference, quants, data, tmp_path, command):
    more = {"quantize": (), "tune": ("--target-bpw", "3"), "peers": ("--quants", quants)}[command]
    arguments = (command, reference, "--out", tmp_path / "out", *more, *data)
    fail(10, "before they were quantized", "take a quant as the reference", here=tmp_path, arguments=arguments)
