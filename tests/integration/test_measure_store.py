"""Measurements that reuse what others have scored, within bounded memory; `exltune measurements`."""

import json
import os
import shutil

import pytest
from command_line import exltune, fail, succeed
from safetensors.torch import load_file, save_file


@pytest.fixture
def store(measurement, tmp_path):
    """A copy of the store beside the session's measurement."""
    return shutil.copy(measurement.with_name("scores.db"), tmp_path / "shared.db")


def measured(moe_model, quants, data, out, *more):
    return succeed("measure", moe_model, "--quants", quants, "--out", out, "--budget", "all", *data, *more)


def counts(outcome):
    return outcome["probes"]["reused"], outcome["probes"]["scored"]


def test_the_same_again_scores_nothing(moe_model, quants, data, measurement, store, tmp_path):
    found = measured(moe_model, quants, data, tmp_path / "m.json", "--store", store)
    assert (counts(found), found["probes"]["state_bytes"]) == ((54, 0), 0)
    assert (tmp_path / "m.json").read_bytes() == measurement.read_bytes()
    # What was given with --store is the only one.
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.json", "shared.db"]


def test_another_level_and_fewer_quants_reuse_what_they_share(moe_model, quants, data, store, tmp_path):
    found = measured(moe_model, quants, data, tmp_path / "l2.json", "-l2", "--store", store)
    reused, scored = counts(found)
    # Uniform mixes, head and cache are the same at every level; parts of one group too.
    assert reused >= 3 + 1 + 14
    assert scored > 0
    (tmp_path / "some").mkdir()
    for bits in "23":
        os.symlink(quants / f"{bits}bpw_H6", tmp_path / "some" / f"{bits}bpw_H6")
    some = measured(moe_model, tmp_path / "some", data, tmp_path / "some.json", "--store", store)
    assert counts(some) == (54 - 13, 0)
    fresh = measured(moe_model, tmp_path / "some", data, tmp_path / "fresh.json", "--store", tmp_path / "fresh.db")
    assert counts(fresh) == (0, 54 - 13)
    assert (tmp_path / "some.json").read_bytes() == (tmp_path / "fresh.json").read_bytes()


def test_one_changed_group_is_scored_anew_and_no_other(moe_model, quants, data, measurement, store, tmp_path):
    changed = tmp_path / "quants"
    shutil.copytree(quants, changed)
    file = changed / "2bpw_H6" / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.0.self_attn.o_proj.trellis"][0, 0, 0] ^= 1
    save_file(tensors, file, metadata={"format": "pt"})
    found = measured(moe_model, changed, data, tmp_path / "m.json", "--store", store)
    # The uniform mix of 2 bits, and that group at 2 bits.
    assert counts(found) == (52, 2)
    old, new = (json.loads(path.read_text())["exltune"]["groups"] for path in (measurement, tmp_path / "m.json"))
    differing = [(a["id"], p["choice"]) for a, b in zip(old, new, strict=True) for p, q in _pairs(a, b) if p != q]
    assert differing == [("0.attn.o", "2")]


def _pairs(a, b):
    return zip(a["probes"], b["probes"], strict=True)


def test_memory_bounds_states_and_changes_no_score(moe_model, quants, data, measurement, tmp_path):
    roomy = 16 * 4 * 32 * 128
    out = tmp_path / "m.json"
    found = measured(moe_model, quants, data, out, "--max-ram", f"{roomy}B")
    assert 0 < found["probes"]["state_bytes"] <= roomy
    # Rows in smaller batches: the last bits may differ.
    old, new = (json.loads(path.read_text())["exltune"]["groups"] for path in (measurement, out))
    for a, b in zip(old, new, strict=True):
        for p, q in _pairs(a, b):
            assert p["kld_rows"] == pytest.approx(q["kld_rows"], rel=1e-4, abs=1e-8)
    arguments = ("measure", moe_model, "--quants", quants, "--out", tmp_path / "n.json", "--store", tmp_path / "n.db")
    least = 3 * 4 * 32 * 128
    fail(
        2,
        f"at least {least} bytes",
        "--max-ram 48KiB",
        here=tmp_path,
        arguments=(*arguments, *data, "--max-ram", "1KiB"),
    )
    fail(2, "--max-ram", "no unit", here=tmp_path, arguments=(*arguments, *data, "--max-ram", "8"))


