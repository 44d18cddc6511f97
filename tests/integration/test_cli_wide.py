"""Head and KV cache as part of the search, on a real model: measured, traded against the weights, and built."""

import json
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from command_line import exltune, fail, run_until_killed, succeed
from laws import memory_for
from real_models import LLAMA, write_model

from exltune.budget import model_profile
from exltune.schema.hardware import CacheBits, Use
from exltune.store.database import Database
from exltune.store.probe_exchange import stored_probes
from exltune.store.probes import content_key

CONTEXT = 64


@pytest.fixture(scope="module")
def llama(data, tmp_path_factory):
    """A model of one layer, its base quants with heads of three widths, and the measurement."""
    folder = tmp_path_factory.mktemp("wide")
    model = write_model(folder / "model", "Llama", LLAMA)
    succeed("quantize", model, "--out", folder / "quants", "--bits", "2,3,4", "--head-bits", "3,4,6", *data)
    succeed("measure", model, "--quants", folder / "quants", "--out", folder / "m.json", *data)
    return folder


def vram_for(model: Path, bpw: float) -> str:
    """Memory that holds weights of so many bpw with a 6-bit head and a 4-bit cache, and nothing more."""
    profile = model_profile(json.loads((model / "config.json").read_text()), "mul1", str(model))
    return f"{memory_for(profile, bpw, Use(context=CONTEXT, cache=CacheBits(k=4, v=4)))}B"


def test_open_head_and_cache_are_chosen_and_built(llama, tmp_path):
    out = tmp_path / "recipe.yaml"
    wide = ("--cache", "auto", "--head-bits", "auto")
    memory = ("--vram", vram_for(llama / "model", 3.2), "--context", CONTEXT, "--passes", "4")
    found = succeed("optimize", llama / "m.json", *memory, *wide, "--out", out)
    recipe = yaml.safe_load(out.read_text())
    made = recipe["exltune"]
    k, v = (int(bits) for bits in found["cache"].split(","))
    assert {k, v} <= set(range(2, 9))
    assert (made["choices"]["cache.k"], made["choices"]["cache.v"]) == (str(k), str(v))
    assert found["head_bits"] == recipe["head_bits"] == {"2": 3, "3": 4, "4": 6}[made["head_choice"]]
    assert found["budget"]["binding"] == "vram"
    built = succeed("build", out, "--quants", llama / "quants", "--out", tmp_path / "mix")
    assert built["size_bytes"] == found["size_bytes"]
    assert built["bpw"] == pytest.approx(found["achieved_bpw"])
    assert built["head_bpw"] == pytest.approx(recipe["head_bits"], abs=0.3)
    shown = exltune("optimize", llama / "m.json", *memory, *wide, "--out", out, "--force")
    assert f"cache {k},{v}" in shown.stdout


def test_the_measurement_holds_head_and_cache(llama):
    wider = {unit["id"]: unit["probes"] for unit in yaml.safe_load((llama / "m.json").read_text())["exltune"]["wider"]}
    assert [probe["bits"] for probe in wider["head"]] == [3, 4, 6]
    for key in ("cache.k", "cache.v"):
        assert [probe["bits"] for probe in wider[key]] == [2, 3, 4, 5, 6, 7, 8]
        klds = [probe["kld_nats"] for probe in wider[key]]
        assert all(low > high for low, high in pairwise(klds[:5]))


def test_a_kill_in_the_midst_of_a_search_loses_one_batch_at_most(llama, tmp_path):
    out = tmp_path / "recipe.yaml"
    arguments = ("optimize", llama / "m.json", "--target-bpw", "3.2", "--passes", "6", "--out", out)
    # Baselines, the first optimum and the first rung are kept; the kill is on the way to keep the second rung.
    run_until_killed("exltune.store.probes:ProbeStore.add", 4, *arguments)
    assert not out.exists()
    kept = _scored(out)
    assert kept
    succeed(*arguments)
    after = _scored(out)
    assert kept < after
    # Nothing is scored again on rows that it has.
    seen = [(name, row) for name, rows in after for row in rows]
    assert len(seen) == len(set(seen))


def _scored(out: Path) -> set[tuple[str, tuple[str, ...]]]:
    """Every stored mix with the rows that it was scored on."""
    probes = stored_probes(Database(out.with_name("scores.db")))
    return {(content_key(probe.mix), probe.rows) for probe in probes}


def test_what_cannot_be_asked(llama, tmp_path):
    optimize = ("optimize", llama / "m.json", "--out", tmp_path / "r.yaml")
    target = ("--target-bpw", "3.2")
    fail(2, "--context", here=tmp_path, arguments=(*optimize, *target, "--vram", "64GiB", "--cache", "auto"))
    fail(2, "--vram or --gpus", here=tmp_path, arguments=(*optimize, *target, "--context", "64", "--cache", "auto"))
    fail(2, "no budget", "--target-bpw", here=tmp_path, arguments=optimize)
    fail(2, "5 bits", "3, 4, 6", here=tmp_path, arguments=(*optimize, *target, "--head-bits", "5"))
    fail(2, "annealing", "tpe", here=tmp_path, arguments=(*optimize, *target, "--sampler", "annealing"))
    fail(2, "names no storage", here=tmp_path, arguments=(*optimize, *target, "--storage", "search.db"))
    where = f"sqlite:///{tmp_path}/absent/search.db"
    fail(15, "cannot", where, here=tmp_path, arguments=(*optimize, *target, "--storage", where))
    fail(4, "--vram", here=tmp_path, arguments=(*optimize, "--vram", "1MiB", "--context", "64"))
