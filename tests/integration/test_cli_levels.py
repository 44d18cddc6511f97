"""Levels and budgets of `exltune measure` on the command line, through to a recipe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from command_line import fail, succeed


def measured(out: Path) -> dict[str, Any]:
    """Ours of a measurement file."""
    detail: dict[str, Any] = json.loads(out.read_text())["exltune"]
    return detail


@pytest.mark.parametrize(("level", "first"), [("l0", "0"), ("l1", "0.attn"), ("l4", "0.attn.q")])
def test_every_level_gives_a_recipe(
    moe_model: Path, quants: Path, data: list[str], tmp_path: Path, level: str, first: str
) -> None:
    out = tmp_path / "m.json"
    succeed("measure", moe_model, "--quants", quants, f"-{level}", "--out", out, *data)
    detail = measured(out)
    assert (f"l{detail['level']}", detail["groups"][0]["id"]) == (level, first)
    found = succeed("optimize", out, "--target-bpw", "3.15", "--passes", 2, "--out", tmp_path / "r.yaml")
    assert found["achieved_bpw"] <= 3.15
    succeed("explain", tmp_path / "r.yaml")
    # Salience is looked at for single tensors alone; an expert's tokens are those that really reach it.
    groups = {one["group"] for one in detail["tensors"]}
    assert groups == ({group["id"] for group in detail["groups"]} if level == "l4" else set())
    experts = [one for one in detail["tensors"] if one["group"] == "1.experts.down"]
    tokens = [one["tokens"] for one in experts]
    if level == "l4":
        assert {"0.attn.k", "0.attn.v", "0.mlp.gate", "1.experts.gate_up"} <= {
            group["id"] for group in detail["groups"]
        }
        whole = ("--keep-fused", "--passes", 0, "--out", tmp_path / "whole.yaml")
        succeed("optimize", out, "--target-bpw", "3.15", *whole)
        choices = yaml.safe_load((tmp_path / "whole.yaml").read_text())["exltune"]["choices"]
        assert all(choices[key] == choices[key[:-1] + "v"] for key in choices if key.endswith("attn.k"))
        assert len(experts) == 4
        assert sum(tokens) == 2 * 8 * 32
        assert all(one["saliency"] > 0 for one in detail["tensors"] if one["tokens"] != 0)


def test_without_a_budget_most_swaps_are_estimates_with_intervals(
    moe_model: Path, quants: Path, data: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "m.json"
    succeed("measure", moe_model, "--quants", quants, "--out", out, *data)
    detail = measured(out)
    probes = [probe for group in (*detail["groups"], *detail["wider"]) for probe in group["probes"]]
    assert all(probe["estimated"] for probe in probes)
    assert all(low < p["kld_nats"] < high for p in probes for low, high in [p["kld_ci95_nats"]])
    assert detail["law"]["swaps"] == sum(bool(probe["kld_rows"]) for probe in probes) < len(probes) / 2
    # Everything at once tells the same, and takes what was scored.
    succeed("measure", moe_model, "--quants", quants, "--budget", "all", "--force", "--out", out, *data)
    everything = measured(out)
    assert everything["law"] is None
    assert not any(probe["estimated"] for group in everything["groups"] for probe in group["probes"])


def test_hours_are_turned_into_passes(moe_model: Path, quants: Path, data: list[str], tmp_path: Path) -> None:
    out = tmp_path / "m.json"
    succeed("measure", moe_model, "--quants", quants, "-l2", "--budget", "10h", "--out", out, *data)
    assert measured(out)["law"] is None


def test_bad_budgets(moe_model: Path, quants: Path, data: list[str], tmp_path: Path) -> None:
    out = tmp_path / "m.json"
    command = ("measure", moe_model, "--quants", quants, "--out", out, *data)
    fail(2, "much", "is not a budget", "1.5h", here=tmp_path, arguments=(*command, "--budget", "much"))
    fail(2, "0.1 passes", "rows", "--budget", here=tmp_path, arguments=(*command, "--budget", "0.1"))
    assert not out.exists()