def test_stores_that_are_none(moe_model, quants, data, tmp_path):
    (tmp_path / "scores.db").write_text("no database, but long enough to be one" * 30)
    arguments = ("measure", moe_model, "--quants", quants, "--out", tmp_path / "m.json", *data)
    fail(7, "scores.db", "damaged", "move the file away", here=tmp_path, arguments=arguments)
    fail(2, "is not a probe store", here=tmp_path, arguments=(*arguments, "--store", "oracle://x"))
    for command in (("list",), ("show", "x"), ("export", "--out", tmp_path / "e.csv")):
        name, *rest = command
        arguments = ("measurements", name, tmp_path / "none.db", *rest)
        fail(7, "there is no probe store", here=tmp_path, arguments=arguments)


def test_list_and_show(measurement, store):
    (found,) = succeed("measurements", "list", store)["sets"]
    assert (found["mixes"], found["rows"], found["row_length"]) == (54, 8, 32)
    assert found["choices"] == ["2", "3", "4", "5", "6", "7", "8"]
    assert found["context"]["architecture"] == "Glm4MoeForCausalLM"
    groups = json.loads(measurement.read_text())["exltune"]["groups"]
    group = groups[0]
    shown = succeed("measurements", "show", measurement.parent, group["id"])["probes"]
    assert [probe["name"] for probe in shown] == [f"{group['id']}@{choice}" for choice in "234"]
    for probe, expected in zip(shown, group["probes"], strict=True):
        assert (probe["kld_nats"], probe["kld_se_nats"]) == (expected["kld_nats"], expected["kld_se_nats"])
        low, high = probe["ci95"]
        assert low < probe["kld_nats"] < high
    (uniform,) = succeed("measurements", "show", store, "uniform@3")["probes"]
    assert uniform["swaps"].keys() == {member for one in groups for member in one["members"]} | {"head"}
    people = exltune("measurements", "show", store, "uniform@3").stdout
    assert "uniform@3" in people
    assert "54" in exltune("measurements", "list", store).stdout


def test_names_that_are_not_there_and_files_without_a_form(store, tmp_path):
    arguments = ("measurements", "show", store, "uniform@9")
    fail(2, "no probe is called 'uniform@9'", "uniform@4", here=tmp_path, arguments=arguments)
    fail(2, "e.txt", "e.csv", here=tmp_path, arguments=("measurements", "export", store, "--out", tmp_path / "e.txt"))


def test_export_and_merge(store, tmp_path):
    for name in ("e.csv", "e.jsonl"):
        assert succeed("measurements", "export", store, "--out", tmp_path / name)["probes"] == 54
    fail(8, "e.csv", here=tmp_path, arguments=("measurements", "export", store, "--out", tmp_path / "e.csv"))
    merged = succeed("measurements", "merge", tmp_path / "all.db", tmp_path / "e.csv")
    assert (merged["added"], merged["known"]) == (54, 0)
    merged = succeed("measurements", "merge", tmp_path / "all.db", store, tmp_path / "e.jsonl")
    assert (merged["added"], merged["known"]) == (0, 108)
    exported = ("measurements", "export", tmp_path / "all.db", "--out", tmp_path / "again.jsonl")
    succeed(*exported)
    assert (tmp_path / "again.jsonl").read_bytes() == (tmp_path / "e.jsonl").read_bytes()
    lines = [json.loads(line) for line in (tmp_path / "e.jsonl").read_text().splitlines()]
    lines[5]["score"]["nll"][2] += 1
    (tmp_path / "other.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    conflict = ("measurements", "merge", tmp_path / "all.db", tmp_path / "other.jsonl")
    fail(7, repr(lines[5]["mix"]["name"]), "different numbers", here=tmp_path, arguments=conflict)


def test_hours_are_timed_once_and_the_plan_stays(moe_model, quants, data, tmp_path, monkeypatch):
    """A busier machine or a kill must not make another plan of the same command."""
    seconds = iter([3600 / 25, 3600 / 50])
    timed = "exltune.pipeline.measurement.measure.seconds_per_pass"
    monkeypatch.setattr(timed, lambda engine, tokens: next(seconds))
    store = tmp_path / "shared.db"

    def asked(out, hours):
        budget = ("--budget", hours, "--store", store)
        return counts(succeed("measure", moe_model, "--quants", quants, "--out", tmp_path / out, *budget, *data))

    scored = asked("first.json", "1h")[1]
    assert 0 < scored < 54
    assert asked("again.json", "1h") == (scored, 0)
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "first.json").read_bytes()
    # Other hours are another question, and are timed anew.
    assert sum(asked("longer.json", "2h")) > scored
