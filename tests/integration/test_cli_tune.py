"""The whole chain in one command: killed, taken up again, and the same as its parts by hand."""

import json
from pathlib import Path

import pytest
import yaml
from command_line import contents, exltune, fail, run_until_killed, succeed
from test_cli import HELD_OUT_TOKENS, ROW

from exltune.cli.options.quants import WIDE_BITS, WIDE_HEAD_BITS, CodebookName, quantize_options
from exltune.pipeline.tune import WIDE

SEARCH = ("--target-bpw", "3.7", "--passes", "4")
SETTINGS = ("--bits", "3,4", "--head-bits", "6", *SEARCH)


@pytest.fixture(scope="module")
def tuned(moe_model, data, tmp_path_factory):
    """A tune that was killed while it measured and taken up again: its directory and what it printed."""
    out = tmp_path_factory.mktemp("tuned")
    arguments = ("tune", moe_model, "--out", out, *SETTINGS, *data)
    run_until_killed("exltune.store.probes:ProbeStore.add", 2, *arguments)
    assert not (out / "measurement.json").exists()
    quants = contents(out / "quants")
    found = succeed(*arguments)
    assert contents(out / "quants") == quants
    return out, found


def test_the_verdict(tuned):
    out, found = tuned
    assert found.keys() == {"recipe", "model", "verdict"}
    assert (Path(found["recipe"]), Path(found["model"])) == (out / "recipe.yaml", out / "model")
    verdict = found["verdict"]
    assert {"tuned", "uniform", "difference", "difference_ci95", "source", "standings", "searched"} <= verdict.keys()
    for row in (verdict["tuned"], verdict["uniform"]):
        assert row.keys() == ROW
        assert row["tokens"] == HELD_OUT_TOKENS
    assert verdict["tuned"]["bpw"] <= 3.7
    assert verdict["uniform"]["size_bytes"] >= verdict["tuned"]["size_bytes"]
    low, high = verdict["difference_ci95"]
    assert low <= verdict["difference"] <= high
    difference = verdict["uniform"]["kl_ref_quant"] - verdict["tuned"]["kl_ref_quant"]
    assert verdict["difference"] == pytest.approx(difference, abs=1e-9)
    standings = {row["name"]: row["selection_kld"] for row in verdict["standings"]}
    # Methods that came to the same mix stand there once.
    assert {"uniform", "exllamav3-strategy"} < standings.keys()
    assert any(name.startswith("search") for name in standings)
    assert standings[verdict["source"]] == min(standings.values())
    assert verdict["searched"] == verdict["source"].startswith("search")


def test_it_is_the_chain_of_its_parts(tuned, moe_model, quants, data, tmp_path):
    out, found = tuned
    for bits in (3, 4):
        assert contents(out / "quants" / f"{bits}bpw_H6") == contents(quants / f"{bits}bpw_H6")
    measure = ("measure", moe_model, "--quants", out / "quants", "--out", tmp_path / "measurement.json", *data)
    succeed(*measure)
    optimize = ("optimize", tmp_path / "measurement.json", *SEARCH, "--out", tmp_path / "recipe.yaml")
    standings = succeed(*optimize)["search"]["standings"]
    succeed("build", tmp_path / "recipe.yaml", "--quants", out / "quants", "--out", tmp_path / "model")
    assert standings == found["verdict"]["standings"]
    # A database holds the times of its trials.
    made, tuned_parts = (
        {
            name: sha256
            for name, sha256 in contents(folder).items()
            if name.startswith(("measurement", "recipe", "model")) and not name.endswith(".db")
        }
        for folder in (tmp_path, out)
    )
    assert made == tuned_parts
    rows = succeed("evaluate", moe_model, out / "model", *data)["rows"]
    assert rows[0] | {"name": "tuned"} == found["verdict"]["tuned"]


def test_done_again_it_only_reports(tuned, moe_model, data):
    out, found = tuned
    before = contents(out)
    assert succeed("tune", moe_model, "--out", out, *SETTINGS, *data) == found
    shown = exltune("tune", moe_model, "--out", out, *SETTINGS, *data).stdout
    for word in ("3bpw_H6", "4bpw_H6", "tuned", "KL(ref‖quant)", "95 % interval", str(out / "model")):
        assert word in shown
    assert contents(out) == before


def test_it_goes_on_with_nothing_else(tuned, moe_model, quants, data):
    out, _ = tuned
    before = contents(out)
    tune = ("tune", moe_model, "--out", out)
    other = (
        (*tune, "--bits", "3,4", "--target-bpw", "3.6", *data),
        (*tune, "--bits", "2,3,4", "--target-bpw", "3.7", *data),
        (*tune, *SETTINGS, "-l2", *data),
        (*tune, *SETTINGS, *data, "--seed", "1"),
        ("tune", quants / "3bpw_H6", "--out", out, *SETTINGS, *data),
    )
    for arguments in other:
        outcome = exltune(*arguments)
        assert (outcome.code, "another tune was begun here" in outcome.stderr) == (8, True)
    assert contents(out) == before


def test_a_foreign_directory_is_left_alone(moe_model, data, tmp_path):
    (tmp_path / "tune.json").write_text(json.dumps({"another": "tool"}))
    outcome = exltune("tune", moe_model, "--out", tmp_path, *SETTINGS, *data)
    assert (outcome.code, "tune.json" in outcome.stderr) == (7, True)
    assert contents(tmp_path).keys() == {"tune.json"}


def test_hardware_as_the_budget(moe_model, data, tmp_path):
    budget = ("--gpus", "16GiB", "--size", "300KB", "--context", "256", "--cache", "4,4")
    wide = ("--bits", "3,4", "--passes", "4")
    succeed("tune", moe_model, "--out", tmp_path / "t", *budget, *wide, *data)
    assert {path.name for path in (tmp_path / "t" / "quants").iterdir() if path.is_dir()} == {"3bpw_H5", "4bpw_H6"}
    recipe = yaml.safe_load((tmp_path / "t" / "recipe.yaml").read_text())["exltune"]
    assert (recipe["budget"]["binding"], recipe["cache"], recipe["budget"]["context"]) == ("size", "4,4", 256)
    verdict = json.loads((tmp_path / "t" / "verdict.json").read_text())
    assert verdict["tuned"]["size_bytes"] <= 300_000
    rows = json.loads((tmp_path / "t" / "evaluation.json").read_text())["rows"]
    tuned, served = rows[-2:]
    assert (tuned["name"], served["name"], served["path"]) == ("tuned", "tuned, cache 4,4", None)
    assert served["kl_ref_quant"] != tuned["kl_ref_quant"]
    # In the same bytes, with its own options: another budget is another tune.
    assert exltune("tune", moe_model, "--out", tmp_path / "t", *budget[:-1], "8,8", *wide, *data).code == 8


@pytest.mark.parametrize(
    ("budget", "code", "word"),
    [((), 2, "no budget"), (("--vram", "1MiB"), 4, "--vram"), (("--vram", "16GiB", "--cache", "auto"), 2, "--context")],
)
def test_budgets_that_cannot_be(moe_model, data, tmp_path, budget, code, word):
    fail(code, word, here=tmp_path, arguments=("tune", moe_model, "--out", tmp_path / "t", *budget, *data))


def test_the_command_line_begins_with_what_the_demo_does():
    assert quantize_options(WIDE_BITS, WIDE_HEAD_BITS, CodebookName.MUL1) == WIDE
