"""Peers beside EXL3 on the command line: bytes, what they are scored on, and what is refused."""

import json
from pathlib import Path

import pytest
import torch
from command_line import exltune, fail, succeed
from safetensors.torch import load_file, save_file

from exltune.corpora.dealing import data_options_of, ids, token_sets
from exltune.engines.base import open_engine
from exltune.evaluation import whole
from exltune.evaluation.peers import round_to_nearest
from exltune.metrics import mean_and_se
from exltune.schema.tokens import Split


@pytest.fixture(scope="module")
def compared(moe_model, quants, data, tmp_path_factory):
    """A comparison with two group sizes: its file and what it printed."""
    file = tmp_path_factory.mktemp("peers") / "compare.json"
    return file, succeed("peers", moe_model, "--quants", quants, "--groups", "32,128", *data, "--out", file)


def test_peers_and_what_exl3_does_in_their_bytes(compared, moe_model, quants, data):
    file, found = compared
    assert json.loads(file.read_text()) == found
    paths = [quants / f"{bits}bpw_H6" for bits in (2, 3, 4)]
    vocab = json.loads((moe_model / "config.json").read_text())["vocab_size"]
    assert found["base"] == succeed("evaluate", moe_model, *paths, *data)["rows"]
    assert [(peer["method"], peer["group"]) for peer in found["peers"]] == [
        (method, group) for group in (32, 128) for method in ("RTN", "AWQ")
    ]
    for peer in found["peers"]:
        assert peer["row"]["head_bpw"] == 16
        assert [match["head_kept"] for match in peer["matches"]] == [False, True]
        for match in peer["matches"]:
            assert match["row"]["size_bytes"] <= peer["row"]["size_bytes"]
            gain = peer["row"]["kl_ref_quant"] - match["row"]["kl_ref_quant"]
            assert match["difference"]["mean"] == pytest.approx(gain, abs=1e-9)
        kept = peer["matches"][1]
        assert kept["choices"]["head"] == "16"
        # As exllamav3 counts: stored bytes over weights that are padded to 128.
        assert kept["row"]["head_bpw"] == pytest.approx(16 * vocab / (-(-vocab // 128) * 128))
    nearest, awq = found["peers"][:2]
    assert nearest["row"]["size_bytes"] == awq["row"]["size_bytes"]
    assert nearest["mean_alpha"] is None
    assert 0 <= awq["mean_alpha"] < 1


def test_the_peer_is_the_rounded_model(compared, moe_model, data, tmp_path):
    """transformers' own weights, rounded by hand and given to the engine as another model's mix."""
    _, found = compared
    tensors = load_file(moe_model / "model.safetensors")
    kept = ("embed", "norm", "lm_head", "mlp.gate.")
    rounded = {
        name: tensor.float() if any(word in name for word in kept) else round_to_nearest(tensor.float(), 128)
        for name, tensor in tensors.items()
        if tensor.ndim == 2
    }
    path = tmp_path / "rounded"
    path.mkdir()
    save_file(rounded, path / "model.safetensors")
    config = json.loads((moe_model / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "exltune-simulated"}
    (path / "config.json").write_text(json.dumps(config))
    texts = [Path(word) for word in data[1:] if word.endswith(".txt")]
    settings = data_options_of(texts, rows=32, row_length=32)
    engine = open_engine("reference", moe_model, {"peer": path})
    tokens = ids(token_sets(settings, moe_model)[Split.HELD_OUT])
    (score,) = engine.score([whole(engine.inventory, "peer")], tokens)
    row = next(peer["row"] for peer in found["peers"] if (peer["method"], peer["group"]) == ("RTN", 128))
    assert mean_and_se(score.kl_ref_mix, score.positions).mean == pytest.approx(row["kl_ref_quant"], rel=1e-5)
    assert row["kl_ref_quant"] > 0
    assert torch.is_tensor(rounded["lm_head.weight"])


def test_the_table_names_every_quant_and_the_command(compared, moe_model, quants, data):
    _, found = compared
    shown = exltune("peers", moe_model, "--quants", quants, "--groups", "128", *data).stdout
    for word in ("2bpw_H6", "RTN W4A16 g128", "AWQ W4A16 g128", "head 16", "paired by row", "Made by: exltune peers"):
        assert word in shown
    assert found["command"].startswith(f"exltune peers {moe_model} --quants {quants} --groups 32,128")


def test_bad_input(moe_model, quants, data, tmp_path):
    compare = ("peers", moe_model, "--quants", quants, *data)
    fail(2, "--groups", "0,32", here=tmp_path, arguments=(*compare, "--groups", "0,32"))
    fail(2, "--groups", here=tmp_path, arguments=(*compare, "--groups", "32.5"))
    fail(2, "--groups 'inf' holds", here=tmp_path, arguments=(*compare, "--groups", "inf"))
    (tmp_path / "there.json").write_text("")
    fail(8, "there.json", here=tmp_path, arguments=(*compare, "--out", tmp_path / "there.json"))
    fail(6, "no base quants", here=tmp_path, arguments=("peers", moe_model, "--quants", moe_model, *data))
    other = (*data[:2], *data[3:])
    fail(17, "other texts", "--trust-data", here=tmp_path, arguments=("peers", moe_model, "--quants", quants, *other))
