"""`exltune data` on a small real MoE model: what it shows, what it writes, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from chat_models import chats, write_chat_tokenizer, write_jsonl
from command_line import exltune, fail, succeed
from safetensors.numpy import save_file

from exltune.corpora import ModelTokenizer
from exltune.corpora.dealing import data_options_of, token_sets
from exltune.engines.base import LayerCapture
from exltune.pipeline.texts.inspect import expert_use, probe_keys
from exltune.schema.tokens import Split

MODEL = Path(__file__).resolve().parents[2] / "models" / "qwen3moe"
SHORT = ("--rows", "32", "--row-length", "64")


@pytest.fixture(scope="module")
def talk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_jsonl(tmp_path_factory.mktemp("talk") / "talk.jsonl", chats(80))


def test_tokens_by_set_and_domain(talk: Path) -> None:
    options = ("--data", f"chat={talk}", "--data", "bundled", "--weights", "chat=6", "--samples", "60", *SHORT)
    found = succeed("data", "inspect", MODEL, *options, "--no-experts")
    sets = token_sets(
        data_options_of([f"chat={talk}", "bundled"], rows=32, row_length=64, weights={"chat": 6}, samples=60), MODEL
    )
    for info in found["sets"]:
        split = Split(info["split"])
        assert info["sha256"] == sets[split].info.sha256
        for domain in found["domains"]:
            rows = sets[split].domains.count(domain["domain"])
            assert domain["rows"][split] == rows
            assert domain["tokens"][split] == rows * 64
    chat = next(domain for domain in found["domains"] if domain["domain"] == "chat")
    assert (chat["samples"], chat["weight"], chat["rows"]["held_out"]) == (60, 6.0, 6)
    assert found["experts"] is None


def test_experts_see_the_tokens_that_transformers_routes_to_them(talk: Path) -> None:
    from transformers import AutoModelForCausalLM

    options = ("--data", talk, *SHORT, "--minimum", "150")
    found = succeed("data", "inspect", MODEL, *options)["experts"]
    tokens = token_sets(data_options_of([talk], rows=32, row_length=64), MODEL)[Split.CALIBRATION].ids
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    with torch.no_grad():
        logits = model(torch.from_numpy(tokens), output_router_logits=True).router_logits
    assert len(found["layers"]) == len(logits) == 4
    for layer, scores in zip(found["layers"], logits, strict=True):
        chosen = scores.topk(2, dim=-1).indices
        expected = torch.bincount(chosen.flatten(), minlength=8).tolist()
        # A token on the border between two experts may go either way in another order of summing.
        assert np.abs(np.subtract(list(layer["tokens"].values()), expected)).max() <= 2
        assert sum(layer["tokens"].values()) == 2 * tokens.size
        assert layer["rare"] == [name for name, count in layer["tokens"].items() if count < 150]
    assert any(layer["rare"] for layer in found["layers"])


def test_the_rows_that_rare_experts_would_need() -> None:
    settings = data_options_of([], rows=80, row_length=64)
    captures = [
        LayerCapture(2, {}, {"model.layers.2.mlp.experts.0": 500, "model.layers.2.mlp.experts.1": 25}),
        LayerCapture(3, {}, {"model.layers.3.mlp.experts.0": 100, "model.layers.3.mlp.experts.1": 0}),
    ]
    use = expert_use(captures, 100, settings)
    assert [layer.rare for layer in use.layers] == [
        ("model.layers.2.mlp.experts.1",),
        ("model.layers.3.mlp.experts.1",),
    ]
    # 25 of 100 tokens came with 80 rows; the one that saw nothing tells nothing.
    assert (use.unseen, use.rows_needed) == (1, 320)
    assert expert_use(captures[:1], 25, settings).rows_needed == 80


def test_one_cheap_linear_of_every_sparse_layer_is_captured(moe_model: Path) -> None:
    from exltune.inventory import load_inventory

    inventory = load_inventory(moe_model)
    keys = probe_keys(inventory)
    specs = {spec.key: spec for spec in inventory.linears}
    assert [specs[key].layer for key in keys] == [1]
    assert not any("experts." in key.replace("shared_experts.", "") for key in keys)


def test_the_tables_name_rare_experts_and_dense_models_have_none(talk: Path, moe_model: Path, data: list[str]) -> None:
    outcome = exltune("data", "inspect", MODEL, "--data", talk, *SHORT, "--minimum", "150")
    assert outcome.code == 0
    assert "talk" in outcome.stdout
    assert "experts see fewer than 150 tokens: with about --rows" in outcome.stdout
    dense = succeed("data", "inspect", MODEL.with_name("qwen3"), "--data", talk, *SHORT)
    assert dense["experts"] is None
    assert succeed("data", "inspect", moe_model, *data)["experts"]["layers"][0]["layer"] == 1


def test_a_set_written_to_a_file_is_data_again(talk: Path, tmp_path: Path) -> None:
    out = tmp_path / "cal.safetensors"
    options = ("--data", talk, *SHORT)
    found = succeed("data", "export", MODEL, "--set", "held_out", "--out", out, *options)
    sets = token_sets(data_options_of([talk], rows=32, row_length=64), MODEL)
    assert found["sha256"] == sets[Split.HELD_OUT].info.sha256
    tokenizer = ModelTokenizer(MODEL)
    from exltune.corpora.packed import packed_samples

    again = [list(sample.encode(tokenizer)) for sample in packed_samples(out, "cal", tokenizer)]
    assert again == sets[Split.HELD_OUT].ids.tolist()
    fail(8, str(out), "--force", here=tmp_path, arguments=("data", "export", MODEL, "--out", out, *options))
    assert succeed("data", "export", MODEL, "--out", out, "--force", *options)["split"] == "calibration"
    fail(
        2,
        "no set 'test'",
        "held_out",
        here=tmp_path,
        arguments=("data", "export", MODEL, "--out", out, "--set", "test"),
    )


def test_results_are_of_the_rows_that_inspect_shows(moe_model: Path, quants: Path, tmp_path: Path) -> None:
    rows = [{"text": row["messages"][1]["content"]} for row in chats(60)]
    options = ("--data", f"own={write_jsonl(tmp_path / 'own.jsonl', rows)}", "--data", "bundled", "--weights", "own=9")
    options += ("--samples", "40", "--sample-tokens", "100", "--rows", "32", "--row-length", "32")
    found = succeed("evaluate", moe_model, quants / "2bpw_H6", *options)
    shown = succeed("data", "inspect", moe_model, *options, "--no-experts")
    assert found["provenance"]["tokens_sha256"] == shown["sets"][3]["sha256"]
    assert shown["sets"][3]["domains"]["own"] == 7  # 9 of 15 parts of 12 rows


def test_bad_data_has_one_message_and_its_exit_code(talk: Path, tmp_path: Path) -> None:
    def refuse(code: int, *words: str, data: object, more: tuple[object, ...] = ()) -> None:
        arguments = ("data", "inspect", MODEL, "--data", data, *SHORT, *more)
        fail(code, *words, here=tmp_path, arguments=arguments)

    bad = write_jsonl(tmp_path / "bad.jsonl", [*chats(3), '{"messages": ['])
    refuse(7, f"{bad}, line 4", "is not JSON", data=bad)
    refuse(7, "no domain 'code'", "talk", data=talk, more=("--weights", "code=2"))
    for weights, words in (("talk=0", "is 0"), ("talk=-2", "is -2"), ("talk=x", "not a number"), ("talk", "no domain")):
        refuse(2, words, data=talk, more=("--weights", weights))
    refuse(7, "tokens", "4000 rows of 64 tokens needed", data=talk, more=("--rows", "4000"))
    few = write_jsonl(tmp_path / "few.jsonl", [{"text": "few words"}])
    refuse(7, "domain 'math' gives none", data=talk, more=("--data", f"math={few}"))
    other = write_chat_tokenizer(tmp_path / "other", "glm")
    packed = tmp_path / "packed.safetensors"
    succeed("data", "export", MODEL, "--data", talk, *SHORT, "--out", packed)
    arguments = ("data", "export", other, "--data", f"x={packed}", *SHORT, "--out", tmp_path / "y.safetensors")
    fail(7, str(packed), "another tokenizer", here=tmp_path, arguments=arguments)
    save_file({"input_ids": np.full((4, 64), 4000)}, packed)
    refuse(7, f"{packed}, row 1", "4000", "tokenizer has 1024", data=packed)
    packed.write_bytes(packed.read_bytes()[:-100])
    refuse(13, str(packed), "damaged", data=packed)
    chats_only = write_chat_tokenizer(tmp_path / "base", None)
    arguments = ("data", "export", chats_only, "--data", talk, *SHORT, "--out", tmp_path / "z.safetensors")
    fail(7, "no chat template", "chat_template.jinja", here=tmp_path, arguments=arguments)
